"""Runs others' learners on the very streams of the feedback benchmark: the same worlds, order of samples and wrong presses.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 scikit-learn==1.9.1 river==0.26.1 vowpalwabbit==9.11.9
    venv/bin/python peers.py            # peers.json, from worlds.npz
    venv/bin/python peers.py --quick    # one seed, one share of wrong presses

* vw-squarecb, vw-cover: Vowpal Wabbit `--cb_explore_adf`, features and the shipped head's log-probability of each action, warm-started
  with 300 source samples (right action cost 0, one wrong action cost 1), answers drawn from its own distribution
* linucb: disjoint LinUCB (Li et al. 2010) on the standardised feature, warm-started with the source data's ridge statistics
* river: softmax regression trained on the source data, then one correction at a time
* map-thumbs, map-corrections: no other's, but where hone began: the posterior target under one prior, three plain iterations a press.
  What hone's learner has gained since is the difference between two rows
* batch-ce: scikit-learn's logistic regression on the first n clean labels, no stream: a ceiling
"""
import argparse
import json
import pathlib
import platform
import warnings
from importlib.metadata import version

import numpy as np
from sklearn.linear_model import LogisticRegression

warnings.filterwarnings("ignore")
HERE = pathlib.Path(__file__).parent
WORLDS = ["digits-cov", "vowels-cov", "segment-cov", "breast-cov", "vowels-con", "segment-con"]
CHECKPOINTS = (50, 100, 200, 500)


