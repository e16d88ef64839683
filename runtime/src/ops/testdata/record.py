"""Records what ONNX Runtime computes for tiny models of every operator of ours: conformance.npz.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 ml_dtypes==0.6.0 onnx==1.23.2 onnxruntime==1.32.0
    venv/bin/python record.py

The archive is written next to this file. Cases are here (models of several nodes, several shapes, weights) and in the
modules of `MODULES`. ONNX Runtime runs without graph optimisation, so that each operator is computed as it is written,
on one thread.

The archive is a deflated .npz of byte arrays. `made_with` is the version of ONNX Runtime. `index` is JSON: one
[NAME, TOLERANCE, CODES, MODEL_BYTES, RUNS] a case, each run [INPUTS, OUTPUTS], each tensor [NAME, DTYPE, SHAPE]. `data`
holds, in the order of the index and without gaps, the ONNX file of the case and then the elements of its tensors,
little-endian, types of fewer than eight bits one a byte. TOLERANCE is the largest absolute difference allowed to floats
(0: equal), CODES the same for integers, which is 0 but for operators that round a float computed in another order.

Tolerance: 2 · roundings · 2^-24 · max(1, max |output|): each of two engines rounds a value that often on its way to one
output element, by half a unit in the last place. `roundings` is 0 for operators that move or round to integers, the
length of the sum plus a few for sums, and a few for functions of a mathematical library (each within 2 units).
"""

import ctypes
import functools
import importlib
import io
import json
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

F32, I64 = TensorProto.FLOAT, TensorProto.INT64
LIBM = 8
MICROSOFT = "com.microsoft"
rng = np.random.default_rng(20261123)
index: list = []
data = io.BytesIO()


def u(*shape):
    """Uniform in [-1, 1): products stay below 1, which the tolerance relies on."""
    return rng.uniform(-1, 1, shape).astype(np.float32)


def q8(*shape):
    return rng.integers(-127, 128, shape).astype(np.int8)


def positive(*shape):
    return rng.uniform(0.002, 0.01, shape).astype(np.float32)


def i64(*values):
    return np.array(values, dtype=np.int64)


def node(op, inputs, outputs, **attrs):
    return helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attrs)


def case(name, nodes, runs, outputs=("y",), constants=None, roundings=0, lsb=0, opset=17, symbolic=None):
    """`runs`: one dict of inputs, or several; `symbolic`: {input: dims}, otherwise dims that differ get a symbol.

    Of `outputs` those named "" are not asked for. `lsb`: how far an integer may be off.
    """
    runs = runs if isinstance(runs, list) else [runs]
    nodes = nodes if isinstance(nodes, list) else [nodes]
    outputs = [o for o in outputs if o]
    inputs = []
    for key, first in runs[0].items():
        dims = [d if all(r[key].shape[i] == d for r in runs) else "N" for i, d in enumerate(first.shape)]
        dims = (symbolic or {}).get(key, dims)
        inputs.append(helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(first.dtype), dims))
    made = [helper.make_empty_tensor_value_info(o) for o in outputs]
    init = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, made, init)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    file = helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    largest, recorded = 1.0, []
    data.write(file)
    for run in runs:
        given = {k: to_ort(v) for k, v in run.items()}
        found = dict(zip(outputs, map(from_ort, session.run_with_ort_values(outputs, given))))
        recorded.append([store(run), store(found)])
        for value in found.values():
            if value.dtype.kind == "f" or value.dtype == ml_dtypes.bfloat16:
                value = value.astype(np.float64)
                largest = max(largest, float(np.abs(value[np.isfinite(value)]).max(initial=0)))
    assert all(name != other[0] for other in index), name
    index.append([name, 2 * roundings * 2.0**-24 * largest, lsb, len(file), recorded])


def one_node(name, op, inputs, *, domain="", opset=21, outputs=1, names=None, roundings=0, **attributes):
    """A case of one node whose operands are all fed; `inputs` are arrays, `None` where one is left out.

    `names` names the outputs, "" for one that is not asked for; without it there are `outputs` of them.
    """
    arrays = [None if v is None else np.asarray(v) for v in inputs]
    listed = ["" if v is None else f"i{k}" for k, v in enumerate(arrays)]
    outs = names or [f"o{k}" for k in range(outputs)]
    made = helper.make_node(op, listed, outs, name=op, domain=domain, **attributes)
    fed = {k: v for k, v in zip(listed, arrays) if k}
    case(name, made, fed, outputs=outs, roundings=roundings, opset=17 if domain else opset)


# Modules of cases beside this file, `cases_NAME.py`, and what their `cases(add)` is called with.
MODULES = {
    "attn": case,
    "elem": one_node,
    "math": functools.partial(one_node, roundings=8),
    "move": one_node,
    "quant": case,
    "rest": one_node,
}


def of_module(name, add):
    """The cases of one module, under its name."""
    module = importlib.import_module(f"cases_{name}")
    module.cases(lambda label, *args, **more: add(f"{name}: {label}", *args, **more))


SHORT = {"bfloat16": "bf16", "float8_e4m3fn": "f8e4m3fn", "float8_e5m2": "f8e5m2", "int4": "i4", "uint4": "u4", "bool": "bool"}
SHORT |= {f"float{n}": f"f{n}" for n in (16, 32, 64)}
SHORT |= {f"{kind}int{n}": f"{kind or 'i'}{n}" for n in (8, 16, 32, 64) for kind in ("", "u")}


def to_ort(value):
    """A tensor for ONNX Runtime, which takes the types NumPy lacks as codes."""
    value = np.ascontiguousarray(value).reshape(value.shape)
    if value.dtype.kind != "V" and value.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(value)
    codes = value.view(f"u{value.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, helper.np_dtype_to_tensor_dtype(value.dtype))


def from_ort(value):
    dtype = helper.tensor_dtype_to_np_dtype(value.element_type())
    if dtype.isbuiltin == 1:
        return value.numpy()
    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape)


def store(tensors):
    for value in tensors.values():
        data.write(np.ascontiguousarray(value).tobytes())
    return [[k, SHORT[str(v.dtype)], list(v.shape)] for k, v in tensors.items()]


