"""Records what ONNX Runtime answers for the models of `../zoo.toml`.

    pip install -r models/zoo/requirements.txt
    cargo xtask zoo --fetch
    python models/zoo/record.py [--only NAME] [--models target/zoo] [--out models/zoo]

For each model: `OUT/NAME/case*.npz` with `in_<input name>` and `out_<i>` in the order of the model's outputs, and `meta.json`,
whose `reference_own_spread` is how far ONNX Runtime with its optimisations is from ONNX Runtime without, relative to the
largest value of the output: below that a difference says nothing.
"""

import argparse
import hashlib
import json
import pathlib
import tomllib

import numpy as np
import onnxruntime as ort

from cases import CASES

HERE = pathlib.Path(__file__).resolve().parent


def session(model, optimised):
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def spread(reference, other):
    """The largest difference relative to the largest finite value of the reference."""
    if reference.shape != other.shape:
        raise ValueError(f"optimisations change the shape of an output: {reference.shape} and {other.shape}")
    if reference.size == 0:
        return 0.0
    reference, other = reference.astype(np.float64), other.astype(np.float64)
    return float(np.abs(reference - other).max() / max(np.abs(reference).max(), 1e-30))


def record(entry, model, out):
    """Writes the cases and `meta.json` of one model; returns its line of the summary."""
    made = entry["export"]["sha256"] if "export" in entry else entry["sha256"]
    found = hashlib.sha256(model.read_bytes()).hexdigest()
    if found != made:
        raise ValueError(f"{model}: SHA-256 is {found}, zoo.toml says {made}")
    plain, optimised = session(model, False), session(model, True)
    inputs, outputs = [i.name for i in plain.get_inputs()], [o.name for o in plain.get_outputs()]
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("case*.npz"):
        old.unlink()
    largest = 0.0
    for i, case in enumerate(CASES[entry["name"]]()):
        if sorted(case) != sorted(inputs):
            raise ValueError(f"{entry['name']}: case {i} has inputs {sorted(case)}, the model {sorted(inputs)}")
        answers = plain.run(None, case)
        if any(not np.isfinite(a).all() for a in answers if a.dtype.kind == "f"):
            raise ValueError(f"{entry['name']}: case {i} answers with what is not finite")
        for reference, other in zip(answers, optimised.run(None, case), strict=True):
            largest = max(largest, spread(reference, other))
            if reference.dtype == np.float16:
                # Both compute in float32 and round alike; who computes in float16 is off by half a unit in the last place.
                largest = max(largest, 2.0**-11)
        arrays = {f"in_{name}": case[name] for name in inputs} | {f"out_{k}": a for k, a in enumerate(answers)}
        np.savez_compressed(out / f"case{i}.npz", **arrays)
    meta = {
        "name": entry["name"],
        "source": f"{entry['registry']} {entry['package']} {entry['version']}"
        + (", exported by us" if "export" in entry else ""),
        "licence": entry["licence"],
        "sha256": made,
        "inputs": inputs,
        "outputs": outputs,
        "reference": f"onnxruntime {ort.__version__} CPU, graph optimisations off, 1 thread",
        "reference_own_spread": float(f"{largest:.2g}"),
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    size = sum(f.stat().st_size for f in out.glob("case*.npz"))
    return (
        f"{entry['name']:34} {len(list(out.glob('case*.npz')))} cases {size / 1000:8.1f} kB  own spread {largest:.1e}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="the name of one model")
    parser.add_argument("--models", type=pathlib.Path, default=HERE.parents[1] / "target/zoo")
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    entries = tomllib.loads((HERE.parent / "zoo.toml").read_text())["model"]
    chosen = [e for e in entries if args.only in (None, e["name"])]
    if not chosen:
        parser.error(f"zoo.toml has no model {args.only}")
    for entry in chosen:
        model = args.models / entry["name"] / "model.onnx"
        if model.exists():
            print(record(entry, model, args.out / entry["name"]), flush=True)
        else:
            print(f"{entry['name']:34} not recorded: {model} is not there")


if __name__ == "__main__":
    main()
