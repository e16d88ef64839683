"""`hone tune` in PyTorch: the same leaves at the same first values, samples in the same order, the same steps.

What `zoo/textile.py` and `which-digit/curves.py` hold hone's training against. An ONNX graph is walked node by node with
PyTorch's functions (`runtime/src/train/testdata/record.py`) and differentiated by its autograd, in f32 or in f64: what
f32 itself makes of a run is the distance between the two, and no other engine can be asked to be nearer.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime/src/train/testdata"))
import record as walk  # noqa: E402

MASK = (1 << 64) - 1
# Operator, operand, whether weight decay is meant for it: what scope `full` trains (`scope::parameters`), as far as needed here.
PARAMETERS = [("Conv", 1, True), ("Conv", 2, False), ("Gather", 0, True), ("Gemm", 1, True), ("Gemm", 2, False),
              ("LSTM", 1, True), ("LSTM", 2, True), ("LSTM", 3, False), ("MatMul", 1, True)]


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


def factor(step, steps, warmup):
    """Of the learning rate: half a cosine after a rise over that share of the steps."""
    warm = int(np.floor(warmup * steps + 0.5))
    return (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * (step - warm) / max(steps - warm, 1)))


def layer(weight, node):
    """What a layer is called: `scope::parameters::stem`."""
    if weight.startswith("onnx::"):
        return node.lstrip("/").rsplit("/", 1)[0].replace("/", ".")
    return weight.removesuffix("_dequantized").removesuffix(".weight")


class Tuned:
    """A model with the leaves of a scope: `full`, or `lora,head`, whose head is new where `classes` says how many it has."""

    def __init__(self, model, output, scope, seed, rank=8, alpha=16.0, classes=None, dtype=torch.float32):
        self.graph, self.output, self.dtype = model.graph, output, dtype
        self.constants = {i.name: self.number(numpy_helper.to_array(i)) for i in self.graph.initializer}
        shapes = {i.name: tuple(i.dims) for i in self.graph.initializer}
        for n in self.graph.node:
            if n.op_type == "DequantizeLinear" and n.input[0] in shapes:
                shapes[n.output[0]] = shapes[n.input[0]]
        self.leaves, self.sides, self.undecayed, self.scale = {}, {}, set(), alpha / rank
        self.head = next(n for n in self.graph.node if n.output[0] == output)
        self.new = classes is not None
        self.nodes = self.live()
        if scope == "full":
            for n in self.nodes:
                for op, at, decays in PARAMETERS:
                    if n.op_type == op and at < len(n.input) and self.constants.get(n.input[at], torch.zeros(0)).numel():
                        self.train(n.input[at], self.constants[n.input[at]], decays)
            return
        assert scope == "lora,head", scope
        if self.new:
            width = shapes[self.head.input[1]][1 if attributes(self.head).get("transB") else 0]
            self.train("head.new.weight", torch.zeros(width, classes), True)
            self.train("head.new.bias", torch.zeros(classes), False)
        else:
            self.train(self.head.input[1], self.constants[self.head.input[1]], True)
            self.train(self.head.input[2], self.constants[self.head.input[2]], False)
        for n in self.nodes:
            a = attributes(n)
            if n is self.head or n.op_type not in ("Conv", "Gemm", "MatMul") or a.get("group", 1) != 1 or n.input[1] not in shapes:
                continue
            shape, name = shapes[n.input[1]], layer(n.input[1], n.name)
            if n.op_type == "Conv":
                va, vb, fan = (rank, *shape[1:]), (shape[0], rank, *[1] * len(shape[2:])), int(np.prod(shape[1:]))
            else:
                k, out = reversed(shape) if a.get("transB") else shape
                va, vb, fan = (k, rank), (rank, out), k
            values = drawn(seed, f"{name}.lora_A", int(np.prod(va)), 1 / np.sqrt(np.float32(fan)))
            self.train(f"{name}.lora_A", torch.tensor(values.reshape(va)), True)
            self.train(f"{name}.lora_B", torch.zeros(vb), True)
            self.sides[n.output[0]] = name, a

    def number(self, array):
        t = torch.tensor(array)
        return t.to(self.dtype) if t.is_floating_point() else t

    def live(self):
        """The nodes the output depends on."""
        needed, live = {self.output}, []
        for n in reversed(self.graph.node):
            if needed & set(n.output):
                needed |= set(n.input)
                live.append(n)
        return live[::-1]

    def train(self, name, value, decays):
        self.leaves[name] = value.clone().to(self.dtype).requires_grad_()
        if not decays:
            self.undecayed.add(name)

    def parameters(self):
        return sum(t.numel() for t in self.leaves.values())

    def forward(self, inputs):
        v = self.constants | {k: t for k, t in self.leaves.items() if k in self.constants}
        v |= {k: self.number(t) for k, t in inputs.items()}
        one = onnx.GraphProto()
        for n in self.nodes:
            if n is self.head and self.new:
                return v[n.input[0]] @ self.leaves["head.new.weight"] + self.leaves["head.new.bias"]
            del one.node[:]
            one.node.append(n)
            made = walk.run(one, {i: v[i] for i in n.input if i}, self.dtype)
            v |= {o: made[o] for o in n.output if o}
            if n.output[0] in self.sides:
                v[n.output[0]] = v[n.output[0]] + self.beside(v[n.input[0]], *self.sides[n.output[0]])
        return v[self.output]

    def beside(self, x, name, a):
        la, lb = self.leaves[f"{name}.lora_A"], self.leaves[f"{name}.lora_B"]
        if la.dim() == 2:
            return (x @ la * self.scale) @ lb
        rank = la.dim() - 2
        conv = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}[rank]
        x = torch.nn.functional.pad(x, walk.pads_of(a, rank))
        return conv(conv(x, la, stride=a.get("strides", 1), dilation=a.get("dilations", 1)) * self.scale, lb)

    def tune(self, samples, seed, epochs, batch, rate, warmup=0.05, until=None):
        """Trains on samples (inputs of one row, class) and gives the loss before each step; at most `until` steps."""
        groups = [{"params": [t for k, t in self.leaves.items() if (k in self.undecayed) == bare], "weight_decay": decay}
                  for bare, decay in ((False, 0.01), (True, 0.0))]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=rate)
        per_epoch = -(-len(samples) // batch)
        steps, losses = per_epoch * epochs, []
        for epoch in range(epochs):
            order = shuffled(len(samples), seed, epoch)
            for at in range(0, len(order), batch):
                if len(losses) == until:
                    return losses
                part = [samples[i] for i in order[at:at + batch]]
                inputs = {k: np.concatenate([x[k] for x, _ in part]) for k in part[0][0]}
                for g in optimizer.param_groups:
                    g["lr"] = rate * factor(len(losses), steps, warmup)
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(self.forward(inputs), torch.tensor([c for _, c in part]))
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        return losses

    def right(self, samples, at_once=20):
        """How many samples it answers rightly."""
        found = 0
        with torch.no_grad():
            for i in range(0, len(samples), at_once):
                part = samples[i:i + at_once]
                y = self.forward({k: np.concatenate([x[k] for x, _ in part]) for k in part[0][0]})
                found += int((y.argmax(1) == torch.tensor([c for _, c in part])).sum())
        return found


def attributes(node):
    return {x.name: helper.get_attribute_value(x) for x in node.attribute}


def apart(a, b, steps=50):
    """The largest difference of two curves over their first steps."""
    return max(abs(x - y) for x, y in zip(a[:steps], b[:steps], strict=True))