def arithmetic():
    pairs = {
        "same": (u(2, 3), u(2, 3)),
        "scalar": (u(2, 3), u()),
        "middle": (u(2, 1, 3), u(4, 1)),
        "both": (u(3, 1), u(1, 4)),
        "rank5": (u(1, 2, 1, 3, 1), u(2, 1, 1, 1, 2)),
        "empty": (u(0, 3), u(1, 3)),
    }
    for op in ["Add", "Sub", "Mul", "Div", "Min", "Max"]:
        for label, (a, b) in pairs.items():
            case(f"{op}/{label}", node(op, ["a", "b"], ["y"]), {"a": a, "b": b}, roundings=1)
        ints = {"a": i64(7, -7, 8, -9).reshape(2, 2), "b": i64(2, -2)}
        case(f"{op}/i64", node(op, ["a", "b"], ["y"]), ints)
        batches = [{"a": u(n, 3), "b": u(1, 3)} for n in (1, 3)]
        case(f"{op}/batch", node(op, ["a", "b"], ["y"]), batches, roundings=1)
        case(f"{op}/constant", node(op, ["a", "c"], ["y"]), {"a": u(2, 3)}, constants={"c": u(3)}, roundings=1)
        case(f"{op}/constant_left", node(op, ["c", "a"], ["y"]), {"a": u(2, 3)}, constants={"c": u(3)}, roundings=1)
        case(f"{op}/itself", node(op, ["a", "a"], ["y"]), {"a": u(2, 3)}, roundings=1)
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan], dtype=np.float32)
    for op in ["Add", "Sub", "Mul", "Div"]:
        case(f"{op}/special", node(op, ["a", "b"], ["y"]), {"a": special[:, None], "b": special[None, :]})
    for op in ["Min", "Max"]:
        case(f"{op}/nan", node(op, ["a", "b"], ["y"]), {"a": special[2:, None], "b": special[None, 2:]})
        case(f"{op}/one", node(op, ["a"], ["y"]), {"a": u(2, 2)})
        case(f"{op}/three", node(op, ["a", "b", "c"], ["y"]), {"a": u(2, 3), "b": u(3), "c": u(2, 1)})
    case("Clip/both", node("Clip", ["x", "l", "h"], ["y"]), {"x": u(3, 4)}, constants={"l": np.float32(-0.3), "h": np.float32(0.4)})
    case("Clip/low", node("Clip", ["x", "l"], ["y"]), {"x": u(3, 4)}, constants={"l": np.float32(-0.3)})
    case("Clip/high", node("Clip", ["x", "", "h"], ["y"]), {"x": u(3, 4)}, constants={"h": np.float32(0.1)})
    case("Clip/attributes", node("Clip", ["x"], ["y"], min=-0.25, max=0.5), {"x": u(3, 4)}, opset=6)
    base = np.abs(u(2, 3)) + 0.1
    case("Pow/live", node("Pow", ["a", "b"], ["y"]), {"a": base, "b": 3 * u(2, 3)}, roundings=LIBM)
    for e in [0.5, 2.0, 3.0, -1.0]:
        case(f"Pow/{e}", node("Pow", ["a", "e"], ["y"]), {"a": base}, constants={"e": np.float32(e)}, roundings=LIBM)
    case("Pow/negative_base", node("Pow", ["a", "e"], ["y"]), {"a": u(2, 3)}, constants={"e": np.float32(2)}, roundings=LIBM)
    case("Pow/integer_exponent", node("Pow", ["a", "e"], ["y"]), {"a": u(2, 3)}, constants={"e": i64(2)}, roundings=LIBM)
    case("Pow/i64", node("Pow", ["a", "b"], ["y"]), {"a": i64(2, -3, 5), "b": i64(10, 3, 0)})


def activations():
    wide = np.array([[0.0, -0.0, 1e-6, -1e-6, 0.5, -0.5], [3.0, -3.0, 20.0, -20.0, 88.0, -88.0]], dtype=np.float32)
    for op in ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Exp"]:
        exact = op == "Relu"
        x = wide / 4 if op == "Exp" else wide
        case(f"{op}/wide", node(op, ["x"], ["y"]), {"x": x}, roundings=0 if exact else LIBM)
        case(f"{op}/batch", node(op, ["x"], ["y"]), [{"x": 4 * u(n, 5)} for n in (1, 3)], roundings=0 if exact else LIBM)
    case("LeakyRelu/alpha", node("LeakyRelu", ["x"], ["y"], alpha=0.3), {"x": wide}, roundings=2)
    case("HardSigmoid/attributes", node("HardSigmoid", ["x"], ["y"], alpha=0.4, beta=0.3), {"x": wide}, roundings=4)
    # 1.5e-7 is the stated error of the approximation: three units of 2^-24 beside those of the library.
    case("Erf/wide", node("Erf", ["x"], ["y"]), {"x": wide}, roundings=4)
    case("Erf/fine", node("Erf", ["x"], ["y"]), {"x": np.linspace(-4, 4, 65, dtype=np.float32)}, roundings=4)
    limits = np.array([np.inf, -np.inf, np.nan, 0.0], dtype=np.float32)
    for op in ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt"]:
        # ONNX Runtime's vectorised functions lose the NaN of some; those two limits have one answer everywhere.
        x = limits if op in ("Exp", "Log", "Sqrt", "LeakyRelu") else limits[[0, 1, 3]]
        case(f"{op}/limits", node(op, ["x"], ["y"]), {"x": x}, roundings=LIBM)
    case("Log/positive", node("Log", ["x"], ["y"]), {"x": np.abs(u(3, 4)) * 50 + 1e-3}, roundings=LIBM)
    case("Log/negative", node("Log", ["x"], ["y"]), {"x": np.array([-1.0, 0.0, 1.0], dtype=np.float32)})
    case("Sqrt/positive", node("Sqrt", ["x"], ["y"]), {"x": np.abs(u(3, 4)) * 50}, roundings=1)
    case("Sqrt/negative", node("Sqrt", ["x"], ["y"]), {"x": np.array([-1.0, -0.0, 4.0], dtype=np.float32)})


