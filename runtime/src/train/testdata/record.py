"""Records gradients and steps of training that PyTorch computes for models of ours: gradients.npz.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 onnx==1.23.2 torch==2.15.0
    venv/bin/python record.py [EEG_MODEL]

EEG_MODEL is `eeg-seizure-conv-lstm` of models/zoo.toml, which `cargo xtask zoo` fetches; without it that case is left
out. ONNX graphs are walked node by node with PyTorch's functions in float64, on one thread, and differentiated by its
autograd: an implementation that shares nothing with ours but the ONNX standard.

Members of the archive, deflated: `index` is JSON, a list of cases {name, model, output, objective, inputs, frozen,
parameters, steps}; `model` names a member (an ONNX file) or, with a slash, a file of the repository. Weights of models
that are members are not in them: they are inputs of the graph, filled by the rule of `numbers`, which the test has too.
A gradient is recorded by its norm and its products with two tensors of `numbers`: a few numbers stand for millions.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

torch.set_num_threads(1)
HERE = Path(__file__).parent
REPOSITORY = HERE.parents[3]
MASK = (1 << 64) - 1
members: dict = {}
index: list = []


def seed_of(name):
    s = 7
    for b in name.encode():
        s = (s * 31 + b) & MASK
    return s


def numbers(name, n):
    """`n` numbers in -1..1, by a rule of `name`."""
    s, out = seed_of(name), np.empty(n)
    for i in range(n):
        s = (s * 6364136223846793005 + 1442695040888963407) & MASK
        out[i] = (s >> 11) / float(1 << 52) - 1.0
    return out


def weight(name, shape):
    """Weights of a layer whose results are about as large as its inputs; scales and variances near 1."""
    n = int(np.prod(shape))
    v = numbers(name, n)
    if len(shape) > 1:
        fan = int(np.prod(shape[1:]))
        v = v * np.sqrt(3.0 / fan)
    else:
        v = 1.0 + 0.3 * v if ("scale" in name or "var" in name) else 0.1 * v
    return v.reshape(shape).astype(np.float32)


def pads_of(attrs, rank):
    p = attrs.get("pads", [0] * 2 * rank)
    return [v for i in reversed(range(rank)) for v in (p[i], p[i + rank])]


def lstm(attrs, x, w, r, b, _lens=None, h0=None, c0=None):
    s, n, _ = x.shape
    d, h = r.shape[0], r.shape[2]
    ys, hs, cs = [], [], []
    for k in range(d):
        hk = h0[k] if h0 is not None else x.new_zeros(n, h)
        ck = c0[k] if c0 is not None else x.new_zeros(n, h)
        out = [None] * s
        back = attrs.get("direction", b"forward") == b"reverse" or k == 1
        for t in reversed(range(s)) if back else range(s):
            g = x[t] @ w[k].T + hk @ r[k].T + b[k][: 4 * h] + b[k][4 * h :]
            i, o, f, c = g.split(h, dim=1)
            ck = torch.sigmoid(f) * ck + torch.sigmoid(i) * torch.tanh(c)
            hk = torch.sigmoid(o) * torch.tanh(ck)
            out[t] = hk
        ys.append(torch.stack(out))
        hs.append(hk)
        cs.append(ck)
    return torch.stack(ys, 1), torch.stack(hs), torch.stack(cs)


def run(graph, values, dtype=torch.float64):
    """Every value of the graph, by name; numbers of operators as `dtype`."""
    v = dict(values)
    for i in graph.initializer:
        v.setdefault(i.name, torch.tensor(numpy_helper.to_array(i)))
    for node in graph.node:
        a = {x.name: helper.get_attribute_value(x) for x in node.attribute}
        x = [v[i] if i else None for i in node.input]
        op = node.op_type
        ints = lambda i: [int(k) for k in x[i].flatten().tolist()]
        if op == "Constant":
            y = torch.tensor(numpy_helper.to_array(a["value"]))
        elif op == "Conv":
            rank = x[1].dim() - 2
            conv = {1: F.conv1d, 2: F.conv2d}[rank]
            y = conv(F.pad(x[0], pads_of(a, rank)), x[1], x[2] if len(x) > 2 else None,
                     stride=a.get("strides", 1), dilation=a.get("dilations", 1), groups=a.get("group", 1))
        elif op == "Gemm":
            p, q = (x[0].T if a.get("transA") else x[0]), (x[1].T if a.get("transB") else x[1])
            y = a.get("alpha", 1.0) * (p @ q) + (a.get("beta", 1.0) * x[2] if len(x) > 2 else 0)
        elif op == "MaxPool":
            y = F.max_pool2d(x[0], a["kernel_shape"], a.get("strides", [1, 1]))
        elif op == "LSTM":
            y = lstm(a, *x)
        elif op == "BatchNormalization":
            y = F.batch_norm(x[0], x[3], x[4], x[1], x[2], eps=a.get("epsilon", 1e-5))
        elif op == "LayerNormalization":
            y = F.layer_norm(x[0], x[1].shape, x[1], x[2], a.get("epsilon", 1e-5))
        elif op == "Clip":
            bounds = [float(b) if b is not None else None for b in (x[1:] + [None, None])[:2]]
            y = x[0].clamp(*bounds)
        elif op == "Gather":
            axis = a.get("axis", 0)
            i = x[1].long()
            y = torch.index_select(x[0], axis, i.flatten().remainder(x[0].shape[axis]))
            y = y.reshape(x[0].shape[:axis] + i.shape + x[0].shape[axis + 1 :])
        elif op == "Slice":
            y = x[0]
            for s, e, ax, step in zip(ints(1), ints(2), ints(3), ints(4) if len(x) > 4 else [1] * len(ints(1))):
                y = y.index_select(ax, torch.tensor(range(y.shape[ax])[s:e:step]))
        elif op == "Reshape":
            shape = [x[0].shape[i] if k == 0 else k for i, k in enumerate(ints(1))]
            y = x[0].reshape(shape)
        elif op == "Flatten":
            y = x[0].flatten(a.get("axis", 1))
        elif op == "Unsqueeze":
            y = x[0]
            for ax in sorted(ints(1)):
                y = y.unsqueeze(ax)
        elif op == "Squeeze":
            y = x[0]
            for ax in sorted(ints(1), reverse=True):
                y = y.squeeze(ax)
        elif op == "Shape":
            y = torch.tensor(x[0].shape)
        elif op == "ConstantOfShape":
            t = numpy_helper.to_array(a["value"]) if "value" in a else np.zeros(1, np.float32)
            y = torch.full(ints(0), t.item(), dtype=torch.float64 if t.dtype == np.float32 else torch.int64)
        elif op == "Expand":
            y = x[0].expand(torch.broadcast_shapes(x[0].shape, ints(1)))
        elif op == "Concat":
            y = torch.cat(x, a["axis"])
        elif op == "Transpose":
            y = x[0].permute(a["perm"])
        elif op in ("ReduceSum", "ReduceMean", "ReduceMax"):
            axes = ints(1) if len(x) > 1 else a.get("axes", list(range(x[0].dim())))
            f = {"ReduceSum": torch.sum, "ReduceMean": torch.mean, "ReduceMax": torch.amax}[op]
            y = f(x[0], dim=axes, keepdim=bool(a.get("keepdims", 1)))
        elif op == "ReduceL2":
            y = torch.linalg.vector_norm(x[0], dim=ints(1) if len(x) > 1 else a["axes"], keepdim=bool(a.get("keepdims", 1)))
        elif op == "Softmax":
            y = x[0].softmax(a.get("axis", -1))
        elif op == "Cast":
            y = x[0].long() if a["to"] in (TensorProto.INT32, TensorProto.INT64) else x[0].double()
        elif op == "DequantizeLinear":
            along = [-1 if i == a.get("axis", 1) else 1 for i in range(x[0].dim())]
            scale = x[1].reshape(along) if x[1].dim() else x[1]
            y = (x[0].to(scale.dtype) - (x[2].to(scale.dtype).reshape(scale.shape) if len(x) > 2 else 0)) * scale
        elif op == "Pad":
            p, rank = ints(1), x[0].dim()
            y = F.pad(x[0], [v for i in reversed(range(rank)) for v in (p[i], p[i + rank])])
        elif op == "GlobalAveragePool":
            y = x[0].mean(dim=(2, 3), keepdim=True)
        else:
            y = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Relu": torch.relu,
                 "Tanh": torch.tanh, "Sqrt": torch.sqrt, "Erf": torch.erf, "Pow": torch.pow,
                 "MatMul": torch.matmul, "Sigmoid": torch.sigmoid}[op](*x)
        for name, value in zip(node.output, y if isinstance(y, tuple) else (y,)):
            if name:
                v[name] = value.to(dtype) if value.is_floating_point() else value
    return v


def objective(kind, y, target, w):
    """The weighed sum over rows, weights summing to one."""
    w = w / w.sum() if w is not None else None
    if kind == "CrossEntropy":
        row = -(target * F.log_softmax(y, -1)).sum(-1)
    elif kind == "Labels":
        row = F.cross_entropy(y.flatten(0, -2), target.flatten().clamp(min=0), reduction="none").reshape(y.shape[:-1])
    elif kind == "BinaryCrossEntropy":
        row = F.binary_cross_entropy_with_logits(y, target, reduction="none").mean(-1)
    elif kind == "MeanSquared":
        row = F.mse_loss(y, target, reduction="none").mean(-1)
    elif kind == "Cosine":
        row = 1 - F.cosine_similarity(y, target, dim=-1)
    elif kind == "Contrastive":
        e = F.normalize(y, dim=-1)
        a, b = e.chunk(2)
        scores, labels = a @ b.T / 0.1, torch.arange(len(a))
        row = (F.cross_entropy(scores, labels, reduction="none") + F.cross_entropy(scores.T, labels, reduction="none")) / 2
    w = torch.full(row.shape, 1.0 / row.numel(), dtype=torch.float64) if w is None else w
    return (row * w).sum()


def summary(name, t, products=2):
    t = t.detach().double().flatten().numpy()
    return [float(np.linalg.norm(t))] + [float(t @ numbers(f"{name}:{k}", t.size)) for k in range(products)]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
}


def case(name, model, path, inputs, output, kind, target, weights=None, train=None, steps=(), clip=None):
    graph = model.graph
    given = [i.name for i in graph.input]
    filled = [i for i in graph.input if i.name not in inputs]
    params = {i.name: weight(i.name, [d.dim_value for d in i.type.tensor_type.shape.dim]) for i in filled}
    if not filled:
        params = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
        params = {k: v for k, v in params.items() if v.dtype == np.float32}
        # Single numbers are constants of the formula; one is multiplied by 1e9 and its gradient rounding.
        train = [k for k, v in params.items() if v.size > 1]
    train = train if isinstance(train, list) else [p for p in params if train is None or train(p)]

    def leaves():
        return {k: torch.tensor(v).double().requires_grad_(k in train) for k, v in params.items()}

    def loss_of(p):
        double = lambda t: torch.tensor(t).double() if t.dtype == np.float32 else torch.tensor(t)
        v = run(graph, p | {k: double(t) for k, t in inputs.items()})
        return objective(kind, v[output], None if target is None else double(target),
                         None if weights is None else double(weights))

    p = leaves()
    loss = loss_of(p)
    loss.backward()
    train = [k for k in train if p[k].grad is not None and float(p[k].grad.abs().max()) > 0]
    entry = {
        "name": name, "model": path, "output": output, "objective": kind, "clip": clip,
        "inputs": [i for i in given if i in inputs], "filled": [i.name for i in filled],
        "loss": float(loss.detach()), "gradients": {k: summary(k, p[k].grad) for k in train}, "steps": {},
    }
    for optimizer in steps:
        p = leaves()
        o = OPTIMIZERS[optimizer]([p[k] for k in train])
        losses, norms = [], []
        for _ in range(6):
            o.zero_grad()
            loss = loss_of(p)
            loss.backward()
            if clip:
                norms.append(float(torch.nn.utils.clip_grad_norm_([p[k] for k in train], clip)))
            o.step()
            losses.append(float(loss.detach()))
        entry["steps"][optimizer] = {"losses": losses, "norms": norms, "after": {k: summary(k, p[k]) for k in train}}
    index.append(entry)
    if "/" not in path:
        members[path] = np.frombuffer(model.SerializeToString(), dtype=np.uint8)
    for key, t in [*inputs.items(), ("~target", target), ("~weights", weights)]:
        if t is not None:
            members[f"{name}/{key}"] = t


class Net:
    """A graph whose weights are inputs, filled by the rule."""

    def __init__(self, opset=17):
        self.nodes, self.inputs, self.constants, self.opset = [], [], [], opset

    def input(self, name, shape, dtype=TensorProto.FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def op(self, kind, inputs, name, **attrs):
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"{kind}_{name}", **attrs))
        return name

    def model(self, output):
        g = helper.make_graph(self.nodes, "g", self.inputs, [helper.make_empty_tensor_value_info(output)], self.constants)
        return helper.make_model(g, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def softened(name, n, c):
    t = np.abs(numbers(name, n * c)).reshape(n, c)
    return (t / t.sum(1, keepdims=True)).astype(np.float32)


def floats(name, *shape):
    return numbers(name, int(np.prod(shape))).reshape(shape).astype(np.float32)


def mlp():
    net = Net()
    x = net.input("x", ["N", 6])
    for i, (k, n) in enumerate([(6, 10), (10, 5)]):
        w, b = net.input(f"w{i}", [n, k]), net.input(f"b{i}", [n])
        x = net.op("Gemm", [x, w, b], f"h{i}", transB=1)
        x = net.op("Relu" if i == 0 else "Tanh", [x], f"a{i}")
    return net.model(x), x


def mlps():
    model, y = mlp()
    x = {"x": floats("x", 8, 6)}
    soft, reals = softened("soft", 8, 5), floats("reals", 8, 5)
    case("mlp-cross-entropy", model, "mlp", x, y, "CrossEntropy", soft, steps=list(OPTIMIZERS), clip=0.25)
    labels = np.array([0, 1, 2, 3, 4, -1, 0, 1])
    some = np.array([1, 2, 1, 0.5, 1, 0, 1, 1], dtype=np.float32)
    case("mlp-labels", model, "mlp", x, y, "Labels", labels, weights=some, steps=["adamw"])
    case("mlp-binary", model, "mlp", x, y, "BinaryCrossEntropy", np.abs(reals))
    case("mlp-squared", model, "mlp", x, y, "MeanSquared", reals, weights=some)
    case("mlp-cosine", model, "mlp", x, y, "Cosine", reals)
    case("mlp-contrastive", model, "mlp", x, y, "Contrastive", None)


def transformer():
    """Two layers as MiniLM has them, small, with low-rank side paths on all projections."""
    net, hidden, heads, wide, rank = Net(), 24, 3, 48, 4
    ids = net.input("ids", ["N", 7], TensorProto.INT64)
    mask = net.input("mask", ["N", 1, 1, 7])
    x = net.op("Gather", [net.input("words", [30, hidden]), ids], "e0")
    x = net.op("Add", [x, net.input("places", [7, hidden])], "e1")
    head = net.constant("head_shape", np.array([0, 0, heads, hidden // heads]))
    whole = net.constant("whole_shape", np.array([0, 0, hidden]))
    half, one = net.constant("half", np.float32(0.5)), net.constant("one", np.float32(1))
    root, factor = net.constant("root", np.float32(2**-0.5)), net.constant("factor", np.float32((hidden / heads) ** -0.5))

    def norm(x, name):
        return net.op("LayerNormalization", [x, net.input(f"{name}.scale", [hidden]), net.input(f"{name}.bias", [hidden])],
                      f"{name}.y", axis=-1, epsilon=1e-5)

    def linear(x, name, k, n):
        y = net.op("MatMul", [x, net.input(f"{name}.w", [k, n])], f"{name}.p")
        a, b = net.input(f"{name}.lora_a", [k, rank]), net.input(f"{name}.lora_b", [rank, n])
        side = net.op("MatMul", [net.op("MatMul", [x, a], f"{name}.xa"), b], f"{name}.xab")
        y = net.op("Add", [y, net.op("Mul", [side, half], f"{name}.s")], f"{name}.q")
        return net.op("Add", [y, net.input(f"{name}.bias", [n])], f"{name}.y")

    x = norm(x, "embed")
    for i in range(2):
        q, k, v = (linear(x, f"{i}.{n}", hidden, hidden) for n in "qkv")
        q, v = (net.op("Transpose", [net.op("Reshape", [t, head], f"{t}.h")], f"{t}.t", perm=[0, 2, 1, 3]) for t in (q, v))
        k = net.op("Transpose", [net.op("Reshape", [k, head], f"{k}.h")], f"{k}.t", perm=[0, 2, 3, 1])
        s = net.op("Mul", [net.op("MatMul", [q, k], f"{i}.qk"), factor], f"{i}.scaled")
        s = net.op("Softmax", [net.op("Add", [s, mask], f"{i}.masked")], f"{i}.share", axis=-1)
        y = net.op("Transpose", [net.op("MatMul", [s, v], f"{i}.mix")], f"{i}.back", perm=[0, 2, 1, 3])
        y = linear(net.op("Reshape", [y, whole], f"{i}.joined"), f"{i}.o", hidden, hidden)
        x = norm(net.op("Add", [x, y], f"{i}.sum1"), f"{i}.norm1")
        y = linear(x, f"{i}.up", hidden, wide)
        g = net.op("Add", [net.op("Erf", [net.op("Mul", [y, root], f"{i}.u")], f"{i}.erf"), one], f"{i}.e1")
        y = net.op("Mul", [net.op("Mul", [y, g], f"{i}.g"), half], f"{i}.gelu")
        x = norm(net.op("Add", [x, linear(y, f"{i}.down", wide, hidden)], f"{i}.sum2"), f"{i}.norm2")
    x = net.op("ReduceMean", [x], "pooled", axes=[1], keepdims=0)
    y = net.op("Gemm", [x, net.input("head.w", [5, hidden]), net.input("head.bias", [5])], "logits", transB=1)
    model = net.model(y)
    mask = np.zeros((4, 1, 1, 7), dtype=np.float32)
    mask[1, ..., 5:] = mask[3, ..., 3:] = -10000
    ids = (np.abs(numbers("ids", 28)) * 30).astype(np.int64).reshape(4, 7)
    inputs = {"ids": ids, "mask": mask}
    soft = softened("transformer", 4, 5)
    case("transformer-lora", model, "transformer", inputs, y, "CrossEntropy", soft,
         train=lambda p: "lora" in p or p.startswith("head"), steps=["adamw"])
    case("transformer-full", model, "transformer", inputs, y, "CrossEntropy", soft)


def efficientnet():
    """The last two blocks and the head of EfficientNet-Lite0, at 4 × 4 pixels, normalisation apart."""
    net = Net()
    x = net.input("x", ["N", 192, 4, 4])
    low, high = net.constant("low", np.float32(0)), net.constant("high", np.float32(6))

    def conv(x, name, o, c, k, group=1, act=True):
        y = net.op("Conv", [x, net.input(f"{name}.w", [o, c // group, k, k])], f"{name}.c", group=group,
                   kernel_shape=[k, k], pads=[k // 2] * 4, strides=[1, 1])
        p = [net.input(f"{name}.{s}", [o]) for s in ("scale", "bias", "mean", "var")]
        y = net.op("BatchNormalization", [y, *p], f"{name}.n", epsilon=1e-3)
        return net.op("Clip", [y, low, high], f"{name}.a") if act else y

    for i, (k, out) in enumerate([(5, 192), (3, 320)]):
        y = conv(x, f"{i}.expand", 1152, 192, 1)
        y = conv(y, f"{i}.depth", 1152, 1152, k, group=1152)
        y = conv(y, f"{i}.project", out, 1152, 1, act=False)
        x = net.op("Add", [x, y], f"{i}.sum") if out == 192 else y
    y = net.op("Flatten", [net.op("GlobalAveragePool", [x], "pool")], "flat")
    y = net.op("Gemm", [y, net.input("head.w", [10, 320]), net.input("head.bias", [10])], "logits", transB=1)
    case("efficientnet-last", net.model(y), "efficientnet", {"x": floats("pixels", 2, 192, 4, 4)}, y, "CrossEntropy",
         softened("efficientnet", 2, 10), train=lambda p: not p.endswith((".mean", ".var")))


def which_digit():
    inputs = {
        "image": np.abs(floats("image", 3, 1, 28, 28)), "audio": floats("audio", 3, 40, 100),
        "text": (np.abs(numbers("text", 48)) * 27).astype(np.int64).reshape(3, 16),
        "present": np.array([[1, 1, 1], [1, 0, 1], [0, 1, 1]], dtype=np.float32),
    }
    for variant in ("attention", "concat", "weighted"):
        path = f"models/which-digit/variants/{variant}/model.f32.onnx"
        model = onnx.load(REPOSITORY / path)
        case(f"which-digit-{variant}", model, path, inputs, "logits", "CrossEntropy", softened(variant, 3, 10))


def eeg(path):
    model = onnx.load(path)
    g = model.graph
    big = [i for i in g.initializer if numpy_helper.to_array(i).dtype == np.float32]
    for i in big:
        g.input.append(helper.make_tensor_value_info(i.name, TensorProto.FLOAT, list(i.dims)))
        g.initializer.remove(i)
    x = floats("eeg", 1, 100, 9)
    steps = run(g, {i.name: torch.tensor(weight(i.name, list(i.dims))).double() for i in big} | {"x": torch.tensor(x).double()})
    rows = steps["logits"].shape[:2]
    labels = (np.abs(numbers("labels", int(np.prod(rows)))) * 4).astype(np.int64).reshape(rows)
    case("eeg-conv-lstm", model, "eeg", {"x": x}, "logits", "Labels", labels)


if __name__ == "__main__":
    mlps()
    transformer()
    efficientnet()
    which_digit()
    if len(sys.argv) > 1:
        eeg(sys.argv[1])
    members["index"] = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
    with zipfile.ZipFile(HERE / "gradients.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for name, t in members.items():
            data = io.BytesIO()
            np.save(data, np.ascontiguousarray(t))
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(info, data.getvalue())
    print(f"{len(index)} cases, {(HERE / 'gradients.npz').stat().st_size} bytes")
