"""Holds every quantised layer of an image model against ONNX Runtime, on photos: LSB apart, and whether the whole agrees.

    python -m venv venv && venv/bin/pip install -r requirements.txt scikit-image==0.26.0
    venv/bin/python layers.py MODEL.onnx HONE

MODEL is `efficientnet-lite0-imagenet` of zoo.toml (`cargo xtask zoo --fetch --export`) or another one in float that takes
`image: (N, 3, 224, 224)`, RGB, (v − 127) / 128; HONE is the program. `hone quantize` makes a file with QuantizeLinear and
DequantizeLinear of it, calibrated on other crops of the photos than those that are asked. ONNX Runtime runs that file and says
what codes are between the layers. Each layer (what lies between codes and the next codes) is then cut out and run by HONE on
the codes that ONNX Runtime had: what an earlier layer did differently does not count. Exit status 1 where a code is more than two
off, or another class is first.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from skimage import data, transform

SIDE = 224
PHOTOS = ["astronaut", "cat", "coffee", "rocket", "hubble_deep_field", "immunohistochemistry", "retina", "colorwheel"]


def picture(photo, scale, at):
    """A square of `scale` of the photo's shorter side, `at` of the way from one end to the other, as the model takes it."""
    h, w = photo.shape[:2]
    side = int(min(h, w) * scale)
    y, x = int((h - side) * at), int((w - side) * at)
    cut = transform.resize(photo[y : y + side, x : x + side, :3], (SIDE, SIDE), anti_aliasing=True, preserve_range=True)
    return ((cut - 127) / 128).astype(np.float32).transpose(2, 0, 1)[None]


def bundled():
    """The photos that the package itself has; others it would fetch."""
    for name in PHOTOS:
        try:
            yield name, getattr(data, name)()
        except Exception as e:  # noqa: BLE001: whatever kept it from being read is said
            print(f"{name} is left out: {e}")


def session(model, optimised=True):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def layers(model):
    """(codes it reads, codes it makes) of every layer; codes are results of QuantizeLinear that are not of constants."""
    graph = model.graph
    made = {o: node for node in graph.node for o in node.output}
    constants = {i.name for i in graph.initializer}
    codes = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants}
    for name in sorted(codes):
        reads, todo, seen = [], list(made[name].input), set()
        while todo:
            v = todo.pop()
            if v in seen or not v:
                continue
            seen.add(v)
            if v in codes:
                reads.append(v)
            elif v in made:
                todo.extend(made[v].input)
            elif v not in constants:
                reads = None  # The very first: it reads the picture itself.
                break
        if reads:
            yield sorted(reads), name


def hone(program, args):
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{program} {' '.join(map(str, args))}: {done.stderr}")


def main():
    path, program = sys.argv[1:]
    photos = dict(bundled())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "calib").mkdir()
        crops = [(s, at) for s in (0.6, 0.8) for at in (0.1, 0.9)]
        for i, (photo, (scale, at)) in enumerate((p, c) for p in photos.values() for c in crops):
            np.savez(folder / f"calib/case{i}.npz", in_image=picture(photo, scale, at))
        quantised = folder / "qdq.onnx"
        hone(program, ["quantize", path, "--scheme", "int8-qdq", "--calib", folder / "calib", "-o", quantised])
        model = onnx.load(quantised)
        cuts = list(layers(model))
        wanted = sorted({v for reads, name in cuts for v in [*reads, name]})
        told = onnx.ModelProto.FromString(model.SerializeToString())
        told.graph.output.extend(onnx.ValueInfoProto(name=v) for v in wanted)
        plain, telling = session(model), session(told)
        unoptimised = session(told, optimised=False)
        worst, off, total, classes = {}, 0, 0, 0
        for name, photo in photos.items():
            image = picture(photo, 1.0, 0.5)
            np.savez(folder / "in.npz", image=image)
            hone(program, ["run", quantised, "--tensors", folder / "in.npz", "-o", folder / "out.npz"])
            with np.load(folder / "out.npz") as out:
                ours = next(iter(out.values()))
            theirs = plain.run(None, {"image": image})[0]
            same = ours.argmax() == theirs.argmax()
            classes += same
            print(f"{name}: class {ours.argmax()} and {theirs.argmax()}")
            values = dict(zip(wanted, telling.run(wanted, {"image": image})))
            itself = dict(zip(wanted, unoptimised.run(wanted, {"image": image})))
            drift = max(int(np.abs(values[v].astype(int) - itself[v].astype(int)).max()) for v in wanted)
            print(f"  ONNX Runtime with and without its optimisations, whole: up to {drift} LSB apart")
            # Types of what is between are those that were seen.
            typed = onnx.ModelProto.FromString(model.SerializeToString())
            del typed.graph.value_info[:]
            for v in wanted:
                kind = onnx.helper.np_dtype_to_tensor_dtype(values[v].dtype)
                typed.graph.value_info.append(onnx.helper.make_tensor_value_info(v, kind, values[v].shape))
            extractor = onnx.utils.Extractor(typed)
            for reads, v in cuts:
                onnx.save(extractor.extract_model(reads, [v]), folder / "layer.onnx")
                np.savez(folder / "in.npz", **{r: values[r] for r in reads})
                hone(program, ["run", folder / "layer.onnx", "--tensors", folder / "in.npz", "-o", folder / "out.npz"])
                with np.load(folder / "out.npz") as out:
                    apart = np.abs(out[v].astype(int) - values[v].astype(int))
                worst[v] = max(worst.get(v, 0), int(apart.max()))
                off, total = off + int((apart > 0).sum()), total + apart.size
        counts = {n: sum(w == n for w in worst.values()) for n in sorted(set(worst.values()))}
        print(f"{len(cuts)} layers, {len(photos)} photos; the furthest code of a layer is off by (LSB: layers) {counts}")
        print(f"{off} of {total} codes are off at all; the first class is the same on {classes} of {len(photos)} photos")
        sys.exit(classes != len(photos) or max(worst.values()) > 2)


main()