def movement():
    for label, x in {"f32": u(2, 3), "i64": i64(1, 2), "u8": np.arange(4, dtype=np.uint8)}.items():
        case(f"Identity/{label}", node("Identity", ["x"], ["y"]), {"x": x})
    for label, to in {"infer": [-1, 2], "keep": [0, -1], "flat": [24], "deep": [2, 1, 3, 4, 1]}.items():
        case(f"Reshape/{label}", node("Reshape", ["x", "to"], ["y"]), {"x": u(2, 3, 4)}, constants={"to": i64(*to)})
    batches = [{"x": u(n, 3, 4)} for n in (1, 3)]
    case("Reshape/batch", node("Reshape", ["x", "to"], ["y"]), batches, constants={"to": i64(0, -1)})
    case("Reshape/i64", node("Reshape", ["x", "to"], ["y"]), {"x": i64(1, 2, 3, 4)}, constants={"to": i64(2, 2)})
    for axis in [0, 1, 2, 3, -1]:
        case(f"Flatten/{axis}", node("Flatten", ["x"], ["y"], axis=axis), {"x": u(2, 3, 4)})
    case("Flatten/batch", node("Flatten", ["x"], ["y"]), batches)
    case("Squeeze/axes", node("Squeeze", ["x", "a"], ["y"]), {"x": u(2, 1, 3, 1)}, constants={"a": i64(1, -1)})
    case("Squeeze/all", node("Squeeze", ["x"], ["y"]), {"x": u(2, 1, 3, 1)})
    case("Unsqueeze/axes", node("Unsqueeze", ["x", "a"], ["y"]), {"x": u(2, 3)}, constants={"a": i64(0, -1)})
    case("Unsqueeze/batch", node("Unsqueeze", ["x", "a"], ["y"]), batches, constants={"a": i64(1)})
    for perm in [[1, 0], None]:
        attrs = {"perm": perm} if perm else {}
        case(f"Transpose/2d_{perm}", node("Transpose", ["x"], ["y"], **attrs), {"x": u(3, 5)})
    for perm in [[0, 2, 3, 1], [0, 3, 1, 2], [3, 2, 1, 0], [1, 0, 2, 3], [0, 2, 1, 3]]:
        case(f"Transpose/{perm}", node("Transpose", ["x"], ["y"], perm=perm), {"x": u(2, 3, 4, 5)})
    case("Transpose/batch", node("Transpose", ["x"], ["y"], perm=[0, 2, 1]), batches)
    case("Transpose/i64", node("Transpose", ["x"], ["y"]), {"x": i64(*range(6)).reshape(2, 3)})
    case("Transpose/u8", node("Transpose", ["x"], ["y"]), {"x": np.arange(6, dtype=np.uint8).reshape(2, 3)})
    for axis in [0, 1, 2, -1, -3]:
        shapes = [(2, 3, 4)] * 3
        parts = {}
        for i, (name, shape) in enumerate(zip("abc", shapes)):
            shape = list(shape)
            shape[axis] += i
            parts[name] = u(*shape)
        case(f"Concat/{axis}", node("Concat", list("abc"), ["y"], axis=axis), parts)
    many = [f"x{i}" for i in range(15)]
    case("Concat/fifteen", node("Concat", many, ["y"], axis=1), {m: u(2, 1 + i % 3) for i, m in enumerate(many)})
    case("Concat/one", node("Concat", ["a"], ["y"], axis=0), {"a": u(2, 2)})
    case("Concat/twice", node("Concat", ["a", "a"], ["y"], axis=1), {"a": u(2, 2)})
    case("Concat/empty_part", node("Concat", ["a", "b"], ["y"], axis=0), {"a": u(0, 2), "b": u(3, 2)})
    case("Concat/i64", node("Concat", ["a", "b"], ["y"], axis=0), {"a": i64(1, 2), "b": i64(3)})
    case("Concat/constant", node("Concat", ["a", "c"], ["y"], axis=0), {"a": u(1, 2)}, constants={"c": u(2, 2)})
    case("Concat/batch", node("Concat", ["x", "x"], ["y"], axis=1), batches)
    for label, (s, e, a) in {
        "middle": ([1], [3], [1]), "negative": ([-3], [-1], [2]), "past_the_end": ([1], [2**40], [1]),
        "two_axes": ([0, 1], [1, 3], [0, 2]), "empty": ([2], [2], [1]), "before_the_start": ([-99], [2], [1]),
    }.items():
        c = {"s": i64(*s), "e": i64(*e), "a": i64(*a)}
        case(f"Slice/{label}", node("Slice", ["x", "s", "e", "a"], ["y"]), {"x": u(2, 4, 5)}, constants=c)
    c = {"s": i64(0), "e": i64(5), "a": i64(2), "t": i64(2)}
    case("Slice/step", node("Slice", ["x", "s", "e", "a", "t"], ["y"]), {"x": u(2, 4, 5)}, constants=c)
    c = {"s": i64(-1), "e": i64(-99), "a": i64(1), "t": i64(-1)}
    case("Slice/backwards", node("Slice", ["x", "s", "e", "a", "t"], ["y"]), {"x": u(2, 4, 5)}, constants=c)
    case("Slice/attributes", node("Slice", ["x"], ["y"], starts=[1], ends=[3], axes=[1]), {"x": u(2, 4, 5)}, opset=9)
    case("Slice/i64", node("Slice", ["x", "s", "e"], ["y"]), {"x": i64(1, 2, 3)}, constants={"s": i64(1), "e": i64(3)})
    case("Slice/batch", node("Slice", ["x", "s", "e", "a"], ["y"]), batches, constants={"s": i64(1), "e": i64(3), "a": i64(2)})
    for label, (shape, to) in {
        "column": ((3, 1), [3, 4]), "lead": ((3,), [2, 3]), "two": ((1, 3, 1), [2, 3, 4]),
        "one_is_kept": ((3, 4), [1, 1]), "same": ((2, 2), [2, 2]),
    }.items():
        case(f"Expand/{label}", node("Expand", ["x", "to"], ["y"]), {"x": u(*shape)}, constants={"to": i64(*to)})
    case("Expand/i64", node("Expand", ["x", "to"], ["y"]), {"x": i64(5)}, constants={"to": i64(3, 2)})
    case("Expand/batch", node("Expand", ["x", "to"], ["y"]), [{"x": u(n, 1)} for n in (1, 3)], constants={"to": i64(1, 4)})
    for axis in [0, 1, 2, -1]:
        idx = {"x": u(3, 4, 5), "i": i64(2, 0, -1, 1, -3)}
        case(f"Gather/{axis}", node("Gather", ["x", "i"], ["y"], axis=axis), idx)
    case("Gather/scalar", node("Gather", ["x", "i"], ["y"], axis=1), {"x": u(2, 3)}, constants={"i": np.int64(-1)})
    case("Gather/matrix", node("Gather", ["t", "i"], ["y"]), {"i": i64(0, 3, -1, 2).reshape(2, 2)}, constants={"t": u(4, 3)})
    case("Gather/i32", node("Gather", ["t", "i"], ["y"]), {"i": np.array([1, -2], np.int32)}, constants={"t": u(4, 3)})
    case("Gather/of_i64", node("Gather", ["x", "i"], ["y"]), {"x": i64(5, 6, 7), "i": i64(-1, 0)})
    case("Gather/tokens", node("Gather", ["t", "i"], ["y"]), [{"i": rng.integers(0, 9, (n, 4))} for n in (1, 3)], constants={"t": u(9, 3)})