def softmax(f):
    e = np.exp(f - f.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class World:
    """The arrays of one world, with features standardised as hone's head does: (feature - mean) / (std sqrt d), and a constant."""

    def __init__(self, archive, task, seed):
        name = task.split("-")[0]
        get = lambda key: archive[f"{task}/{seed}/{key}"]
        x, y = archive[f"{name}/x"].astype(float), archive[f"{name}/y"].astype(int)
        w1, b1 = get("w1").astype(float) * get("w1_scale").astype(float), get("b1").astype(float)
        mean, std = get("mean").astype(float), get("std").astype(float)
        d = len(mean)

        def z(inputs):
            return np.c_[(np.maximum(inputs @ w1 + b1, 0) - mean) / (std * np.sqrt(d)), np.ones(len(inputs))]

        stream, test, source_test = get("stream"), get("test"), get("source_test")
        if task == "digits-cov":
            pixels = get("pixels") / 255.0
            shown, tested = pixels[: len(stream)], pixels[len(stream) :]
        elif task.endswith("cov"):
            gain, offset = get("gain"), get("offset")
            shown, tested = x[stream] * gain + offset, x[test] * gain + offset
        else:
            shown, tested = x[stream], x[test]
        names = get("names").astype(int)
        self.seed, self.classes = seed, len(names)
        self.stream, self.stream_y = z(shown), names[y[stream]]
        self.test, self.test_y = z(tested), names[y[test]]
        self.source_test, self.source_test_y = z(x[source_test]), y[source_test]
        # The source split is what is left of the table.
        source = np.setdiff1d(np.arange(len(x)), np.concatenate([stream, test]))
        self.source, self.source_y = z(x[source]), y[source]
        weight = get("weight").astype(float)
        self.head = np.c_[weight * std * np.sqrt(d), get("bias").astype(float) + weight @ mean]
        self.order, self.error, self.other = get("order").astype(int), get("error"), get("other").astype(int)

    def thumb(self, t, action, wrong):
        return bool((action == self.stream_y[self.order[t]]) != (self.error[t] < wrong))

    def correction(self, t, wrong):
        y = self.stream_y[self.order[t]]
        return int((y + self.other[t]) % self.classes) if self.error[t] < wrong else int(y)


def curve(world, wrong, answer, tell, predict):
    """Plays the stream: answer(z, t) is shown, tell(t, z, action, wrong) learns, predict(Z) gives classes."""
    at, regret = {}, 0
    for t in range(len(world.order)):
        z = world.stream[world.order[t]]
        action = answer(z, t)
        regret += int(action != world.stream_y[world.order[t]])
        tell(t, z, action, wrong)
        if t + 1 in CHECKPOINTS:
            at[str(t + 1)] = float((predict(world.test) == world.test_y).mean())
    kept = float((predict(world.source_test) == world.source_test_y).mean())
    return {"at": at, "regret": regret, "kept": kept}


def linucb(world, wrong, alpha=0.3, weight=0.03):
    c = world.classes
    a = 0.05 * np.eye(world.source.shape[1]) + weight * world.source.T @ world.source
    inverse = [np.linalg.inv(a) for _ in range(c)]
    b = [weight * world.source.T @ (world.source_y == k) for k in range(c)]
    theta = np.array([inverse[k] @ b[k] for k in range(c)])

    def answer(z, t):
        return int((theta @ z + alpha * np.sqrt([z @ m @ z for m in inverse])).argmax())

    def tell(t, z, action, wrong):
        k = inverse[action] @ z
        inverse[action] -= np.outer(k, k) / (1 + z @ k)
        b[action] = b[action] + world.thumb(t, action, wrong) * z
        theta[action] = inverse[action] @ b[action]

    return curve(world, wrong, answer, tell, lambda zs: (zs @ theta.T).argmax(1))


def vw(world, wrong, exploration, rate):
    from vowpalwabbit import Workspace

    r = np.random.RandomState(8 + world.seed)
    space = Workspace(
        f"--cb_explore_adf {exploration} -q sa --quiet --random_seed {world.seed + 1} -l {rate} --noconstant"
    )
    drawn = {}

    def example(z, action=None, cost=0.0, p=1.0):
        log_pi = np.log(softmax(world.head @ z) + 1e-4)
        shared = "shared |s " + " ".join(f"f{i}:{v:.4f}" for i, v in enumerate(z) if v != 0)
        label = lambda c: f"0:{cost:g}:{p:g} " if c == action else ""
        return [shared] + [f"{label(c)}|a a{c} |l lp:{log_pi[c] / 3:.4f}" for c in range(world.classes)]

    for i in r.permutation(len(world.source))[:300]:
        z, y = world.source[i], int(world.source_y[i])
        space.learn(example(z, y, 0.0))
        space.learn(example(z, (y + r.randint(1, world.classes)) % world.classes, 1.0))

    def answer(z, t):
        p = np.array(space.predict(example(z)))
        p /= p.sum()
        action = int(r.choice(world.classes, p=p))
        drawn[t] = float(p[action])
        return action

    def tell(t, z, action, wrong):
        space.learn(example(z, action, 1.0 - world.thumb(t, action, wrong), drawn[t]))

    out = curve(world, wrong, answer, tell, lambda zs: np.array([np.argmax(space.predict(example(z))) for z in zs[:300]]))
    space.finish()
    return out


def river(world, wrong):
    from river import linear_model, optim

    r = np.random.RandomState(8 + world.seed)
    model = linear_model.SoftmaxRegression(optim.SGD(1.0))
    features = lambda z: dict(enumerate(map(float, z)))
    for _ in range(3):
        for i in r.permutation(len(world.source)):
            model.learn_one(features(world.source[i]), int(world.source_y[i]))
    predict = lambda zs: np.array([model.predict_one(features(z)) for z in zs])
    tell = lambda t, z, action, wrong: model.learn_one(features(z), world.correction(t, wrong))
    return curve(world, wrong, lambda z, t: model.predict_one(features(z)), tell, predict)


def one_prior(world, wrong, corrections, epsilon=0.1, delta=0.2):
    """Minimises sum of -log P(press) + lam/2 |Theta|^2 with Boehning's bound on the curvature."""
    c, d = world.classes, world.stream.shape[1]
    lam = 0.1 if corrections else 0.03
    moment, theta = np.eye(d) * lam, np.zeros((c, d))
    zs, likelihoods = np.zeros((0, d)), np.zeros((0, c))

    def tell(t, z, action, wrong):
        nonlocal moment, theta, zs, likelihoods
        if corrections:
            said, chance, other = world.correction(t, wrong), 1 - epsilon, epsilon / (c - 1)
        else:
            up = world.thumb(t, action, wrong)
            said, chance, other = action, *((1 - epsilon, epsilon) if up else (epsilon, 1 - epsilon))
        moment = moment + 0.5 * np.outer(z, z)
        zs, likelihoods = np.vstack([zs, z]), np.vstack([likelihoods, np.where(np.arange(c) == said, chance, other)])
        step, prior = np.linalg.inv(moment), zs @ world.head.T
        for _ in range(3):
            belief = softmax(prior + zs @ theta.T)
            target = ((1 - delta) * belief + delta / c) * likelihoods
            target /= target.sum(1, keepdims=True)
            theta = theta - ((belief - target).T @ zs + lam * theta) @ step

    answer = lambda z, t: int(((world.head + theta) @ z).argmax())
    return curve(world, wrong, answer, tell, lambda at: (at @ (world.head + theta).T).argmax(1))


def batch_ce(world):
    at = {}
    rows = world.order
    for n in CHECKPOINTS:
        chosen = np.unique(rows[:n])
        model = LogisticRegression(C=30.0, max_iter=2000).fit(world.stream[chosen][:, :-1], world.stream_y[chosen])
        at[str(n)] = float((model.predict(world.test[:, :-1]) == world.test_y).mean())
    kept = float((model.predict(world.source_test[:, :-1]) == world.source_test_y).mean())
    return {"at": at, "regret": 0, "kept": kept}


PEERS = {
    "linucb": ("thumbs", linucb),
    "vw-squarecb": ("thumbs", lambda w, p: vw(w, p, "--squarecb --gamma_scale 100", 2.0)),
    "vw-cover": ("thumbs", lambda w, p: vw(w, p, "--cover 5", 0.5)),
    "river": ("corrections", river),
    "map-thumbs": ("thumbs", lambda w, p: one_prior(w, p, corrections=False)),
    "map-corrections": ("corrections", lambda w, p: one_prior(w, p, corrections=True)),
    "batch-ce": ("labels", lambda w, p: batch_ce(w)),
}


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("worlds", nargs="?", default=HERE / "worlds.npz")
    args.add_argument("--quick", action="store_true", help="one seed, one share of wrong presses")
    args.add_argument("-o", "--output", default=HERE / "peers.json")
    args = args.parse_args()
    archive = np.load(args.worlds)
    seeds = sorted({int(k.split("/")[1]) for k in archive if k.split("/")[0] in WORLDS})
    shares = [0.0, 0.1, 0.3]
    if args.quick:
        seeds, shares = seeds[:1], [0.1]
    rows = []
    # curve() scores Vowpal Wabbit's predictions on the first 300 test samples, which takes it half the time of the rest.
    for name, (press, play) in PEERS.items():
        for wrong in [0.0] if press == "labels" else shares:
            runs = []
            for task in WORLDS:
                for seed in seeds:
                    world = World(archive, task, seed)
                    if name.startswith("vw"):
                        world.test, world.test_y = world.test[:300], world.test_y[:300]
                        world.source_test, world.source_test_y = world.source_test[:300], world.source_test_y[:300]
                    runs.append(play(world, wrong))
            mean = lambda f: float(np.mean([f(r) for r in runs]))
            at = {str(n): round(mean(lambda r: r["at"][str(n)]), 4) for n in CHECKPOINTS}
            row = dict(objective=name, guard="none", press=press, wrong=wrong, at=at, regret=round(mean(lambda r: r["regret"]), 2))
            rows.append(row | {"kept": round(mean(lambda r: r["kept"]), 4), "runs": len(runs)})
            print(json.dumps(rows[-1]), flush=True)
    versions = {p: version(p) for p in ("vowpalwabbit", "river", "scikit-learn", "numpy")}
    document = {"schema": "hone.bench-feedback/1", "python": platform.python_version(), "versions": versions, "rows": rows}
    pathlib.Path(args.output).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
