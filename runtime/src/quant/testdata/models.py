"""Writes the small float models the schemes are tested on, with samples to calibrate and to compare with.

    pip install -r requirements.txt
    python models.py

`<name>.onnx` and `<name>.npz` (`<input>`: [samples, …]). The bytes depend on nothing but the version of `onnx` and NumPy.
"""

import pathlib

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent
SAMPLES = 6


class Graph:
    """Nodes and weights as they are added; the name of a node is that of its first result."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def weight(self, name, *shape, scale=None):
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1
        values = self.random.normal(0, scale or 1 / np.sqrt(fan), shape).astype(np.float32)
        return self.constant(name, values)

    def constant(self, name, values):
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op, inputs, output, **attributes):
        outputs = output if isinstance(output, list) else [output]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[-1] + "/" + op, **attributes))
        return outputs[-1]

    def save(self, name, inputs, outputs, samples):
        info = lambda side: [helper.make_tensor_value_info(n, t, d) for n, t, d in side]
        graph = helper.make_graph(self.nodes, name, info(inputs), info(outputs), initializer=self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="hone")
        helper.set_model_props(model, {"purpose": "test"})
        checker.check_model(model, full_check=True)
        (HERE / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
        np.savez_compressed(HERE / f"{name}.npz", **samples)


def picture():
    """Convolution with normalisation and rectifiers, depthwise and 1×1 convolution, a residual, pools, a dense layer."""
    g = Graph(1)

    def conv(x, name, out, inp, size, group=1, norm=False, bias=True, **attributes):
        operands = [x, g.weight(f"{name}.weight", out, inp // group, size, size)]
        if bias:
            operands.append(g.weight(f"{name}.bias", out, scale=0.1))
        y = g.add("Conv", operands, f"{name}.out", group=group, **attributes)
        if norm:
            positive = np.abs(g.random.normal(1, 0.2, out)).astype(np.float32)
            parts = [g.constant(f"{name}.gamma", positive), g.weight(f"{name}.beta", out, scale=0.1)]
            parts += [g.weight(f"{name}.mean", out, scale=0.1), g.constant(f"{name}.var", positive * 0.5)]
            y = g.add("BatchNormalization", [y, *parts], f"{name}.norm")
        return y

    pads = g.constant("pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
    x = g.add("Pad", ["image", pads], "padded")
    x = g.add("Relu", [conv(x, "stem", 8, 3, 3, norm=True, bias=False, strides=[2, 2])], "stem.relu")
    low, high = g.constant("zero", np.float32(0)), g.constant("six", np.float32(6))
    y = g.add("Clip", [conv(x, "depth", 8, 8, 3, group=8, pads=[1, 1, 1, 1]), low, high], "depth.clip")
    y = conv(y, "point", 8, 8, 1)
    x = g.add("Add", [y, x], "residual")
    x = g.add("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    y = g.add("Sigmoid", [conv(x, "gate", 8, 8, 1)], "gate.sigmoid")
    x = g.add("Concat", [g.add("Mul", [x, y], "gated"), x], "joined", axis=1)
    x = g.add("GlobalAveragePool", [x], "mean")
    x = g.add("Flatten", [x], "flat")
    x = g.add("Relu", [g.add("Gemm", [x, g.weight("dense.weight", 24, 16), g.weight("dense.bias", 24, scale=0.1)], "dense.out", transB=1)], "dense.relu")
    g.add("Gemm", [x, g.weight("head.weight", 24, 5), g.weight("head.bias", 5, scale=0.1)], "logits", alpha=0.5, beta=2.0)
    images = g.random.normal(0, 1, (SAMPLES, 1, 3, 16, 16)).astype(np.float32)
    images[:, :, :, :8] += np.linspace(-1, 1, SAMPLES, dtype=np.float32)[:, None, None, None, None]
    sides = [("image", TensorProto.FLOAT, ["N", 3, 16, 16])], [("logits", TensorProto.FLOAT, ["N", 5])]
    g.save("picture", *sides, {"image": images})


def sentence():
    """Embeddings, one block of a transformer encoder with layer normalisation, a mean over the positions."""
    g = Graph(2)
    width, heads, length = 32, 2, 7
    scalar = lambda name, v: g.constant(name, np.float32(v))
    shape = lambda name, v: g.constant(name, np.array(v, np.int64))

    def linear(x, name, inp, out):
        y = g.add("MatMul", [x, g.weight(f"{name}.weight", inp, out)], f"{name}.product")
        return g.add("Add", [y, g.weight(f"{name}.bias", out, scale=0.1)], f"{name}.out")

    def norm(x, name):
        gamma = g.random.normal(1, 0.1, width).astype(np.float32)
        # One channel is far larger than the others, as in trained transformers.
        gamma[3] = 12.0
        parts = [g.constant(f"{name}.gamma", gamma), g.weight(f"{name}.beta", width, scale=0.1)]
        return g.add("LayerNormalization", [x, *parts], f"{name}.out", axis=-1)

    x = g.add("Gather", [g.weight("embedding.weight", 50, width, scale=1.0), "ids"], "embedded")
    x = norm(x, "norm0")
    split = shape("split", [0, 0, heads, width // heads])
    parts = {}
    for part in "qkv":
        y = linear(x, part, width, width)
        y = g.add("Reshape", [y, split], f"{part}.split")
        parts[part] = g.add("Transpose", [y], f"{part}.heads", perm=[0, 2, 3, 1] if part == "k" else [0, 2, 1, 3])
    y = g.add("MatMul", [parts["q"], parts["k"]], "scores")
    y = g.add("Div", [y, scalar("root", np.sqrt(width / heads))], "scaled")
    y = g.add("Softmax", [y], "weights", axis=-1)
    y = g.add("MatMul", [y, parts["v"]], "context")
    y = g.add("Transpose", [y], "context.turned", perm=[0, 2, 1, 3])
    y = g.add("Reshape", [y, shape("joined", [0, 0, width])], "context.joined")
    x = norm(g.add("Add", [linear(y, "attended", width, width), x], "residual1"), "norm1")
    y = g.add("Relu", [linear(x, "wide", width, 64)], "wide.relu")
    x = norm(g.add("Add", [linear(y, "narrow", 64, width), x], "residual2"), "norm2")
    x = g.add("ReduceMean", [x], "pooled", axes=[1], keepdims=0)
    x = norm(x, "norm3")
    g.add("Gemm", [x, g.weight("head.weight", 48, width), g.weight("head.bias", 48, scale=0.1)], "vector", transB=1)
    ids = g.random.integers(0, 50, (SAMPLES, 1, length))
    sides = [("ids", TensorProto.INT64, ["N", "T"])], [("vector", TensorProto.FLOAT, ["N", 48])]
    g.save("sentence", *sides, {"ids": ids})


def sequence():
    """An LSTM of two directions after a convolution over time, and a dense layer on its last state."""
    g = Graph(3)
    inner, hidden = 12, 10
    x = g.add("Conv", ["sound", g.weight("conv.weight", inner, 4, 3), g.weight("conv.bias", inner, scale=0.1)], "conv.out", pads=[1, 1])
    x = g.add("Relu", [x], "conv.relu")
    x = g.add("Transpose", [x], "steps", perm=[2, 0, 1])
    parts = [g.weight("lstm.w", 2, 4 * hidden, inner, scale=0.3), g.weight("lstm.r", 2, 4 * hidden, hidden, scale=0.3)]
    parts.append(g.weight("lstm.b", 2, 8 * hidden, scale=0.1))
    x = g.add("LSTM", [x, *parts], ["", "last"], hidden_size=hidden, direction="bidirectional")
    x = g.add("Transpose", [x], "last.turned", perm=[1, 0, 2])
    x = g.add("Flatten", [x], "state")
    g.add("Gemm", [x, g.weight("head.weight", 6, 2 * hidden), g.weight("head.bias", 6, scale=0.1)], "logits", transB=1)
    sounds = g.random.normal(0, 1, (SAMPLES, 1, 4, 20)).astype(np.float32)
    sides = [("sound", TensorProto.FLOAT, ["N", 4, 20])], [("logits", TensorProto.FLOAT, ["N", 6])]
    g.save("sequence", *sides, {"sound": sounds})


if __name__ == "__main__":
    picture()
    sentence()
    sequence()
