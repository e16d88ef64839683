"""Makes `lump`, an anomaly detector: is this tissue as normal tissue is?

    python3 -m venv .venv && .venv/bin/pip install -r ../requirements.txt && .venv/bin/python make.py

Ten means of cell nuclei from fine-needle aspirates of 569 breast lumps (Wisconsin, 1995), as scikit-learn ships them. The model has
seen benign lumps only: its score is how badly three principal directions explain a sample, and how far along them it lies. The
stream comes from another microscope, whose measures are off by up to one standard deviation a channel. An example for testing the
loop, no medical device.
"""

import pathlib
import sys

import numpy as np
from onnx import TensorProto
from sklearn.datasets import load_breast_cancer

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import common  # noqa: E402

DIRECTIONS, D = 3, 10


def main():
    data = load_breast_cancer()
    x, benign = data.data[:, :D], data.target == 1
    names = [n.replace(" ", "_") for n in data.feature_names[:D]]
    rng = np.random.default_rng(2)
    order = rng.permutation(len(x))
    good, bad = order[benign[order]], order[~benign[order]]
    fit, hold = good[:120], np.r_[good[120:160], bad[:20]]
    rest_good, rest_bad = good[160:], bad[20:]
    stream = rng.permutation(np.r_[rest_good[:110], rest_bad[:110]])
    test = rng.permutation(np.r_[rest_good[110:], rest_bad[110:]])
    mean, scale = x[fit].mean(0), x[fit].std(0)
    z = (x - mean) / scale
    _, spread, v = np.linalg.svd(z[fit] - z[fit].mean(0), full_matrices=False)
    v, spread = v[:DIRECTIONS], spread[:DIRECTIONS] / np.sqrt(len(fit))
    # Mahalanobis along the directions and what they leave, as z^T A z with A = R^T R.
    left = np.eye(D) - v.T @ v
    noise = np.sqrt(((z[fit] @ left) ** 2).sum(1).mean() / (D - DIRECTIONS))
    root = np.r_[v / spread[:, None], left / noise]
    distance = lambda z: np.sqrt(((z @ root.T) ** 2).sum(1))
    # The score is linear in the distance: one half where one benign lump in twenty lies beyond.
    middle = np.quantile(distance(z[fit]), 0.95)
    slope = 2.0 / distance(z[fit]).std()
    feature = lambda z: np.c_[distance(z) / middle, np.tanh(z / 2)]
    weight, bias = np.zeros((1, D + 1)), np.array([-slope * middle])
    weight[0, 0] = slope * middle
    g = common.Graph()
    flat = g.node("Flatten", ["sensor"], "flat", axis=1)
    g.node("MatMul", [flat, g.constant("root", root.T)], "parts")
    squared = g.node("Mul", ["parts", "parts"], "squared")
    total = g.node("ReduceSum", [squared, g.constant("axis", np.array([1], np.int64))], "total", keepdims=1)
    far = g.node("Div", [g.node("Sqrt", [total], "distance"), g.constant("middle", np.array([middle]))], "far")
    bent = g.node("Tanh", [g.node("Mul", [flat, g.constant("half", np.array([0.5]))], "halved")], "bent")
    g.node("Concat", [far, bent], "feature", axis=1)
    g.dense("feature", "head", weight, bias, "logits")
    proto = g.model("lump", [("sensor", TensorProto.FLOAT, [D, 1])], D + 1, 1)
    m, s = common.statistics(feature(z[fit]))
    recipe = {"task": "anomaly", "mean": m, "std": s, "prior": [0.7, 0.3], "answers": {"threshold": 0.5}}
    units = ["um", "grey", "um", "um2", "1", "1", "1", "1", "1", "1"]
    common.write(
        HERE,
        proto,
        ["normal", "not normal"],
        recipe,
        {"head.weight": weight, "head.bias": bias},
        [{"sensor": z[i : i + 2, :, None].astype(np.float32)} for i in (0, 70, 400)],
        {"sensors.json": common.sensors(names, units, mean, scale)},
    )
    common.fresh(HERE)
    off = rng.choice([-1.0, 1.0], D) * rng.uniform(0.3, 1.0, D) * scale
    rows = []
    for split, of, shift in (("stream", stream, off), ("test", test, off), ("source", hold, 0 * off)):
        seen = x[of] + shift
        rows += [(split, "normal" if benign[i] else "not normal", [f"{v:.6g}" for v in row]) for i, row in zip(of, seen)]
        p = feature((seen - mean) / scale) @ weight[0] + bias[0] > 0
        print(split, len(of), "false alarms", round(float(p[benign[of]].mean()), 3), "missed", round(float((~p)[~benign[of]].mean()), 3))
    common.world(HERE, [f"sensor.{n}" for n in names], rows)


if __name__ == "__main__":
    main()