def products():
    for label, (a, b) in {
        "2d": ((3, 4), (4, 5)), "row": ((4,), (4, 5)), "column": ((3, 4), (4,)), "dot": ((4,), (4,)),
        "batched": ((2, 3, 4), (2, 4, 5)), "broadcast": ((2, 1, 3, 4), (3, 4, 5)), "batch_of_a": ((2, 3, 4), (4, 5)),
        "batch_of_b": ((3, 4), (2, 4, 5)), "row_by_batch": ((4,), (2, 4, 5)), "batch_by_column": ((2, 3, 4), (4,)),
        "wide": ((5, 33), (33, 40)), "single": ((1, 1), (1, 1)),
    }.items():
        a, b = u(*a), u(*b)
        k = a.shape[-1] + 2
        case(f"MatMul/{label}", node("MatMul", ["a", "b"], ["y"]), {"a": a, "b": b}, roundings=k)
        case(f"MatMul/{label}_weight", node("MatMul", ["a", "b"], ["y"]), {"a": a}, constants={"b": b}, roundings=k)
    case("MatMul/left_weight", node("MatMul", ["w", "a"], ["y"]), {"a": u(4, 5)}, constants={"w": u(3, 4)}, roundings=6)
    case("MatMul/batch", node("MatMul", ["a", "w"], ["y"]), [{"a": u(n, 2, 4)} for n in (1, 3)], constants={"w": u(4, 5)}, roundings=6)
    case("MatMul/itself", node("MatMul", ["a", "a"], ["y"]), {"a": u(3, 3)}, roundings=5)
    case("MatMul/attention", [node("Transpose", ["a"], ["t"], perm=[0, 1, 3, 2]), node("MatMul", ["a", "t"], ["y"])],
         [{"a": u(n, 2, 3, 4)} for n in (1, 3)], roundings=6)
    for ta in (0, 1):
        for tb in (0, 1):
            a, b = u(*((4, 3) if ta else (3, 4))), u(*((5, 4) if tb else (4, 5)))
            n = node("Gemm", ["a", "b", "c"], ["y"], transA=ta, transB=tb)
            case(f"Gemm/trans_{ta}{tb}", n, {"a": a}, constants={"b": b, "c": u(5)}, roundings=8)
            case(f"Gemm/live_{ta}{tb}", n, {"a": a, "b": b, "c": u(5)}, roundings=8)
    for label, shape in {"vector": (5,), "row": (1, 5), "column": (3, 1), "full": (3, 5), "one": (1,), "scalar": ()}.items():
        n = node("Gemm", ["a", "b", "c"], ["y"], alpha=0.5, beta=2.0)
        case(f"Gemm/bias_{label}", n, {"a": u(3, 4)}, constants={"b": u(4, 5), "c": u(*shape)}, roundings=10)
        n = node("Gemm", ["a", "b", "c"], ["y"])
        case(f"Gemm/plain_bias_{label}", n, {"a": u(3, 4)}, constants={"b": u(4, 5), "c": u(*shape)}, roundings=8)
    case("Gemm/no_bias", node("Gemm", ["a", "b"], ["y"]), {"a": u(3, 4)}, constants={"b": u(4, 5)}, roundings=6)
    case("Gemm/beta_only", node("Gemm", ["a", "b", "c"], ["y"], beta=0.25), {"a": u(3, 4)}, constants={"b": u(4, 5), "c": u(5)}, roundings=8)
    case("Gemm/batch", node("Gemm", ["a", "b", "c"], ["y"], transB=1), [{"a": u(n, 4)} for n in (1, 3)],
         constants={"b": u(5, 4), "c": u(5)}, roundings=8)
    case("Gemm/one_column", node("Gemm", ["a", "b", "c"], ["y"]), {"a": u(3, 4)}, constants={"b": u(4, 1), "c": u(3, 1)}, roundings=8)


CONVS = {
    # name: (input, weight, attributes)
    "1d": ((2, 3, 9), (4, 3, 3), {}),
    "1d_strided": ((1, 2, 11), (3, 2, 4), dict(strides=[2], pads=[1, 2])),
    "1d_dilated": ((1, 2, 11), (3, 2, 3), dict(dilations=[3], pads=[2, 2])),
    "1d_grouped": ((1, 4, 8), (6, 2, 3), dict(group=2)),
    "1d_same": ((1, 2, 7), (3, 2, 4), dict(auto_pad="SAME_UPPER", strides=[2])),
    "2d": ((2, 3, 6, 7), (4, 3, 3, 3), dict(pads=[1, 1, 1, 1])),
    "pointwise": ((2, 5, 4, 4), (7, 5, 1, 1), {}),
    "asymmetric": ((1, 2, 6, 7), (3, 2, 2, 3), dict(pads=[0, 1, 2, 0], strides=[2, 1])),
    "grouped": ((1, 6, 5, 5), (4, 3, 3, 3), dict(group=2)),
    "depthwise": ((1, 4, 6, 6), (4, 1, 3, 3), dict(group=4, pads=[1, 1, 1, 1])),
    "depthwise_multiplier": ((1, 3, 6, 6), (6, 1, 3, 3), dict(group=3, strides=[2, 2])),
    "dilated": ((1, 2, 9, 9), (2, 2, 3, 3), dict(dilations=[2, 3], pads=[2, 3, 2, 3])),
    "same_upper": ((1, 2, 7, 6), (3, 2, 3, 2), dict(auto_pad="SAME_UPPER", strides=[2, 3])),
    "same_lower": ((1, 2, 7, 6), (3, 2, 4, 2), dict(auto_pad="SAME_LOWER", strides=[2, 3])),
    "valid": ((1, 2, 7, 6), (3, 2, 3, 2), dict(auto_pad="VALID", strides=[2, 1])),
    "kernel_shape": ((1, 2, 5, 5), (3, 2, 3, 3), dict(kernel_shape=[3, 3])),
    "whole_image": ((1, 2, 4, 5), (6, 2, 4, 5), {}),
}


