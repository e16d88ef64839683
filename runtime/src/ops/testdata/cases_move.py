"""What ONNX Runtime computes for operators that move and find elements, where the standard's node tests say nothing.

`cases(add)` calls `add(name, op, inputs, *, domain="", opset=21, outputs=1, roundings=0, **attributes)` for each case;
`inputs` are arrays, `None` where one is left out. `roundings` means what it means in record.py.
"""

import numpy as np

MS = "com.microsoft"
TYPES = [np.float32, np.float16, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.bool_]
rng = np.random.default_rng(20261128)


def x(*shape, dtype=np.float32):
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.integers(0 if np.dtype(dtype).kind == "u" else -99, 100, shape).astype(dtype)


def i64(*values):
    return np.array(values, dtype=np.int64)


def cases(add):
    shapes(add)
    orders_of_axes(add)
    parts(add)
    borders(add)
    made(add)
    gathers(add)
    scatters(add)
    chosen(add)
    orders(add)
    running(add)
    boxes(add)


def shapes(add):
    for label, shape, target, extra in [
        ("copy", (2, 3, 4), (0, -1), {}),
        ("copy_and_rest", (2, 3, 4), (0, 0, 2, -1), {}),
        ("scalar", (1, 1), (), {}),
        ("from_scalar", (), (1, 1), {}),
        ("empty", (0, 3), (3, 0), {"allowzero": 1}),
    ]:
        add(f"Reshape/{label}", "Reshape", [x(*shape), np.array(target, np.int64)], **extra)
    for dtype in TYPES:
        add(f"Reshape/{np.dtype(dtype).name}", "Reshape", [x(2, 6, dtype=dtype), i64(-1, 3)])
    for axis in [-3, -1, 0, 1, 3]:
        add(f"Flatten/{axis}", "Flatten", [x(2, 3, 4)], axis=axis)
    add("Flatten/empty", "Flatten", [x(2, 0, 4)], axis=2)
    add("Squeeze/all", "Squeeze", [x(1, 3, 1, 2)])
    add("Squeeze/negative", "Squeeze", [x(1, 3, 1, 2), i64(-2)])
    add("Squeeze/attribute", "Squeeze", [x(1, 3, 1, 2)], opset=11, axes=[0, -2])
    add("Unsqueeze/both_ends", "Unsqueeze", [x(3, 2), i64(-1, 0)])
    add("Unsqueeze/attribute", "Unsqueeze", [x(3, 2)], opset=11, axes=[1, -1])
    add("Unsqueeze/scalar", "Unsqueeze", [x(), i64(0)])
    for axis in [-1, -3, 0, 2]:
        add(f"ExpandDims/{axis}", "ExpandDims", [x(3, 2), np.array(axis, np.int32)], domain=MS)


def orders_of_axes(add):
    perms = [(0, 2, 1, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2), (3, 2, 1, 0), (1, 0, 2, 3), (2, 3, 0, 1)]
    for perm in perms:
        for shape in [(2, 3, 4, 5), (1, 17, 9, 3), (2, 3, 16, 24), (1, 8, 1, 20), (2, 0, 3, 1)]:
            label = "".join(map(str, perm)) + "_" + "x".join(map(str, shape))
            add(f"Transpose/{label}", "Transpose", [x(*shape)], perm=list(perm))
    for dtype in TYPES:
        name = np.dtype(dtype).name
        add(f"Transpose/{name}", "Transpose", [x(19, 21, dtype=dtype)])
        add(f"Transpose/{name}_runs", "Transpose", [x(3, 5, 2, dtype=dtype)], perm=[1, 0, 2])
    add("Transpose/rank6", "Transpose", [x(2, 3, 2, 4, 2, 3)], perm=[4, 2, 0, 5, 3, 1])
    add("Transpose/scalar", "Transpose", [x()])
    for mode in ["DCR", "CRD"]:
        add(f"DepthToSpace/{mode}", "DepthToSpace", [x(2, 18, 2, 4)], blocksize=3, mode=mode, opset=13)
    add("SpaceToDepth/3", "SpaceToDepth", [x(2, 2, 6, 9)], blocksize=3, opset=13)


