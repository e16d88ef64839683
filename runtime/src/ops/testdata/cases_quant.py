"""Cases of the families `quantize` and `recurrent` for record.py.

`cases(add)` calls `add(name, node, inputs, constants=, outputs=, roundings=, lsb=, opset=)`, the arguments of `case` in
record.py, once a case.
"""

import ml_dtypes
import numpy as np
from onnx import helper

MS = "com.microsoft"
rng = np.random.default_rng(20261127)


def u(*shape, low=-1.0, high=1.0):
    return rng.uniform(low, high, shape).astype(np.float32)


def q(dtype, *shape):
    info = ml_dtypes.iinfo(dtype) if dtype in (ml_dtypes.int4, ml_dtypes.uint4) else np.iinfo(dtype)
    return rng.integers(int(info.min), int(info.max) + 1, shape).astype(dtype)


def f(v):
    return np.array(v, dtype=np.float32)


def cases(add):
    linear(add)
    products(add)
    convolutions(add)
    elementwise(add)
    pools(add)
    blocks(add)
    attention(add)
    recurrent(add)
    dynamic_lstm(add)


def one(add, name, op, tensors, first=1, outputs=("y",), domain="", roundings=0, lsb=0, opset=21, ms_opset=None, fed=None, **attrs):
    """`tensors`: values in the operator's order, None where one is left out; the first `first`, or those at `fed`, are fed, the
    others constant."""
    names = [f"i{k}" if t is not None else "" for k, t in enumerate(tensors)]
    while names and not names[-1]:
        names.pop()
    if ms_opset:
        attrs["opset"] = ms_opset
    node = helper.make_node(op, names, list(outputs), domain=domain, **attrs)
    given = {n: t for n, t in zip(names, tensors) if n}
    fed = {n: given[n] for n in ([f"i{k}" for k in fed] if fed else list(given)[:first])}
    constants = {n: t for n, t in given.items() if n not in fed}
    add(name, node, fed, constants=constants, outputs=outputs, roundings=roundings, lsb=lsb, opset=opset)


def linear(add):
    edge = f([[0, -0.0, 1e30, -1e30, np.inf, -np.inf, 0.5, 1.5], [2.5, -0.5, -1.5, 127.5, 128.5, -128.5, 254.5, 3]])
    for t in (np.uint8, np.int8, np.uint16, np.int16):
        one(add, f"quantize_edge_{np.dtype(t).name}", "QuantizeLinear", [edge, f(1.0), np.array(3, t)])
        one(add, f"quantize_axis_{np.dtype(t).name}", "QuantizeLinear",
            [u(2, 5, 3, low=-50, high=50), u(5, low=0.1, high=0.4), q(t, 5)], axis=1)
        one(add, f"quantize_last_axis_{np.dtype(t).name}", "QuantizeLinear",
            [u(3, 37, low=-50, high=50), u(37, low=0.1, high=0.4), q(t, 37)], axis=-1)
        one(add, f"quantize_blocked_{np.dtype(t).name}", "QuantizeLinear",
            [u(2, 12, 3, low=-50, high=50), u(2, 3, 3, low=0.1, high=0.4), q(t, 2, 3, 3)], axis=1, block_size=4)
        one(add, f"dequantize_{np.dtype(t).name}", "DequantizeLinear", [q(t, 3, 67), f(0.07), np.array(3, t)])
        one(add, f"dequantize_axis_{np.dtype(t).name}", "DequantizeLinear",
            [q(t, 2, 5, 3), u(5, low=0.1, high=0.4), q(t, 5)], axis=-2)
        one(add, f"dequantize_blocked_{np.dtype(t).name}", "DequantizeLinear",
            [q(t, 2, 12, 3), u(2, 3, 3, low=0.1, high=0.4), q(t, 2, 3, 3)], axis=1, block_size=4)
        one(add, f"ms_quantize_{np.dtype(t).name}", "QuantizeLinear", [u(4, 70, low=-9, high=9), f(0.05), np.array(9, t)], domain=MS)
        one(add, f"ms_dequantize_{np.dtype(t).name}", "DequantizeLinear",
            [q(t, 4, 7), u(4, low=0.1, high=0.4), q(t, 4)], domain=MS, axis=0)
    one(add, "quantize_no_zero", "QuantizeLinear", [u(9, low=-3, high=300), f(0.9)])
    one(add, "quantize_one_element_scale", "QuantizeLinear", [u(9, low=-3, high=300), f([0.9]), np.array([7], np.uint8)])
    one(add, "quantize_opset_10", "QuantizeLinear", [u(2, 9, low=-3, high=300), f(0.9), np.array(7, np.uint8)], opset=10)
    one(add, "quantize_output_dtype", "QuantizeLinear", [u(2, 9, low=-300, high=300), f(0.9)], output_dtype=5)
    one(add, "quantize_f16", "QuantizeLinear",
        [u(2, 9, low=-30, high=30).astype(np.float16), np.float16(0.25).reshape(()), np.array(-7, np.int8)])
    one(add, "quantize_empty", "QuantizeLinear", [u(0, 9), f(0.9), np.array(7, np.uint8)])
    one(add, "dequantize_i32", "DequantizeLinear", [rng.integers(-1 << 20, 1 << 20, (3, 5)).astype(np.int32), f(0.01)])
    one(add, "dequantize_i32_axis", "DequantizeLinear",
        [rng.integers(-1 << 20, 1 << 20, (3, 5)).astype(np.int32), u(3, low=0.01, high=0.1)], axis=0)
    one(add, "dequantize_f16", "DequantizeLinear", [q(np.int8, 3, 5), np.float16(0.0313).reshape(()), np.array(4, np.int8)])
    for t in (ml_dtypes.int4, ml_dtypes.uint4):
        one(add, f"dequantize_{np.dtype(t).name}_blocked", "DequantizeLinear",
            [q(t, 8, 6), u(2, 6, low=0.1, high=0.4), q(t, 2, 6)], first=0, axis=0, block_size=4)
    for k, x in enumerate([u(3, 70), u(3, 70, low=1, high=5), u(4, low=-7, high=-1), np.zeros((2, 3), np.float32), u(1)]):
        one(add, f"dynamic_quantize_{k}", "DynamicQuantizeLinear", [x], outputs=("y", "scale", "zero"))


