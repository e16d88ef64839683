"""Records gradients of low-rank paths beside quantised weights that PyTorch computes on the dequantised ones: lora.npz.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 onnx==1.23.2 torch==2.15.0
    venv/bin/python record.py

The models are those of ../../quant/testdata, made by hone's own schemes. PyTorch walks them in float64 with weights
dequantised and activations unrounded (saturated, where they have a fixed range): what training through the whole numbers
approximates. Where a model rounds activations it is walked a second time with them rounded as it says, gradients passing
straight through: what training through it is. `A` and `B` are filled by the rule of `numbers` in ../../train/testdata/record.py, by their names.

Members: `index` is JSON, a list of {name, loss, layers}; `name/x` inputs, `name/target`, `name/LAYER.lora_A` and
`name/LAYER.lora_B` gradients; those of the second walk begin with `rounded/`, and its loss is `rounded`.
"""

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "train/testdata"))
import record as walk  # noqa: E402

MODELS = HERE.parents[1] / "quant/testdata"
# What paths are filled with are numbers in -FILL..FILL.
RANK, ALPHA, FILL = 4, 8.0, 0.1
RANGE = {torch.uint8: (0, 255), torch.int8: (-128, 127)}


def dequantised(q, scale, zero, axis):
    shape = [1] * q.dim()
    if scale.numel() > 1:
        shape[axis % q.dim()] = scale.numel()
    zero = torch.zeros_like(scale) if zero is None else zero.double()
    return (q.double() - zero.reshape(shape)) * scale.double().reshape(shape)


def unpacked(attrs, q, scales, zeros):
    """The weight [K, N] of MatMulNBits of 4 bits."""
    n, blocks, _ = q.shape
    codes = torch.stack([q & 15, q >> 4], -1).reshape(n, blocks, -1).double()
    scales = scales.reshape(n, blocks, 1).double()
    if zeros is None:
        zero = torch.full_like(scales, 8.0)
    else:
        z = zeros.reshape(n, -1)
        zero = torch.stack([z & 15, z >> 4], -1).reshape(n, -1)[:, :blocks, None].double()
    return ((codes - zero) * scales).reshape(n, -1)[:, : attrs["K"]].T


def layer(name):
    for suffix in ("_quantized", "_Q4", "_folded", ".weight"):
        name = name.removesuffix(suffix)
    return name


def path(layers, params, name, shape):
    """`A` and `B` of a layer, made when it is met."""
    if name not in layers:
        if len(shape) == 2:
            a, b = (shape[0], RANK), (RANK, shape[1])
        else:
            a, b = (RANK, *shape[1:]), (shape[0], RANK, *[1] * (len(shape) - 2))
        for suffix, s in (("lora_A", a), ("lora_B", b)):
            key = f"{name}.{suffix}"
            params[key] = torch.tensor(FILL * walk.numbers(key, int(np.prod(s))).reshape(s), requires_grad=True)
        layers.append(name)
    return params[f"{name}.lora_A"], params[f"{name}.lora_B"]


def straight(x, scale, zero, low, high):
    """`x` in codes and back, with the gradient of `x` where it is in range."""
    inside = x.clamp((low - zero) * scale, (high - zero) * scale)
    # Divided and rounded in f32, as the model is.
    codes = torch.round(x.detach().float() / np.float32(scale)) + zero
    there = (codes.clamp(low, high).double() - zero) * scale
    return inside + (there - inside).detach()


def dynamic(x):
    """Scale and zero point of DynamicQuantizeLinear."""
    low, high = (np.float32(f(x.detach().float().numpy())) for f in (np.min, np.max))
    low, high = min(low, np.float32(0)), max(high, np.float32(0))
    scale = (high - low) / np.float32(255)
    return scale, float(np.clip(np.round(-low / scale), 0, 255))


