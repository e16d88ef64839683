"""The ONNX standard's own node tests: written as cases for `hone check`, and run through ONNX Runtime.

    cargo xtask onnx-node-tests                      makes what it needs, runs hone and compares

What it calls, and how the record beside this file was made (Linux: every case runs in a process of its own):

    python3 -m venv venv && venv/bin/pip install -r onnx_node_tests.requirements.txt
    venv/bin/python onnx_node_tests.py cases DIR
    venv/bin/pip install onnxruntime==1.32.0
    venv/bin/python onnx_node_tests.py ort onnx_node_tests.ort.txt

`cases DIR` writes, for every case, DIR/<case>/model.onnx and DIR/<case>/case0.npz, case1.npz, … (one for each data set),
and DIR/index.json: {"onnx": VERSION, "cases": {<case>: {"ops": [...], "types": [...]}}}. `ops` are the operators of the
graph and of its subgraphs, as Name or domain.Name; `types` are the element types of the graph's inputs and outputs in
hone's spelling, besides "string", "sequence" and "optional".

A case*.npz is stored, not deflated, and holds

    in_<input name>     for every input of the graph
    out_<i>             for every output, in the order of the graph
    dtypes              only where needed: UTF-8 JSON as bytes (u1), {member: element type}

`dtypes` names the element types for which NumPy has no descriptor. Their arrays hold codes, one element each: bf16 as u2;
f8e4m3fn, f8e4m3fnuz, f8e5m2, f8e5m2fnuz, f8e8m0 and f4e2m1 as u1; i4 and i2 as sign-extended i1; u4 and u2 as u1. Strings,
sequences and optionals are named there too, but have no array: hone has no such values, and refuses the model first.

`ort FILE` runs every case through ONNX Runtime (CPU, one thread, its default optimisations) and writes the cases that do
not pass, one a line: case, `fail` (another result) or `error` (no result), reason. What passing means is the standard's
own rule, `onnx.backend.test.runner`: equal shapes and element types, |y - ref| <= atol + rtol·|ref| for every element with
NaN equal to NaN, rtol 1e-3 and atol 1e-7 in every case, rtol at least 2^-6 for bf16.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

# Integer overflow and NaN on purpose in the cases; notices of deprecation in the package.
warnings.filterwarnings("ignore")

# Element types that NumPy has, by their number in the standard.
NATIVE = {
    TensorProto.FLOAT: "f32", TensorProto.FLOAT16: "f16", TensorProto.DOUBLE: "f64", TensorProto.BOOL: "bool",
    TensorProto.INT8: "i8", TensorProto.INT16: "i16", TensorProto.INT32: "i32", TensorProto.INT64: "i64",
    TensorProto.UINT8: "u8", TensorProto.UINT16: "u16", TensorProto.UINT32: "u32", TensorProto.UINT64: "u64",
}
# Those it lacks: hone's spelling, the type that holds a code, the type that knows its value.
CODED = {
    TensorProto.BFLOAT16: ("bf16", np.uint16, ml_dtypes.bfloat16),
    TensorProto.FLOAT8E4M3FN: ("f8e4m3fn", np.uint8, ml_dtypes.float8_e4m3fn),
    TensorProto.FLOAT8E4M3FNUZ: ("f8e4m3fnuz", np.uint8, ml_dtypes.float8_e4m3fnuz),
    TensorProto.FLOAT8E5M2: ("f8e5m2", np.uint8, ml_dtypes.float8_e5m2),
    TensorProto.FLOAT8E5M2FNUZ: ("f8e5m2fnuz", np.uint8, ml_dtypes.float8_e5m2fnuz),
    TensorProto.FLOAT8E8M0: ("f8e8m0", np.uint8, ml_dtypes.float8_e8m0fnu),
    TensorProto.FLOAT4E2M1: ("f4e2m1", np.uint8, ml_dtypes.float4_e2m1fn),
    TensorProto.INT4: ("i4", np.int8, ml_dtypes.int4), TensorProto.UINT4: ("u4", np.uint8, ml_dtypes.uint4),
    TensorProto.INT2: ("i2", np.int8, ml_dtypes.int2), TensorProto.UINT2: ("u2", np.uint8, ml_dtypes.uint2),
}
# Several elements a byte in a TensorProto and in ONNX Runtime's memory.
BITS = {
    TensorProto.FLOAT4E2M1: 4, TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.INT2: 2, TensorProto.UINT2: 2,
}
RTOL, ATOL, RTOL_BF16 = 1e-3, 1e-7, 2.0**-6
# ONNX Runtime has this long for a case.
TIMEOUT_S = 60


def collect():
    """Every node test of the package, by name."""
    from onnx.backend.test.case.node import collect_testcases

    tests = {t.name: t for t in collect_testcases(None)}
    for t in tests.values():
        # `cargo xtask onnx-node-tests` gives hone one tolerance for all.
        assert (t.rtol, t.atol) == (RTOL, ATOL), f"{t.name} has a tolerance of its own"
        assert re.fullmatch(r"[A-Za-z0-9_]+", t.name), f"{t.name!r} is no folder's name"
    return tests


def spelling(type_proto):
    """The element type of a tensor in hone's spelling, or "string", "sequence", "optional"."""
    kind = type_proto.WhichOneof("value")
    if kind != "tensor_type":
        return kind.removesuffix("_type")
    number = type_proto.tensor_type.elem_type
    if number == TensorProto.STRING:
        return "string"
    return NATIVE[number] if number in NATIVE else CODED[number][0]


