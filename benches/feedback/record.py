"""Records the worlds of the feedback benchmark: source models, what changed, and the order of presses.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 river==0.26.1
    venv/bin/pip download --no-deps aeon==1.6.0                  # only its data is read, it need not be installed
    venv/bin/python record.py aeon-1.6.0-py3-none-any.whl        # worlds.npz: seeds 0 1 2, those that are reported
    venv/bin/python record.py aeon-1.6.0-py3-none-any.whl --seeds 100 101 102 103 104 105 106 107 -o tuning.npz

Six tasks on four public data sets. A one-hidden-layer network (64 units, int8 weights per channel) and a logistic head are fitted
on a source split of each. Then the world changes and a device sees a stream of it, one press per sample:

* digits-cov (scikit-learn, 8x8 images): rotated by 15 degrees, moved by a pixel, dimmed, noisy
* vowels-cov (aeon, JapaneseVowels: LPC cepstra of nine speakers, 4 statistics of each of 12): another microphone
* segment-cov (river, ImageSegments) and breast-cov (scikit-learn): gain and offset of every sensor drift
* vowels-con, segment-con: the inputs stay, four classes trade names

Stream, held-out test of the changed world and held-out test of the old one share no sample. Keys of the archive:

    TABLE/x  f32 [n, inputs] standardised (digits: grey levels / 16)      TABLE/y  u8 [n]
    WORLD/SEED/w1 i8 [inputs, 64] · w1_scale b1 mean std f32 [64] · weight f32 [C, 64] · bias f32 [C]
    WORLD/SEED/stream, test, source_test  u16 rows of the table; test rows are of the changed world, source_test of the old one
    WORLD/SEED/pixels u8 [stream + test, 64] (digits-cov: the changed images x 255)  or  gain, offset f32 [inputs]
    WORLD/SEED/names  u8 [C] what class c is called now
    WORLD/SEED/order  u16 [500] index into stream · error  f32 [500]: the press is wrong where this is below p
    WORLD/SEED/other  u8 [500] a wrong correction is (truth + other) mod C

All four data sets are of the UCI Machine Learning Repository, CC BY 4.0 (see README.md).
"""
import argparse
import pathlib
import zipfile

import numpy as np
from river.datasets import ImageSegments
from scipy import ndimage
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

HERE = pathlib.Path(__file__).parent
PRESSES = 500
HIDDEN = 64
WORLDS = ["digits-cov", "vowels-cov", "segment-cov", "breast-cov", "vowels-con", "segment-con"]
SPLIT = {"digits": (500, 600), "breast": (150, 220), "segment": (500, 900), "vowels": (200, 220)}
OFFSET = {"segment": 0.8, "vowels": 1.6, "breast": 1.6}


def standardised(x):
    return (x - x.mean(0)) / x.std(0)


