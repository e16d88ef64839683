"""Cases of operators no other module has a case of: at least one each, so that all that ONNX Runtime runs are compared.

`cases(add)` calls `add(name, op, inputs, *, domain="", opset=21, outputs=1, names=None, roundings=0, **attributes)`, which
is `one_node` in record.py.
"""

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper, numpy_helper

MS = "com.microsoft"
LIBM = 8
rng = np.random.default_rng(20261129)


def u(*shape, low=-1.0, high=1.0):
    return rng.uniform(low, high, shape).astype(np.float32)


def whole(*shape, dtype=np.int32, low=-99, high=100):
    return rng.integers(low, high, shape).astype(dtype)


def i64(*values):
    return np.array(values, dtype=np.int64)


def cases(add):
    bits(add)
    types(add)
    activations(add)
    sources(add)
    convolutions(add)
    pools(add)
    images(add)
    losses(add)
    rest(add)


def bits(add):
    add("Not/one", "Not", [whole(3, 4) > 0])
    for dtype in [np.int8, np.uint8, np.int32, np.int64, np.uint16]:
        name, low = np.dtype(dtype).name, 0 if np.dtype(dtype).kind == "u" else -99
        a, b = whole(3, 1, 5, dtype=dtype, low=low), whole(4, 1, dtype=dtype, low=low)
        for op in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]:
            add(f"{op}/{name}", op, [a, b], opset=18)
        add(f"BitwiseNot/{name}", "BitwiseNot", [a], opset=18)
    for dtype in [np.uint8, np.uint32, np.uint64]:
        for direction in ["LEFT", "RIGHT"]:
            given = [whole(3, 4, dtype=dtype, low=0, high=255), whole(4, dtype=dtype, low=0, high=8)]
            add(f"BitShift/{np.dtype(dtype).name}_{direction}", "BitShift", given, direction=direction)


def types(add):
    add("CastLike/f16", "CastLike", [u(3, 4), np.zeros(1, np.float16)], opset=19)
    add("CastLike/i64", "CastLike", [10 * u(3, 4), i64(0)], opset=19)
    for dtype in [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]:
        to = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        x = np.concatenate([u(20, low=-500, high=500), np.array([0.0, -0.0, np.nan, 1e-3, 3.38e38], np.float32)])
        add(f"Cast/to_{np.dtype(dtype).name}", "Cast", [x], to=to)
        add(f"Cast/from_{np.dtype(dtype).name}", "Cast", [x[:21].astype(dtype)], to=TensorProto.FLOAT)
    bf = lambda *s: u(*s).astype(ml_dtypes.bfloat16)
    add("Identity/bf16", "Identity", [bf(2, 3)])
    add("Reshape/bf16", "Reshape", [bf(2, 6), i64(3, -1)])


def activations(add):
    x = np.concatenate([np.linspace(-9, 9, 37, dtype=np.float32), np.array([0.0, -0.0], np.float32)])
    add("Swish/default", "Swish", [x], opset=24, roundings=LIBM)
    add("Swish/alpha", "Swish", [x], opset=24, roundings=LIBM, alpha=0.7)
    add("Affine/both", "Affine", [x], opset=1, roundings=2, alpha=0.7, beta=-0.3)
    add("ScaledTanh/both", "ScaledTanh", [x], opset=1, roundings=LIBM, alpha=0.7, beta=1.3)
    add("ParametricSoftplus/both", "ParametricSoftplus", [x], opset=1, roundings=LIBM, alpha=0.7, beta=1.3)
    add("ImageScaler/channels", "ImageScaler", [u(2, 3, 2, 4)], opset=1, roundings=2, scale=0.5, bias=[0.1, -0.2, 0.3])


