"""Cases of the attention family that the standard's node tests do not have: ONNX Runtime's own operators, and sizes that
sweep the tile edges of the kernels.

`cases(add)` calls `add(name, node, inputs, outputs=..., roundings=..., opset=...)`, the arguments of `case` in record.py,
once a case; nodes are of the domain `com.microsoft`, opset 1, or of the standard.
"""

import itertools

import numpy as np
from onnx import helper

rng = np.random.default_rng(20261128)


def u(*shape):
    """In steps of 1/128, which keeps the archive small."""
    return (rng.integers(-128, 128, shape) / 128).astype(np.float32)


def i32(values):
    return np.array(values, dtype=np.int32)


def node(op, inputs, outputs, **attrs):
    attrs = {k: v for k, v in attrs.items() if v is not None}
    return helper.make_node(op, inputs, outputs, name=op, domain="com.microsoft", **attrs)


def present(names, given):
    """`names` with those not given empty, without trailing empties."""
    listed = [n if n in given else "" for n in names]
    while listed and not listed[-1]:
        listed.pop()
    return listed


ATTENTION = ["input", "weights", "bias", "mask_index", "past", "attention_bias"]


def attention(add):
    masks = [None, "end", "end_start", "2d", "2d_dummy", "3d", "2d_all"]
    for n, (mask, past, causal) in enumerate(itertools.product(masks, [0, 3], [0, 1])):
        b, s, h, d = 2, [1, 5, 4][n % 3], 3, 4
        e = 6 if n % 4 == 1 and not past else d
        i = 7
        l = s + past
        given = {"input": u(b, s, i), "weights": u(i, h * (2 * d + e)), "bias": u(h * (2 * d + e))}
        if mask == "end":
            given["mask_index"] = i32([max(l - 1, 1), l])
        elif mask == "end_start":
            given["mask_index"] = i32([l, max(l - 1, 1), min(1, l - 1), 0])
        elif mask == "2d":
            given["mask_index"] = rng.integers(0, 2, (b, l)).astype(np.int32)
        elif mask == "2d_all":
            given["mask_index"] = np.zeros((b, l), dtype=np.int32)
        elif mask == "2d_dummy":
            given["mask_index"] = i32([[1], [1]])
        elif mask == "3d":
            given["mask_index"] = rng.integers(0, 2, (b, s, l)).astype(np.int32)
        if past:
            given["past"] = u(2, b, h, past, d)
        elif n % 3 == 1:
            given["attention_bias"] = u([1, b][n % 2], [1, h][n // 2 % 2], s, l)
        outputs = ["y", "present"] if past else ["y"]
        attrs = dict(
            num_heads=h,
            unidirectional=causal,
            qkv_hidden_sizes=[h * d, h * d, h * e] if e != d else None,
            scale=0.3 if n % 5 == 0 else None,
            # With the usual -10000 a query whose keys are all masked is a matter of rounding.
            mask_filter_value=-3.0 if mask in ("2d", "3d", "2d_all") else None,
        )
        made = node("Attention", present(ATTENTION, given), outputs, **attrs)
        add(f"com.microsoft.Attention/{n}_{mask}_past{past}_causal{causal}", made, given, outputs=outputs, roundings=60)


HEADS = ["query", "key", "value", "bias", "key_padding_mask", "attention_bias", "past_key", "past_value"]


def multi_head(add):
    masks = [None, "end", "2d", "3d"]
    for n, (mask, past, bias, causal) in enumerate(itertools.product(masks, [0, 3], [0, 1], [0, 1])):
        b, s, h, d = 2, [1, 5, 4][n % 3], 3, 4
        e = 6 if n % 4 == 1 and not past else d
        new = s if past or causal else [s, 6][n % 2]
        l = new + past
        given = {"query": u(b, s, h * d), "key": u(b, new, h * d), "value": u(b, new, h * e)}
        if bias:
            given["bias"] = u(h * (2 * d + e))
        if mask == "end":
            given["key_padding_mask"] = i32([max(l - 1, 1), l])
        elif mask == "2d":
            given["key_padding_mask"] = rng.integers(0, 2, (b, l)).astype(np.int32)
        elif mask == "3d":
            given["key_padding_mask"] = rng.integers(0, 2, (b, s, l)).astype(np.int32)
        if past:
            given |= {"past_key": u(b, h, past, d), "past_value": u(b, h, past, e)}
        if n % 3 == 1:
            given["attention_bias"] = u([1, b][n % 2], [1, h][n // 2 % 2], s, l)
        outputs = ["y", "present_key", "present_value"][: 3 if past or n % 2 else 1]
        attrs = dict(
            num_heads=h,
            unidirectional=causal,
            scale=0.3 if n % 5 == 0 else None,
            mask_filter_value=-3.0 if mask in ("2d", "3d") else None,
        )
        made = node("MultiHeadAttention", present(HEADS, given), outputs, **attrs)
        label = f"MultiHeadAttention/{n}_{mask}_past{past}_bias{bias}_causal{causal}"
        add(label, made, given, outputs=outputs, roundings=40)
    given = {"query": u(2, 3, 12), "key": u(2, 3, 5, 4), "value": u(2, 3, 5, 4)}
    made = node("MultiHeadAttention", ["query", "key", "value"], ["y"], num_heads=3)
    add("MultiHeadAttention/cross", made, given, outputs=["y"], roundings=40)
    # Long enough for every tile edge of the kernels.
    for s, l, d, e in [(1, 70, 64, 64), (37, 37, 24, 40), (19, 67, 5, 33), (8, 33, 64, 64)]:
        given = {"query": u(1, s, 2 * d), "key": u(1, l, 2 * d), "value": u(1, l, 2 * e)}
        made = node("MultiHeadAttention", ["query", "key", "value"], ["y"], num_heads=2)
        add(f"MultiHeadAttention/long_{s}_{l}_{d}_{e}", made, given, outputs=["y"], roundings=2 * l)


GROUPED = (
    "query key value past_key past_value seqlens_k total_sequence_length cos_cache sin_cache position_ids "
    "attention_bias head_sink"
).split()


def grouped(add):
    kinds = ["prompt", "padded_prompt", "decode", "ragged_decode", "chunk", "shared"]
    for n, (kind, rotary, packed) in enumerate(itertools.product(kinds, [0, 1, 2], [0, 1])):
        h, g, d = [(4, 2), (3, 3), (6, 1)][n % 3] + (32 if n % 4 == 2 else 16,)
        b = 1 if kind == "chunk" else 2
        s = {"prompt": 5, "padded_prompt": 6, "decode": 1, "ragged_decode": 1, "chunk": 4, "shared": 1}[kind]
        past = 0 if "prompt" in kind else 7
        total = s if "prompt" in kind else past + s
        lengths = [total] * b
        if kind in ("padded_prompt", "ragged_decode"):
            lengths[0] -= 2
        if kind == "shared":
            past, total, lengths = 12, 9, [9, 4]
        q = u(b, s, h * d)
        k, v = u(b, s, g * d), u(b, s, g * d)
        given = {"query": np.concatenate([q, k, v], 2)} if packed else {"query": q, "key": k, "value": v}
        given |= {"past_key": u(b, g, past, d), "past_value": u(b, g, past, d)}
        given |= {"seqlens_k": i32([x - 1 for x in lengths]), "total_sequence_length": i32([total])}
        if rotary:
            angle = rng.uniform(-3, 3, (20, 8)).astype(np.float32)
            given |= {"cos_cache": np.cos(angle), "sin_cache": np.sin(angle)}
        if n % 5 == 3 and kind != "shared":
            given["attention_bias"] = u([1, b][n % 2], [1, h][n // 2 % 2], s, total)
        if n % 7 == 4 and kind != "padded_prompt":
            given["head_sink"] = u(h)
        outputs = ["y", "present_key", "present_value"]
        attrs = dict(
            num_heads=h,
            kv_num_heads=g,
            do_rotary=int(rotary > 0),
            rotary_interleaved=int(rotary == 2),
            local_window_size=[None, 3, 2][n % 3],
            softcap=0.8 if n % 4 == 1 else None,
            scale=0.4 if n % 5 == 0 else None,
            smooth_softmax=1 if n % 6 == 5 and kind != "padded_prompt" else None,
        )
        made = node("GroupQueryAttention", present(GROUPED, given), outputs, **attrs)
        add(f"GroupQueryAttention/{n}_{kind}_rotary{rotary}_packed{packed}", made, given, outputs=outputs, roundings=60)


def rotary(add):
    for n, (rank, interleaved, ids, part) in enumerate(itertools.product([3, 4], [0, 1], [1, 2], [0, 1])):
        b, s, h, d = 2, 5, 3, 8
        half = 2 if part else 4
        x = u(b, h, s, d) if rank == 4 else u(b, s, h * d)
        positions = np.array([3]) if ids == 1 else rng.integers(0, 9, (b, s))
        given = {"x": x, "ids": positions.astype(np.int64), "cos": u(9, half), "sin": u(9, half)}
        attrs = dict(interleaved=interleaved, num_heads=h if part else None, rotary_embedding_dim=2 * half if part else None)
        made = node("RotaryEmbedding", list(given), ["y"], **attrs)
        label = f"com.microsoft.RotaryEmbedding/{n}_rank{rank}_interleaved{interleaved}_ids{ids}_part{part}"
        add(label, made, given, outputs=["y"], roundings=4)
    given = {"x": u(1, 2, 8), "ids": np.array([[0, 1]], dtype=np.int64), "cos": u(4, 4), "sin": u(4, 4)}
    made = node("RotaryEmbedding", list(given), ["y"], scale=2.0)
    add("com.microsoft.RotaryEmbedding/scale", made, given, outputs=["y"], roundings=4)


def standard(add):
    """Every way to mask, at sizes around a tile of 16 queries, with heads that share keys and a past."""
    sizes = [(1, 33), (3, 3), (5, 17), (16, 40), (18, 18), (33, 44)]
    for n, (mask, (s, new)) in enumerate(itertools.product([None, "bool", "float", "batch", "head"], sizes)):
        b, (h, g) = (1 if s > 16 else 2), [(4, 2) if s < 16 else (2, 1), (2, 2), (3, 1)][n % 3]
        d, e = [8, 20, 64][n // 2 % 3], [8, 64, 19][n % 3]
        past = [0, 4][n // 3 % 2]
        l = new + past
        given = {"Q": u(b, h, s, d), "K": u(b, g, new, d), "V": u(b, g, new, e)}
        if n % 2:
            given = {"Q": u(b, s, h * d), "K": u(b, new, g * d), "V": u(b, new, g * e)}
        shape = {"bool": (s, l), "float": (b, 1, s, l), "batch": (b, 1, s, l), "head": (h, s, l)}.get(mask)
        if shape:
            given["attn_mask"] = u(*shape) > -0.5 if mask in ("bool", "batch") else u(*shape)
        if past:
            given |= {"past_key": u(b, g, past, d), "past_value": u(b, g, past, e)}
        attrs = dict(
            is_causal=int(n % 4 < 2),
            softcap=0.9 if n % 5 == 3 else None,
            scale=0.4 if n % 7 == 3 else None,
            q_num_heads=h if n % 2 else None,
            kv_num_heads=g if n % 2 else None,
        )
        outputs = ["Y", "present_key", "present_value"][: 3 if past else 1]
        names = present(["Q", "K", "V", "attn_mask", "past_key", "past_value"], given)
        attrs = {k: v for k, v in attrs.items() if v is not None}
        made = helper.make_node("Attention", names, outputs, name="Attention", **attrs)
        add(f"Attention/{n}_{mask}_{s}_{l}", made, given, outputs=outputs, roundings=d + l, opset=23)
    given = {"Q": u(2, 4, 20, 16), "K": u(2, 2, 37, 16), "V": u(2, 2, 37, 16), "n": np.array([37, 22], dtype=np.int64)}
    for causal in [0, 1]:
        made = helper.make_node("Attention", ["Q", "K", "V", "", "", "", "n"], ["Y"], name="Attention", is_causal=causal)
        add(f"Attention/nonpad_causal{causal}", made, given, outputs=["Y"], roundings=60, opset=24)


def cases(add):
    standard(add)
    attention(add)
    multi_head(add)
    grouped(add)
    rotary(add)