def convolutions():
    for label, (x, w, attrs) in CONVS.items():
        k = int(np.prod(w[1:])) + 3
        x, w, b = u(*x), u(*w), u(w[0])
        case(f"Conv/{label}", node("Conv", ["x", "w", "b"], ["y"], **attrs), {"x": x}, constants={"w": w, "b": b}, roundings=k)
        if label in ("1d", "2d", "depthwise", "grouped"):
            case(f"Conv/{label}_no_bias", node("Conv", ["x", "w"], ["y"], **attrs), {"x": x}, constants={"w": w}, roundings=k)
            case(f"Conv/{label}_live", node("Conv", ["x", "w", "b"], ["y"], **attrs), {"x": x, "w": w, "b": b}, roundings=k)
            scale = positive(w.shape[0])
            for form, s in {"channel": scale, "tensor": scale[0]}.items():
                dq = node("DequantizeLinear", ["q", "s"], ["w"], axis=0)
                conv = node("Conv", ["x", "w", "b"], ["y"], **attrs)
                case(f"Conv/{label}_int8_{form}", [dq, conv], {"x": x}, constants={"q": q8(*w.shape), "s": s, "b": b}, roundings=k)
    for label in ("1d", "2d"):
        x, w, attrs = CONVS[label]
        runs = [{"x": u(n, *x[1:])} for n in (1, 3)]
        case(f"Conv/{label}_batch", node("Conv", ["x", "w"], ["y"], **attrs), runs, constants={"w": u(*w)}, roundings=30)
    runs = [{"x": u(1, 2, 5, n)} for n in (4, 9)]
    attrs = dict(strides=[1, 2], pads=[1, 1, 1, 1])
    case("Conv/symbolic_width", node("Conv", ["x", "w"], ["y"], **attrs), runs, constants={"w": u(3, 2, 3, 3)}, roundings=21)
    dq = node("DequantizeLinear", ["q", "s", "z"], ["w"])
    c = {"q": rng.integers(0, 256, (4, 3, 3)).astype(np.uint8), "s": np.float32(0.005), "z": np.uint8(128)}
    case("Conv/uint8_weight", [dq, node("Conv", ["x", "w"], ["y"])], {"x": u(1, 3, 8)}, constants=c, roundings=12)
    c = {"q": q8(4, 3, 3), "s": positive(4), "z": np.array([0, 3, -2, 0], np.int8)}
    dq = node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=0)
    case("Conv/int8_with_zero_points", [dq, node("Conv", ["x", "w"], ["y"])], {"x": u(1, 3, 8)}, constants=c, roundings=12)


def pools():
    forms = {
        "1d": ((2, 3, 9), dict(kernel_shape=[3])),
        "1d_strided": ((1, 2, 9), dict(kernel_shape=[3], strides=[2], pads=[1, 0])),
        "2d": ((2, 3, 6, 7), dict(kernel_shape=[2, 3])),
        "strided": ((1, 2, 7, 7), dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
        "asymmetric": ((1, 2, 7, 6), dict(kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 2, 0])),
        "ceil": ((1, 2, 6, 7), dict(kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)),
        "ceil_pad": ((1, 1, 5, 6), dict(kernel_shape=[2, 3], strides=[2, 3], pads=[1, 1, 1, 1], ceil_mode=1)),
        "ceil_drop": ((1, 1, 4, 4), dict(kernel_shape=[1, 1], strides=[3, 3], pads=[0, 0, 0, 0], ceil_mode=1)),
        "ceil_drop_pad": ((1, 1, 5), dict(kernel_shape=[2], strides=[4], pads=[1, 1], ceil_mode=1)),
        "same_upper": ((1, 2, 7, 7), dict(kernel_shape=[3, 2], strides=[2, 3], auto_pad="SAME_UPPER")),
        "same_lower": ((1, 2, 7, 7), dict(kernel_shape=[4, 2], strides=[2, 3], auto_pad="SAME_LOWER")),
        "valid": ((1, 2, 7, 6), dict(kernel_shape=[4, 2], strides=[2, 3], auto_pad="VALID")),
    }
    for label, (shape, attrs) in forms.items():
        x = u(*shape)
        case(f"MaxPool/{label}", node("MaxPool", ["x"], ["y"], **attrs), {"x": x})
        for include in (0, 1):
            n = node("AveragePool", ["x"], ["y"], count_include_pad=include, **attrs)
            case(f"AveragePool/{label}_{include}", n, {"x": x}, roundings=13, opset=19)
    case("MaxPool/dilated", node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 3]), {"x": u(1, 2, 6, 7)})
    case("MaxPool/all_negative", node("MaxPool", ["x"], ["y"], kernel_shape=[2], pads=[1, 1]), {"x": -1 - np.abs(u(1, 1, 5))})
    case("AveragePool/dilated", node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 3]), {"x": u(1, 2, 6, 7)}, roundings=6, opset=19)
    case("AveragePool/opset11_ceil", node("AveragePool", ["x"], ["y"], kernel_shape=[3], strides=[2], ceil_mode=1), {"x": u(1, 2, 6)}, roundings=6, opset=11)
    for op in ["MaxPool", "AveragePool"]:
        runs = [{"x": u(n, 2, 5, 5)} for n in (1, 3)]
        case(f"{op}/batch", node(op, ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2]), runs, roundings=6)
        runs = [{"x": u(1, 2, 5, n)} for n in (4, 9)]
        case(f"{op}/symbolic_width", node(op, ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2]), runs, roundings=6)
    for label, shape in {"1d": (2, 3, 7), "2d": (2, 3, 4, 5), "3d": (1, 2, 2, 3, 4)}.items():
        case(f"GlobalAveragePool/{label}", node("GlobalAveragePool", ["x"], ["y"]), {"x": u(*shape)}, roundings=25)
    case("GlobalAveragePool/batch", node("GlobalAveragePool", ["x"], ["y"]), [{"x": u(n, 2, 3, 3)} for n in (1, 3)], roundings=10)


