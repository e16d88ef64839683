"""The losses of fifty steps on somebody's handwriting, in PyTorch: `curves.json`, which a test holds `hone tune` against.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 onnx==1.23.2 torch==2.15.0 pillow
    venv/bin/python curves.py

The first 160 pictures of new-pen's stream, in batches of 16, ten batches an epoch, five epochs, seed 1, AdamW, half a cosine after a rise,
by `../tuning.py`: low-rank paths and the head on the shipped int8 model, everything on the f32 one, each at several rates. Recorded
is the curve in f64; printed, how far PyTorch's own in f32 is from it.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from tuning import Tuned, apart  # noqa: E402

CASES = [("which-digit.hone/onnx/model.onnx", "lora,head"), ("src/model.f32.onnx", "lora,head"), ("src/model.f32.onnx", "full")]
RATES = [1e-3, 3e-3]
SAMPLES, BATCH, EPOCHS, SEED, RANK, ALPHA = 160, 16, 5, 1, 4, 8.0


def samples():
    """In the order in which hone reads folders of classes."""
    world = HERE / "worlds/new-pen"
    rows = [r for r in csv.DictReader((world / "index.csv").open()) if r["split"] == "stream"][:SAMPLES]
    out = []
    for r in sorted(rows, key=lambda r: (r["label"], r["image"])):
        x = (np.asarray(Image.open(world / r["image"]), np.float32) / 255 - 0.1307) / 0.3081
        rest = {"audio": np.zeros((1, 40, 100), np.float32), "text": np.zeros((1, 16), np.int64)}
        out.append(({"image": x[None, None].astype(np.float32), "present": np.array([[1, 0, 0]], np.float32), **rest}, int(r["label"])))
    return out


def main():
    learn, rows = samples(), []
    for path, scope in CASES:
        for rate in RATES:
            run = lambda dtype: Tuned(onnx.load(HERE / path), "logits", scope, SEED, RANK, ALPHA, dtype=dtype)
            single, double = (run(t).tune(learn, SEED, EPOCHS, BATCH, rate) for t in (torch.float32, torch.float64))
            print(f"{path} {scope} {rate}: {double[0]:.4f} to {double[-1]:.4f}, f32 {apart(single, double):.1e} from f64", flush=True)
            rows.append({"model": path, "scope": scope, "rate": rate, "parameters": run(torch.float32).parameters(),
                         "losses": [round(v, 7) for v in double]})
    text = ",\n".join(json.dumps(r) for r in rows)
    (HERE / "curves.json").write_text(f"[\n{text}\n]\n")


main()
