"""Trains, exports and measures which-digit.

    python3.11 -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/python export.py

Writes `src/`, `variants/`, `golden/` and the measured table of README.md. Trained weights
are kept in `.cache/` by a digest of everything they depend on; `--retrain` ignores them.
Worlds are written by `worlds.py` and learnt by `simulate.py`.
"""

import argparse
import hashlib
import json
import shutil

import numpy as np
import onnxruntime
import safetensors.numpy
import torch

import front
import golden
import graph
import network
import simulate
import sources

HERE = sources.HERE
SHIPPED = "attention"
FIRST_STEPS, SECOND_STEPS, VARIANT_STEPS = 1500, 400, 150
DEFAULTS = {"objective": "posterior", "lambda_thumb": 0.025, "lambda_corrections": 0.1, "epsilon": 0.1, "delta": 0.2, "iterations": 60, "momentum": 0.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--retrain", action="store_true", help="train even when the cache holds the weights")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2); another number may change the last bits")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)

    trained = {}
    for fusion in network.FUSIONS:
        trained[fusion] = trained_model(fusion, trained.get(SHIPPED), options.retrain)
        model, statistics = trained[fusion]
        folder = HERE / "variants" / fusion
        shutil.rmtree(folder, ignore_errors=True)
        write_graphs(model, folder)
        write_json(folder / "recipe.json", recipe(statistics))
    source = HERE / "src"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(HERE / "variants" / SHIPPED, source, ignore=shutil.ignore_patterns("recipe.json"))
    write_config(*trained[SHIPPED], source / "config")
    print(f"golden: {golden.write()} cases")
    simulate.replace_block(HERE / "README.md", "measured", accuracies())
    shutil.copy(HERE / "README.md", source / "config/README.md")


def trained_model(fusion, shipped, retrain):
    """(model, feature statistics) for one fusion.

    `attention` is trained in two phases: first unbounded with smoothed labels, which draws each class
    together, then bounded with hard labels. The others go on from its encoders and head (`shipped`).
    """
    sources.CACHE.mkdir(exist_ok=True)
    code = b"".join((HERE / name).read_bytes() for name in ("network.py", "sources.py", "front.py"))
    state = hashlib.sha256(code + repr((FIRST_STEPS, SECOND_STEPS, VARIANT_STEPS)).encode()).hexdigest()[:12]
    path = sources.CACHE / f"weights-{fusion}-{state}.pt"
    if path.exists() and not retrain:
        model = network.WhichDigit(fusion)
        weights, statistics = torch.load(path, weights_only=False)
        model.load_state_dict(weights)
        return model.eval(), statistics
    if fusion == SHIPPED:
        torch.manual_seed(0)
        first = network.WhichDigit(fusion, bounded=False)
        network.train(first, network.Stream(front.feature_extractor(), 3), FIRST_STEPS, peak=2e-3, smoothing=0.1)
        weights, steps = first.state_dict(), SECOND_STEPS
        # Half the slope, so that the tanh starts out nearly linear.
        for name in weights:
            weights[name] *= 0.5 if name.endswith(("dense.weight", "dense.bias")) else 1
    else:
        weights, steps = {k: v for k, v in shipped[0].state_dict().items() if not k.startswith("score.")}, VARIANT_STEPS
    torch.manual_seed(0)
    model = network.WhichDigit(fusion)
    model.load_state_dict(weights, strict=fusion == SHIPPED)
    stream = network.Stream(front.feature_extractor(), 11)
    network.train(model, stream, steps, peak=1e-3)
    statistics = network.feature_statistics(model, stream)
    torch.save((model.state_dict(), statistics), path)
    return model, statistics


def write_graphs(model, folder):
    """model.onnx (int8), model.f32.onnx and what ONNX Runtime makes of each: check/case*.npz, check.f32/case*.npz."""
    for name, int8, recorded in (("model.f32.onnx", False, "check.f32"), ("model.onnx", True, "check")):
        (folder / name).write_bytes(graph.build(model, int8).SerializeToString(deterministic=True))
        record(folder / name, folder / recorded)


def record(model, folder):
    """Runs every check input through a graph and keeps inputs and outputs."""
    folder.mkdir(parents=True)
    session = onnxruntime.InferenceSession(str(model))
    for i, inputs in enumerate(check_inputs()):
        outputs = session.run(None, inputs)
        names = [output.name for output in session.get_outputs()]
        arrays = {f"in_{name}": value for name, value in inputs.items()}
        arrays |= {f"out_{name}": value for name, value in zip(names, outputs)}
        arrays |= {f"out_{i}": value for i, value in enumerate(outputs)}
        np.savez_compressed(folder / f"case{i}.npz", **arrays)