def codes(value, type_proto):
    """The elements of a tensor as NumPy can store them: values, or codes of the types it lacks."""
    number = type_proto.tensor_type.elem_type
    if isinstance(value, TensorProto):
        assert value.data_type == number
        value = numpy_helper.to_array(value)
    value = np.asarray(value)
    if number not in CODED:
        assert value.dtype == onnx.helper.tensor_dtype_to_np_dtype(number)
        return value
    _, code, float_or_int = CODED[number]
    assert value.dtype == float_or_int
    if np.issubdtype(code, np.signedinteger) or number in (TensorProto.UINT4, TensorProto.UINT2):
        return value.astype(code)
    # A view of a scalar would lose its shape.
    stored = np.ascontiguousarray(value).view(code).reshape(value.shape)
    return stored & 15 if number == TensorProto.FLOAT4E2M1 else stored


def operators(nodes):
    """The operators of these nodes and of their subgraphs, as Name or domain.Name."""
    found = set()
    for node in nodes:
        found.add(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                found |= operators(graph.node)
    return found


def write_cases(root):
    """Writes every case and the index below `root`."""
    index = {}
    for name, test in collect().items():
        graph = test.model.graph
        inputs, outputs = [v.type for v in graph.input], [v.type for v in graph.output]
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(test.model.SerializeToString())
        for i, (given, wanted) in enumerate(test.data_sets):
            members = [(f"in_{v.name}", x, v.type) for x, v in zip(given, graph.input, strict=True)]
            members += [(f"out_{k}", x, t) for k, (x, t) in enumerate(zip(wanted, outputs, strict=True))]
            arrays, dtypes = {}, {}
            for key, value, type_proto in members:
                kind = spelling(type_proto)
                if kind not in NATIVE.values():
                    dtypes[key] = kind
                if kind not in ("string", "sequence", "optional"):
                    arrays[key] = codes(value, type_proto)
            if dtypes:
                arrays["dtypes"] = np.frombuffer(json.dumps(dtypes).encode(), np.uint8)
            np.savez(folder / f"case{i}.npz", **arrays)
        index[name] = {"ops": sorted(operators(graph.node)), "types": sorted({spelling(t) for t in inputs + outputs})}
    document = {"onnx": onnx.__version__, "cases": dict(sorted(index.items()))}
    (root / "index.json").write_text(json.dumps(document, indent=0) + "\n")


# ONNX Runtime


def record(path):
    """Runs every case through ONNX Runtime and writes which do not pass, and why."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    lines = []
    tests = dict(sorted(collect().items()))
    for name, test in tests.items():
        verdict = guarded(test)
        if verdict:
            lines.append(f"{name} {verdict}")
    head = [
        "# The node tests of the ONNX standard that ONNX Runtime does not pass, on its CPU provider: case, fail (another",
        "# result) or error (no result), reason. Made by onnx_node_tests.py, which says how.",
        f"onnx {onnx.__version__}", f"onnxruntime {onnxruntime.__version__}", f"cases {len(tests)}",
    ]
    path.write_text("\n".join(head + lines) + "\n")


def guarded(test):
    """Empty when the case passes, otherwise `fail REASON` or `error REASON`, whatever ONNX Runtime does to its process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(TIMEOUT_S)
        os.close(read)
        # A reason of this length is more than the record keeps and less than a pipe holds.
        os.write(write, attempt(test).encode()[:4000] or b"pass")
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "" if said == "pass" else said or f"error the process ended with {status}"


def attempt(test):
    """Empty when the case passes, otherwise `fail REASON` or `error REASON`."""
    try:
        for given, wanted in test.data_sets:
            got = infer(test.model, given)
            for i, (y, ref, value) in enumerate(zip(got, wanted, test.model.graph.output, strict=True)):
                difference = differs(y, ref, value.type)
                if difference:
                    return f"fail output {i}: {difference}"
    except Exception as e:
        # The engine's own words without the places in its source, which say nothing here.
        reason = re.sub(r"/\S+/onnxruntime/\S+ |\[ONNXRuntimeError\] : \d+ : ", "", str(e).splitlines()[0])
        return f"error {reason}"[:160].rstrip()
    return ""


def infer(model, given):
    """What ONNX Runtime makes of these inputs, in the order of the outputs; codes for the types NumPy lacks."""
    import onnxruntime as ort

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    feeds, held = {}, []
    for x, value in zip(given, model.graph.input, strict=True):
        number = value.type.tensor_type.elem_type
        if value.type.WhichOneof("value") != "tensor_type" or number == TensorProto.STRING:
            feeds[value.name] = x
        elif number in BITS:
            # The interface takes no packed tensors from outside; an initializer says the same.
            proto = x if isinstance(x, TensorProto) else numpy_helper.from_array(np.asarray(x))
            changed.graph.initializer.add().CopyFrom(proto)
            changed.graph.initializer[-1].name = value.name
            at = [v.name for v in changed.graph.input].index(value.name)
            del changed.graph.input[at]
        else:
            # `np.array`, because `ascontiguousarray` makes vectors of scalars; held, because an OrtValue borrows.
            array = np.array(codes(x, value.type), order="C")
            held.append(array)
            by_code = number in CODED
            feeds[value.name] = (
                ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, number) if by_code else array
            )
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(changed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    coded = {v.type.tensor_type.elem_type for v in [*model.graph.input, *model.graph.output]} & CODED.keys()
    if not coded:
        return session.run(None, feeds)
    values = {
        k: v if isinstance(v, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(v) for k, v in feeds.items()
    }
    return [elements(v) for v in session.run_with_ort_values(None, values)]


def elements(value):
    """The elements of one of ONNX Runtime's tensors: values, or codes of the types NumPy lacks."""
    number, shape = value.element_type(), value.shape()
    if number not in CODED:
        return value.numpy()
    n = int(np.prod(shape))
    memory = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if n else b""
    if number in BITS:
        packed = TensorProto(data_type=number, dims=shape, raw_data=memory[: (n * BITS[number] + 7) // 8])
        kind = onnx.helper.make_tensor_type_proto(number, shape)
        return codes(packed, kind)
    return np.frombuffer(memory, CODED[number][1]).reshape(shape)


def differs(y, ref, type_proto):
    """Empty when `y` is `ref` within the standard's tolerance, otherwise how it is not."""
    kind = type_proto.WhichOneof("value")
    if kind == "optional_type" and ref is not None:
        return differs(y, ref, type_proto.optional_type.elem_type)
    if kind == "sequence_type" and ref is not None:
        if not isinstance(y, list) or len(y) != len(ref):
            return "not a sequence of that length"
        found = [differs(a, b, type_proto.sequence_type.elem_type) for a, b in zip(y, ref)]
        return next((f for f in found if f), "")
    if ref is None or y is None:
        return "" if ref is y else "one is empty"
    number = type_proto.tensor_type.elem_type
    y = np.asarray(y)
    ref = np.asarray(ref) if number == TensorProto.STRING else codes(ref, type_proto)
    if y.shape != ref.shape:
        return f"shape {list(y.shape)}, not {list(ref.shape)}"
    if number == TensorProto.STRING:
        text = [[s.decode() if isinstance(s, bytes) else str(s) for s in a.ravel()] for a in (y, ref)]
        return "" if text[0] == text[1] else "other strings"
    if y.dtype != ref.dtype:
        return f"elements of {y.dtype}, not {ref.dtype}"
    if number in CODED and number not in (TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2):
        y, ref = (a.view(CODED[number][2]).astype(np.float32) for a in (y, ref))
    rtol = RTOL_BF16 if number == TensorProto.BFLOAT16 else RTOL
    near = np.isclose(y, ref, rtol=rtol, atol=ATOL, equal_nan=True)
    return "" if near.all() else f"{int((~near).sum())} of {near.size} elements differ"


def main():
    match sys.argv[1:]:
        case ["cases", root]:
            # Beside its place first: a folder that is there is whole.
            root, made = Path(root), Path(f"{root}.part")
            shutil.rmtree(made, ignore_errors=True)
            write_cases(made)
            shutil.rmtree(root, ignore_errors=True)
            made.rename(root)
        case ["ort", path]:
            record(Path(path))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