def reductions():
    for op in ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean"]:
        r = 0 if op in ("ReduceMax", "ReduceMin") else 26
        for axes in [[0], [1], [-1], [0, 2], [0, 1, 2], None]:
            for keep in (0, 1):
                attrs, inputs, constants = {"keepdims": keep}, ["x"], {}
                if op == "ReduceSum" and axes:
                    inputs, constants = ["x", "a"], {"a": i64(*axes)}
                elif axes:
                    attrs["axes"] = axes
                label = "all" if axes is None else "_".join(map(str, axes))
                n = node(op, inputs, ["y"], **attrs)
                case(f"{op}/{label}_keep{keep}", n, {"x": u(2, 3, 4)}, constants=constants, roundings=r)
        attrs, inputs, constants = {}, ["x"], {}
        if op == "ReduceSum":
            inputs, constants = ["x", "a"], {"a": i64(1)}
        else:
            attrs["axes"] = [1]
        case(f"{op}/batch", node(op, inputs, ["y"], **attrs), [{"x": u(n, 4)} for n in (1, 3)], constants=constants, roundings=r)
    case("ReduceSum/i64", node("ReduceSum", ["x", "a"], ["y"]), {"x": i64(1, 2, 3, 4).reshape(2, 2)}, constants={"a": i64(1)})
    case("ReduceSum/noop", node("ReduceSum", ["x"], ["y"], noop_with_empty_axes=1), {"x": u(2, 3)})


def normalisations():
    x = 3 * u(2, 3, 4)
    for opset in (11, 12, 13, 17):
        for axis in [None, 0, 1, 2, -1, -2]:
            attrs = {} if axis is None else {"axis": axis}
            case(f"Softmax/opset{opset}_{axis}", node("Softmax", ["x"], ["y"], **attrs), {"x": x}, opset=opset, roundings=32)
    case("Softmax/large", node("Softmax", ["x"], ["y"]), {"x": np.array([[1e4, 1e4, -1e4], [-1e4, 0, 88]], np.float32)}, roundings=8)
    case("Softmax/batch", node("Softmax", ["x"], ["y"]), [{"x": u(n, 5)} for n in (1, 3)], roundings=10)
    case("Softmax/one", node("Softmax", ["x"], ["y"]), {"x": u(3, 1)}, roundings=4)
    for axis, shape in [(None, (4,)), (-1, (4,)), (1, (3, 4)), (0, (2, 3, 4)), (-2, (3, 4))]:
        attrs = {} if axis is None else {"axis": axis}
        n = int(np.prod(shape))
        c = {"g": 1 + u(*shape) / 2, "o": u(*shape)}
        case(f"LayerNormalization/{axis}", node("LayerNormalization", ["x", "g", "o"], ["y"], **attrs), {"x": x}, constants=c, roundings=4 * n + 8)
        case(f"LayerNormalization/{axis}_no_bias", node("LayerNormalization", ["x", "g"], ["y"], **attrs), {"x": x}, constants=c, roundings=4 * n + 8)
    c = {"g": 1 + u(4) / 2, "o": u(4)}
    case("LayerNormalization/epsilon", node("LayerNormalization", ["x", "g", "o"], ["y"], epsilon=0.1), {"x": x}, constants=c, roundings=24)
    case("LayerNormalization/flat_row", node("LayerNormalization", ["x", "g", "o"], ["y"]), {"x": np.full((2, 4), 0.5, np.float32)}, constants=c, roundings=24)
    case("LayerNormalization/live_scale", node("LayerNormalization", ["x", "g", "o"], ["y"]), {"x": x, "g": c["g"], "o": c["o"]}, roundings=24)
    case("LayerNormalization/batch", node("LayerNormalization", ["x", "g", "o"], ["y"]), [{"x": u(n, 2, 4)} for n in (1, 3)], constants=c, roundings=24)
    case("LayerNormalization/broadcast_scale", node("LayerNormalization", ["x", "g"], ["y"], axis=1), {"x": x}, constants={"g": 1 + u(4) / 2}, roundings=56)


def recurrences():
    s, b, i, h = 5, 2, 3, 4
    roundings = s * (i + h + LIBM)
    for direction in ["forward", "reverse", "bidirectional"]:
        d = 2 if direction == "bidirectional" else 1
        w, r = u(d, 4 * h, i), u(d, 4 * h, h)
        bias, p = u(d, 8 * h), u(d, 3 * h)
        h0, c0 = u(d, b, h), u(d, b, h)
        x = u(s, b, i)
        attrs = dict(hidden_size=h, direction=direction)
        outs = ["y", "h", "c"]

        def lstm(label, inputs, run, constants, outputs=outs, wired=None, **more):
            n = node("LSTM", inputs, wired or outputs, **attrs, **more)
            shown = [o for o in outputs if o]
            case(f"LSTM/{direction}_{label}", n, run, outputs=shown, constants=constants, roundings=roundings)

        weights = {"w": w, "r": r}
        lstm("plain", ["x", "w", "r"], {"x": x}, weights)
        lstm("bias", ["x", "w", "r", "b"], {"x": x}, weights | {"b": bias})
        state = ["x", "w", "r", "b", "", "h0", "c0"]
        lstm("state", state, {"x": x, "h0": h0, "c0": c0}, weights | {"b": bias})
        lstm("constant_state", state, {"x": x}, weights | {"b": bias, "h0": h0, "c0": c0})
        lstm("only_h0", ["x", "w", "r", "", "", "h0"], {"x": x, "h0": h0}, weights)
        lstm("peepholes", ["x", "w", "r", "b", "", "", "", "p"], {"x": x}, weights | {"b": bias, "p": p})
        lens = np.array([5, 3], np.int32)
        lstm("lens", ["x", "w", "r", "b", "lens"], {"x": x, "lens": lens}, weights | {"b": bias})
        everything = ["x", "w", "r", "b", "lens", "h0", "c0", "p"]
        lstm("everything", everything, {"x": x, "lens": lens, "h0": h0, "c0": c0}, weights | {"b": bias, "p": p})
        lstm("last_only", ["x", "w", "r", "b"], {"x": x}, weights | {"b": bias}, outputs=["h"], wired=["", "h"])
        lstm("sequence_only", ["x", "w", "r", "b"], {"x": x}, weights | {"b": bias}, outputs=["y"], wired=["y"])
        lstm("cell_only", ["x", "w", "r", "b"], {"x": x}, weights | {"b": bias}, outputs=["c"], wired=["", "", "c"])
        lstm("clip", ["x", "w", "r", "b"], {"x": x}, weights | {"b": bias}, clip=0.4)
        lstm("live_weights", ["x", "w", "r", "b"], {"x": x, "w": w, "r": r, "b": bias}, {})
        lstm("batch", ["x", "w", "r", "b"], [{"x": u(s, n, i)} for n in (1, 3)], weights | {"b": bias})
        lstm("length", ["x", "w", "r", "b"], [{"x": u(n, b, i)} for n in (1, 6)], weights | {"b": bias})
        for form in ("tensor", "channel"):
            if form == "channel" and d == 2:
                continue  # recorded below, where one scale serves both directions
            sw, sr = (np.float32(0.006), np.float32(0.005)) if form == "tensor" else (positive(4 * h), positive(4 * h))
            dq = [node("DequantizeLinear", ["qw", "sw"], ["w"], axis=1), node("DequantizeLinear", ["qr", "sr"], ["r"], axis=1)]
            c = {"qw": q8(d, 4 * h, i), "sw": sw, "qr": q8(d, 4 * h, h), "sr": sr, "b": bias}
            n = node("LSTM", ["x", "w", "r", "b"], outs, **attrs)
            case(f"LSTM/{direction}_int8_{form}", dq + [n], {"x": x}, outputs=outs, constants=c, roundings=roundings)
    w, r = u(2, 16, 3), u(2, 16, 4)
    dq = [node("DequantizeLinear", ["qw", "sw"], ["w"], axis=1), node("DequantizeLinear", ["qr", "sr"], ["r"], axis=1)]
    c = {"qw": q8(2, 16, 3), "sw": positive(16), "qr": q8(2, 16, 4), "sr": positive(16)}
    n = node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4, direction="bidirectional")
    case("LSTM/bidirectional_int8_shared_channel", dq + [n], {"x": u(5, 2, 3)}, constants=c, roundings=75)