def sources(add):
    values = {
        "value": numpy_helper.from_array(u(2, 3)),
        "value_float": 1.5,
        "value_floats": [1.5, -2.0],
        "value_int": 7,
        "value_ints": [7, -8, 9],
    }
    for name, value in values.items():
        add(f"Constant/{name}", "Constant", [], opset=13, **{name: value})
    add("ConstantOfShape/default", "ConstantOfShape", [i64(2, 3)], opset=9)
    add("ConstantOfShape/scalar", "ConstantOfShape", [i64()], opset=9)
    for dtype in [np.int64, np.float16, np.bool_, np.uint8]:
        value = numpy_helper.from_array(np.ones(1, dtype))
        add(f"ConstantOfShape/{np.dtype(dtype).name}", "ConstantOfShape", [i64(3, 0, 2) if dtype == np.bool_ else i64(4)], opset=9, value=value)
    for shape in [(2, 3, 4), (), (0, 3)]:
        label = "x".join(map(str, shape)) or "scalar"
        add(f"Shape/{label}", "Shape", [u(*shape)], opset=15)
        add(f"Size/{label}", "Size", [u(*shape)], opset=13)
    add("Shape/part", "Shape", [u(2, 3, 4, 5)], opset=15, start=-3, end=3)


def convolutions(add):
    forms = {
        "1d": ((2, 3, 7), (3, 4, 3), dict(strides=[2], pads=[1, 0])),
        "2d": ((1, 4, 5, 4), (4, 3, 3, 3), dict(strides=[2, 1], pads=[1, 0, 0, 1], output_padding=[1, 0])),
        "3d": ((1, 2, 2, 3, 3), (2, 2, 2, 2, 2), {}),
        "grouped": ((1, 4, 4, 4), (4, 2, 3, 3), dict(group=2, dilations=[2, 1])),
        "shape": ((1, 2, 4, 4), (2, 2, 3, 3), dict(strides=[2, 2], output_shape=[8, 9])),
        "same": ((1, 2, 4, 5), (2, 2, 3, 3), dict(strides=[2, 2], auto_pad="SAME_UPPER")),
    }
    for label, (x, w, attrs) in forms.items():
        filters = w[1] * attrs.get("group", 1)
        add(f"ConvTranspose/{label}", "ConvTranspose", [u(*x), u(*w), u(filters)], roundings=64, **attrs)
    for f in ["Relu", "Sigmoid", "LeakyRelu"]:
        more = {"activation_params": [0.2]} if f == "LeakyRelu" else {}
        given = [u(1, 3, 5, 6), u(4, 3, 3, 3), u(4)]
        add(f"FusedConv/{f}", "FusedConv", given, domain=MS, activation=f, pads=[1, 1, 1, 1], roundings=40, **more)
    given += [u(1, 4, 5, 6)]
    add("FusedConv/sum", "FusedConv", given, domain=MS, activation="Relu", pads=[1, 1, 1, 1], roundings=40)
    add("Col2Im/2d", "Col2Im", [u(1, 8, 12), i64(4, 5), i64(2, 2)], opset=18, roundings=8)
    add("Col2Im/pads", "Col2Im", [u(2, 18, 9), i64(5, 5), i64(3, 3)], opset=18, roundings=16, strides=[2, 2], pads=[1, 1, 1, 1])
    for label, mask in {"plain": [], "mask": [None, u(1, 8, 5, 6, low=0)]}.items():
        given = [u(1, 4, 6, 7), u(6, 4, 2, 2), u(1, 16, 5, 6)] if not mask else [u(1, 4, 6, 7), u(6, 2, 2, 2), u(1, 16, 5, 6)]
        more = dict(offset_group=2, group=1 if not mask else 2, kernel_shape=[2, 2])
        add(f"DeformConv/{label}", "DeformConv", given + mask, opset=19, roundings=100, **more)
    codes = lambda *s: rng.integers(0, 256, s).astype(np.uint8)
    scale = lambda v: np.float32(v)
    given = [codes(1, 5, 6, 3), scale(0.02), np.uint8(120), codes(4, 3, 3, 3), scale(0.01), np.uint8(130), scale(0.2), np.uint8(99), whole(4)]
    add("QLinearConv/channels_last", "QLinearConv", given, domain=MS, channels_last=1, pads=[1, 1, 1, 1])


