"""Cases of products, reductions and normalisations that the standard's node tests do not cover.

`cases(add)` calls `add(name, op, inputs, outputs=1, domain="", opset=21, roundings=8, names=None, **attributes)` for each:
`inputs` are arrays, `None` for one that is left out; `outputs` is how many are compared, `names` which of several (`""`
for one not asked for); `roundings` as record.py has them.
"""

import numpy as np

MS = "com.microsoft"
rng = np.random.default_rng(20261128)


def u(*shape, dtype=np.float32):
    return rng.uniform(-1, 1, shape).astype(dtype)


def whole(*shape, dtype=np.int32, low=-9, high=10):
    return rng.integers(low, high, shape).astype(dtype)


def i64(*values):
    return np.array(values, dtype=np.int64)


def cases(add):
    products(add)
    einsums(add)
    reductions(add)
    softmaxes(add)
    layers(add)
    channels(add)


def products(add):
    for label, (a, b) in {
        "vectors": ((4,), (4,)),
        "row": ((4,), (4, 5)),
        "column": ((3, 4), (4,)),
        "row_batched": ((4,), (2, 4, 5)),
        "column_batched": ((2, 3, 4), (4,)),
        "one_row": ((1, 70), (70, 53)),
        "many_rows": ((17, 70), (70, 53)),
        "left_batch": ((2, 7, 4, 5), (5, 3)),
        "right_batch": ((4, 5), (2, 3, 5, 6)),
        "both": ((2, 1, 7, 5), (1, 3, 5, 33)),
        "attention": ((2, 3, 1, 8), (2, 3, 8, 40)),
        "no_reduction": ((3, 0), (0, 4)),
        "no_rows": ((0, 3), (3, 4)),
        "no_batch": ((0, 2, 3), (3, 4)),
        "no_columns": ((2, 3), (3, 0)),
    }.items():
        add(f"MatMul/{label}", "MatMul", [u(*a), u(*b)], roundings=a[-1] + 2)
    # ONNX Runtime has Gemm of floats only, and none of before opset 7.
    for dtype in [np.int32, np.uint32, np.int64, np.uint64, np.float64]:
        a, b = whole(2, 3, 4, dtype=dtype, low=0, high=99), whole(4, 5, dtype=dtype, low=0, high=99)
        add(f"MatMul/{np.dtype(dtype).name}", "MatMul", [a, b])
    add("Gemm/float64", "Gemm", [u(3, 4, dtype=np.float64), u(4, 5, dtype=np.float64), u(5, dtype=np.float64)])
    for op, shapes in {"MatMul": [(3, 4), (4, 5)], "Gemm": [(3, 4), (4, 5), (5,)]}.items():
        # Two units in the last place of half precision, 2^13 of those the tolerance counts.
        add(f"{op}/half", op, [u(*s, dtype=np.float16) for s in shapes], roundings=2**14)
    add("MatMul/nan", "MatMul", [np.array([[np.nan, 0], [np.inf, 1]], np.float32), np.array([[0, 1], [1, 0]], np.float32)])
    for m in (1, 3, 9):
        for ta in (0, 1):
            for tb in (0, 1):
                a, b = u(*((4, m) if ta else (m, 4))), u(*((5, 4) if tb else (4, 5)))
                for label, c in {"none": None, "scalar": u(), "row": u(5), "column": u(m, 1), "full": u(m, 5), "one": u(1)}.items():
                    add(f"Gemm/{m}{ta}{tb}_{label}", "Gemm", [a, b, c], transA=ta, transB=tb, alpha=0.5, beta=2.0)
                    add(f"Gemm/{m}{ta}{tb}_{label}_plain", "Gemm", [a, b, c], transA=ta, transB=tb)
    for m in (2, 9):
        for bits in range(16):
            ta, tb, ba, bb = (bits >> i & 1 for i in range(4))
            a, b = [2, 3, m, 4], [2, 3, 4, 5]
            if ta:
                a[2:] = a[:1:-1]
            if tb:
                b[2:] = b[:1:-1]
            if ba:
                a = [a[2], a[0], a[1], a[3]]
            if bb:
                b = [b[2], b[0], b[1], b[3]]
            attrs = dict(transA=ta, transB=tb, transBatchA=ba, transBatchB=bb, alpha=0.25)
            add(f"FusedMatMul/{m}_{bits}", "FusedMatMul", [u(*a), u(*b)], domain=MS, opset=1, **attrs)
    add("FusedMatMul/vector", "FusedMatMul", [u(4), u(4, 5)], domain=MS, opset=1, transA=1)
    add("TransposeMatMul/both", "TransposeMatMul", [u(4, 3), u(5, 4)], domain=MS, opset=1, transA=1, transB=1, alpha=2.0)
    for f in ["Relu", "LeakyRelu", "Tanh", "Sigmoid", "HardSigmoid"]:
        more = {"activation_alpha": 0.3} if f in ("LeakyRelu", "HardSigmoid") else {}
        more |= {"activation_beta": 0.4} if f == "HardSigmoid" else {}
        add(f"FusedGemm/{f}", "FusedGemm", [u(3, 4), u(4, 5), u(5)], domain=MS, opset=1, activation=f, roundings=16, **more)
    add("Inverse/batch", "Inverse", [u(2, 4, 4) + 2 * np.eye(4, dtype=np.float32)], domain=MS, opset=1, roundings=400)
    add("Det/batch", "Det", [u(2, 3, 4, 4)], roundings=100)
    add("Det/singular", "Det", [np.ones((3, 3), np.float32)])