def parts(add):
    for label, starts, ends, axes, steps in [
        ("plain", (1, 0), (3, 2), (0, 2), None),
        ("beyond", (-100, 1), (100, 2**62), (1, 2), (1, 1)),
        ("backwards", (-1, 100), (-(2**62), 0), (0, 2), (-1, -2)),
        ("backwards_all", (2**31 - 1, -1), (-(2**31), -(2**31)), (1, -1), (-1, -1)),
        ("backwards_before", (-100,), (-200,), (1,), (-1,)),
        ("steps", (0, 1, 0), (4, 5, 6), (0, 1, 2), (2, 3, 5)),
        ("giant_step", (1,), (5,), (1,), (2**40,)),
        ("nothing", (3,), (2,), (1,), None),
        ("no_axes", (1, 2), (3, 4), None, None),
    ]:
        lists = [None if v is None else np.array(v, np.int64) for v in (starts, ends, axes, steps)]
        for dtype in [np.float32, np.int8, np.float64]:
            add(f"Slice/{label}_{np.dtype(dtype).name}", "Slice", [x(4, 5, 6, dtype=dtype), *lists])
    add("Slice/attributes", "Slice", [x(4, 5, 6)], opset=9, starts=[1, -3], ends=[9, -1], axes=[0, 2])
    add("Slice/i32", "Slice", [x(4, 5), np.array([1], np.int32), np.array([-1], np.int32), np.array([-1], np.int32)])
    add("Slice/empty", "Slice", [x(0, 5), i64(0), i64(9), i64(0), i64(-1)])
    add("Split/equal", "Split", [x(6, 4)], outputs=3, num_outputs=3)
    add("Split/uneven", "Split", [x(3, 7)], outputs=3, axis=-1, num_outputs=3)
    add("Split/lengths", "Split", [x(3, 7, 2), i64(1, 0, 6)], outputs=3, axis=1)
    add("Split/attribute", "Split", [x(3, 7)], opset=11, outputs=2, axis=1, split=[3, 4])
    add("Split/before_18", "Split", [x(4, 6)], opset=13, outputs=3, axis=1)
    for dtype in TYPES:
        name = np.dtype(dtype).name
        add(f"Concat/{name}", "Concat", [x(2, 3, 2, dtype=dtype), x(2, 1, 2, dtype=dtype), x(2, 0, 2, dtype=dtype)], axis=-2)
        add(f"Expand/{name}", "Expand", [x(3, 1, 2, dtype=dtype), i64(2, 1, 4, 1)])
        add(f"Tile/{name}", "Tile", [x(2, 3, dtype=dtype), i64(3, 2)])
    add("Concat/many", "Concat", [x(2, n % 4) for n in range(16)], axis=1)
    add("Concat/axis0", "Concat", [x(2, 3), x(4, 3)], axis=0)
    add("Concat/empty_vector", "Concat", [x(0), x(4), x(0)], axis=0)
    add("Expand/last", "Expand", [x(3, 1), i64(3, 70)])
    add("Expand/scalar", "Expand", [x(), i64(2, 3)])
    add("Expand/empty", "Expand", [x(1, 3), i64(0, 3)])
    add("Tile/none", "Tile", [x(2, 3), i64(0, 2)])
    add("Tile/last", "Tile", [x(2, 3, 1), i64(1, 1, 5)])