def products(add):
    for m, k, n in [(1, 1, 1), (1, 64, 48), (5, 7, 3), (6, 16, 64), (7, 33, 65), (13, 100, 17)]:
        for ta in (np.uint8, np.int8):
            for tb in (np.uint8, np.int8):
                tag = f"{m}x{k}x{n}_{np.dtype(ta).name}_{np.dtype(tb).name}"
                one(add, f"matmul_integer_{tag}", "MatMulInteger", [q(ta, m, k), q(tb, k, n), q(ta, 1)[0], q(tb, 1)[0]])
                if (ta, tb) == (np.int8, np.uint8):
                    continue  # ONNX Runtime has no kernel for it
                one(add, f"matmul_integer_to_float_{tag}", "MatMulIntegerToFloat",
                    [q(ta, m, k), q(tb, k, n), f(0.01), u(n, low=0.001, high=0.01), q(ta, 1)[0], q(tb, n), u(n)],
                    domain=MS, roundings=4)
        for tb in (np.uint8, np.int8):
            tag = f"{m}x{k}x{n}_{np.dtype(tb).name}"
            one(add, f"dynamic_quantize_matmul_{tag}", "DynamicQuantizeMatMul",
                [u(m, k), q(tb, k, n), f(0.007), q(tb, 1)[0], u(n)], domain=MS, roundings=8)
            one(add, f"qlinear_matmul_{tag}", "QLinearMatMul",
                [q(np.uint8, m, k), f(0.01), np.uint8(120), q(tb, k, n), u(n, low=0.01, high=0.02), q(tb, n), f(0.05), np.uint8(99)])
            one(add, f"qgemm_{tag}", "QGemm",
                [q(np.uint8, m, k), f(0.01), np.uint8(120), q(tb, n, k), u(n, low=0.01, high=0.02), q(tb, n),
                 rng.integers(-5000, 5000, n).astype(np.int32), f(0.05), np.uint8(99)], domain=MS, transB=1)
    one(add, "matmul_integer_no_zero", "MatMulInteger", [q(np.uint8, 3, 4), q(np.int8, 4, 5)])
    one(add, "matmul_integer_vector", "MatMulInteger", [q(np.uint8, 2, 3, 4), q(np.int8, 4, 5), np.uint8(3)])
    one(add, "matmul_integer_columns", "MatMulInteger", [q(np.uint8, 6, 9), q(np.uint8, 9, 21), np.uint8(3), q(np.uint8, 21)])
    one(add, "matmul_integer_batched", "MatMulInteger", [q(np.uint8, 2, 1, 3, 4), q(np.uint8, 3, 4, 5), np.uint8(9), np.uint8(8)])
    one(add, "matmul_integer_live", "MatMulInteger", [q(np.uint8, 6, 9), q(np.int8, 9, 21), np.uint8(3), np.int8(-2)], first=2)
    one(add, "qlinear_matmul_s8", "QLinearMatMul",
        [q(np.int8, 2, 5, 19), f(0.01), np.int8(-3), q(np.int8, 19, 7), f(0.01), np.int8(2), f(0.04), np.int8(9)])
    one(add, "qlinear_matmul_batched", "QLinearMatMul",
        [q(np.uint8, 3, 5, 6), f(0.01), np.uint8(3), q(np.uint8, 3, 6, 7), f(0.01), np.uint8(2), f(0.04), np.uint8(9)])
    one(add, "qgemm_float", "QGemm",
        [q(np.int8, 5, 12), f(0.01), np.int8(3), q(np.int8, 12, 7), f(0.02), np.int8(0), rng.integers(-50, 50, 7).astype(np.int32)],
        domain=MS, alpha=0.5, roundings=4)
    one(add, "qgemm_trans_a", "QGemm",
        [q(np.uint8, 12, 5), f(0.01), np.uint8(3), q(np.uint8, 12, 7), f(0.02), np.uint8(100), None, f(0.05), np.uint8(9)],
        domain=MS, transA=1)
    one(add, "dynamic_quantize_matmul_plain", "DynamicQuantizeMatMul", [u(2, 3, 40), q(np.int8, 40, 24), u(24, low=0.001, high=0.01)],
        domain=MS, roundings=8)