def pools(add):
    for op in ["GlobalMaxPool", "GlobalLpPool"]:
        for shape in [(2, 3, 7), (2, 3, 4, 5)]:
            add(f"{op}/{len(shape)}", op, [u(*shape)], opset=2 if op == "GlobalLpPool" else 1, roundings=40)
    for p in [1, 2, 3]:
        add(f"LpPool/{p}", "LpPool", [u(1, 2, 6, 7)], opset=18, p=p, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], roundings=40)
    picked = i64(0, 3, 9, 10).reshape(1, 1, 2, 2)
    add("MaxUnpool/plain", "MaxUnpool", [u(1, 1, 2, 2), picked], opset=11, kernel_shape=[2, 2], strides=[2, 2])
    # With an output shape ONNX Runtime fails the case of the standard.
    rois = np.array([[0, 0, 0, 5, 5], [1, 1, 2, 6, 4], [0, 2, 2, 2, 2]], np.float32)
    add("MaxRoiPool/bins", "MaxRoiPool", [u(2, 3, 7, 8), rois], opset=1, pooled_shape=[2, 3])
    rois[:, 1:] *= 2
    add("MaxRoiPool/scale", "MaxRoiPool", [u(2, 3, 7, 8), rois], opset=1, pooled_shape=[2, 2], spatial_scale=0.5)
    rois[:, 1:] /= 2
    for mode in ["avg", "max"]:
        for ratio in [0, 2]:
            for half in ["half_pixel", "output_half_pixel"]:
                more = dict(mode=mode, sampling_ratio=ratio, output_height=3, output_width=2, spatial_scale=0.9)
                given = [u(2, 3, 7, 8), rois[:, 1:], i64(0, 1, 0)]
                add(f"RoiAlign/{mode}_{ratio}_{half}", "RoiAlign", given, opset=16, coordinate_transformation_mode=half, roundings=64, **more)


def images(add):
    x = u(1, 2, 5, 6)
    for mode in ["nearest", "linear", "cubic"]:
        for where in ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]:
            for label, scales in {"up": (2.0, 1.5), "down": (0.6, 0.5)}.items():
                given = [x, None, np.array([1, 1, *scales], np.float32)]
                more = dict(mode=mode, coordinate_transformation_mode=where, roundings=64)
                add(f"Resize/{mode}_{where}_{label}", "Resize", given, opset=19, **more)
    for nearest in ["floor", "ceil", "round_prefer_ceil", "round_prefer_floor"]:
        add(f"Resize/{nearest}", "Resize", [x, None, None, i64(1, 2, 7, 4)], opset=19, mode="nearest", nearest_mode=nearest)
    for mode in ["linear", "cubic"]:
        add(f"Resize/{mode}_antialias", "Resize", [x, None, None, i64(1, 2, 3, 4)], opset=19, mode=mode, antialias=1, roundings=64)
    crop = np.array([0, 0, 0.2, 0.3, 1, 1, 0.8, 0.9], np.float32)
    add("Resize/crop", "Resize", [x, crop, None, i64(1, 2, 4, 7)], opset=19, mode="linear", coordinate_transformation_mode="tf_crop_and_resize", roundings=64)
    add("Resize/u8", "Resize", [whole(1, 2, 3, 3, dtype=np.uint8, low=0), None, np.array([1, 1, 2, 2], np.float32)], opset=19, mode="nearest")
    add("Resize/opset10", "Resize", [x, np.array([1, 1, 2, 2], np.float32)], opset=10, mode="linear", roundings=64)
    for mode in ["nearest", "linear"]:
        add(f"Upsample/{mode}", "Upsample", [x, np.array([1, 1, 2, 3], np.float32)], opset=9, mode=mode, roundings=64)
    boxes = np.array([[0.1, 0.2, 0.8, 0.9], [0, 0, 1.2, 1]], np.float32)
    add("CropAndResize/two", "CropAndResize", [u(2, 3, 5, 6), boxes, np.array([0, 1], np.int32), np.array([3, 4], np.int32)], domain=MS, roundings=64)
    for mode, old in {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}.items():
        for padding in ["zeros", "border", "reflection"]:
            for align in [0, 1]:
                given = [u(1, 2, 5, 6), u(1, 3, 4, 2, low=-1.3, high=1.3)]
                more = dict(padding_mode=padding, align_corners=align, roundings=200)
                add(f"GridSample/{mode}_{padding}_{align}", "GridSample", given, opset=20, mode=mode, **more)
            if mode != "cubic":
                add(f"ms.GridSample/{mode}_{padding}", "GridSample", given, domain=MS, mode=old, **more)
    for align in [0, 1]:
        add(f"AffineGrid/2d_{align}", "AffineGrid", [u(2, 2, 3), i64(2, 3, 4, 5)], opset=20, align_corners=align, roundings=16)
        add(f"AffineGrid/3d_{align}", "AffineGrid", [u(1, 3, 4), i64(1, 3, 2, 3, 4)], opset=20, align_corners=align, roundings=16)