def einsums(add):
    for equation, shapes in {
        "ij,jk->ik": [(7, 4), (4, 5)],
        "ij,kj->ki": [(3, 4), (5, 4)],
        "bhid,bhjd->bhij": [(2, 3, 8, 5), (2, 3, 6, 5)],
        "bihd,bjhd->bhij": [(2, 7, 3, 5), (2, 6, 3, 5)],
        "bhij,bjhd->bihd": [(2, 3, 9, 6), (2, 6, 3, 5)],
        "bhwc,hkc->bhwk": [(2, 3, 4, 5), (3, 6, 5)],
        "...ij,...jk->...ik": [(2, 7, 3), (1, 3, 4)],
        "a...,b...->ab...": [(2, 3, 1), (4, 1, 5)],
        "i,j->ij": [(3,), (4,)],
        "ij,ij->": [(3, 4), (3, 4)],
        "ii,ij->j": [(3, 3), (3, 4)],
        "ij,k->ik": [(3, 4), (5,)],
        " i j , j -> i ": [(3, 4), (4,)],
        "ij->ji": [(3, 4)],
        "iji->j": [(3, 4, 3)],
        "ij": [(3, 4)],
        "ba": [(3, 4)],
        "ij,jk": [(3, 4), (4, 5)],
        "ij,jk,kl->il": [(3, 4), (4, 5), (5, 2)],
        ",ij->ij": [(), (3, 4)],
        "Ab,bC->AC": [(3, 4), (4, 5)],
        "i...->...": [(3, 4, 2)],
        "nct,ncp->ntp": [(2, 4, 9), (2, 4, 3)],
    }.items():
        name = equation.replace(" ", "_").replace("...", "E")
        add(f"Einsum/{name}", "Einsum", [u(*s) for s in shapes], equation=equation, roundings=32)
    add("Einsum/int", "Einsum", [whole(3, 4), whole(4, 5)], equation="ij,jk->ik")


REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]