def convolutions(add):
    shapes = [
        ("pointwise", (2, 8, 5, 7), (9, 8, 1, 1), {}),
        ("3x3", (1, 3, 9, 8), (17, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
        ("stride", (1, 5, 11, 10), (6, 5, 3, 3), {"pads": [0, 1, 2, 1], "strides": [2, 2]}),
        ("dilation", (1, 2, 9, 9), (4, 2, 3, 3), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ("depthwise", (2, 6, 9, 9), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
        ("depthwise_stride", (1, 16, 9, 9), (16, 1, 5, 5), {"group": 16, "pads": [2, 2, 2, 2], "strides": [2, 2]}),
        ("groups", (1, 6, 6, 6), (8, 3, 3, 3), {"group": 2}),
        ("1d", (2, 3, 20), (5, 3, 4), {"pads": [1, 2], "strides": [3]}),
        ("3d", (1, 2, 4, 5, 6), (3, 2, 2, 2, 2), {}),
        ("same", (1, 2, 7, 7), (3, 2, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("1x1_stride", (1, 7, 8, 8), (5, 7, 1, 1), {"strides": [2, 2]}),
    ]
    for name, xs, ws, attrs in shapes:
        bias = rng.integers(-3000, 3000, ws[0]).astype(np.int32)
        for tx, tw in ((np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)):
            tag = f"{name}_{np.dtype(tx).name}_{np.dtype(tw).name}"
            w = q(tw, *ws)
            one(add, f"qlinear_conv_{tag}", "QLinearConv",
                [q(tx, *xs), f(0.01), q(tx, 1)[0], w, f(0.02), q(tw, 1)[0], f(0.09), q(tx, 1)[0], bias], **attrs)
            zeros = np.zeros(ws[0], tw) if tw == np.int8 else np.full(ws[0], 130, tw)
            one(add, f"qlinear_conv_channels_{tag}", "QLinearConv",
                [q(tx, *xs), f(0.01), q(tx, 1)[0], w, u(ws[0], low=0.01, high=0.03), zeros, f(0.09), q(tx, 1)[0]], **attrs)
        one(add, f"conv_integer_{name}", "ConvInteger", [q(np.uint8, *xs), q(np.uint8, *ws), np.uint8(7), np.uint8(140)], opset=10, **attrs)
        one(add, f"conv_integer_plain_{name}", "ConvInteger", [q(np.uint8, *xs), q(np.uint8, *ws)], opset=10, **attrs)


def elementwise(add):
    for t in (np.uint8, np.int8):
        n = np.dtype(t).name
        z = lambda: q(t, 1)[0]
        for op in ("QLinearAdd", "QLinearMul"):
            for tag, a, b in [("same", (3, 67), (3, 67)), ("row", (2, 3, 5), (5,)), ("scalar", (4, 9), ()), ("both", (4, 1, 3), (2, 1))]:
                one(add, f"{op}_{tag}_{n}", op, [q(t, *a), f(0.02), z(), q(t, *b), f(0.03), z(), f(0.05), z()], fed=[0, 3], domain=MS, lsb=1)
        x = np.arange(256).astype(np.uint8).view(t).reshape(8, 32)
        one(add, f"sigmoid_{n}", "QLinearSigmoid", [x, f(0.05), z(), f(1 / 256), t(np.iinfo(t).min)], domain=MS, lsb=1)
        one(add, f"leaky_relu_{n}", "QLinearLeakyRelu", [x, f(0.05), z(), f(0.04), z()], domain=MS, alpha=0.2, lsb=1)
        for axis in (1, -1, 0):
            one(add, f"softmax_{axis}_{n}", "QLinearSoftmax", [q(t, 3, 4, 5), f(0.05), z(), f(1 / 256), t(np.iinfo(t).min)],
                domain=MS, axis=axis, opset=21, ms_opset=13, lsb=1)
        one(add, f"softmax_flat_{n}", "QLinearSoftmax", [q(t, 3, 4, 5), f(0.05), z(), f(1 / 256), t(np.iinfo(t).min)],
            domain=MS, axis=1, opset=21, ms_opset=12, lsb=1)
        one(add, f"where_{n}", "QLinearWhere",
            [rng.integers(0, 2, (2, 1, 4)).astype(bool), q(t, 3, 1), f(0.02), z(), q(t, 2, 3, 4), f(0.03), z(), f(0.04), z()], fed=[0, 1, 4], domain=MS, lsb=1)
        one(add, f"concat_{n}", "QLinearConcat",
            [f(0.04), np.array(3, t), q(t, 2, 3, 4), f(0.02), z(), q(t, 2, 1, 4), f(0.07), z()], fed=[2, 5], domain=MS, axis=1, lsb=1)


def pools(add):
    for t in (np.uint8, np.int8):
        n = np.dtype(t).name
        z = lambda: q(t, 1)[0]
        one(add, f"global_pool_{n}", "QLinearGlobalAveragePool", [q(t, 2, 5, 7, 6), f(0.02), z(), f(0.01), z()], domain=MS, lsb=1)
        one(add, f"global_pool_last_{n}", "QLinearGlobalAveragePool", [q(t, 2, 7, 6, 5), f(0.02), z(), f(0.01), z()],
            domain=MS, channels_last=1, lsb=1)
        for tag, attrs in [
            ("plain", {"kernel_shape": [3, 2]}),
            ("pads", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
            ("counted", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2], "count_include_pad": 1}),
            ("ceil", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
            ("ceil_counted", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [3, 3], "ceil_mode": 1, "count_include_pad": 1}),
        ]:
            one(add, f"average_pool_{tag}_{n}", "QLinearAveragePool", [q(t, 2, 3, 8, 9), f(0.02), z(), f(0.01), z()], domain=MS, lsb=1, **attrs)
        one(add, f"average_pool_last_{n}", "QLinearAveragePool", [q(t, 2, 8, 9, 3), f(0.02), z(), f(0.01), z()],
            domain=MS, kernel_shape=[2, 3], channels_last=1, lsb=1)
        one(add, f"nhwc_max_pool_{n}", "NhwcMaxPool", [q(t, 2, 8, 9, 5)], domain=MS, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])


def blocks(add):
    for bits in (2, 4, 8):
        for m, k, n, block in [(1, 64, 8, 32), (3, 128, 5, 16), (1, 100, 7, 32), (17, 128, 17, 64), (2, 288, 12, 128), (1, 512, 7, 256)]:
            count = -(-k // block)
            if bits == 2 and k % block:
                continue
            b = q(np.uint8, n, count, block * bits // 8)
            scales = u(n, count, low=0.01, high=0.1)
            zero = q(np.uint8, n, -(-count * bits // 8))
            a = dict(domain=MS, K=k, N=n, bits=bits, block_size=block)
            tag = f"{bits}_{m}x{k}x{n}_{block}"
            r = 20 * bits * k
            one(add, f"nbits_{tag}", "MatMulNBits", [u(m, k), b, scales], roundings=r, **a)
            one(add, f"nbits_zero_{tag}", "MatMulNBits", [u(2, m, k), b, scales, zero], roundings=r, **a)
            one(add, f"nbits_bias_{tag}", "MatMulNBits", [u(m, k), b, scales, zero, None, u(n)], roundings=r, **a)
    one(add, "nbits_float_zero", "MatMulNBits", [u(2, 64), q(np.uint8, 8, 2, 16), u(8, 2), u(8, 2, low=2, high=12)],
        domain=MS, K=64, N=8, bits=4, block_size=32, roundings=5000)
    # ONNX Runtime takes no zero points together with g_idx: it uses the middle of the range all the same.
    one(add, "nbits_g_idx", "MatMulNBits",
        [u(2, 64), q(np.uint8, 8, 2, 16), u(8, 2), None, (np.arange(64) % 2).astype(np.int32)],
        domain=MS, K=64, N=8, bits=4, block_size=32, roundings=5000)
    for bits in (4, 8):
        one(add, f"gather_blocks_u8_{bits}", "GatherBlockQuantized",
            [q(np.uint8, 6, 64 * bits // 8), np.array([[5, 0, -1]]), u(6, 2)], first=0, domain=MS, bits=bits, block_size=32,
            gather_axis=0, quantize_axis=1)
        one(add, f"gather_blocks_u8_zero_{bits}", "GatherBlockQuantized",
            [q(np.uint8, 6, 64 * bits // 8), np.array([5, 0, 1]), u(6, 2), q(np.uint8, 6, 2 * bits // 8)], first=0, domain=MS, bits=bits,
            block_size=32, gather_axis=0, quantize_axis=1)
    for t in (ml_dtypes.int4, ml_dtypes.uint4):
        one(add, f"gather_blocks_{np.dtype(t).name}", "GatherBlockQuantized",
            [q(t, 4, 6, 32), np.array([3, 0, 2, 2]), u(4, 6, 2), q(t, 4, 6, 2)], first=0, domain=MS, block_size=16, gather_axis=1,
            quantize_axis=2)
        one(add, f"gather_blocks_middle_{np.dtype(t).name}", "GatherBlockQuantized",
            [q(t, 4, 32, 6), np.array([3, 0, 2]), u(4, 2, 6)], first=0, domain=MS, block_size=16, gather_axis=0, quantize_axis=1)


def attention(add):
    b, s, h, heads = 2, 5, 16, 2
    base = lambda t: [q(np.uint8, b, s, h), q(t, h, 3 * h), u(3 * h), f(0.01), f(0.01)]
    per = lambda t: [q(np.uint8, b, s, h), q(t, h, 3 * h), u(3 * h), f(0.01), u(3 * h, low=0.005, high=0.02)]
    a = dict(domain=MS, num_heads=heads, roundings=200)
    both = ("y", "present")
    for t in (np.uint8, np.int8):
        z = lambda: t(3)
        n = np.dtype(t).name
        one(add, f"qattention_{n}", "QAttention", base(t) + [None, np.uint8(128), z()], **a)
        one(add, f"qattention_columns_{n}", "QAttention", per(t) + [None, np.uint8(128), q(t, 3 * h) if t == np.uint8 else np.zeros(3 * h, t)], **a)
        one(add, f"qattention_causal_{n}", "QAttention", base(t) + [None, np.uint8(128), z()], unidirectional=1, **a)
        one(add, f"qattention_lengths_{n}", "QAttention", base(t) + [np.array([3, 5], np.int32), np.uint8(128), z()], **a)
        one(add, f"qattention_ends_{n}", "QAttention", base(t) + [np.array([3, 5, 0, 2], np.int32), np.uint8(128), z()], **a)
        mask = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]], np.int32)
        one(add, f"qattention_mask_{n}", "QAttention", base(t) + [mask, np.uint8(128), z()], **a)
        one(add, f"qattention_mask3_{n}", "QAttention", base(t) + [rng.integers(0, 2, (b, s, s)).astype(np.int32), np.uint8(128), z()], **a)
        past = u(2, b, heads, 3, h // heads)
        one(add, f"qattention_past_{n}", "QAttention", base(t) + [None, np.uint8(128), z(), past], outputs=both, unidirectional=1, **a)
        mask = rng.integers(0, 2, (b, s + 3)).astype(np.int32)
        one(add, f"qattention_past_mask_{n}", "QAttention", base(t) + [mask, np.uint8(128), z(), past], outputs=both, unidirectional=1, **a)
    v, p, g = q(np.uint8, 20, 8), q(np.uint8, 10, 8), q(np.uint8, 2, 8)
    ids = rng.integers(0, 20, (2, 6)).astype(np.int32)
    scales = [f(0.01), f(0.02), f(0.03), f(0.01), f(0.02)]
    zeros = [np.uint8(120), np.uint8(100), np.uint8(128), np.uint8(0), np.uint8(90)]
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], np.int32)
    one(add, "qembed", "QEmbedLayerNormalization",
        [ids, rng.integers(0, 2, (2, 6)).astype(np.int32), v, p, g, q(np.uint8, 8), q(np.uint8, 8), mask] + scales + zeros,
        outputs=("y", "lengths"), domain=MS, roundings=200, epsilon=1e-6)


ALL = ["Sigmoid", "Tanh", "Relu", "Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus"]


def recurrent(add):
    s, n, i, h = 6, 3, 5, 7
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}
    acts = {"LSTM": 3, "GRU": 2, "RNN": 1}
    for op, g in gates.items():
        outputs = ("y", "y_h", "y_c")[: 3 if op == "LSTM" else 2]
        for direction, d in (("forward", 1), ("reverse", 1), ("bidirectional", 2)):
            base = lambda: [u(s, n, i), u(d, g * h, i, low=-0.5, high=0.5), u(d, g * h, h, low=-0.5, high=0.5)]
            full = lambda: base() + [u(d, 2 * g * h), np.array([4, 0, 6], np.int32), u(d, n, h)] + (
                [u(d, n, h), u(d, 3 * h)] if op == "LSTM" else [])
            r = dict(outputs=outputs, roundings=300, opset=14, hidden_size=h, direction=direction)
            one(add, f"{op}_plain_{direction}", op, base(), **r)
            one(add, f"{op}_bias_{direction}", op, base() + [u(d, 2 * g * h)], **r)
            one(add, f"{op}_full_{direction}", op, full(), **r)
            one(add, f"{op}_clip_{direction}", op, full(), clip=0.3, **r)
            if op == "GRU":
                one(add, f"{op}_linear_{direction}", op, full(), linear_before_reset=1, **r)
                one(add, f"{op}_linear_clip_{direction}", op, full(), linear_before_reset=1, clip=0.3, **r)
            if op == "LSTM":
                one(add, f"{op}_coupled_{direction}", op, full(), input_forget=1, **r)
                one(add, f"{op}_states_{direction}", op, base() + [u(d, 2 * g * h), None, u(d, n, h), u(d, n, h)], **r)
            for a in ALL:
                if a == "Softplus" and op != "RNN":
                    continue  # ONNX Runtime's overflows
                extra = {"activation_alpha": [0.3] * acts[op] * d, "activation_beta": [0.6] * acts[op] * d}
                if a in ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus"):
                    extra = {}
                one(add, f"{op}_{a}_{direction}", op, base() + [u(d, 2 * g * h)], activations=[a] * acts[op] * d, **extra, **r)
        r = dict(roundings=300, opset=14, hidden_size=h)
        base = [u(s, n, i), u(1, g * h, i, low=-0.5, high=0.5), u(1, g * h, h, low=-0.5, high=0.5)]
        one(add, f"{op}_last_only", op, base, outputs=("", "y_h"), **r)
        one(add, f"{op}_one_step", op, [u(1, 1, i)] + base[1:], outputs=outputs, **r)
        one(add, f"{op}_opset_7", op, base, outputs=outputs, roundings=300, opset=7, hidden_size=h)


def dynamic_lstm(add):
    s, n, i, h = 5, 2, 6, 8
    for t in (np.uint8, np.int8):
        for direction, d in (("forward", 1), ("bidirectional", 2)):
            for per in (False, True):
                if per and t == np.uint8:
                    continue
                size = (d, 4 * h) if per else (d,)
                zero = (lambda: np.zeros(size, t)) if t == np.int8 else (lambda: np.full(size, 127, t))
                one(add, f"dynamic_lstm_{np.dtype(t).name}_{direction}_{per}", "DynamicQuantizeLSTM",
                    [u(s, n, i), q(t, d, i, 4 * h), q(t, d, h, 4 * h), u(d, 8 * h), None, u(d, n, h), u(d, n, h), u(d, 3 * h),
                     u(*size, low=0.003, high=0.005), zero(), u(*size, low=0.003, high=0.005), zero()],
                    outputs=("y", "y_h", "y_c"), domain=MS, roundings=20000, hidden_size=h, direction=direction)
