"""The trained model as ONNX, written node by node, in f32 or with int8 weights.

Opset 17, one symbolic dimension "N". int8 is the standard weight-only form: an int8
initialiser `<name>_quantized`, symmetric, one scale a row, behind a `DequantizeLinear`
with `<name>_scale` and `<name>_zero_point` that yields `<name>_dequantized`. Biases and
`head.weight`, `head.bias` stay f32: the head is what a device goes on training.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from front import MELS, TEXT_LENGTH
from network import C, D, HIDDEN, M

OPSET, IR_VERSION = 17, 8


class Builder:
    """Collects nodes and initialisers; `weight` decides what a quantised model stores."""

    def __init__(self, int8):
        self.int8, self.nodes, self.initialisers = int8, [], []

    def constant(self, name, value):
        self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name, value, axis=0):
        """The name of the f32 tensor to use for `value`, whose output channels lie along `axis`."""
        value = value.astype(np.float32)
        if not self.int8:
            return self.constant(name, value)
        others = tuple(i for i in range(value.ndim) if i != axis)
        scale = np.maximum(np.abs(value).max(others) / 127, 1e-8).astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(value.ndim)]
        quantized = np.round(value / scale.reshape(shape)).clip(-127, 127).astype(np.int8)
        inputs = [
            self.constant(f"{name}_quantized", quantized),
            self.constant(f"{name}_scale", scale),
            self.constant(f"{name}_zero_point", np.zeros(len(scale), np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}_dequantized", axis=axis)

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{output}/{op}", **attributes))
        return output


def build(model, int8):
    """`network.WhichDigit` -> a checked `onnx.ModelProto`."""
    w = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    g = Builder(int8)

    def dense(x, layer, out):
        inputs = [x, g.weight(f"{layer}.weight", w[f"{layer}.weight"]), g.constant(f"{layer}.bias", w[f"{layer}.bias"])]
        return g.node("Tanh", [g.node("Gemm", inputs, f"{layer}.out", transB=1)], out)

    def conv_pool(x, layer, window):
        inputs = [x, g.weight(f"{layer}.weight", w[f"{layer}.weight"]), g.constant(f"{layer}.bias", w[f"{layer}.bias"])]
        x = g.node("Conv", inputs, f"{layer}.out", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1])
        x = g.node("Relu", [x], f"{layer}.relu")
        return g.node("MaxPool", [x], f"{layer}.pool", kernel_shape=window, strides=window)

    last = g.constant("axis_1", np.array([1], np.int64))

    x = "image"
    for layer in ("image.conv1", "image.conv2", "image.conv3"):
        x = conv_pool(x, layer, [2, 2])
    image = dense(g.node("Flatten", [x], "image.flat", axis=1), "image.dense", "image.feature")

    x = g.node("Unsqueeze", ["audio", last], "audio.plane")
    for layer, window in (("audio.conv1", [2, 2]), ("audio.conv2", [2, 2]), ("audio.conv3", [2, 4])):
        x = conv_pool(x, layer, window)
    audio = dense(g.node("Flatten", [x], "audio.flat", axis=1), "audio.dense", "audio.feature")

    x = g.node("Gather", [g.weight("text.embedding.weight", w["text.embedding.weight"]), "text"], "text.embedded", axis=0)
    x = g.node("Transpose", [x], "text.steps", perm=[1, 0, 2])
    bias = np.concatenate([lstm_order(w["text.lstm.bias_ih_l0"]), lstm_order(w["text.lstm.bias_hh_l0"])])
    inputs = [
        x,
        g.weight("text.lstm.weight_ih", lstm_order(w["text.lstm.weight_ih_l0"])[None], axis=1),
        g.weight("text.lstm.weight_hh", lstm_order(w["text.lstm.weight_hh_l0"])[None], axis=1),
        g.constant("text.lstm.bias", bias[None]),
    ]
    g.nodes.append(helper.make_node("LSTM", inputs, ["", "text.last_state"], name="text.last_state/LSTM", hidden_size=HIDDEN))
    x = g.node("Squeeze", ["text.last_state", g.constant("axis_0", np.array([0], np.int64))], "text.state")
    text = dense(x, "text.dense", "text.feature")

    FUSE[model.fusion](g, w, dense, [image, audio, text])
    # The head is never quantised: its names are part of the contract.
    head = [g.constant("head.weight", w["head.weight"]), g.constant("head.bias", w["head.bias"])]
    g.node("Gemm", ["feature", *head], "logits", transB=1)

    value = helper.make_tensor_value_info
    inputs = [
        value("image", TensorProto.FLOAT, ["N", 1, 28, 28]),
        value("audio", TensorProto.FLOAT, ["N", MELS, 100]),
        value("text", TensorProto.INT64, ["N", TEXT_LENGTH]),
        value("present", TensorProto.FLOAT, ["N", M]),
    ]
    outputs = [
        value("logits", TensorProto.FLOAT, ["N", C]),
        value("feature", TensorProto.FLOAT, ["N", D]),
        value("attention", TensorProto.FLOAT, ["N", M]),
    ]
    graph = helper.make_graph(g.nodes, "which-digit", inputs, outputs, g.initialisers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="which-digit")
    proto.ir_version = IR_VERSION
    onnx.checker.check_model(proto, full_check=True)
    return proto


def attention_weights(g, score):
    """Scores [N, M] or [M], lowered by 1e4 where missing, through a softmax, then exactly 0 where missing."""
    missing = g.node("Sub", ["present", g.constant("one", np.float32([1]))], "fusion.missing")
    lowered = g.node("Mul", [missing, g.constant("far", np.float32([1e4]))], "fusion.penalty")
    masked = g.node("Add", [lowered, score], "fusion.masked")
    soft = g.node("Softmax", [masked], "fusion.softmax", axis=1)
    return g.node("Mul", [soft, "present"], "attention")


def stack(g, features):
    """Three [N, D] -> [N, M, D]."""
    planes = [g.node("Unsqueeze", [f, "axis_1"], f"{f}.row") for f in features]
    return g.node("Concat", planes, "fusion.rows", axis=1)


def weighted_sum(g, rows, weights):
    axis = g.constant("axis_2", np.array([2], np.int64))
    column = g.node("Unsqueeze", [weights, axis], "fusion.weights")
    product = g.node("Mul", [rows, column], "fusion.weighted")
    g.node("ReduceSum", [product, "axis_1"], "feature", keepdims=0)


def fuse_attention(g, w, dense, features):
    # One score a modality, each from its own feature: three small products and a Concat
    # stay two-dimensional, which a batched product over [N, M, D] would not.
    weight = g.weight("score.weight", w["score.weight"])
    bias = g.constant("score.bias", w["score.bias"])
    scores = [g.node("Gemm", [f, weight, bias], f"{f}.score", transB=1) for f in features]
    score = g.node("Concat", scores, "fusion.score", axis=1)
    weighted_sum(g, stack(g, features), attention_weights(g, score))


def fuse_weighted(g, w, dense, features):
    weighted_sum(g, stack(g, features), attention_weights(g, g.constant("score", w["score"])))


def fuse_concat(g, w, dense, features):
    column = g.node("Unsqueeze", ["present", g.constant("axis_2", np.array([2], np.int64))], "fusion.present")
    kept = g.node("Mul", [stack(g, features), column], "fusion.kept")
    dense(g.node("Flatten", [kept], "fusion.flat", axis=1), "mix", "feature")
    # present / count, where count is 1 when nothing is present, so that the answer is 0 and not NaN.
    total = g.node("ReduceSum", ["present", "axis_1"], "fusion.total", keepdims=1)
    some = g.node("ReduceMax", ["present"], "fusion.some", axes=[1], keepdims=1)
    none = g.node("Sub", [g.constant("one", np.float32([1])), some], "fusion.none")
    g.node("Div", ["present", g.node("Add", [total, none], "fusion.count")], "attention")


def lstm_order(value):
    """PyTorch stacks the gates i, f, g, o; ONNX i, o, f, c."""
    i, f, c, o = np.split(value, 4, axis=0)
    return np.concatenate([i, o, f, c], axis=0)


FUSE = {"attention": fuse_attention, "weighted": fuse_weighted, "concat": fuse_concat}
