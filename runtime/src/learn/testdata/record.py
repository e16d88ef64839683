"""Records the reference vectors of the learning and metrics tests: digits.json and ../../metrics/testdata/sklearn.json.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 scipy scikit-learn==1.9.1
    venv/bin/python record.py

A one-hidden-layer digit classifier (8x8 scikit-learn digits, 64 int8-quantised hidden units) meets two changed worlds:
`shifted` (images rotated, rolled, dimmed, noisy) and `relabelled` (four classes trade names). The reference learner is
written here in plain numpy in its primal form, independently of the Rust code, and is told about 200 shown answers.
Images are stored one character a pixel, 'a' + grey level of 0..16.
"""
import json
import pathlib

import numpy as np
import scipy
import sklearn
from scipy import ndimage
from sklearn import datasets, metrics
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

HERE = pathlib.Path(__file__).parent
SEED = 2
PRESSES = 200
WRONG = 0.1
EPS, DELTA = 0.1, 0.2


def floats(a):
    return [float("%.9g" % v) for v in np.asarray(a, np.float32).ravel()]


def pixels(images):
    return "".join(chr(ord("a") + int(v)) for v in images.ravel())


def digits_text(labels):
    return "".join(str(int(v)) for v in labels)


def softmax(f):
    e = np.exp(f - f.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class World:
    def __init__(self):
        data = datasets.load_digits()
        x, y = data.data, data.target
        r = np.random.RandomState(1000 + SEED)
        order = r.permutation(len(x))
        train, stream, test = order[:500], order[500:1000], order[1000:1600]
        mlp = MLPClassifier((64,), max_iter=400, alpha=1e-3, random_state=SEED).fit(x[train] / 16, y[train])
        self.w1_scale = (np.abs(mlp.coefs_[0]).max(0) / 127 + 1e-12).astype(np.float32)
        self.w1 = np.round(mlp.coefs_[0] / self.w1_scale).astype(np.int8)
        self.b1 = mlp.intercepts_[0].astype(np.float32)
        f = self.feature(x[train])
        self.mean, self.std = f.mean(0).astype(np.float32), (f.std(0) + 1e-3).astype(np.float32)
        z = self.z(f)
        lr = LogisticRegression(C=30.0, max_iter=4000).fit(z[:, :-1], y[train])
        scale = 1 / (self.std.astype(float) * np.sqrt(64))
        weight = lr.coef_ * scale
        self.weight = weight.astype(np.float32)
        self.bias = (lr.intercept_ - weight @ self.mean.astype(float)).astype(np.float32)
        q = np.random.RandomState(77 + SEED)
        angle, axis, roll = q.choice([-1, 1]) * 15, q.choice([1, 2]), q.choice([-1, 1])

        def shift(x):
            i = ndimage.rotate(x.reshape(-1, 8, 8) / 16, angle, axes=(1, 2), reshape=False, order=1)
            i = np.roll(i, roll, axis=axis)
            return np.round(np.clip(0.8 * i + q.normal(0, 0.05, i.shape), 0, 1) * 16).reshape(len(x), 64)

        s = np.random.RandomState(55 + SEED).choice(10, 4, replace=False)
        self.names = np.arange(10)
        self.names[s] = self.names[np.roll(s, 1)]
        self.source = {"stream": (x[stream], y[stream]), "test": (x[test], y[test])}
        self.shifted = {"stream": (shift(x[stream]), y[stream]), "test": (shift(x[test]), y[test])}

    def feature(self, x):
        h = (x / 16) @ (self.w1.astype(float) * self.w1_scale.astype(float)) + self.b1.astype(float)
        return np.maximum(h, 0).astype(np.float32)

    def z(self, f):
        z = (f.astype(float) - self.mean) / (self.std.astype(float) * np.sqrt(64))
        return np.c_[z.astype(np.float32), np.ones(len(f), np.float32)].astype(float)

    def logits(self, f):
        return (f.astype(float) @ self.weight.T.astype(float) + self.bias).astype(np.float32).astype(float)


class Reference:
    def __init__(self, lam):
        self.lam = lam
        self.theta = np.zeros((10, 65))
        self.m = np.eye(65) / lam
        self.z, self.f0, self.like = np.zeros((0, 65)), np.zeros((0, 10)), np.zeros((0, 10))

    def iterate(self, m):
        pi = softmax(self.f0 + self.z @ self.theta.T)
        t = ((1 - DELTA) * pi + DELTA / 10) * self.like
        t /= t.sum(1, keepdims=True)
        self.theta = self.theta - ((pi - t).T @ self.z + self.lam * self.theta) @ m

    def press(self, z, f0, like):
        self.z, self.f0 = np.vstack([self.z, z]), np.vstack([self.f0, f0])
        self.like = np.vstack([self.like, like])
        mz = self.m @ z
        self.m = self.m - 0.5 * np.outer(mz, mz) / (1 + 0.5 * z @ mz)
        for _ in range(3):
            self.iterate(self.m)

    def canonical(self):
        self.theta = np.zeros((10, 65))
        m = np.linalg.inv(0.5 * self.z.T @ self.z + self.lam * np.eye(65))
        previous = self.theta
        for k in range(60):
            self.iterate(m)
            new = self.theta
            self.theta, previous = new + min(k / (k + 3), 0.9) * (new - previous), new
        self.theta = previous


def run(world, kind):
    x, y = world.shifted["stream"]
    f = world.feature(x)
    z, f0 = world.z(f), world.logits(f)
    xt, yt = world.shifted["test"]
    ft = world.feature(xt)
    zt, f0t = world.z(ft), world.logits(ft)
    r = np.random.RandomState(9000 + SEED)
    h = Reference(0.03 if kind == "thumbs" else 0.1)
    shown, said, accuracy = [], [], {}
    for t in range(PRESSES):
        a = int((f0[t] + h.theta @ z[t]).argmax())
        wrong = r.rand() < WRONG
        if kind == "thumbs":
            up = bool((a == y[t]) != wrong)
            like = np.full(10, EPS if up else 1 - EPS)
            like[a] = 1 - EPS if up else EPS
            said.append(int(up))
        else:
            c = int((y[t] + r.randint(1, 10)) % 10) if wrong else int(y[t])
            like = np.full(10, EPS / 9)
            like[c] = 1 - EPS
            said.append(c)
        shown.append(a)
        h.press(z[t], f0[t], like)
        if t + 1 in (50, 100, 200):
            accuracy[str(t + 1)] = float(((f0t + zt @ h.theta.T).argmax(1) == yt).mean())
    out = dict(shown=digits_text(shown), said=digits_text(said), accuracy=accuracy, incremental=floats(h.theta))
    h.canonical()
    out["canonical"] = floats(h.theta)
    out["canonical_accuracy"] = float(((f0t + zt @ h.theta.T).argmax(1) == yt).mean())
    out["factory_accuracy"] = float((f0t.argmax(1) == yt).mean())
    print(kind, "factory", out["factory_accuracy"], accuracy, "canonical", out["canonical_accuracy"])
    return out


def sklearn_vectors(world):
    x, y = world.shifted["test"]
    p = softmax(world.logits(world.feature(x)))
    guess, confidence = p.argmax(1), np.round(p.max(1), 6)
    rows = []
    # The second set leaves class 3 out of the predictions and class 7 out of the labels.
    for name, (a, b) in {"digits": (y, guess), "holes": (np.where(y == 7, 6, y), np.where(guess == 3, 2, guess))}.items():
        prf = metrics.precision_recall_fscore_support(a, b, labels=range(10), zero_division=0)
        macro = metrics.precision_recall_fscore_support(a, b, labels=range(10), average="macro", zero_division=0)
        rows.append(dict(
            name=name, labels=digits_text(a), predictions=digits_text(b), accuracy=float(metrics.accuracy_score(a, b)),
            precision=[float(v) for v in prf[0]], recall=[float(v) for v in prf[1]], f1=[float(v) for v in prf[2]],
            support=[int(v) for v in prf[3]], macro=[float(v) for v in macro[:3]],
            confusion=metrics.confusion_matrix(a, b, labels=range(10)).ravel().tolist()))
    # Guo et al. 2017: 15 equal bins (low, high]; scikit-learn has no ECE of its own.
    edges, ece = np.linspace(0, 1, 16), 0.0
    right = guess == y
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    d = np.random.RandomState(5).gamma(2.0, 3.0, 257).round(4)
    latency = dict(samples=d.tolist(), mean=float(d.mean()), sd=float(d.std(ddof=1)), **{
        "p%d" % q: float(np.percentile(d, q, method="inverted_cdf")) for q in (50, 95, 99)})
    return dict(classification=rows, latency=latency,
                calibration=dict(confidence=confidence.tolist(), right=digits_text(right), ece=float(ece)))


def main():
    w = World()
    vectors = dict(
        versions=dict(numpy=np.__version__, scipy=scipy.__version__, sklearn=sklearn.__version__), seed=SEED,
        w1=w.w1.ravel().tolist(), w1_scale=floats(w.w1_scale), b1=floats(w.b1), mean=floats(w.mean), std=floats(w.std),
        weight=floats(w.weight), bias=floats(w.bias), names=digits_text(w.names),
        stream_labels=digits_text(w.source["stream"][1]), test_labels=digits_text(w.source["test"][1]),
        source_stream=pixels(w.source["stream"][0]), source_test=pixels(w.source["test"][0]),
        shifted_stream=pixels(w.shifted["stream"][0]), shifted_test=pixels(w.shifted["test"][0]),
        thumbs=run(w, "thumbs"), corrections=run(w, "corrections"))
    (HERE / "digits.json").write_text(json.dumps(vectors, separators=(",", ":")) + "\n")
    out = HERE.parent.parent / "metrics" / "testdata" / "sklearn.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(sklearn_vectors(w), separators=(",", ":")) + "\n")


main()