def reductions(add):
    for r in REDUCTIONS:
        op = f"Reduce{r}"
        x = u(2, 3, 4, 5)
        x = abs(x) + 0.1 if r == "LogSum" else x
        exact = r in ("Max", "Min")
        n = 0 if exact else 130
        for axes in [[0], [1], [2], [3], [-1, -2], [0, 2], [1, 3], [0, 1], [0, 2, 3], [0, 1, 2, 3]]:
            for keep in (0, 1):
                label = "".join(str(a) for a in axes)
                add(f"{op}/{label}_{keep}", op, [x, i64(*axes)], opset=18, keepdims=keep, roundings=n)
        attr = {} if r == "Sum" else {"axes": [1, -1]}
        if attr:
            add(f"{op}/attribute", op, [x], opset=13, roundings=n, **attr)
        add(f"{op}/opset11", op, [x], opset=11, axes=[1], keepdims=0, roundings=n)
        add(f"{op}/all", op, [x], opset=18, roundings=n)
        add(f"{op}/noop", op, [x], opset=18, noop_with_empty_axes=1, roundings=n)
        add(f"{op}/noop_list", op, [x, i64()], opset=18, noop_with_empty_axes=1, roundings=n)
        add(f"{op}/long", op, [np.resize(x, (3, 1000)) / 8 if r != "LogSum" else np.resize(x, (3, 1000)), i64(1)], opset=18, roundings=2 * n)
        add(f"{op}/scalar", op, [np.asarray(abs(u()) + np.float32(0.1))], opset=18, roundings=8)
        if r not in ("LogSum", "LogSumExp"):
            for dtype in [np.int32, np.int64]:
                add(f"{op}/{np.dtype(dtype).name}", op, [whole(2, 3, 4, dtype=dtype), i64(1)], opset=18)
        if r not in ("Max", "Min"):
            add(f"{op}/double", op, [x.astype(np.float64), i64(1)], opset=18, roundings=n)
        add(f"{op}/infinite", op, [np.array([[1, np.inf], [2, 3]], np.float32), i64(1)], opset=18, roundings=32)
    for op in ["ReduceMax", "ReduceMin"]:
        for dtype in [np.int8, np.uint8]:
            add(f"{op}/{np.dtype(dtype).name}", op, [whole(3, 4, dtype=dtype, low=0), i64(0)], opset=18)


def softmaxes(add):
    x = 3 * u(2, 3, 4, 5)
    for op in ["Softmax", "LogSoftmax", "Hardmax"]:
        for opset in (11, 13):
            for axis in (-4, -1, 0, 1, 2, 3):
                add(f"{op}/{opset}_{axis}", op, [x], opset=opset, axis=axis, roundings=128)
            add(f"{op}/{opset}_default", op, [x], opset=opset, roundings=128)
        if op != "Hardmax":
            add(f"{op}/double", op, [x.astype(np.float64)], opset=13, roundings=64)
        add(f"{op}/large", op, [np.array([[1e4, 1e4, -1e4], [-1e4, 0, 88]], np.float32)], opset=13)
        add(f"{op}/long", op, [8 * u(3, 100)], opset=13, roundings=128)
        add(f"{op}/empty", op, [u(0, 3)], opset=13)
        add(f"{op}/ties", op, [np.array([[1, 2, 2, 0]], np.float32)], opset=13)
        if op != "Hardmax":
            add(f"{op}/half", op, [x.astype(np.float16)], opset=13, roundings=2**14)
    masked = u(2, 5)
    masked[:, 3:] = -np.inf
    add("Softmax/masked", "Softmax", [masked], opset=13, roundings=16)


def layers(add):
    x = u(2, 3, 4, 5)
    for axis in (-1, 1, 2, 0):
        shape = x.shape[axis:]
        add(f"LayerNormalization/{axis}", "LayerNormalization", [x, u(*shape), u(*shape)], opset=17, axis=axis, roundings=300)
        add(f"LayerNormalization/{axis}_no_bias", "LayerNormalization", [x, u(*shape)], opset=17, axis=axis, roundings=300)
        add(f"SimplifiedLayerNormalization/{axis}", "SimplifiedLayerNormalization", [x, u(*shape)], opset=17, axis=axis, roundings=300)
    add("LayerNormalization/moments", "LayerNormalization", [x, u(5), u(5)], outputs=3, opset=17, roundings=64)
    add("LayerNormalization/double", "LayerNormalization", [x.astype(np.float64), u(5, dtype=np.float64)], opset=17, roundings=64)
    add("LayerNormalization/wide", "LayerNormalization", [u(3, 100), u(100), u(100)], opset=17, epsilon=1e-3, roundings=300)
    add("RMSNormalization/rows", "RMSNormalization", [x, u(5)], opset=23, roundings=64)
    add("RMSNormalization/two", "RMSNormalization", [x, u(4, 5)], opset=23, axis=2, roundings=64)
    x = u(2, 3, 8)
    for label, skip in {"full": (2, 3, 8), "one": (1, 3, 8), "flat": (3, 8)}.items():
        for more in ([], [u(8)], [u(8), u(8)], [None, u(8)]):
            given = "".join("01"[m is not None] for m in more)
            ins = [x, u(*skip), u(8)] + more
            op = "SkipLayerNormalization"
            add(f"{op}/{label}{given}", op, ins, domain=MS, opset=1, epsilon=1e-5, roundings=64)
            add(f"{op}/{label}{given}_sum", op, ins, outputs=4, names=["y", "", "", "s"], domain=MS, opset=1, roundings=64)
        for more in ([], [u(8)]):
            op = "SkipSimplifiedLayerNormalization"
            ins = [x, u(*skip), u(8)] + more
            add(f"{op}/{label}{len(more)}", op, ins, domain=MS, opset=1, epsilon=1e-5, roundings=64)
            add(f"{op}/{label}{len(more)}_sum", op, ins, outputs=4, names=["y", "", "", "s"], domain=MS, opset=1, roundings=64)
    ids = whole(2, 3, low=0, high=7)
    ins = [ids, whole(2, 3, low=0, high=2), u(7, 8), u(5, 8), u(2, 8), u(8), u(8), whole(2, 3, low=0, high=2)]
    add("EmbedLayerNormalization/mask", "EmbedLayerNormalization", ins, outputs=3, domain=MS, opset=1, mask_index_type=1, roundings=64)
    add("EmbedLayerNormalization/places", "EmbedLayerNormalization", ins[:7] + [None, whole(2, 3, low=0, high=5)], names=["y", "m"], outputs=2, domain=MS, opset=1, roundings=64)
    ins[1] = ins[4] = None
    add("EmbedLayerNormalization/plain", "EmbedLayerNormalization", ins[:7], names=["y", "m"], outputs=2, domain=MS, opset=1, roundings=64)