def losses(add):
    for reduction in ["none", "mean", "sum"]:
        given = [u(3, 5, 2), whole(3, 2, dtype=np.int64, low=0, high=5), u(5, low=0.1)]
        more = dict(opset=13, reduction=reduction, ignore_index=2, roundings=64)
        add(f"NegativeLogLikelihoodLoss/{reduction}", "NegativeLogLikelihoodLoss", given, **more)
        add(f"SoftmaxCrossEntropyLoss/{reduction}", "SoftmaxCrossEntropyLoss", given, outputs=2, **more)


def rest(add):
    for opset in [7, 10, 13]:
        add(f"Dropout/{opset}", "Dropout", [u(3, 4)], opset=opset)
    for exclusive in [0, 1]:
        for reverse in [0, 1]:
            given = [u(3, 4, low=0.5, high=1.5), np.array(1, np.int64)]
            add(f"CumProd/{exclusive}{reverse}", "CumProd", given, opset=26, exclusive=exclusive, reverse=reverse, roundings=8)
    for gap in [0, 1]:
        add(f"RotaryEmbedding/heads_{gap}", "RotaryEmbedding", [u(2, 3, 5, 8), u(2, 5, 4), u(2, 5, 4)], opset=23, interleaved=gap, roundings=4)
        places, more = whole(2, 5, dtype=np.int64, low=0, high=9), dict(num_heads=3, rotary_embedding_dim=4, interleaved=gap)
        add(f"RotaryEmbedding/packed_{gap}", "RotaryEmbedding", [u(2, 5, 24), u(9, 2), u(9, 2), places], opset=23, roundings=4, **more)
    for heads, groups in [(2, 2), (4, 2)]:
        state, per_head = u(2, groups, 3, 4), lambda: u(2, 5, groups, low=0.1, high=0.9)
        for rule, gates in {"linear": [], "gated": [-per_head()], "delta": [None, per_head()], "gated_delta": [-per_head(), per_head()]}.items():
            for label, past in {"start": None, "past": state}.items():
                given = [u(2, 5, 3 * heads), u(2, 5, 3 * groups), u(2, 5, 4 * groups)] + ([past] + gates if gates or past is not None else [])
                more = dict(q_num_heads=heads, kv_num_heads=groups, update_rule=rule)
                add(f"LinearAttention/{rule}_{label}_{heads}", "LinearAttention", given, opset=27, outputs=2, roundings=64, **more)
    given = [u(2, 3, 6, 4), u(2, 3, 2, 4), i64(1, 3)]
    add("TensorScatter/linear", "TensorScatter", given, opset=24)
    add("TensorScatter/circular", "TensorScatter", [*given[:2], i64(5, 0)], opset=24, mode="circular")
    add("BitCast/one", "BitCast", [u(2, 3)], opset=26, to=TensorProto.INT32)
    add("CausalConvWithState/one", "CausalConvWithState", [u(2, 3, 8), u(3, 1, 4), u(3), u(2, 3, 3)], opset=27, outputs=2, roundings=16)