def borders(add):
    for mode in ["constant", "edge", "reflect", "wrap"]:
        for label, shape, pads in [
            ("image", (1, 2, 5, 6), (0, 0, 2, 1, 0, 0, 1, 3)),
            ("channel_last", (1, 5, 6, 3), (0, 2, 1, 0, 0, 1, 3, 0)),
            ("vector", (4,), (3, 2)),
            ("all", (3, 4, 5), (1, 2, 3, 2, 1, 0)),
            ("none", (3, 4), (0, 0, 0, 0)),
        ]:
            for dtype in [np.float32, np.int8, np.int64]:
                add(f"Pad/{mode}_{label}_{np.dtype(dtype).name}", "Pad", [x(*shape, dtype=dtype), i64(*pads)], mode=mode)
        add(f"Pad/{mode}_axes", "Pad", [x(3, 4, 5), i64(2, 1, 0, 1), None, i64(-1, 1)], mode=mode)
        add(f"Pad/{mode}_cut", "Pad", [x(6, 7), i64(-1, 2, 1, -2)], mode=mode)
    add("Pad/value", "Pad", [x(3, 4), i64(1, 0, 0, 2), np.float32(7.5)])
    add("Pad/value_i32", "Pad", [x(3, 4, dtype=np.int32), i64(1, 0, 0, 2), np.int32(-7)])
    add("Pad/attributes", "Pad", [x(3, 4)], opset=2, mode="constant", pads=[1, 0, 0, 2], value=1.5)
    add("Pad/empty", "Pad", [x(0, 4), i64(1, 0, 2, 1)])
    add("Pad/microsoft", "Pad", [x(3, 4), i64(1, 0, 0, 2), np.array([2], np.float32)], domain=MS, mode="constant")
    for shape in [(3, 9), (8, 2), (5, 5), (4, 8)]:
        add(f"CenterCropPad/{shape}", "CenterCropPad", [x(6, 5), i64(*shape)], opset=18)


def made(add):
    add("Range/f32", "Range", [np.float32(0.1), np.float32(1.0), np.float32(0.1)], opset=11, roundings=4)
    add("Range/backwards", "Range", [np.int64(9), np.int64(-4), np.int64(-3)], opset=11)
    add("Range/nothing", "Range", [np.int32(3), np.int32(3), np.int32(1)], opset=11)
    add("Range/i16", "Range", [np.int16(-3), np.int16(8), np.int16(2)], opset=11)
    add("Range/microsoft", "Range", [np.float32(0), np.float32(4)], domain=MS)
    add("EyeLike/below", "EyeLike", [x(3, 5)], opset=9, k=-2)
    add("EyeLike/far", "EyeLike", [x(3, 5)], opset=9, k=9)
    for upper in [0, 1]:
        for k in [-7, -1, 0, 2, 9]:
            add(f"Trilu/{upper}_{k}", "Trilu", [x(2, 4, 5), np.int64(k)], opset=14, upper=upper)
        add(f"Trilu/{upper}_bool", "Trilu", [x(3, 3, dtype=np.bool_)], opset=14, upper=upper)
    add("Trilu/microsoft", "Trilu", [x(3, 3), np.int64(1)], domain=MS)
    add("ReverseSequence/blocks", "ReverseSequence", [x(4, 3, 2, 2), i64(4, 0, 2)], opset=10, time_axis=0, batch_axis=1)


def gathers(add):
    for dtype in TYPES:
        name = np.dtype(dtype).name
        add(f"Gather/{name}", "Gather", [x(5, 3, dtype=dtype), i64(4, -5, 0, -1).reshape(2, 2)])
        add(f"Gather/{name}_last", "Gather", [x(2, 5, dtype=dtype), np.array([4, -5, 1], np.int32)], axis=-1)
        add(f"GatherElements/{name}", "GatherElements", [x(3, 4, dtype=dtype), rng.integers(-3, 3, (2, 4))], axis=0)
    add("Gather/scalar", "Gather", [x(5, 3), np.int64(-2)], axis=1)
    add("Gather/nothing", "Gather", [x(5, 3), np.zeros((0, 2), np.int64)])
    add("Gather/middle", "Gather", [x(2, 4, 3, 2), i64(3, 0)], axis=1)
    for axis, shape in [(0, (7, 2, 3)), (1, (2, 9, 4)), (2, (3, 3, 6)), (-1, (1, 1, 1)), (1, (2, 0, 4))]:
        dim = (3, 4, 5)[axis]
        add(f"GatherElements/{axis}_{shape[1]}", "GatherElements", [x(3, 4, 5), rng.integers(-dim, dim, shape)], axis=axis)
    for label, shape, indices, b in [
        ("elements", (3, 4), (5, 2), 0),
        ("rows", (3, 4, 5), (2, 3, 1), 0),
        ("batch", (2, 3, 4, 2), (2, 5, 2), 1),
        ("batch2", (2, 3, 4, 2), (2, 3, 1), 2),
        ("none", (3, 4), (0, 1), 0),
    ]:
        add(f"GatherND/{label}", "GatherND", [x(*shape), rng.integers(-2, 2, indices)], batch_dims=b)
    add("GatherND/microsoft", "GatherND", [x(3, 4, 5), rng.integers(0, 3, (4, 2))], domain=MS)


