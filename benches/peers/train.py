"""A step of training in PyTorch, onnxruntime-training and hone: the same model, scope, batch and threads.

    python train.py --hone HONE --work DIR [--ort PYTHON] [--threads 1 2] [--steps 10] [--rounds 3] [--batch 8] [--seq 64]
    python train.py --hone HONE --work DIR --memory

Run by `cargo xtask peers --train` and `--memory`. The models are MiniLM-L6 (six layers of width 384) with random weights, made
here as a PyTorch module and exported by PyTorch's own exporter, its int8 form made by `hone quantize`; and `which-digit` of
models/, all of it, in batches of 16 as `hone tune` takes them, beside a module of the same layers. The sides take turns, a process of a few steps each, as often as there are rounds. One line of JSON for each row; times are medians of the
rounds' median steps, bytes medians of what a process took beyond what it held before its first step was planned.
`--ort` names a Python that has onnxruntime-training (train-ort-requirements.txt); it trains heads and whole models only.
A head in hone is trained on features that are computed once: its step is without the body, and `features_ms` is the body for
one example, once. With `--memory`, rows are what hone plans and what the process then takes, for ten runs: anonymous memory
read after each step, which leaves out pages of the program file, and all that was ever resident.
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
# What low-rank paths are also trained in: activations are computed twice for it.
LIMIT = "36MiB"


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


def digit():
    """The layers of models/which-digit/network.py with attention, without dropout, as its graph has them."""
    import torch
    from torch.nn import functional as f

    class Seen(torch.nn.Module):
        def __init__(self, channels, pools, flat):
            super().__init__()
            sizes = [1, *channels]
            self.convs = torch.nn.ModuleList(torch.nn.Conv2d(a, b, 3, padding=1) for a, b in zip(sizes, sizes[1:]))
            self.pools, self.dense = pools, torch.nn.Linear(flat, 128)

        def forward(self, x):
            for conv, pool in zip(self.convs, self.pools):
                x = f.max_pool2d(f.relu(conv(x)), pool)
            return torch.tanh(self.dense(x.flatten(1)))

    class Read(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.lstm, self.dense = torch.nn.Embedding(LETTERS, 24), torch.nn.LSTM(24, 72), torch.nn.Linear(72, 128)

        def forward(self, ids):
            _, (last, _) = self.lstm(self.embedding(ids).transpose(0, 1))
            return torch.tanh(self.dense(last[0]))

    class Digit(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.image, self.audio = Seen([16, 32, 64], [2, 2, 2], 576), Seen([16, 32, 48], [2, 2, (2, 4)], 1440)
            self.text, self.score, self.head = Read(), torch.nn.Linear(128, 1), torch.nn.Linear(128, 10)

        def forward(self, image, audio, text, present):
            features = torch.stack([self.image(image), self.audio(audio.unsqueeze(1)), self.text(text)], 1)
            weight = torch.softmax(self.score(features).squeeze(2) + (present - 1) * 1e4, 1) * present
            return self.head((features * weight.unsqueeze(2)).sum(1))

    return Digit()


LETTERS = 46


def digit_samples(rng, n):
    """Inputs of `which-digit`, `n` rows of each."""
    return {"image": rng.standard_normal((n, 1, 28, 28)).astype(np.float32), "audio": rng.standard_normal((n, 40, 100)).astype(np.float32),
            "text": rng.integers(0, LETTERS, (n, 16)).astype(np.int64), "present": np.ones((n, 3), np.float32)}


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


def word_samples(seq):
    return lambda rng, n: {"ids": rng.integers(0, WORDS, (n, seq)).astype(np.int64)}


def data(folder, n, samples):
    rng = np.random.default_rng(1)
    for i in range(n):
        (folder / str(i % 10)).mkdir(parents=True, exist_ok=True)
        np.savez(folder / str(i % 10) / f"{i:05}.npz", **samples(rng, 1))
    return folder


def rss(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    return 0


def in_pytorch(model, scope, threads, steps, batch, seq):
    """Run in a process of its own: a peak of memory belongs to a process."""
    import torch

    torch.set_num_threads(threads)
    samples = digit_samples if model == "which-digit" else word_samples(seq)
    model = digit() if model == "which-digit" else net()
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
    inputs = [torch.tensor(v) for v in samples(rng, batch).values()]
    labels = torch.arange(batch) % 10
    held, times = rss("VmRSS:"), []
    for _ in range(steps):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(*inputs), labels).backward()
        optimizer.step()
        times.append(1e3 * (time.perf_counter() - began))
    trained = sum(p.numel() for p in leaves)
    print(json.dumps({"ms": statistics.median(times), "bytes": rss("VmHWM:") - held, "trained": trained}))


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


def in_ort(model, work, scope, threads, steps, batch, seq):
    """Run in a process of its own, by a Python of its own."""
    import onnx
    from onnxruntime import SessionOptions
    from onnxruntime.training import artifacts
    from onnxruntime.training.api import CheckpointState, Module, Optimizer

    graph = onnx.load(model)
    for node in graph.graph.node:
        if node.op_type == "LayerNormalization":
            # Its gradient reads what is optional.
            node.output.extend([node.output[0] + "/mean", node.output[0] + "/inverse"])
    names = [i.name for i in graph.graph.initializer if i.data_type == onnx.TensorProto.FLOAT and len(i.dims) > 0]
    trained = [n for n in names if scope == "full" or n.startswith("classifier")]
    folder = work / "ort" / scope
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.generate_artifacts(graph, requires_grad=trained, frozen_params=[n for n in names if n not in trained],
                                 loss=artifacts.LossType.CrossEntropyLoss, optimizer=artifacts.OptimType.AdamW,
                                 artifact_directory=str(folder))
    del graph
    options = SessionOptions()
    options.intra_op_num_threads = threads
    state = CheckpointState.load_checkpoint(str(folder / "checkpoint"))
    module = Module(str(folder / "training_model.onnx"), state, device="cpu", session_options=options)
    optimizer = Optimizer(str(folder / "optimizer_model.onnx"), module)
    ids = np.random.default_rng(1).integers(0, WORDS, (batch, seq)).astype(np.int64)
    labels = np.arange(batch) % 10
    held, times = rss("VmRSS:"), []
    for _ in range(steps):
        began = time.perf_counter()
        module.train()
        module(ids, labels)
        optimizer.step()
        module.lazy_reset_grad()
        times.append(1e3 * (time.perf_counter() - began))
    print(json.dumps({"ms": statistics.median(times), "bytes": rss("VmHWM:") - held}))


def in_hone(hone, model, folder, scope, threads, batch, limit=None, epochs=1):
    args = [hone, "tune", model, "--data", folder, "--scope", scope, "--dry-run", "--json", "--validation", 0, "--epochs",
            epochs, "--batch", batch, "--rank", RANK, "--alpha", ALPHA, "--lr", RATE, "--threads", threads]
    args += ["--max-memory", limit] if limit else []
    done = subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True)
    made = json.loads(done.stdout)
    features = made["features"] or {"ms_each": None}
    return {"ms": made["step_ms"], "bytes": made["peak_increment_bytes"], "planned": made["planned_bytes"],
            "anonymous": made["anonymous_increment_bytes"], "trained": made["parameters"],
            "features_ms": features["ms_each"]}


def last_line(args, env=None):
    done = subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True, env=env)
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def middle(rounds, key):
    return statistics.median(r[key] for r in rounds)


def compare(a, models, folder):
    """The sides in turns."""
    for threads in a.threads:
        for scope in a.scopes:
            env = os.environ | {"OMP_NUM_THREADS": str(threads)}
            same = ["--scope", scope, "--threads", threads, "--steps", a.steps, "--batch", a.batch, "--seq", a.seq]
            sides = {"pytorch": lambda: last_line([sys.executable, __file__, *same], env)}
            for name, model in models.items():
                if name == "int8" and scope == "full":
                    continue
                sides[name] = lambda model=model: in_hone(a.hone, model, folder, scope, threads, a.batch)
                if scope == "lora":
                    small = lambda model=model: in_hone(a.hone, model, folder, scope, threads, a.batch, LIMIT)
                    sides[f"{name} in {LIMIT}"] = small
            if a.ort and scope != "lora":
                in_ort = [a.ort, __file__, "--ort-model", models["f32"], "--work", a.work, *same]
                sides["ort"] = lambda: last_line(in_ort, env)
            rounds = {name: [] for name in sides}
            for _ in range(a.rounds):
                for name, side in sides.items():
                    rounds[name].append(side())
            for name in (name for name in sides if name.split()[0] in models):
                told(f"minilm-{name}", scope, threads, rounds, name)


def told(model, scope, threads, rounds, name):
    """A row: the side `name` of hone beside the others."""
    row = {"model": model, "scope": scope, "threads": threads}
    for side, key in (("peer", "pytorch"), ("hone", name), ("ort", "ort")):
        for what in ("ms", "bytes"):
            row[f"{side}_{what}"] = middle(rounds[key], what) if key in rounds else None
    row["planned_bytes"] = middle(rounds[name], "planned")
    row["features_ms"] = middle(rounds[name], "features_ms") if scope == "head" else None
    print(json.dumps(row), flush=True)


def compare_digit(a, model, folder):
    """All of `which-digit`, in turns."""
    for threads in a.threads:
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        same = ["--model", "which-digit", "--scope", "full", "--threads", threads, "--steps", a.steps, "--batch", DIGITS]
        rounds = {"pytorch": [], "f32": []}
        for _ in range(a.rounds):
            rounds["pytorch"].append(last_line([sys.executable, __file__, *same], env))
            rounds["f32"].append(in_hone(a.hone, model, folder, "full", threads, DIGITS))
        trained = {r["trained"] for side in rounds.values() for r in side}
        assert len(trained) == 1, f"the two sides train {trained} numbers"
        told("which-digit", "full", threads, rounds, "f32")


# A batch of `which-digit`: what `hone tune` takes when nothing is said.
DIGITS = 16


# Model, scope, batch.
TEN = [("f32", "lora", 8), ("f32", "lora", 16), ("f32", "bias", 8), ("f32", "head", 8), ("f32", "full", 4), ("f32", "full", 8),
       ("int8", "lora", 8), ("int8", "lora", 16), ("int8", "bias", 8), ("int8", "head", 8)]


def memory(a, models, folder):
    """What is planned beside what is taken."""
    for name, scope, batch in TEN:
        made = in_hone(a.hone, models[name], folder, scope, a.threads[0], batch)
        row = {"model": f"minilm-{name}", "scope": scope, "batch": batch, "planned_bytes": made["planned"],
               "taken_bytes": made["anonymous"], "resident_bytes": made["bytes"]}
        print(json.dumps(row), flush=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--hone", type=Path)
    p.add_argument("--work", type=Path)
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--seq", type=int, default=64)
    p.add_argument("--scopes", nargs="+", default=["lora", "head", "full"])
    p.add_argument("--ort", type=Path)
    p.add_argument("--memory", action="store_true")
    p.add_argument("--models", nargs="+", default=["minilm", "which-digit"])
    p.add_argument("--scope", help="one side, for the process that is one")
    p.add_argument("--model", default="minilm")
    p.add_argument("--ort-model", type=Path)
    a = p.parse_args()
    if a.ort_model:
        return in_ort(a.ort_model, a.work, a.scope, a.threads[0], a.steps, a.batch, a.seq)
    if a.scope:
        return in_pytorch(a.model, a.scope, a.threads[0], a.steps, a.batch, a.seq)
    a.work.mkdir(parents=True, exist_ok=True)
    if a.memory or "minilm" in a.models:
        float32 = a.work / "minilm.onnx"
        if not float32.exists():
            export(a.work, a.batch, a.seq)
        n = max(a.steps, 10) * a.batch
        folder = data(a.work / f"data-{n}", n, word_samples(a.seq))
        # Always made anew: it is hone that makes it.
        int8 = a.work / "minilm.int8.onnx"
        quantize = [a.hone, "quantize", float32, "-o", int8, "--scheme", "int8-weights", "--force"]
        subprocess.run([str(x) for x in quantize], check=True, capture_output=True)
        (memory if a.memory else compare)(a, {"f32": float32, "int8": int8}, folder)
    if a.memory:
        return
    if "which-digit" in a.models:
        n = max(a.steps, 10) * DIGITS
        model = Path(__file__).resolve().parents[2] / "models/which-digit/src/model.f32.onnx"
        compare_digit(a, model, data(a.work / f"digits-{n}", n, digit_samples))


main()