def quantisation():
    ties = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], [126.5, 127.5, 128.5, 254.5, 255.5, 300.0]], np.float32)
    edge = np.concatenate([ties, -ties, 1000 * u(2, 6)])
    for dtype, zeros in {np.uint8: [0, 128, 255], np.int8: [-128, 0, 5, 127]}.items():
        for zero in zeros:
            for scale in (1.0, 0.5, 0.1):
                c = {"s": np.float32(scale), "z": dtype(zero)}
                case(f"QuantizeLinear/{np.dtype(dtype)}_{zero}_{scale}", node("QuantizeLinear", ["x", "s", "z"], ["y"]), {"x": edge}, constants=c)
            c = {"s": np.float32(0.1), "z": dtype(zero)}
            q = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, (3, 4)).astype(dtype)
            case(f"DequantizeLinear/{np.dtype(dtype)}_{zero}", node("DequantizeLinear", ["q", "s", "z"], ["y"]), {"q": q}, constants=c, roundings=1)
    case("QuantizeLinear/no_zero_point", node("QuantizeLinear", ["x", "s"], ["y"]), {"x": edge}, constants={"s": np.float32(0.7)})
    case("DequantizeLinear/no_zero_point", node("DequantizeLinear", ["q", "s"], ["y"]), {"q": q8(3, 4)}, constants={"s": np.float32(0.7)}, roundings=1)
    case("DequantizeLinear/i32", node("DequantizeLinear", ["q", "s"], ["y"]), {"q": np.array([70000, -3, 2**24 + 1], np.int32)}, constants={"s": np.float32(0.01)}, roundings=2)
    x = 300 * u(3, 4, 5)
    for axis in (0, 1, 2, -1):
        n = x.shape[axis]
        for dtype in (np.uint8, np.int8):
            info = np.iinfo(dtype)
            c = {"s": 100 * positive(n), "z": rng.integers(info.min, info.max + 1, n).astype(dtype)}
            label = f"axis{axis}_{np.dtype(dtype)}"
            case(f"QuantizeLinear/{label}", node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=axis), {"x": x}, constants=c)
            q = rng.integers(info.min, info.max + 1, x.shape).astype(dtype)
            case(f"DequantizeLinear/{label}", node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis), {"q": q}, constants=c, roundings=1)
    for axis, shape in {0: (2, 6), 1: (4, 3)}.items():
        block = 4 // shape[0] if axis == 0 else 2
        c = {"s": 100 * positive(*shape), "z": rng.integers(-20, 20, shape).astype(np.int8)}
        case(f"DequantizeLinear/blocked_{axis}", node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=axis, block_size=block), {"q": q8(4, 6)}, constants=c, opset=21, roundings=1)
        case(f"QuantizeLinear/blocked_{axis}", node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=axis, block_size=block), {"x": 100 * u(4, 6)}, constants=c, opset=21)
    c = {"s": 100 * positive(2, 2, 5)}
    case("DequantizeLinear/blocked_middle", node("DequantizeLinear", ["q", "s"], ["y"], axis=1, block_size=2), {"q": q8(2, 4, 5)}, constants=c, opset=21, roundings=1)
    case("DequantizeLinear/blocked_ragged", node("DequantizeLinear", ["q", "s"], ["y"], axis=1, block_size=3), {"q": q8(2, 4, 5)}, constants=c, opset=21, roundings=1)
    case("QuantizeLinear/special", node("QuantizeLinear", ["x", "s", "z"], ["y"]), {"x": np.array([np.inf, -np.inf, 1e30, -1e30], np.float32)},
         constants={"s": np.float32(1), "z": np.uint8(3)})
    case("QuantizeLinear/batch", node("QuantizeLinear", ["x", "s", "z"], ["y"]), [{"x": 50 * u(n, 3)} for n in (1, 3)],
         constants={"s": np.float32(0.3), "z": np.int8(4)})
    case("QuantizeLinear/output_dtype", node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=TensorProto.INT8), {"x": edge}, constants={"s": np.float32(0.7)}, opset=21)
    q = {"s": np.float32(1 / 256), "z": np.uint8(0)}
    chain = [node("Softmax", ["x"], ["p"]), node("QuantizeLinear", ["p", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"]),
             node("Softmax", ["d"], ["e"])]
    case("DequantizeLinear/around_softmax", chain, {"x": 3 * u(2, 5)}, outputs=("q", "e"), constants=q, roundings=12)
    for axis, k in {0: (5, 4), 1: (4, 5)}.items():
        for form in ("channel", "tensor"):
            trans = 1 if axis == 0 else 0
            s = positive(5) if form == "channel" else np.float32(0.006)
            dq = node("DequantizeLinear", ["q", "s"], ["w"], axis=axis)
            c = {"q": q8(*k), "s": s, "b": u(5)}
            case(f"Gemm/int8_{form}_{trans}", [dq, node("Gemm", ["a", "w", "b"], ["y"], transB=trans)], {"a": u(3, 4)}, constants=c, roundings=9)
    for axis, n in {1: 5, 0: 4}.items():
        dq = node("DequantizeLinear", ["q", "s"], ["w"], axis=axis)
        case(f"MatMul/int8_axis{axis}", [dq, node("MatMul", ["a", "w"], ["y"])], {"a": u(2, 3, 4)}, constants={"q": q8(4, 5), "s": positive(n)}, roundings=8)
    c = {"q": q8(4, 5), "s": np.float32(0.007), "z": np.int8(0)}
    dq = node("DequantizeLinear", ["q", "s", "z"], ["w"])
    case("MatMul/int8_tensor", [dq, node("MatMul", ["a", "w"], ["y"])], [{"a": u(n, 4)} for n in (1, 3)], constants=c, roundings=8)
    case("MatMul/int8_used_twice", [dq, node("MatMul", ["a", "w"], ["y"]), node("Relu", ["w"], ["v"])], {"a": u(2, 4)}, outputs=("y", "v"), constants=c, roundings=8)
    dq = node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=2)
    case("MatMul/int8_blocked", [dq, node("MatMul", ["a", "w"], ["y"])], {"a": u(2, 4)}, constants={"q": q8(4, 5), "s": positive(2, 5)}, opset=21, roundings=8)
    c = {"q": q8(4, 5), "s": positive(1)}
    dq = node("DequantizeLinear", ["q", "s"], ["w"], axis=0)
    case("Gemm/int8_one_scale_vector", [dq, node("Gemm", ["a", "w"], ["y"])], {"a": u(2, 4)}, constants=c, roundings=8)


def control():
    """`If`, `Loop` and `Scan`, whose graphs take values from around them: live ones, constants and outer inputs."""
    info, f32 = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = lambda nodes, inputs, outputs, init=(): helper.make_graph(nodes, "inner", inputs, outputs, list(init))
    then = graph([node("Add", ["h", "c"], ["t"])], [], [info("t", f32, None)])
    other = graph([node("Mul", ["h", "k"], ["e"])], [], [info("e", f32, None)], [numpy_helper.from_array(np.float32(3), "k")])
    nodes = [node("Relu", ["x"], ["h"]), node("If", ["cond"], ["y"], then_branch=then, else_branch=other)]
    runs = [{"x": u(n, 3), "cond": np.array(n == 1)} for n in (1, 3)]
    case("If/captures", nodes, runs, constants={"c": u(3)}, roundings=2)
    for flag in (True, False):
        case(f"If/constant_{flag}", nodes, {"x": u(2, 3)}, constants={"c": u(3), "cond": np.array(flag)}, roundings=2)
    one = graph([node("Identity", ["h"], ["t"])], [], [info("t", f32, None)])
    two = graph([node("Concat", ["h", "h"], ["e"], axis=0)], [], [info("e", f32, None)])
    nodes[1] = node("If", ["cond"], ["z"], then_branch=one, else_branch=two)
    case("If/other_shapes", [*nodes, node("Exp", ["z"], ["y"])], [{"x": u(2, 3), "cond": np.array(b)} for b in (True, False)], roundings=LIBM)
    i, cond, v = info("i", I64, []), info("c_in", TensorProto.BOOL, []), info("v", f32, None)
    steps = [node("Identity", ["c_in"], ["c_out"]), node("Mul", ["v", "x"], ["w"]), node("Add", ["w", "x"], ["s"])]
    outs = [info("c_out", TensorProto.BOOL, []), info("w", f32, None), info("s", f32, None)]
    body = graph(steps, [i, cond, v], outs)
    for trips in (0, 1, 4):
        feed = {"x": u(2, 3), "v0": u(2, 3), "m": np.array(trips, np.int64)}
        case(f"Loop/trips_{trips}", node("Loop", ["m", "", "v0"], ["y", "scan"], body=body), feed, outputs=("y", "scan"), roundings=16)
    steps = [node("Add", ["v", "x"], ["w"]), node("ReduceMax", ["w"], ["top"], keepdims=0), node("Less", ["top", "limit"], ["c_out"])]
    body = graph(steps, [i, cond, v], outs[:2], [numpy_helper.from_array(np.float32(2.5), "limit")])
    feed = {"x": np.abs(u(3)), "v0": np.zeros(3, np.float32), "go": np.array(True)}
    case("Loop/until", node("Loop", ["", "go", "v0"], ["y"], body=body), feed, roundings=16)
    steps = [node("Identity", ["c_in"], ["c_out"]), node("Concat", ["v", "x"], ["w"], axis=0)]
    body = graph(steps, [i, cond, v], outs[:2])
    feed = {"x": u(1, 2), "v0": u(0, 2), "m": np.array(3, np.int64)}
    case("Loop/grows", node("Loop", ["m", "", "v0"], ["y"], body=body), feed)
    steps = [node("Mul", ["p", "half"], ["d"]), node("Add", ["d", "a"], ["n"]), node("Identity", ["n"], ["o"])]
    io = lambda names: [info(n, f32, None) for n in names]
    body = graph(steps, io("pa"), io("no"))
    for label, more in {
        "plain": {}, "reverse": dict(scan_input_directions=[1], scan_output_directions=[1]),
        "axes": dict(scan_input_axes=[1], scan_output_axes=[-1]),
    }.items():
        scan = node("Scan", ["p0", "a0"], ["last", "all"], body=body, num_scan_inputs=1, **more)
        feed = {"p0": u(4), "a0": u(4, 5) if label == "axes" else u(5, 4)}
        case(f"Scan/{label}", scan, feed, outputs=("last", "all"), constants={"half": np.float32(0.5)}, roundings=12)


def save(path):
    """A deflated .npz whose bytes depend on its contents alone."""
    members = {
        "made_with": f"onnxruntime {ort.__version__}, onnx {onnx.__version__}".encode(),
        "index": json.dumps(index, separators=(",", ":")).encode(),
        "data": data.getvalue(),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for name, content in members.items():
            raw = io.BytesIO()
            np.lib.format.write_array(raw, np.frombuffer(content, dtype=np.uint8), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(info, raw.getvalue(), compresslevel=9)


FAMILIES = [arithmetic, activations, movement, products, convolutions, pools, reductions, normalisations, recurrences, quantisation, control]

if __name__ == "__main__":
    for family in FAMILIES:
        family()
    for name, add in MODULES.items():
        of_module(name, add)
    target = Path(__file__).with_name("conformance.npz")
    save(target)
    print(f"{len(index)} cases, {target.stat().st_size} bytes", file=sys.stderr)
