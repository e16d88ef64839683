"""Makes `strip`, several labels at once: which of the digits 1 to 6 are on a strip of three?

    python3 -m venv .venv && .venv/bin/pip install -r ../requirements.txt && .venv/bin/python make.py

Handwriting: the 1797 digits of 43 people that scikit-learn ships (8 x 8 pixels). No digit is in two splits. The source is as they
are; whoever is looked at later holds the paper askew, writes paler and on rougher paper: turned by 20 degrees,
contrast 0.8, noise 0.05.
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

WIDTH, LABELS = 40, [str(d) for d in range(1, 7)]


def strips(pictures, digits, n, rng, askew):
    """uint8 [n, 8, 24] and f32 [n, 6]: three digits side by side, from the rows given."""
    pick = rng.integers(0, len(digits), (n, 3))
    parts = pictures[pick]
    if askew:
        parts = ndimage.rotate(parts, 20, axes=(2, 3), reshape=False, order=1)
        parts = np.clip(0.8 * parts + rng.normal(0, 0.05, parts.shape), 0, 1)
    strip = parts.transpose(0, 2, 1, 3).reshape(n, 8, 24)
    there = np.stack([(digits[pick] == k).any(1) for k in range(1, 7)], 1)
    return np.round(255 * strip).astype(np.uint8), there.astype(np.float32)


class Strip(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(1, WIDTH, 8, 8), torch.nn.Linear(WIDTH, len(LABELS))

    def feature(self, x):
        return torch.tanh(self.conv(x)).amax((2, 3))

    def forward(self, x):
        return self.head(self.feature(x))


def tensor(strip):
    return torch.from_numpy(((strip.astype(np.float32) / 255 - 0.5) / 0.5)[:, None])


def main():
    data = load_digits()
    rng = np.random.default_rng(5)
    order = rng.permutation(len(data.target))
    pictures, digits = data.images[order] / 16, data.target[order]
    cut = {"train": slice(0, 800), "source": slice(800, 1000), "stream": slice(1000, 1400), "test": slice(1400, 1797)}
    x, y = strips(pictures[cut["train"]], digits[cut["train"]], 20000, rng, False)
    model = common.train(
        Strip(),
        lambda m, x, y: torch.nn.functional.binary_cross_entropy_with_logits(m(x), y),
        lambda r: (lambda i: (tensor(x[i]), torch.from_numpy(y[i])))(r.integers(0, len(x), 128)),
        1500,
    )
    w = {name: common.array(p) for name, p in model.named_parameters()}
    g = common.Graph()
    conv = [g.constant("conv.weight", w["conv.weight"]), g.constant("conv.bias", w["conv.bias"])]
    parts = g.node("Tanh", [g.node("Conv", ["image", *conv], "conv", kernel_shape=[8, 8], strides=[8, 8])], "parts")
    g.node("Flatten", [g.node("MaxPool", [parts], "most", kernel_shape=[1, 3], strides=[1, 3])], "feature", axis=1)
    g.dense("feature", "head", w["head.weight"], w["head.bias"], "logits")
    proto = g.model("strip", [("image", TensorProto.FLOAT, [1, 8, 24])], WIDTH, len(LABELS))
    mean, std = common.statistics(common.array(model.feature(tensor(x[:2000]))))
    common.write(
        HERE,
        proto,
        LABELS,
        {"task": "multi-label", "mean": mean, "std": std, "defaults": {"lambda_thumb": 0.1}},
        {"head.weight": w["head.weight"], "head.bias": w["head.bias"]},
        [{"image": tensor(x[i : i + 2]).numpy()} for i in (0, 7, 19)],
        {"preprocessor_config.json": {"image_processor": common.grey_image(8, 24)}},
    )
    folder, rows = common.fresh(HERE), []
    for split, n in (("stream", 400), ("test", 300), ("source", 150)):
        x, y = strips(pictures[cut[split]], digits[cut[split]], n, rng, split != "source")
        for i, (strip, there) in enumerate(zip(x, y)):
            name = f"{split}-{i:04}.png"
            Image.fromarray(strip).save(folder / name, optimize=True)
            rows.append((split, " + ".join(l for l, t in zip(LABELS, there) if t) or "none", [name]))
        right = (common.array(model(tensor(x))) > 0) == (y > 0)
        print(split, "labels right", round(float(right.mean()), 3), "strips right", round(float(right.all(1).mean()), 3))
    common.world(HERE, ["image"], rows)


if __name__ == "__main__":
    main()
