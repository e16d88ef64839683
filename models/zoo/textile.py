"""A task EfficientNet-Lite0 never saw: textile defects, learned by low-rank paths and a new head, in hone and in PyTorch.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 torch==2.15.0 pillow
    venv/bin/pip download --no-deps conformal-clip-data==0.1.4 && unzip conformal_clip_data-*.whl
    venv/bin/python textile.py --hone HONE --model MODEL.onnx --photos conformal_clip_data/data/textile_images/simulated \
        --work DIR [--seeds 1 2 3] [--epochs 10] [--curves] [--rates 3e-4]

MODEL is `efficientnet-lite0-imagenet` of models/zoo.toml (`cargo xtask zoo` fetches it). Three classes (nominal, local, global),
20 photos each to learn from, 60 each to test on, drawn by the seed. Both sides get the same tensors in the same order, the
same first values and the same schedule (`../tuning.py`). hone's result is folded into an ONNX file and tested in ONNX Runtime;
PyTorch walks the float graph with its own functions and autograd. A table of the seeds, and how far the losses are apart.

`--curves` trains only the first 50 steps, at several learning rates, in hone and in PyTorch in f32 and in f64: where
PyTorch's own two curves part, rounding decides, and no third curve can be near both.
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
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tuning import Tuned, apart  # noqa: E402

CLASSES = ["global", "local", "nominal"]
LEARN, TEST, BATCH, RANK, ALPHA, RATE, WARMUP = 20, 60, 10, 8, 16.0, 3e-4, 0.05
RATES = [1e-3, 3e-4, 1e-4, 3e-5]


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
            learn.append(({"image": x}, c))
        test += [({"image": tensor(f)}, c) for f in chosen[LEARN:]]
    return learn, test


def in_hone(hone, model, work, seed, epochs, rate, *more):
    run = [hone, "tune", model, "--data", work / "learn", "--scope", "lora,head", "--new-head", "--rank", RANK,
           "--alpha", ALPHA, "--epochs", epochs, "--batch", BATCH, "--lr", rate, "--warmup", WARMUP, "--schedule", "cosine",
           "--seed", seed, "--validation", 0, "--threads", 2, "--json", *more]
    return json.loads(subprocess.run([str(a) for a in run], check=True, capture_output=True, text=True).stdout)


def merged(hone, model, work, adapter, test):
    """How many of the samples ONNX Runtime answers rightly with the adapter folded in."""
    import onnxruntime as ort

    out = work / "merged.onnx"
    subprocess.run([str(a) for a in [hone, "adapter", "export", model, adapter, "--merged", out]], check=True, capture_output=True)
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return sum(int(session.run(["logits"], x)[0].argmax() == c) for x, c in test)


def peer(model, seed, dtype=torch.float32):
    return Tuned(model, "logits", "lora,head", seed, RANK, ALPHA, len(CLASSES), dtype)


def results(a, model):
    rows = []
    print("| seed | hone | PyTorch | losses apart, 50 steps | hone s | PyTorch s |\n|---|---|---|---|---|---|", flush=True)
    for seed in a.seeds:
        work = a.work / f"seed-{seed}"
        learn, test = data(a.photos, work, seed)
        adapter = work / "adapter.safetensors"
        began = time.time()
        done = in_hone(a.hone, a.model, work, seed, a.epochs, RATE, "--output", adapter)
        ours_s = time.time() - began
        ours = merged(a.hone, a.model, work, adapter, test)
        began = time.time()
        other = peer(model, seed)
        losses = other.tune(learn, seed, a.epochs, BATCH, RATE, WARMUP)
        theirs_s = time.time() - began
        assert other.parameters() == done["parameters"]
        rows.append((100 * ours / len(test), 100 * other.right(test) / len(test), apart(losses, done["loss"]), ours_s, theirs_s))
        print("| {} | {:.1f} % | {:.1f} % | {:.1e} | {:.0f} | {:.0f} |".format(seed, *rows[-1]), flush=True)
    print("| mean | {:.1f} % | {:.1f} % | | {:.0f} | {:.0f} |".format(*(np.mean([r[i] for r in rows]) for i in (0, 1, 3, 4))))


def curves(a, model):
    print("| rate | seed | hone from PyTorch f32 | hone from f64 | PyTorch f32 from f64 |\n|---|---|---|---|---|", flush=True)
    for seed in a.seeds:
        work = a.work / f"seed-{seed}"
        learn, _ = data(a.photos, work, seed)
        for rate in a.rates:
            ours = in_hone(a.hone, a.model, work, seed, a.epochs, rate, "--dry-run")["loss"]
            single, double = (peer(model, seed, t).tune(learn, seed, a.epochs, BATCH, rate, WARMUP, until=50)
                              for t in (torch.float32, torch.float64))
            ours = ours[:50]
            print("| {} | {} | {:.1e} | {:.1e} | {:.1e} |".format(rate, seed, apart(ours, single), apart(ours, double),
                                                                 apart(single, double)), flush=True)


def main():
    p = argparse.ArgumentParser()
    for name in ("hone", "model", "photos", "work"):
        p.add_argument(f"--{name}", type=Path, required=True)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--epochs", type=int, default=10)
    p.add_argument("--curves", action="store_true")
    p.add_argument("--rates", type=float, nargs="+", default=RATES)
    a = p.parse_args()
    torch.set_num_threads(2)
    model = onnx.load(a.model)
    (curves if a.curves else results)(a, model)


main()
