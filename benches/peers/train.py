"""A step of training in PyTorch and in hone: the same model, the same scope, the same batch, the same threads.

    python train.py --hone HONE --work DIR [--threads 1 2] [--steps 30] [--batch 8] [--seq 64]

Run by `cargo xtask peers --train`. The model is MiniLM-L6 (six layers of width 384) with random weights, made here as a
PyTorch module and exported by PyTorch's own exporter; its int8 form is made by `hone quantize`. One line of JSON for each
row: {model, scope, threads, peer_ms, hone_ms, peer_bytes, hone_bytes}, medians of steps; bytes are what the process took
beyond what it held before the first step was planned.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

LAYERS, WIDTH, HEADS, INNER, WORDS = 6, 384, 12, 1536, 2000
RANK, ALPHA, RATE = 8, 16.0, 1e-3


def net():
    import torch

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.dense = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.wide, self.narrow = torch.nn.Linear(WIDTH, INNER), torch.nn.Linear(INNER, WIDTH)
            self.norm1, self.norm2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)

        def forward(self, x):
            n, t, _ = x.shape
            heads = lambda y: y.view(n, t, HEADS, WIDTH // HEADS).transpose(1, 2)
            y = torch.nn.functional.scaled_dot_product_attention(heads(self.query(x)), heads(self.key(x)), heads(self.value(x)))
            x = self.norm1(x + self.dense(y.transpose(1, 2).reshape(n, t, WIDTH)))
            return self.norm2(x + self.narrow(torch.nn.functional.gelu(self.wide(x))))

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.words = torch.nn.Embedding(WORDS, WIDTH)
            self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))
            self.classifier = torch.nn.Linear(WIDTH, 10)

        def forward(self, ids):
            x = self.words(ids)
            for layer in self.layers:
                x = layer(x)
            return self.classifier(x.mean(1))

    return Net()


def export(work, batch, seq):
    import onnx
    import torch

    path = work / "minilm.onnx"
    n = torch.export.Dim("N", min=1, max=1024)
    ids = torch.zeros(2, seq, dtype=torch.int64)
    torch.onnx.export(net().eval(), (ids,), path, input_names=["ids"], output_names=["logits"], dynamic_shapes=({0: n},),
                      dynamo=True, external_data=False)
    assert onnx.load(path).graph.input[0].name == "ids"
    return path


def data(work, n, seq):
    rng = np.random.default_rng(1)
    folder = work / "data"
    for i in range(n):
        (folder / str(i % 10)).mkdir(parents=True, exist_ok=True)
        np.savez(folder / str(i % 10) / f"{i:05}.npz", ids=rng.integers(0, WORDS, (1, seq)).astype(np.int64))
    return folder


def rss(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    return 0


def in_pytorch(scope, threads, steps, batch, seq):
    """Run in a process of its own: a peak of memory belongs to a process."""
    import torch

    torch.set_num_threads(threads)
    model = net()
    if scope == "lora":
        for p in model.parameters():
            p.requires_grad_(False)
        for layer in model.layers:
            for name in ("query", "key", "value", "dense", "wide", "narrow"):
                base = getattr(layer, name)
                setattr(layer, name, Lora(base))
    elif scope == "head":
        for p in [*model.words.parameters(), *model.layers.parameters()]:
            p.requires_grad_(False)
    leaves = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(leaves, lr=RATE)
    rng = np.random.default_rng(1)
    ids = torch.tensor(rng.integers(0, WORDS, (batch, seq)))
    labels = torch.arange(batch) % 10
    held, times = rss("VmRSS:"), []
    for _ in range(steps):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(ids), labels).backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - began))
    print(json.dumps({"ms": statistics.median(times), "bytes": rss("VmHWM:") - held}))


class Lora:
    """Made a module when PyTorch is there."""

    def __new__(cls, base):
        import torch

        class Beside(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.base = base
                self.a = torch.nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
                self.b = torch.nn.Parameter(torch.zeros(base.out_features, RANK))

            def forward(self, x):
                f = torch.nn.functional.linear
                return self.base(x) + ALPHA / RANK * f(f(x, self.a), self.b)

        return Beside()


def in_hone(hone, model, folder, scope, threads, batch):
    args = [hone, "tune", model, "--data", folder, "--scope", scope, "--dry-run", "--json", "--validation", 0, "--epochs", 1,
            "--batch", batch, "--rank", RANK, "--alpha", ALPHA, "--lr", RATE, "--threads", threads]
    done = subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True)
    made = json.loads(done.stdout)
    return {"ms": made["step_ms"], "bytes": made["peak_increment_bytes"], "planned": made["planned_bytes"]}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--hone", type=Path)
    p.add_argument("--work", type=Path)
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--seq", type=int, default=64)
    p.add_argument("--scope")
    a = p.parse_args()
    if a.scope:
        return in_pytorch(a.scope, a.threads[0], a.steps, a.batch, a.seq)
    a.work.mkdir(parents=True, exist_ok=True)
    float32 = export(a.work, a.batch, a.seq)
    folder = data(a.work, a.steps * a.batch, a.seq)
    int8 = a.work / "minilm.int8.onnx"
    quantize = [a.hone, "quantize", float32, "-o", int8, "--scheme", "int8-weights"]
    subprocess.run([str(x) for x in quantize], check=True, capture_output=True)
    for threads in a.threads:
        for scope in ("lora", "head", "full"):
            env = os.environ | {"OMP_NUM_THREADS": str(threads)}
            one = [sys.executable, __file__, "--scope", scope, "--threads", threads, "--steps", a.steps, "--batch", a.batch,
                   "--seq", a.seq]
            peer = json.loads(subprocess.run([str(x) for x in one], check=True, capture_output=True, text=True, env=env).stdout)
            for name, model in (("f32", float32), ("int8", int8)):
                if name == "int8" and scope == "full":
                    continue
                ours = in_hone(a.hone, model, folder, scope, threads, a.batch)
                row = {"model": f"minilm-{name}", "scope": scope, "threads": threads, "peer_ms": peer["ms"], "hone_ms": ours["ms"],
                       "ratio": ours["ms"] / peer["ms"], "peer_bytes": peer["bytes"], "hone_bytes": ours["bytes"],
                       "planned_bytes": ours["planned"]}
                print(json.dumps(row), flush=True)


main()
