"""Makes the models that `cargo xtask peers` times: `make.py OUT ZOO MODELS`.

Three of the shapes people run on small machines, with random weights (the time does not depend on them): `mobilenetv2` (an
image of 224 × 224), `minilm` (six transformer layers of MiniLM-L6, 128 tokens), `multimodal` (an LSTM over text, a CNN over an
image, dense layers over audio). Each as f32, statically quantised (`-qdq`: u8 activations, i8 weights a channel, ONNX Runtime's
best on x86) and dynamically (`-dynamic`), by ONNX Runtime's own quantiser; and `which-digit` of MODELS, in f32 and in int8
(`-qdq`). For each of them, and for each model of ZOO with recorded cases in MODELS/zoo, `OUT/inputs/<model>.npz` has the inputs
under their names. `OUT/inputs/batch<N>` has those of `mobilenetv2` and `minilm` for N images or texts at once, and
`OUT/work.json` what one of them takes: operations, and weights that are read.
"""
import json
import math
import pathlib
import shutil
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Net:
    """An ONNX graph under construction, with weights from one seed."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.nodes, self.weights = [], []

    def constant(self, value):
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def normal(self, shape, scale):
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def add(self, op, inputs, outputs=1, **attributes):
        names = [f"{op.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"{op}{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def conv(self, x, inputs, outputs, kernel, stride=1, group=1, activation="Relu6"):
        fan = inputs // group * kernel * kernel
        w = self.normal((outputs, inputs // group, kernel, kernel), (2 / fan) ** 0.5)
        pad = kernel // 2
        x = self.add("Conv", [x, w, self.normal(outputs, 0.1)], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group)
        if activation == "Relu6":
            return self.add("Clip", [x, self.constant(np.float32(0)), self.constant(np.float32(6))])
        return self.add(activation, [x]) if activation else x

    def dense(self, x, inputs, outputs):
        x = self.add("MatMul", [x, self.normal((inputs, outputs), inputs**-0.5)])
        return self.add("Add", [x, self.normal(outputs, 0.02)])

    def norm(self, x, width):
        gain = self.constant((1 + 0.1 * self.rng.standard_normal(width)).astype(np.float32))
        return self.add("LayerNormalization", [x, gain, self.normal(width, 0.1)], axis=-1, epsilon=1e-5)

    def save(self, path, inputs, shape):
        """The last node makes the output."""
        self.nodes[-1].output[0] = "y"
        ports = [helper.make_tensor_value_info(name, kind, dims) for name, kind, dims in inputs]
        out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, path.stem, ports, out, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def mobilenetv2(path):
    """Sandler et al. 2018, table 2, width 1."""
    n = Net()
    x, c = n.conv("x", 3, 32, 3, 2), 32
    for expand, out, count, stride in [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]:
        for i in range(count):
            s, wide, before = stride if i == 0 else 1, c * expand, x
            y = n.conv(x, c, wide, 1) if expand > 1 else x
            y = n.conv(n.conv(y, wide, wide, 3, s, wide), wide, out, 1, activation=None)
            x = n.add("Add", [before, y]) if s == 1 and c == out else y
            c = out
    x = n.add("Flatten", [n.add("GlobalAveragePool", [n.conv(x, c, 1280, 1)])], axis=1)
    n.add("Gemm", [x, n.normal((1280, 1000), 0.03), n.constant(np.zeros(1000, np.float32))])
    n.save(path, [("x", TensorProto.FLOAT, ["N", 3, 224, 224])], ["N", 1000])


def minilm(path, layers=6, width=384, heads=12, inner=1536, vocabulary=30522, tokens=128):
    """BERT as PyTorch exports it, in the size of all-MiniLM-L6."""
    n = Net()
    x = n.add("Gather", [n.normal((vocabulary, width), 0.5), "ids"])
    x = n.norm(n.add("Add", [x, n.normal((1, tokens, width), 0.1)]), width)
    mask = n.add("Unsqueeze", [n.add("Cast", ["mask"], to=TensorProto.FLOAT), n.constant(np.array([1, 2]))])
    mask = n.add("Mul", [n.add("Sub", [n.constant(np.float32(1)), mask]), n.constant(np.float32(-10000))])
    split, merge = n.constant(np.array([0, tokens, heads, width // heads])), n.constant(np.array([0, tokens, width]))
    for _ in range(layers):
        q, k, v = (n.add("Reshape", [n.dense(x, width, width), split]) for _ in range(3))
        q, k, v = (n.add("Transpose", [t], perm=p) for t, p in [(q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3])])
        scores = n.add("Div", [n.add("MatMul", [q, k]), n.constant(np.float32((width // heads) ** 0.5))])
        weights = n.add("Softmax", [n.add("Add", [scores, mask])], axis=-1)
        mixed = n.add("Reshape", [n.add("Transpose", [n.add("MatMul", [weights, v])], perm=[0, 2, 1, 3]), merge])
        x = n.norm(n.add("Add", [x, n.dense(mixed, width, width)]), width)
        f = n.dense(x, width, inner)
        erf = n.add("Add", [n.add("Erf", [n.add("Div", [f, n.constant(np.float32(2**0.5))])]), n.constant(np.float32(1))])
        f = n.add("Mul", [n.add("Mul", [f, erf]), n.constant(np.float32(0.5))])
        x = n.norm(n.add("Add", [x, n.dense(f, inner, width)]), width)
    ports = [("ids", TensorProto.INT64, ["N", tokens]), ("mask", TensorProto.INT64, ["N", tokens])]
    n.save(path, ports, ["N", tokens, width])


def multimodal(path, tokens=64, vocabulary=10000, width=128):
    """LSTM (text), convolutions (image), dense layers (audio), joined."""
    n = Net()
    x = n.add("Transpose", [n.add("Gather", [n.normal((vocabulary, width), 0.3), "text"])], perm=[1, 0, 2])
    w, r = (n.normal((1, 4 * width, width), width**-0.5) for _ in range(2))
    hidden = n.add("LSTM", [x, w, r, n.normal((1, 8 * width), 0.1)], outputs=3, hidden_size=width)[1]
    text = n.add("Squeeze", [hidden, n.constant(np.array([0]))])
    y = n.conv(n.conv("image", 3, 32, 3, 2, activation="Relu"), 32, 64, 3, activation="Relu")
    y = n.conv(n.add("MaxPool", [y], kernel_shape=[2, 2], strides=[2, 2]), 64, 128, 3, activation="Relu")
    image = n.add("Flatten", [n.add("GlobalAveragePool", [y])], axis=1)
    audio = n.add("Relu", [n.dense(n.add("Relu", [n.dense("audio", 128, 256)]), 256, 128)])
    joined = n.add("Relu", [n.dense(n.add("Concat", [text, image, audio], axis=1), width + 256, 256)])
    n.add("Softmax", [n.dense(joined, 256, 10)], axis=-1)
    ports = [("text", TensorProto.INT64, ["N", tokens]), ("image", TensorProto.FLOAT, ["N", 3, 64, 64]), ("audio", TensorProto.FLOAT, ["N", 128])]
    n.save(path, ports, ["N", 10])


def inputs(name, seed, batch=1):
    rng = np.random.default_rng(seed)
    if name == "mobilenetv2":
        return {"x": rng.standard_normal((batch, 3, 224, 224)).astype(np.float32)}
    if name == "minilm":
        return {"ids": rng.integers(0, 30522, (batch, 128)), "mask": np.ones((batch, 128), np.int64)}
    return {"text": rng.integers(0, 10000, (1, 64)), "image": rng.standard_normal((1, 3, 64, 64)).astype(np.float32),
            "audio": rng.standard_normal((1, 128)).astype(np.float32)}


def work(path):
    """For one image or text, the operations of `Conv`, `Gemm` and `MatMul`, a product and a sum each, beside which the rest is little;
    and how many weights they read."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
    # What is free is the batch.
    sized = lambda v: [d.dim_value or 1 for d in v.type.tensor_type.shape.dim]
    weights = {w.name: list(w.dims) for w in graph.initializer}
    shapes = {v.name: sized(v) for v in [*graph.value_info, *graph.input, *graph.output]} | weights
    sums = {"Conv": lambda n: math.prod(shapes[n.input[1]][1:]), "Gemm": lambda n: shapes[n.input[0]][-1], "MatMul": lambda n: shapes[n.input[0]][-1]}
    nodes = [n for n in graph.node if n.op_type in sums]
    return {"operations": sum(2 * math.prod(shapes[n.output[0]]) * sums[n.op_type](n) for n in nodes),
            "weights": sum(math.prod(weights[n.input[1]]) for n in nodes if n.input[1] in weights)}


