"""What ONNX Runtime computes for elementwise and signal operators where the standard's node tests say nothing.

`cases(add)` calls `add(name, op, inputs, *, domain="", opset=21, outputs=1, roundings=0, **attributes)` for each case;
`inputs` are arrays, `None` where one is left out. `roundings` means what it means in record.py.
"""

import numpy as np

MS = "com.microsoft"
LIBM = 8
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38], np.float32)


def cases(add):
    rng = np.random.default_rng(20261128)
    f = lambda *s: rng.uniform(-1, 1, s).astype(np.float32)
    i = lambda t, *s: rng.integers(-9, 10, s).astype(t)
    pairs = {
        "row": ((4, 3, 8), (8,)),
        "row_left": ((8,), (4, 3, 8)),
        "channel": ((2, 3, 4, 5), (3, 1, 1)),
        "channel_left": ((3, 1, 1), (2, 3, 4, 5)),
        "column": ((6, 7), (6, 1)),
        "outer": ((5, 1), (1, 9)),
        "checkered": ((2, 1, 3, 1, 4, 1), (1, 2, 1, 3, 1, 2)),
        "one": ((1, 1), (1,)),
        "scalars": ((), ()),
        "empty": ((0, 4), (1, 4)),
        "empty_by_one": ((3, 0), (3, 1)),
        "long": ((3, 211), (3, 211)),
        "batch": ((2, 4, 5, 16), (2, 1, 1, 16)),
    }
    for op in ["Add", "Sub", "Mul", "Div"]:
        for label, (a, b) in pairs.items():
            add(f"{op}/{label}", op, [f(*a), f(*b)], roundings=1)
            for t in [np.int32, np.int64]:
                y = i(t, *b)
                add(f"{op}/{label}_{np.dtype(t)}", op, [i(t, *a), np.where(y == 0, 3, y).astype(t)])
    for op in ["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"]:
        for label in ["row", "channel_left", "outer", "empty", "checkered"]:
            a, b = pairs[label]
            add(f"{op}/{label}", op, [i(np.float32, *a), i(np.float32, *b)])
            add(f"{op}/{label}_i64", op, [i(np.int64, *a), i(np.int64, *b)])
        add(f"{op}/special", op, [SPECIAL[:, None], SPECIAL[None, :]])
    for op in ["And", "Or", "Xor"]:
        for label in ["row", "channel_left", "outer", "empty"]:
            a, b = pairs[label]
            add(f"{op}/{label}", op, [i(np.int64, *a) > 0, i(np.int64, *b) > 0])
    for op in ["Min", "Max", "Sum", "Mean"]:
        for label, shapes in {
            "two": [(2, 3, 4), (4,)],
            "three": [(3, 1), (2, 3, 4), (1, 4)],
            "four": [(), (5,), (3, 1), (3, 5)],
            "empty": [(0, 3), (1, 3), (3,)],
        }.items():
            add(f"{op}/{label}", op, [f(*s) for s in shapes], roundings=4)
    for op in ["Min", "Max"]:
        add(f"{op}/special", op, [SPECIAL[:, None], SPECIAL[None, :]], opset=13)
        add(f"{op}/i32", op, [i(np.int32, 3, 4), i(np.int32, 4), i(np.int32, 3, 1)])
        add(f"{op}/u8", op, [i(np.uint8, 3, 4), i(np.uint8, 4)])
    for e in [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0]:
        add(f"Pow/{e}", "Pow", [SPECIAL, np.float32(e)], roundings=LIBM)
        add(f"Pow/{e}_live", "Pow", [np.abs(f(3, 4)) + 0.1, np.full((3, 1), e, np.float32)], roundings=LIBM)
    add("Pow/i64_exponent", "Pow", [f(3, 4), i(np.int64, 3, 1)], roundings=400)
    add("Pow/i32_base", "Pow", [i(np.int32, 3, 4), np.array([2, 3, 0, 1], np.int32)])
    for t in [np.int8, np.int32, np.int64, np.uint8]:
        for fmod in [0, 1]:
            x, y = i(t, 4, 5), i(t, 5)
            add(f"Mod/{np.dtype(t)}_{fmod}", "Mod", [x, np.where(y == 0, 3, y).astype(t)], fmod=fmod)
    add("Mod/f32", "Mod", [10 * f(4, 5), f(5)], roundings=10, fmod=1)
    for t in [np.float32, np.int64, np.int32, np.uint8, np.float64]:
        c = i(np.int64, 3, 1, 5) > 0
        add(f"Where/{np.dtype(t)}", "Where", [c, i(t, 2, 5), i(t, 1, 1, 1)])
    for label, (c, x, y) in {
        "mask": ((2, 1, 4, 4), (2, 3, 4, 4), ()),
        "mask_scalars": ((5, 6), (), ()),
        "scalar_condition": ((), (3, 4), (4,)),
        "fill": ((3, 4), (), (3, 4)),
        "empty": ((0, 4), (1, 4), (4,)),
    }.items():
        add(f"Where/{label}", "Where", [i(np.int64, *c) > 0, f(*x), f(*y)])
    unary = ["Abs", "Neg", "Sign", "Ceil", "Floor", "Round", "Sqrt", "Exp", "Log", "Sin", "Cos", "Tan", "Asin", "Acos",
             "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh", "Erf", "Reciprocal", "Relu", "LeakyRelu", "Elu",
             "Selu", "Celu", "Sigmoid", "HardSigmoid", "Softplus", "Softsign", "ThresholdedRelu", "Mish",
             "HardSwish", "Gelu", "Identity"]
    wide = np.concatenate([np.linspace(-9, 9, 181), np.logspace(-6, 1.9, 40), -np.logspace(-6, 1.9, 40)])
    for op in unary:
        x = wide
        if op in ["Asin", "Acos", "Atanh"]:
            x = np.linspace(-0.99, 0.99, 181)
        elif op == "Acosh":
            x = 1 + np.logspace(-3, 5, 99)
        elif op in ["Sqrt", "Log"]:
            x = np.abs(wide)
        elif op in ["Exp", "Sinh", "Cosh"]:
            x = np.linspace(-9, 3, 181)
        elif op == "Tan":
            x = np.linspace(-1.4, 1.4, 181)
        if op in ["Reciprocal", "Log"]:
            x = x[np.abs(x) > 1e-3]
        exact = op in ["Abs", "Neg", "Sign", "Ceil", "Floor", "Round", "Relu", "Identity", "ThresholdedRelu"]
        # `Mish` of ONNX Runtime is three operators, each rounded.
        add(f"{op}/wide", op, [x.astype(np.float32)], roundings=0 if exact else LIBM)
        add(f"{op}/empty", op, [f(0, 3)])
        special = SPECIAL[np.abs(SPECIAL) != np.inf] if op in ["Sin", "Cos", "Tan"] else SPECIAL
        if op not in ["HardSwish", "Gelu", "Mish", "Softsign", "Sin", "Cos", "Tan"]:
            add(f"{op}/special", op, [special], roundings=LIBM)
    for op, attributes in {
        "LeakyRelu": {"alpha": 0.3}, "Elu": {"alpha": 1.5}, "Selu": {"alpha": 1.5, "gamma": 2.0}, "Celu": {"alpha": 2.0},
        "HardSigmoid": {"alpha": 0.4, "beta": 0.3}, "ThresholdedRelu": {"alpha": 0.4}, "Shrink": {"bias": 0.2, "lambd": 0.4},
        "Gelu": {"approximate": "tanh"}, "IsInf": {"detect_negative": 0}, "IsNaN": {},
    }.items():
        x = SPECIAL if op in ["IsInf", "IsNaN"] else 3 * f(4, 9)
        add(f"{op}/attributes", op, [x], roundings=LIBM, **attributes)
    for t in [np.int8, np.int32, np.int64]:
        for op in ["Abs", "Neg", "Sign"]:
            add(f"{op}/{np.dtype(t)}", op, [i(t, 3, 4)])
    for label, (x, s) in {"channel": ((2, 3, 4, 4), (3, 1, 1)), "one": ((2, 3), (1,)), "same": ((2, 3), (2, 3))}.items():
        add(f"PRelu/{label}", "PRelu", [f(*x), f(*s)], roundings=1)
    low, high = np.float32(-0.3), np.float32(0.4)
    for label, bounds in {"both": [low, high], "low": [low], "high": [None, high], "none": [], "crossed": [high, low]}.items():
        add(f"Clip/{label}", "Clip", [f(5, 7), *bounds])
        add(f"Clip/{label}_special", "Clip", [SPECIAL, *bounds])
    for t in [np.int32, np.int64, np.int8, np.uint8]:
        add(f"Clip/{np.dtype(t)}", "Clip", [i(t, 5, 7), t(2), t(6)])
    numbers = [np.float32, np.float64, np.float16, np.int64, np.int32, np.int16, np.int8, np.uint8, np.uint16, np.uint32,
               np.uint64, np.bool_]
    from onnx import helper
    for a in numbers:
        for b in numbers:
            # Within the range of every type, because beyond it the standard says nothing.
            x = rng.uniform(0, 120, (3, 7)).astype(a)
            to = int(helper.np_dtype_to_tensor_dtype(np.dtype(b)))
            add(f"Cast/{np.dtype(a)}_{np.dtype(b)}", "Cast", [x], to=to)
    wrap = np.array([-1, 300, -300, 70000, 2**31, -(2**40), 2**53 + 1], np.int64)
    for b in numbers[3:11]:
        add(f"Cast/wrap_{np.dtype(b)}", "Cast", [wrap], to=int(helper.np_dtype_to_tensor_dtype(np.dtype(b))))
    add("Cast/large_f32", "Cast", [np.array([2**24 + 1, 2**62 + 1, 2**53 + 1, -(2**60) - 1], np.int64)], to=1)
    add("Cast/special_f16", "Cast", [SPECIAL], to=10)
    x = 3 * f(2, 3, 8)
    add("ms.Gelu", "Gelu", [x], domain=MS, roundings=LIBM)
    add("ms.QuickGelu", "QuickGelu", [x], domain=MS, roundings=LIBM, alpha=1.3)
    add("ms.QuickGelu/default", "QuickGelu", [x], domain=MS, roundings=LIBM)
    add("ms.FastGelu", "FastGelu", [x, f(8)], domain=MS, roundings=LIBM)
    add("ms.FastGelu/plain", "FastGelu", [x], domain=MS, roundings=LIBM)
    add("ms.BiasGelu", "BiasGelu", [x, f(8)], domain=MS, roundings=LIBM)
    add("Dropout/mask", "Dropout", [f(3, 4)], outputs=2)
    add("Dropout/inference", "Dropout", [f(3, 4), np.float32(0.3), np.bool_(False)], outputs=2)
    for inverse in [0, 1]:
        for n in [1, 2, 5, 8, 30, 37, 64]:
            add(f"DFT/{n}_{inverse}", "DFT", [f(2, n, 3, 2), None, np.int64(1)], roundings=64, inverse=inverse)
            add(f"DFT/17_{n}_{inverse}", "DFT", [f(2, n, 2)], opset=17, roundings=64, inverse=inverse, axis=1)
        for length in [5, 8, 20]:
            add(f"DFT/length_{length}_{inverse}", "DFT", [f(2, 9, 2), np.int64(length)], roundings=64, inverse=inverse)
    for n in [6, 9, 16, 50]:
        add(f"DFT/onesided_{n}", "DFT", [f(2, n, 1), None, np.int64(-2)], roundings=64, onesided=1)
    for onesided in [0, 1]:
        add(f"STFT/{onesided}", "STFT", [f(2, 90, 1), np.int64(7), f(20)], opset=17, roundings=64, onesided=onesided)
        add(f"STFT/16_{onesided}", "STFT", [f(1, 64, 1), np.int64(8), np.ones(16, np.float32), np.int64(16)], opset=17,
            roundings=64, onesided=onesided)
    for op in ["HannWindow", "HammingWindow", "BlackmanWindow"]:
        for periodic in [0, 1]:
            add(f"{op}/{periodic}", op, [np.int64(11)], opset=17, roundings=8, periodic=periodic)
    for bands, n, rate, low, high in [(8, 16, 8192, 0.0, 4096.0), (40, 400, 16000, 20.0, 7600.0), (80, 512, 22050, 0.0, 8000.0)]:
        add(f"MelWeightMatrix/{bands}", "MelWeightMatrix",
            [np.int64(bands), np.int64(n), np.int64(rate), np.float32(low), np.float32(high)], opset=17, roundings=8)
    for mode in ["TF", "IDF", "TFIDF"]:
        for skip in [0, 1, 3, 9]:
            add(f"TfIdfVectorizer/{mode}_{skip}", "TfIdfVectorizer", [i(np.int64, 3, 12) % 5], opset=9, mode=mode,
                max_skip_count=skip, min_gram_length=1, max_gram_length=3, ngram_counts=[0, 3, 9], roundings=4,
                ngram_indexes=[0, 2, 1, 3, 5, 4, 6, 7], pool_int64s=[0, 1, 2, 0, 1, 1, 2, 3, 4, 0, 1, 2, 4, 4, 4],
                weights=[0.5, 1.0, 2.0, 3.0, 0.25, 1.5, 4.0, 0.1])
