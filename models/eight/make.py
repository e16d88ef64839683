"""Makes `eight`, a detector with a threshold: is there an 8 somewhere on the page?

    python3 -m venv .venv && .venv/bin/pip install -r ../requirements.txt && .venv/bin/python make.py

Handwriting: the 1797 digits of 43 people that scikit-learn ships (8 x 8 pixels), two to five of them anywhere on a page of 28 x 28.
No digit is in two splits. The source is as they are; the camera that looks later hangs askew, in worse light: turned by
15 degrees, contrast 0.8, noise 0.05.
"""

import pathlib
import sys

import numpy as np
import torch
from onnx import TensorProto
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
import common  # noqa: E402

FIRST, WIDTH, SIDE, EIGHT = 12, 32, 28, 8
LABELS = ["no 8", "an 8"]


def places(n, rng):
    """Upper left corners of `n` digits that do not touch."""
    chosen = []
    while len(chosen) < n:
        spot = rng.integers(0, SIDE - 8 + 1, 2)
        if all(abs(spot - other).max() > 8 for other in chosen):
            chosen.append(spot)
        elif rng.random() < 0.02:  # a page that has no room left is begun anew
            chosen = []
    return chosen


def pages(pictures, digits, n, rng, askew):
    """uint8 [n, 28, 28] and whether an 8 is there, on two pages of five; the digits from the rows given."""
    eights, others = np.flatnonzero(digits == EIGHT), np.flatnonzero(digits != EIGHT)
    page, there = np.zeros((n, SIDE, SIDE)), (rng.random(n) < 0.4).astype(np.float32)
    for sheet, has in zip(page, there):
        spots = places(rng.integers(2, 6), rng)
        pick = rng.choice(others, len(spots))
        if has:
            pick[0] = rng.choice(eights)
        for (row, column), i in zip(spots, pick):
            sheet[row : row + 8, column : column + 8] = pictures[i]
    if askew:
        page = ndimage.rotate(page, 15, axes=(1, 2), reshape=False, order=1)
        page = np.clip(0.8 * page + rng.normal(0, 0.05, page.shape), 0, 1)
    return np.round(255 * page).astype(np.uint8), there


class Eight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, FIRST, 5), torch.nn.Conv2d(FIRST, WIDTH, 4)
        self.head = torch.nn.Linear(WIDTH, 1)

    def feature(self, x):
        return torch.tanh(self.second(torch.relu(self.first(x)))).amax((2, 3))

    def forward(self, x):
        return self.head(self.feature(x))[:, 0]


def tensor(page):
    return torch.from_numpy(((page.astype(np.float32) / 255 - 0.5) / 0.5)[:, None])


def main():
    data = load_digits()
    rng = np.random.default_rng(8)
    order = rng.permutation(len(data.target))
    pictures, digits = data.images[order] / 16, data.target[order]
    cut = {"train": slice(0, 800), "source": slice(800, 1000), "stream": slice(1000, 1400), "test": slice(1400, 1797)}
    x, y = pages(pictures[cut["train"]], digits[cut["train"]], 12000, rng, False)
    model = common.train(
        Eight(),
        lambda m, x, y: torch.nn.functional.binary_cross_entropy_with_logits(m(x), y),
        lambda r: (lambda i: (tensor(x[i]), torch.from_numpy(y[i])))(r.integers(0, len(x), 128)),
        1500,
    )
    w = {name: common.array(p) for name, p in model.named_parameters()}
    g = common.Graph()
    conv = lambda x, name, out, k: g.node(
        "Conv", [x, g.constant(f"{name}.weight", w[f"{name}.weight"]), g.constant(f"{name}.bias", w[f"{name}.bias"])], out, kernel_shape=[k, k]
    )
    strokes = g.node("Relu", [conv("image", "first", "first", 5)], "strokes")
    parts = g.node("Tanh", [conv(strokes, "second", "second", 4)], "parts")
    g.node("Flatten", [g.node("GlobalMaxPool", [parts], "most")], "feature", axis=1)
    g.dense("feature", "head", w["head.weight"], w["head.bias"], "logits")
    proto = g.model("eight", [("image", TensorProto.FLOAT, [1, SIDE, SIDE])], WIDTH, 1)
    mean, std = common.statistics(common.array(model.feature(tensor(x[:2000]))))
    common.write(
        HERE,
        proto,
        LABELS,
        {"task": "detection", "mean": mean, "std": std, "prior": [0.6, 0.4], "answers": {"threshold": 0.5}},
        {"head.weight": w["head.weight"], "head.bias": w["head.bias"]},
        [{"image": tensor(x[i : i + 2]).numpy()} for i in (0, 7, 19)],
        {"preprocessor_config.json": {"image_processor": common.grey_image(SIDE, SIDE)}},
    )
    folder, rows = common.fresh(HERE), []
    for split, n in (("stream", 240), ("test", 200), ("source", 120)):
        x, y = pages(pictures[cut[split]], digits[cut[split]], n, rng, split != "source")
        for i, (page, there) in enumerate(zip(x, y)):
            name = f"{split}-{i:04}.png"
            Image.fromarray(page).save(folder / name, optimize=True)
            rows.append((split, LABELS[int(there)], [name]))
        p = common.array(torch.sigmoid(model(tensor(x))))
        print(split, n, "there", int(y.sum()), "false alarms", round(float((p[y == 0] > 0.5).mean()), 3), "missed", round(float((p[y == 1] <= 0.5).mean()), 3))
    common.world(HERE, ["image"], rows)


if __name__ == "__main__":
    main()
