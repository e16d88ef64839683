"""Records gradients that PyTorch computes for real models, with the weights they were published with: real.json.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 onnx==1.23.2 torch==2.15.0
    cargo xtask zoo --fetch --export
    HONE_UPDATE=1 HONE_ZOO=$PWD/target/zoo cargo test -p hone-runtime --lib scope::real_tests
    venv/bin/python record_real.py target/zoo

The weights are not in the repository: the models are those of models/zoo.toml, which `cargo xtask zoo --export` makes. The
third command writes MiniLM as hone's schemes quantise it beside it. Everything is computed in float64, on one thread, by the
walkers that record the small models (record.py, ../../train/testdata/record.py): an implementation that shares nothing with
ours but the ONNX standard.

A case is {name, model, sha256, scheme, loss, gradients}; a gradient is told by its norm and its products with tensors of
`numbers`. Where the model rounds activations it is walked a second time with them rounded as it says, gradients passing
straight through: `rounded` has that loss and those gradients, and `steady` how near they are to themselves (the smallest cosine
of five) when every weight is moved by about a millionth of itself: one code that rounds the other way turns others after it.

A gradient jumps where an activation crosses the end of a ReLU6, and in f32 some always do that f64 sees on the other side. The
pictures are chosen so that none is near: a tile of 32 × 32 numbers beside and below itself has few different activations.
"""

import hashlib
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "train/testdata"))
import record as walk  # noqa: E402

# Its neighbour of the same name.
spec = importlib.util.spec_from_file_location("beside", HERE / "record.py")
beside = importlib.util.module_from_spec(spec)
spec.loader.exec_module(beside)
# Small paths, as they are in training: what is calibrated without them still fits with them.
beside.RANK, beside.ALPHA, beside.FILL = 8, 16.0, 0.02

# Rows and word pieces of MiniLM's batch, and of the products that stand for a gradient of it.
ROWS, LENGTH, PRODUCTS = 8, 32, 8


def minilm_inputs():
    """Rows of word pieces between [CLS] and [SEP], each three shorter than the one before, padded."""
    ids = np.zeros((ROWS, LENGTH), np.int64)
    pieces = 1000 + np.floor(np.abs(walk.numbers("word pieces", ROWS * LENGTH)) * 29000).astype(np.int64)
    mask = np.zeros_like(ids)
    for row in range(ROWS):
        n = LENGTH - 3 * row
        ids[row, :n] = pieces[row * LENGTH : row * LENGTH + n]
        ids[row, 0], ids[row, n - 1] = 101, 102
        mask[row, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def entry(zoo, name, scheme=None):
    """A case without its figures, and its model."""
    folder = zoo / name
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    file = f"model.{scheme}.onnx" if scheme else "model.onnx"
    return {"name": f"{name}.{scheme}" if scheme else name, "model": name, "sha256": digest, "scheme": scheme}, onnx.load(folder / file)


def minilm(zoo, scheme=None):
    """Low-rank paths beside every projection; the loss pulls the two halves of the batch together, row by row."""
    case, model = entry(zoo, "minilm-l6", scheme)
    inputs = {k: torch.tensor(v) for k, v in minilm_inputs().items()}
    for i in model.graph.initializer:
        if i.data_type == onnx.TensorProto.FLOAT and i.dims:
            inputs[i.name] = torch.tensor(numpy_helper.to_array(i)).double()

    def gradients(rounded, given):
        params = {}
        values, layers = beside.run(model, given, params, rounded)
        assert len(layers) == 36, layers
        loss = walk.objective("Contrastive", values["sentence_embedding"], None, None)
        loss.backward()
        return float(loss.detach()), {k: p.grad for k, p in params.items()}

    def figures(loss, found):
        return {"loss": loss, "gradients": {k: walk.summary(k, g, PRODUCTS) for k, g in found.items()}}

    case |= figures(*gradients(False, inputs))
    if scheme == "int8-qdq":
        loss, found = gradients(True, inputs)
        case["rounded"] = figures(loss, found)
        case["steady"] = min(cosine(found, gradients(True, moved(inputs, seed))[1]) for seed in range(5))
    return case


def moved(inputs, seed):
    """Every float of them, by about a millionth of itself."""
    random = torch.Generator().manual_seed(seed)
    by = lambda t: t * (1 + 1e-6 * torch.randn(t.shape, generator=random, dtype=torch.float64))
    return {k: by(t) if t.is_floating_point() else t for k, t in inputs.items()}


def cosine(a, b):
    a, b = (torch.cat([g.flatten() for g in of.values()]) for of in (a, b))
    return float(a @ b / a.norm() / b.norm())


def picture(name):
    """A tile of numbers, seven times beside and below itself, [1, 3, 224, 224]."""
    return np.tile(walk.numbers(name, 3 * 32 * 32).astype(np.float32).reshape(3, 32, 32), (1, 7, 7))[None]


def clear(graph, weights, name):
    """Whether no activation of the picture is so near to the end of a ReLU6 that f32 may take it for beyond: nearer than six
    times what those of its channel are off by in f32 (root of the mean square)."""
    with torch.no_grad():
        double, single = (
            walk.run(graph, {k: t.to(d) for k, t in weights.items()} | {"image": torch.tensor(picture(name)).to(d)}, d)
            for d in (torch.float64, torch.float32)
        )
    for node in graph.node:
        if node.op_type == "Clip":
            x = double[node.input[0]]
            off = (single[node.input[0]].double() - x).square().mean(dim=(0, 2, 3), keepdim=True).sqrt()
            if (torch.minimum(x.abs(), (x - 6).abs()) <= 6 * off).any():
                return False
    return True


def efficientnet(zoo):
    """The last two blocks and what is after them, and every bias."""
    case, model = entry(zoo, "efficientnet-lite0-imagenet")
    last = ("_blocks.14.", "_blocks.15.", "_conv_head.", "_fc.")
    weights = {i.name: torch.tensor(numpy_helper.to_array(i)).double() for i in model.graph.initializer}
    tiles = []
    for name in (f"tile {i}" for i in itertools.count()):
        if clear(model.graph, weights, name):
            tiles.append(name)
            print(name, flush=True)
        if len(tiles) == 2:
            break
    leaves = {k: t.requires_grad_() for k, t in weights.items() if k.endswith(".bias") or k.startswith(last)}
    image = torch.tensor(np.concatenate([picture(name) for name in tiles])).double()
    logits = walk.run(model.graph, weights | {"image": image})["logits"]
    loss = walk.objective("Labels", logits, torch.tensor([1, 501]), None)
    loss.backward()
    gradients = {k: walk.summary(k, t.grad) for k, t in leaves.items()}
    return case | {"tiles": tiles, "loss": float(loss.detach()), "gradients": gradients}


if __name__ == "__main__":
    zoo = Path(sys.argv[1])
    cases = [minilm(zoo), *(minilm(zoo, s) for s in ("int8-weights", "int8-qdq")), efficientnet(zoo)]
    short = lambda v: float(f"{v:.9g}") if isinstance(v, float) else v
    for c in cases:
        for part in (c, c.get("rounded", {"gradients": {}})):
            part["gradients"] = {k: [short(x) for x in v] for k, v in part["gradients"].items()}
    text = json.dumps(cases, indent=1)
    # A gradient a line.
    text = re.sub(r"\[\s+([-0-9.e+,\s]+?)\s+\]", lambda m: "[" + " ".join(m[1].split()) + "]", text)
    (HERE / "real.json").write_text(text + "\n")
    print(f"{len(cases)} cases, {(HERE / 'real.json').stat().st_size} bytes")
