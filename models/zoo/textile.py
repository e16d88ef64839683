"""A task EfficientNet-Lite0 never saw: textile defects, learned by low-rank paths and a new head, in hone and in PyTorch.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 torch==2.15.0 pillow
    venv/bin/pip download --no-deps conformal-clip-data==0.1.4 && unzip conformal_clip_data-*.whl
    venv/bin/python textile.py --hone HONE --model MODEL.onnx --photos conformal_clip_data/data/textile_images/simulated \
        --work DIR [--seeds 1 2 3] [--epochs 10]

MODEL is `efficientnet-lite0-imagenet` of models/zoo.toml (`cargo xtask zoo` fetches it). Three classes (nominal, local, global),
20 photos each to learn from, 60 each to test on, drawn by the seed. Both sides get the same tensors in the same order, the
same first values and the same schedule. hone's result is folded into an ONNX file and tested in ONNX Runtime; PyTorch walks
the float graph with its own functions and autograd.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "runtime/src/train/testdata"))
import record as walk  # noqa: E402

CLASSES = ["global", "local", "nominal"]
LEARN, TEST, BATCH, RANK, ALPHA, RATE, WARMUP = 20, 60, 10, 8, 16.0, 1e-3, 0.05
MASK = (1 << 64) - 1


def splitmix(state):
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def drawn(seed, name, n, bound):
    """First values of a low-rank path: `scope::uniform`."""
    h = 0xCBF29CE484222325 ^ seed
    for b in name.encode():
        h = ((h ^ b) * 0x100000001B3) & MASK
    bits = splitmix(h)
    return np.array([np.float32(bound) * (np.float32(2.0) * np.float32((next(bits) >> 40) / (1 << 24)) - np.float32(1.0))
                     for _ in range(n)], np.float32)


def shuffled(n, seed, epoch):
    """Order of an epoch: `tune::shuffled`."""
    bits = splitmix((seed ^ (epoch * 0xD1342543DE82EF95)) & MASK)
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = next(bits) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order


def tensor(path):
    """As the model's own preprocessing: 224 × 224, bilinear, (v - 127) / 128."""
    image = Image.open(path).convert("RGB").resize((224, 224), Image.BILINEAR)
    return ((np.asarray(image, np.float32) - 127.0) / 128.0).transpose(2, 0, 1)[None]


def data(photos, work, seed):
    """Folders of classes for hone, and the same in memory; test samples."""
    rng = np.random.default_rng(seed)
    learn, test = [], []
    for c, name in enumerate(CLASSES):
        files = sorted((photos / name).glob("*.jpg"))
        chosen = [files[i] for i in rng.permutation(len(files))[: LEARN + TEST]]
        folder = work / "learn" / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, f in enumerate(sorted(chosen[:LEARN])):
            x = tensor(f)
            np.savez(folder / f"{i:03}.npz", image=x)
            learn.append((x, c))
        test += [(tensor(f), c) for f in chosen[LEARN:]]
    return learn, test


def layer(weight, node):
    if weight.startswith("onnx::"):
        return node.lstrip("/").rsplit("/", 1)[0].replace("/", ".")
    return weight.removesuffix(".weight")