def run(model, inputs, params, rounded=False):
    v = {i.name: torch.tensor(numpy_helper.to_array(i)) for i in model.graph.initializer} | inputs
    constants = {i.name for i in model.graph.initializer}
    sources, layers, held = {}, [], {}
    for node in model.graph.node:
        a = {x.name: helper.get_attribute_value(x) for x in node.attribute}
        x = [v[i] if i else None for i in node.input]
        x += [None] * (6 - len(x))
        op, out = node.op_type, node.output[0]
        side = None
        if op == "DequantizeLinear":
            if node.input[0] in constants:
                sources[out] = node.input[0]
                y = dequantised(x[0], x[1], x[2], a.get("axis", 1))
            else:
                y = x[0]
        elif op == "QuantizeLinear":
            low, high = RANGE[x[2].dtype]
            zero = float(x[2])
            y = x[0].clamp((low - zero) * float(x[1]), (high - zero) * float(x[1]))
            if rounded and node.input[0] not in constants:
                y = straight(x[0], float(x[1]), zero, low, high)
        elif op == "DynamicQuantizeLinear":
            held[node.output[0]] = x[0]
            y = x[0]
            if rounded:
                # A range that is taken from the numbers saturates none: the gradient passes for all.
                y = x[0] + (straight(x[0], *(float(t) for t in dynamic(x[0])), 0, 255) - x[0]).detach()
            y = (y, torch.tensor(1.0).double(), torch.tensor(0.0).double())
        elif op == "MatMulInteger":
            zero = x[3].double() if x[3] is not None else 0.0
            y = x[0] @ (x[1].double() - zero)
            sources[out] = (layer(node.input[1]), held[node.input[0]], x[1].shape)
        elif op == "Cast":
            y = x[0].double()
            if node.input[0] in sources:
                sources[out] = sources[node.input[0]]
        elif op == "Mul" and node.input[0] in sources and isinstance(sources[node.input[0]], tuple):
            y = x[0] * x[1].double()
            name, left, shape = sources[node.input[0]]
            side = left, *path(layers, params, name, shape)
        elif op == "MatMulNBits":
            w = unpacked(a, x[1], x[2], x[3])
            y = x[0] @ w + (x[5].double() if x[5] is not None else 0.0)
            side = x[0], *path(layers, params, layer(node.input[1]), w.shape)
        elif op == "GatherBlockQuantized":
            rows, _ = x[0].shape
            codes = torch.stack([x[0] & 15, x[0] >> 4], -1).reshape(rows, -1).double()
            size = a["block_size"]
            blocks = x[2].shape[1]
            z = torch.stack([x[3] & 15, x[3] >> 4], -1).reshape(rows, -1)[:, :blocks].double()
            spread = lambda t: t.double().repeat_interleave(size, 1)[:, : codes.shape[1]]
            y = ((codes - spread(z)) * spread(x[2]))[x[1]]
        else:
            one = onnx.ModelProto()
            one.graph.node.append(node)
            y = tuple(walk.run(one.graph, {i: v[i].double() if v[i].is_floating_point() else v[i] for i in node.input if i})[o]
                      for o in node.output)
            weight = node.input[1] if len(node.input) > 1 else ""
            weight = sources.get(weight, weight)
            if op in ("MatMul", "Gemm", "Conv") and isinstance(weight, str) and weight in constants and a.get("group", 1) == 1:
                shape = x[1].shape
                if op == "Gemm" and a.get("transB"):
                    shape = shape[::-1]
                side = x[0], *path(layers, params, layer(weight), tuple(shape))
        y = y if isinstance(y, tuple) else (y,)
        if side is not None:
            left, p, q = side
            if p.dim() > 2:
                conv = torch.nn.functional.conv2d
                narrow = conv(torch.nn.functional.pad(left.double(), walk.pads_of(a, 2)), p, stride=a.get("strides", 1),
                              dilation=a.get("dilations", 1))
                y = (y[0] + ALPHA / RANK * conv(narrow, q),)
            else:
                y = (y[0] + ALPHA / RANK * (left.double() @ p) @ q,)
        for name, value in zip(node.output, y):
            if name:
                v[name] = value.double() if value.is_floating_point() else value
    return v, layers


def main():
    members, index = {}, []
    for model, output in (("picture", "logits"), ("sentence", "vector")):
        samples = np.load(MODELS / f"{model}.npz")
        for scheme in ("", "int8-weights", "int8-dynamic", "int8-qdq", "int4"):
            name = f"{model}.{scheme}".rstrip(".")
            proto = onnx.load(MODELS / f"{name}.onnx")
            inputs = {k: torch.tensor(np.concatenate(list(samples[k][:4]))) for k in samples.files}
            params = {}
            v, layers = run(proto, {k: t.double() if t.is_floating_point() else t for k, t in inputs.items()}, params)
            y = v[output]
            target = torch.tensor(walk.numbers(f"{model}/target", y.numel()).reshape(y.shape).astype(np.float32))
            loss = torch.nn.functional.mse_loss(y, target.double())
            loss.backward()
            case = {"name": name, "output": output, "loss": float(loss.detach()), "layers": layers}
            index.append(case)
            if scheme in ("int8-dynamic", "int8-qdq"):
                again = {}
                given = {k: t.double() if t.is_floating_point() else t for k, t in inputs.items()}
                off = torch.nn.functional.mse_loss(run(proto, given, again, True)[0][output], target.double())
                off.backward()
                case["rounded"] = float(off.detach())
                for k, p in again.items():
                    members[f"rounded/{name}/{k}"] = p.grad.numpy().astype(np.float32)
                a, b = (torch.cat([p.grad.flatten() for p in q.values()]) for q in (params, again))
                print(name, "cosine of both", float(a @ b / a.norm() / b.norm()))
            for k, t in inputs.items():
                members[f"{name}/{k}"] = t.numpy()
            members[f"{name}/target"] = target.numpy()
            for k, p in params.items():
                members[f"{name}/{k}"] = p.grad.numpy().astype(np.float32)
    members["index"] = np.frombuffer(json.dumps(index).encode(), dtype=np.uint8)
    with zipfile.ZipFile(HERE / "lora.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for name, t in members.items():
            data = io.BytesIO()
            np.save(data, np.ascontiguousarray(t))
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(info, data.getvalue())
    print(f"{len(index)} cases, {(HERE / 'lora.npz').stat().st_size} bytes")
    for e in index:
        print(e["name"], e["loss"], e["layers"])


if __name__ == "__main__":
    main()