def scatters(add):
    for dtype in [np.float32, np.float64, np.int32, np.int64, np.uint8]:
        name = np.dtype(dtype).name
        for how in ["none", "add", "mul", "max", "min"]:
            small = lambda *s: np.abs(x(*s, dtype=dtype)) % np.array(7, dtype)
            distinct = rng.permuted(np.tile(np.arange(4), (3, 1)), axis=1)[:, :3]
            twice = distinct if how == "none" else rng.integers(-4, 4, (3, 6))
            add(f"ScatterElements/{how}_{name}", "ScatterElements", [small(3, 4), twice, small(*twice.shape)], axis=1, reduction=how)
            tuples = i64(2, 0).reshape(2, 1) if how == "none" else i64(2, 0, -1).reshape(3, 1)
            add(f"ScatterND/{how}_{name}", "ScatterND", [small(3, 4), tuples, small(len(tuples), 4)], reduction=how)
    add("ScatterElements/axis0", "ScatterElements", [x(5, 3, 2), i64(4, 0, -2, 1).reshape(2, 2, 1), x(2, 2, 1)], axis=0)
    add("ScatterElements/i32", "ScatterElements", [x(5), np.array([1, -1], np.int32), x(2)])
    add("Scatter/old", "Scatter", [x(5), i64(1, 3), x(2)], opset=9)
    add("ScatterND/elements", "ScatterND", [x(3, 4), i64(0, 1, 2, 3).reshape(2, 2), x(2)])
    add("ScatterND/nothing", "ScatterND", [x(3, 4), np.zeros((0, 1), np.int64), x(0, 4)])


def chosen(add):
    for axis in [0, -2, 3]:
        add(f"OneHot/{axis}", "OneHot", [rng.integers(-6, 7, (2, 3, 2)), np.int64(5), np.array([2, 9], np.float32)], opset=11, axis=axis)
    add("OneHot/i32", "OneHot", [np.array([1, 4, -1], np.int32), np.int32(4), np.array([0, 1], np.float32)], opset=11)
    add("Compress/flat", "Compress", [x(2, 3, 2), np.array([1, 0, 0, 1, 1], np.bool_)], opset=11)
    add("Compress/axis", "Compress", [x(2, 3, 2), np.array([0, 1, 1], np.bool_)], opset=11, axis=1)
    add("Compress/long", "Compress", [x(2, 3), np.array([0, 1, 1, 1, 1], np.bool_)], opset=11, axis=1)
    for dtype in [np.float32, np.int32, np.int64, np.uint8, np.bool_]:
        add(f"NonZero/{np.dtype(dtype).name}", "NonZero", [x(3, 4, 2, dtype=dtype) % np.array(3, dtype) if dtype != np.bool_ else x(3, 4, dtype=dtype)], opset=13)
    add("NonZero/scalar", "NonZero", [np.float32(3)], opset=13)
    add("NonZero/none", "NonZero", [np.zeros((2, 3), np.float32)], opset=13)
    for ordered in [0, 1]:
        add(f"Unique/flat_{ordered}", "Unique", [x(4, 5) % 4], opset=11, outputs=4, sorted=ordered)
        add(f"Unique/rows_{ordered}", "Unique", [x(9, 2, dtype=np.int64) % 2], opset=11, outputs=4, sorted=ordered, axis=0)
        add(f"Unique/columns_{ordered}", "Unique", [x(2, 9, dtype=np.int8) % 2], opset=11, outputs=4, sorted=ordered, axis=1)
    add("Unique/empty", "Unique", [x(0)], opset=11, outputs=4)
    add("Unique/microsoft", "Unique", [x(20) % 5], domain=MS, outputs=3)