def channels(add):
    for label, shape in {"image": (2, 3, 4, 5), "line": (2, 3, 7), "flat": (4, 3)}.items():
        p = [u(3), u(3), u(3), abs(u(3)) + np.float32(0.1)]
        for opset in (7, 9, 14, 15):
            add(f"BatchNormalization/{label}_{opset}", "BatchNormalization", [u(*shape)] + p, opset=opset, epsilon=1e-3, roundings=16)
    p = [u(3), u(3), u(3), abs(u(3)) + np.float32(0.1)]
    add("BatchNormalization/double", "BatchNormalization", [v.astype(np.float64) for v in [u(2, 3, 4)] + p], opset=15)
    add("BatchNormalization/training", "BatchNormalization", [u(2, 3, 4, 5)] + p, outputs=3, opset=15, training_mode=1, momentum=0.7, roundings=200)
    p = [u(3, 4), u(3, 4), u(3, 4), abs(u(3, 4)) + np.float32(0.1)]
    add("BatchNormalization/not_spatial", "BatchNormalization", [u(2, 3, 4)] + p, opset=7, spatial=0, roundings=16)
    add("InstanceNormalization/line", "InstanceNormalization", [u(2, 3, 50), u(3), u(3)], opset=6, roundings=200)
    add("InstanceNormalization/image", "InstanceNormalization", [u(2, 3, 7, 5), u(3), u(3)], opset=6, epsilon=1e-2, roundings=200)
    add("GroupNormalization/groups", "GroupNormalization", [u(2, 6, 4, 5), u(3), u(3)], opset=18, num_groups=3, roundings=200)
    add("GroupNormalization/channels", "GroupNormalization", [u(2, 6, 4, 5), u(6), u(6)], opset=21, num_groups=3, roundings=200)
    for size in (1, 3, 5):
        add(f"LRN/{size}", "LRN", [u(2, 6, 3, 4)], opset=13, size=size, alpha=0.5, bias=1.5, roundings=16)
    add("LRN/beta", "LRN", [u(2, 6, 3, 2)], opset=13, size=3, alpha=0.5, beta=0.6, roundings=16)
    for p in (1, 2):
        for axis in (0, 1, -1):
            x = u(2, 3, 4)
            x[0] = 0
            add(f"LpNormalization/{p}_{axis}", "LpNormalization", [x], opset=1, p=p, axis=axis, roundings=16)
    add("MeanVarianceNormalization/default", "MeanVarianceNormalization", [u(2, 3, 4, 5)], opset=13, roundings=200)
    add("MeanVarianceNormalization/axes", "MeanVarianceNormalization", [u(2, 3, 4, 5)], opset=13, axes=[1, 2], roundings=64)