def in_pytorch(model, learn, test, seed, epochs):
    graph = model.graph
    constants = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in graph.initializer}
    head = next(n for n in graph.node if n.output[0] == "logits")
    leaves, sides = {}, {}
    for n in graph.node:
        a = {x.name: helper.get_attribute_value(x) for x in n.attribute}
        if n.op_type == "Conv" and a.get("group", 1) == 1 and n.input[1] in constants:
            shape, name = constants[n.input[1]].shape, layer(n.input[1], n.name)
            fan = int(np.prod(shape[1:]))
            va = drawn(seed, f"{name}.lora_A", RANK * fan, 1 / np.sqrt(np.float32(fan)))
            leaves[f"{name}.lora_A"] = torch.tensor(va.reshape(RANK, *shape[1:]))
            leaves[f"{name}.lora_B"] = torch.zeros(shape[0], RANK, 1, 1)
            sides[n.output[0]] = name, a
    leaves["weight"], leaves["bias"] = torch.zeros(1280, len(CLASSES)), torch.zeros(len(CLASSES))
    for t in leaves.values():
        t.requires_grad_()
    pads = [leaves[k] for k in leaves if k != "bias"]
    optimizer = torch.optim.AdamW([{"params": pads, "weight_decay": 0.01}, {"params": [leaves["bias"]], "weight_decay": 0.0}], lr=RATE)

    def forward(x):
        v = dict(constants)
        v["image"] = x
        one = onnx.GraphProto()
        for n in graph.node:
            if n is head or n.output[0] == head.output[0]:
                feature = v[head.input[0]]
                return feature @ leaves["weight"] + leaves["bias"]
            del one.node[:]
            one.node.append(n)
            made = WALK(one, {i: v[i] for i in n.input if i})
            for o in n.output:
                v[o] = made[o]
            if n.output[0] in sides:
                name, a = sides[n.output[0]]
                f = torch.nn.functional
                narrow = f.conv2d(f.pad(v[n.input[0]], walk.pads_of(a, 2)), leaves[f"{name}.lora_A"], stride=a.get("strides", 1),
                                  dilation=a.get("dilations", 1))
                v[n.output[0]] = v[n.output[0]] + f.conv2d(narrow * (ALPHA / RANK), leaves[f"{name}.lora_B"])

    losses, step = [], 0
    per_epoch = -(-len(learn) // BATCH)
    steps = per_epoch * epochs
    warm = int(np.floor(WARMUP * steps + 0.5))
    for epoch in range(epochs):
        order = shuffled(len(learn), seed, epoch)
        for at in range(per_epoch):
            part = order[at * BATCH:(at + 1) * BATCH]
            x = torch.tensor(np.concatenate([learn[i][0] for i in part]))
            y = torch.tensor([learn[i][1] for i in part])
            factor = (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * (step - warm) / max(steps - warm, 1)))
            for g in optimizer.param_groups:
                g["lr"] = RATE * factor
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(forward(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
    with torch.no_grad():
        right = sum(int(forward(torch.tensor(np.concatenate([x for x, _ in test[i:i + 20]]))).argmax(1).eq(
            torch.tensor([c for _, c in test[i:i + 20]])).sum()) for i in range(0, len(test), 20))
    return losses, right / len(test)


def single(graph, values):
    """`record.run` in f32: what PyTorch users train in."""
    made = walk.run(graph, values)
    return {k: t.float() if t.dtype == torch.float64 else t for k, t in made.items()}


WALK = single


def in_hone(hone, model, work, test, seed, epochs):
    import onnxruntime as ort

    out, merged = work / "adapter.safetensors", work / "merged.onnx"
    run = [hone, "tune", model, "--data", work / "learn", "--scope", "lora,head", "--new-head", "--output", out, "--rank", RANK,
           "--alpha", ALPHA, "--epochs", epochs, "--batch", BATCH, "--lr", RATE, "--warmup", WARMUP, "--schedule", "cosine",
           "--seed", seed, "--validation", 0, "--threads", 2, "--json"]
    done = json.loads(subprocess.run([str(a) for a in run], check=True, capture_output=True, text=True).stdout)
    subprocess.run([str(a) for a in [hone, "adapter", "export", model, out, "--merged", merged]], check=True)
    session = ort.InferenceSession(str(merged), providers=["CPUExecutionProvider"])
    right = sum(int(session.run(["logits"], {"image": x})[0].argmax() == c) for x, c in test)
    return done, right / len(test)


def main():
    p = argparse.ArgumentParser()
    for name in ("hone", "model", "photos", "work"):
        p.add_argument(f"--{name}", type=Path, required=True)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--epochs", type=int, default=10)
    a = p.parse_args()
    torch.set_num_threads(2)
    model = onnx.load(a.model)
    for seed in a.seeds:
        work = a.work / f"seed-{seed}"
        learn, test = data(a.photos, work, seed)
        began = time.time()
        done, ours = in_hone(a.hone, a.model, work, test, seed, a.epochs)
        ours_s = time.time() - began
        began = time.time()
        losses, theirs = in_pytorch(model, learn, test, seed, a.epochs)
        n = min(50, len(losses))
        apart = max(abs(x - y) for x, y in zip(losses[:n], done["loss"][:n]))
        print(f"seed {seed}: hone {100 * ours:.1f} %, PyTorch {100 * theirs:.1f} % of {len(test)}; losses of the first {n} steps at "
              f"most {apart:.1e} apart; {done['parameters']} numbers; {ours_s:.0f} s and {time.time() - began:.0f} s", flush=True)


main()