def orders(add):
    for largest in [0, 1]:
        for axis, k in [(-1, 3), (0, 2), (1, 5), (1, 1), (-1, 0)]:
            for dtype in [np.float32, np.float64, np.int32, np.int64]:
                name = f"{largest}_{axis}_{k}_{np.dtype(dtype).name}"
                add(f"TopK/{name}", "TopK", [x(4, 5, 6, dtype=dtype) % np.array(5, dtype), i64(k)], outputs=2, axis=axis, largest=largest)
    add("TopK/special", "TopK", [np.array([0.0, -0.0, np.inf, -np.inf, 1e-40, -1e-40, 3], np.float32), i64(7)], outputs=2)
    add("TopK/long", "TopK", [x(2, 1000), i64(10)], outputs=2)
    add("TopK/attribute", "TopK", [x(3, 7)], opset=9, outputs=2, k=3)
    for op in ["ArgMax", "ArgMin"]:
        for axis in [0, 1, -1]:
            for last in [0, 1]:
                for dtype in [np.float32, np.float64, np.int32, np.int64, np.int8, np.uint8]:
                    name = f"{axis}_{last}_{np.dtype(dtype).name}"
                    values = x(3, 4, 5, dtype=dtype) % np.array(4, dtype)
                    add(f"{op}/{name}", op, [values], opset=13, axis=axis, select_last_index=last, keepdims=last)
        add(f"{op}/special", op, [np.array([[0.0, -0.0], [np.inf, 1], [-np.inf, 2], [-1, -2]], np.float32)], opset=13, axis=1)
        add(f"{op}/no_rows", op, [x(0, 3)], opset=13, axis=1)


def running(add):
    for exclusive in [0, 1]:
        for reverse in [0, 1]:
            for axis in [0, 1, -1]:
                for dtype in [np.float32, np.float64, np.int32, np.int64]:
                    name = f"{axis}_{exclusive}{reverse}_{np.dtype(dtype).name}"
                    given = [x(3, 4, 5, dtype=dtype), np.array(axis, np.int64)]
                    add(f"CumSum/{name}", "CumSum", given, opset=14, exclusive=exclusive, reverse=reverse)
    add("CumSum/one", "CumSum", [x(3, 1), np.array(1, np.int32)], opset=14, exclusive=1)
    add("CumSum/empty", "CumSum", [x(3, 0), np.array(1, np.int32)], opset=14)


def boxes(add):
    corner = rng.uniform(0, 1, (2, 30, 2)).astype(np.float32)
    side = rng.uniform(-0.5, 0.5, (2, 30, 2)).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 3, 30)).astype(np.float32)
    opposite = np.concatenate([corner, corner + side], axis=2)
    centers = np.concatenate([corner, np.abs(side)], axis=2)
    for center, b in [(0, opposite), (1, centers)]:
        for iou, least in [(0.1, 0.0), (0.5, 0.4), (0.9, 0.2), (0.0, 0.0)]:
            limits = [i64(12), np.array([iou], np.float32), np.array([least], np.float32)]
            add(f"NonMaxSuppression/{center}_{iou}", "NonMaxSuppression", [b, scores, *limits], opset=11, center_point_box=center)
    add("NonMaxSuppression/ties", "NonMaxSuppression", [opposite, np.round(scores * 4) / 4, i64(20), np.array([0.3], np.float32)], opset=11)
    add("NonMaxSuppression/none", "NonMaxSuppression", [opposite, scores], opset=11)
