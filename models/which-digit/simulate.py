"""How fast the shipped model learns each world from presses, in numpy.

    .venv/bin/python simulate.py [--model src/model.onnx] [--seeds 6] [--write]

A simulated person sees the most probable class of each sample of the shuffled stream and
presses thumbs up or down (or names the class), wrongly in a fraction p of presses. The
head learns by the default learner: posterior target with delta = 0.2, epsilon = 0.1,
MAP refit under the Boehning bound, lambda = 0.03 (thumbs) or 0.1 (corrections), three
warm iterations a press, on z = (feature - mean) / (std sqrt(d)) and a constant 1.
Prints a Markdown table of accuracies on the world's held-out split.
"""

import argparse
import csv
import json
import shutil

import numpy as np
import onnxruntime
import soundfile
from PIL import Image

import front
from sources import HERE

WORLDS = ("new-pen", "new-voice", *(f"new-language/{code}" for code in ("es", "de", "fr", "it")), "left-handed")
CHECKPOINTS = (50, 100, 200)
EPSILON, DELTA = 0.1, 0.2


def load(world):
    """Per split: model inputs and labels."""
    folder = HERE / "worlds" / world
    splits = {}
    for row in csv.DictReader(open(folder / "index.csv", newline="", encoding="utf-8")):
        inputs, labels = splits.setdefault(row["split"], ([], []))
        image, audio = np.zeros((1, 28, 28), np.float32), np.zeros((front.MELS, 100), np.float32)
        text, present = np.zeros(front.TEXT_LENGTH, np.int64), np.zeros(3, np.float32)
        if row["image"]:
            image, present[0] = front.image_tensor(Image.open(folder / row["image"])), 1
        if row["audio"]:
            samples, rate = soundfile.read(folder / row["audio"], dtype="float32")
            assert rate == 16_000, f"{row['audio']} is not at 16 kHz"
            audio, present[1] = front.audio_tensor(samples), 1
        if row["text"]:
            text, present[2] = front.text_tensor(row["text"]), 1
        inputs.append((image, audio, text, present))
        labels.append(int(row["label"]))
    names = ("image", "audio", "text", "present")
    return {
        split: (dict(zip(names, map(np.stack, zip(*inputs)))), np.array(labels)) for split, (inputs, labels) in splits.items()
    }


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Learner:
    """logits + Theta z, refitted after every press."""

    def __init__(self, classes, width, decay):
        self.theta, self.decay = np.zeros((classes, width)), decay
        self.inverse = np.eye(width) / decay
        self.z, self.base, self.likelihood = [], [], []

    def press(self, z, base, likelihood):
        self.z.append(z), self.base.append(base), self.likelihood.append(likelihood)
        k = self.inverse @ z
        self.inverse -= np.outer(k, k) * (0.5 / (1 + 0.5 * z @ k))
        z, base, likelihood = np.array(self.z), np.array(self.base), np.array(self.likelihood)
        for _ in range(3):
            p = softmax(base + z @ self.theta.T)
            target = ((1 - DELTA) * p + DELTA / p.shape[1]) * likelihood
            target /= target.sum(1, keepdims=True)
            self.theta -= ((p - target).T @ z + self.decay * self.theta) @ self.inverse


def live(stream, test, home, seed, presses, wrong, corrections, guard):
    """One person's session: accuracy on `test` at 0 and each checkpoint, then on `home` before and after.

    `stream`, `test`, `home` are (z, graph logits, labels). With `guard` every tenth press goes unlearned.
    """
    rng = np.random.default_rng(100 + seed)
    z, base, labels = stream
    classes = base.shape[1]
    learner = Learner(classes, z.shape[1], 0.1 if corrections else 0.03)

    def accuracy(part):
        return float(((part[1] + part[0] @ learner.theta.T).argmax(1) == part[2]).mean())

    out, before = [accuracy(test)], accuracy(home)
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(1 + presses // len(labels))])[:presses]
    for t, i in enumerate(order):
        shown = int((base[i] + learner.theta @ z[i]).argmax())
        slip = rng.random() < wrong
        if corrections:
            told = (labels[i] + rng.integers(1, classes)) % classes if slip else labels[i]
            likelihood = np.full(classes, EPSILON / (classes - 1))
            likelihood[told] = 1 - EPSILON
        else:
            up = (shown == labels[i]) != slip
            likelihood = np.full(classes, EPSILON if up else 1 - EPSILON)
            likelihood[shown] = 1 - EPSILON if up else EPSILON
        if not (guard and t % 10 == 9):
            learner.press(z[i], base[i], likelihood)
        if t + 1 in CHECKPOINTS:
            out.append(accuracy(test))
    return out + [before, accuracy(home)]


def replace_block(path, name, content):
    """Puts `content` between the marks `<!-- name -->` and `<!-- /name -->` of a Markdown file."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, rest = path.read_text().split(begin, 1)
    path.write_text(f"{head}{begin}\n{content}\n{end}{rest.split(end, 1)[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=HERE / "src/model.onnx")
    parser.add_argument("--recipe", default=HERE / "src/config/recipe.json")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--write", action="store_true", help="put the table into README.md too")
    options = parser.parse_args()
    session = onnxruntime.InferenceSession(str(options.model))
    recipe = json.loads(open(options.recipe).read())
    mean, std = np.array(recipe["mean"]), np.array(recipe["std"])

    def features(inputs, labels):
        logits, feature, _ = session.run(["logits", "feature", "attention"], inputs)
        z = (feature - mean) / (std * np.sqrt(len(mean)))
        return np.hstack([z, np.ones((len(z), 1))]), logits.astype(np.float64), labels

    inputs, labels = load("factory")["test"]
    home = features(inputs, labels)
    shown = home[1].argmax(1) == labels
    for m, name in enumerate(("image", "audio", "text")):
        rows = inputs["present"][:, m] > 0
        print(f"factory {name}: {shown[rows].mean():.3f} of {rows.sum()}")
    lines = []

    def say(line):
        lines.append(line)
        print(line, flush=True)

    say("| world | presses | p | 0 | 50 | 100 | 200 | gain at 200 | lowest seed | own ground before / after |")
    say("|---" * 10 + "|")
    for world in WORLDS:
        parts = load(world)
        stream, test = features(*parts["stream"]), features(*parts["test"])
        used = parts["test"][0]["present"].max(0) > 0
        rows = inputs["present"] @ used > 0
        own = tuple(x[rows] for x in home)
        for wrong, corrections, guard in ((0.1, False, False), (0.1, False, True), (0.0, False, False), (0.1, True, False)):
            runs = np.array([live(stream, test, own, s, 200, wrong, corrections, guard) for s in range(options.seeds)])
            a, gains = runs.mean(0), runs[:, 3] - runs[:, 0]
            kind = ("corrections" if corrections else "thumbs") + (", every 10th unlearned" if guard else "")
            cells = " | ".join(f"{x:.3f}" for x in a[:4])
            say(f"| {world} | {kind} | {wrong:.0%} | {cells} | {gains.mean():+.3f} | {gains.min():+.3f} | {a[4]:.3f} / {a[5]:.3f} |")
    if options.write:
        replace_block(HERE / "README.md", "simulated", "\n".join(lines))
        shutil.copy(HERE / "README.md", HERE / "src/config/README.md")


if __name__ == "__main__":
    main()