def check_inputs():
    """Real examples: each modality alone, pairs, all three, none; batches of 1, 2 and 3."""
    inputs, _ = simulate.load("factory")["test"]
    take = {name: np.flatnonzero(inputs["present"][:, m]) for m, name in enumerate(("image", "audio", "text"))}
    for i, present in enumerate([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [1, 0, 1], [0, 0, 0]]):
        n = 1 + i % 3
        case = {name: inputs[name][rows[3 * i : 3 * i + n]] * np.array(present[m], inputs[name].dtype) for m, (name, rows) in enumerate(take.items())}
        yield case | {"present": np.tile(np.float32(present), (n, 1))}


def recipe(statistics):
    mean, std, prior = statistics
    return {
        "task": "classification",
        "feature": "feature",
        "logits": "logits",
        "mean": [round(float(x), 6) for x in mean],
        "std": [round(float(x), 6) for x in std],
        "head": {"weight": "head.weight", "bias": "head.bias"},
        "prior": [float(x) for x in prior],
        "defaults": DEFAULTS,
    }


def write_config(model, statistics, folder):
    folder.mkdir()
    labels = [str(c) for c in range(network.C)]
    write_json(
        folder / "config.json",
        {
            "architectures": ["WhichDigit"],
            "model_type": "which-digit",
            "fusion": model.fusion,
            "hidden_size": network.D,
            "num_labels": network.C,
            "id2label": dict(enumerate(labels)),
            "label2id": {label: i for i, label in enumerate(labels)},
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {"image_processor": front.IMAGE_PROCESSOR, "feature_extractor": extractor_config()},
    )
    front.tokenizer().save(str(folder / "tokenizer.json"))
    write_json(folder / "recipe.json", recipe(statistics))
    head = {f"head.{name}": value.detach().numpy() for name, value in model.head.named_parameters()}
    safetensors.numpy.save_file(head, folder / "head.safetensors")


def extractor_config():
    """What `save_pretrained` writes for the feature extractor."""
    folder = sources.CACHE / "extractor"
    front.feature_extractor().save_pretrained(folder)
    return json.loads((folder / "preprocessor_config.json").read_text())


def accuracies():
    """A Markdown table: f32 and int8 of every fusion on the factory test set, each modality and together."""
    inputs, labels = simulate.load("factory")["test"]
    sets = {name: select(inputs, labels, m) for m, name in enumerate(("image", "audio", "text"))}
    sets["all MNIST test images"] = all_mnist()
    sets["spoken, 500 clips"] = more_speech()
    sets["image + audio + text"] = together(inputs, labels)
    lines = ["| graph | " + " | ".join(f"{name} ({len(y)})" for name, (_, y) in sets.items()) + " |"]
    lines.append("|---" * (len(sets) + 1) + "|")
    for fusion in network.FUSIONS:
        for form, name in (("f32", "model.f32.onnx"), ("int8", "model.onnx")):
            session = onnxruntime.InferenceSession(str(HERE / "variants" / fusion / name))
            cells = [f"{(session.run(['logits'], x)[0].argmax(1) == y).mean():.4f}" for x, y in sets.values()]
            lines.append(f"| {fusion} {form} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    return "\n".join(lines)


def select(inputs, labels, m):
    rows = inputs["present"][:, m] > 0
    return {name: value[rows] for name, value in inputs.items()}, labels[rows]


def blank(n):
    return {
        "image": np.zeros((n, 1, 28, 28), np.float32),
        "audio": np.zeros((n, front.MELS, 100), np.float32),
        "text": np.zeros((n, front.TEXT_LENGTH), np.int64),
        "present": np.zeros((n, network.M), np.float32),
    }


def all_mnist():
    _, _, images, labels = sources.mnist()
    inputs = blank(len(labels))
    inputs["image"] = ((images[:, None].astype(np.float32) / 255) - np.float32(front.MEAN)) / np.float32(front.STD)
    inputs["present"][:, 0] = 1
    return inputs, labels


def more_speech():
    """All held-out espeak-ng voices x accents x digits, freshly recorded."""
    rng = np.random.default_rng(70)
    jobs, labels = sources.espeak_jobs(sources.espeak_variants()["factory"], sources.ACCENTS, sources.ENGLISH, 1, seed=21)
    clips = sources.speak("factory", sources.espeak, jobs)
    inputs = blank(len(labels))
    inputs["audio"] = np.stack([front.audio_tensor(sources.record(clip, rng)) for clip in clips])
    inputs["present"][:, 1] = 1
    return inputs, labels


def together(inputs, labels):
    """Rows of the factory set joined by label: an image, a recording and a text of the same digit."""
    parts = {name: select(inputs, labels, m) for m, name in enumerate(("image", "audio", "text"))}
    rows = []
    for c in range(network.C):
        each = [np.flatnonzero(y == c) for _, y in parts.values()]
        rows += [(c, *trio) for trio in zip(*each)]
    out = {name: np.stack([x[name][row[1 + m]] for row in rows]) for m, (name, (x, _)) in enumerate(parts.items())}
    return out | {"present": np.ones((len(rows), network.M), np.float32)}, np.array([row[0] for row in rows])


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