class Samples(CalibrationDataReader):
    def __init__(self, name):
        self.left = [inputs(name, 100 + i) for i in range(4)]

    def get_next(self):
        return self.left.pop() if self.left else None


BATCHED, BATCHES = ("mobilenetv2", "minilm"), (1, 32)


def main():
    out, zoo, models = map(pathlib.Path, sys.argv[1:])
    (out / "inputs").mkdir(parents=True, exist_ok=True)
    for make in (mobilenetv2, minilm, multimodal):
        name = make.__name__
        plain, inferred = out / f"{name}.onnx", out / f"{name}.inferred"
        make(plain)
        quant_pre_process(plain, inferred, skip_symbolic_shape=True)
        options = {"WeightSymmetric": True, "ActivationSymmetric": False}
        quantize_static(inferred, out / f"{name}-qdq.onnx", Samples(name), quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8, per_channel=True, extra_options=options)
        quantize_dynamic(inferred, out / f"{name}-dynamic.onnx", weight_type=QuantType.QInt8)
        inferred.unlink()
        for kind in ("", "-qdq", "-dynamic"):
            np.savez(out / "inputs" / f"{name}{kind}.npz", **inputs(name, 0))
    for batch in BATCHES:
        (out / "inputs" / f"batch{batch}").mkdir(exist_ok=True)
        for name in BATCHED:
            np.savez(out / "inputs" / f"batch{batch}" / f"{name}.npz", **inputs(name, 0, batch))
    (out / "work.json").write_text(json.dumps({name: work(out / f"{name}.onnx") for name in BATCHED}))
    digit = models / "which-digit"
    for kind, file in (("", "src/model.f32.onnx"), ("-qdq", "which-digit.hone/onnx/model.onnx")):
        shutil.copy(digit / file, out / f"which-digit{kind}.onnx")
        with np.load(digit / "which-digit.hone/samples/input.npz") as npz:
            np.savez(out / "inputs" / f"which-digit{kind}.npz", **{k: npz[k][:1] for k in npz.files})
    for model in sorted(zoo.glob("*/model.onnx")):
        case = models / "zoo" / model.parent.name / "case0.npz"
        if case.exists():
            with np.load(case) as npz:
                np.savez(out / "inputs" / f"{model.parent.name}.npz", **{k[3:]: npz[k] for k in npz.files if k.startswith("in_")})


main()