def vowels(wheel):
    rows, labels = [], []
    for part in ("TRAIN", "TEST"):
        text = zipfile.ZipFile(wheel).read(f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts").decode()
        started = False
        for line in map(str.strip, text.splitlines()):
            if line.lower() == "@data":
                started = True
            elif started and line and line[0] not in "#@":
                *series, label = line.split(":")
                series = [np.nan_to_num(np.array(s.split(","), float)) for s in series]
                third = len(series[0]) // 3 or 1
                statistics = (np.mean, np.std, lambda s: s[:third].mean(), lambda s: s[-third:].mean())
                rows.append([f(s) for f in statistics for s in series])
                labels.append(label)
    names = sorted(set(labels))
    return standardised(np.array(rows)), np.array([names.index(v) for v in labels])


def segments():
    samples = list(ImageSegments())
    keys = sorted(samples[0][0])
    x = np.array([[s[0][k] for k in keys] for s in samples], float)
    names = sorted({s[1] for s in samples})
    return standardised(x[:, x.std(0) > 1e-9]), np.array([names.index(s[1]) for s in samples])


def world(task, seed, x, y):
    name, kind = task.split("-")
    classes = int(y.max()) + 1
    r = np.random.RandomState(1000 + seed)
    rows = r.permutation(len(x))
    n_source, n_stream = SPLIT[name]
    source, stream, test = rows[:n_source], rows[n_source : n_source + n_stream], rows[n_source + n_stream :]
    net = MLPClassifier((HIDDEN,), max_iter=400, alpha=1e-3, random_state=seed).fit(x[source], y[source])
    w1_scale = (np.abs(net.coefs_[0]).max(0) / 127 + 1e-12).astype(np.float32)
    w1 = np.round(net.coefs_[0] / w1_scale).astype(np.int8)
    b1 = net.intercepts_[0].astype(np.float32)
    feature = np.maximum(x[source] @ (w1 * w1_scale.astype(float)) + b1, 0)
    mean, std = feature.mean(0).astype(np.float32), (feature.std(0) + 1e-3).astype(np.float32)
    scale = 1 / (std.astype(float) * np.sqrt(HIDDEN))
    head = LogisticRegression(C=30.0, max_iter=2000).fit((feature - mean) * scale, y[source])
    weight, bias = head.coef_, head.intercept_
    if classes == 2:
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight * scale
    bias = bias - weight @ mean.astype(float)
    out = dict(w1=w1, w1_scale=w1_scale, b1=b1, mean=mean, std=std, weight=np.float32(weight), bias=np.float32(bias))
    assert len(head.classes_) == classes, "a class is missing from the source split"

    q = np.random.RandomState(77 + seed)
    if task == "digits-cov":
        images = x[np.concatenate([stream, test])].reshape(-1, 8, 8)
        images = ndimage.rotate(images, q.choice([-1, 1]) * 15, axes=(1, 2), reshape=False, order=1)
        images = np.roll(images, q.choice([-1, 1]), axis=q.choice([1, 2]))
        images = np.clip(0.8 * images + q.normal(0, 0.05, images.shape), 0, 1)
        out["pixels"] = np.round(images * 255).astype(np.uint8).reshape(-1, 64)
    elif kind == "cov":
        out["gain"] = np.exp(q.normal(0, 0.4, x.shape[1])).astype(np.float32)
        out["offset"] = q.normal(0, OFFSET[name], x.shape[1]).astype(np.float32)
    names = np.arange(classes)
    if kind == "con":
        moved = np.random.RandomState(55 + seed).choice(classes, min(4, classes - 1), replace=False)
        names[moved] = names[np.roll(moved, 1)]
    r = np.random.RandomState(9000 + seed)
    order = np.concatenate([r.permutation(n_stream) for _ in range(3)])[:PRESSES]
    out |= dict(stream=stream, test=test, source_test=test, order=order)
    out = {k: v.astype(np.uint16) if k in ("stream", "test", "source_test", "order") else v for k, v in out.items()}
    out["names"] = names.astype(np.uint8)
    out["error"] = r.rand(PRESSES).astype(np.float32)
    out["other"] = r.randint(1, classes, PRESSES).astype(np.uint8)
    return out


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("wheel", help="aeon's wheel, as pip downloads it")
    args.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args.add_argument("-o", "--output", default=HERE / "worlds.npz")
    args = args.parse_args()
    digits, breast = datasets.load_digits(), datasets.load_breast_cancer()
    tables = {
        "digits": (digits.data / 16, digits.target),
        "vowels": vowels(args.wheel),
        "segment": segments(),
        "breast": (standardised(breast.data), breast.target),
    }
    archive = {}
    for name, (x, y) in tables.items():
        archive[f"{name}/x"], archive[f"{name}/y"] = x.astype(np.float32), y.astype(np.uint8)
    for task in WORLDS:
        for seed in args.seeds:
            for key, value in world(task, seed, *tables[task.split("-")[0]]).items():
                archive[f"{task}/{seed}/{key}"] = value
    np.savez_compressed(args.output, **archive)


if __name__ == "__main__":
    main()
