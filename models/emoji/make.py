"""Makes `emoji`, a search: which little picture is meant by these words?

    python3 -m venv .venv && .venv/bin/pip install -r ../requirements.txt && .venv/bin/python make.py

Forty pictures with their names in Unicode's Common Locale Data Repository, as the package emoji ships them. The model embeds what is
typed, letter by letter, and has learned English names and aliases with slips of the keyboard; whoever searches later types German
names, of which no word was in training.
"""

import pathlib
import sys

import emoji
import numpy as np
import torch
from onnx import TensorProto
from tokenizers import Tokenizer, models, normalizers

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "which-digit")]
import common  # noqa: E402

WIDTH, EMBEDDING, LENGTH, LETTERS, KERNEL = 64, 16, 24, 12, 4
TEMPERATURE = 0.1
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .,!?'-#"
PICTURES = "🐶 🐱 🐭 🐰 🦊 🐻 🐼 🐷 🐸 🐵 🐔 🐧 🦆 🦉 🐺 🐴 🐝 🐛 🐌 🐞 🐢 🐍 🐙 🦀 🐬 🐳 🍎 🍐 🍋 🍌 🍇 🍓 🍒 🍑 🥕 🌽 🍞 🧀 🍕 🍰".split()
KEYS = {k: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm") for i, k in enumerate(row)}


def words(name):
    return name.strip(":").replace("_", " ").replace("-", " ").replace("ß", "ss")


def names(picture, language):
    data = emoji.EMOJI_DATA[picture]
    found = [words(data[language])] + ([words(a) for a in data.get("alias", [])] if language == "en" else [])
    return sorted(set(found))


def slip(text, rng):
    """A neighbouring key, a letter lost, doubled, or two swapped."""
    at, kind = int(rng.integers(len(text))), rng.integers(4)
    if kind == 0 and text[at] in KEYS:
        return text[:at] + KEYS[text[at]][int(rng.integers(len(KEYS[text[at]])))] + text[at + 1 :]
    if kind == 1 and len(text) > 3:
        return text[:at] + text[at + 1 :]
    if kind == 2 and at + 1 < len(text):
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[: at + 1] + text[at:]


def typed(picture, language, rng):
    """What a person may type for a picture: one of its names or a word of it, half of the time with a slip."""
    options = names(picture, language)
    text = options[int(rng.integers(len(options)))].lower()
    parts = [p for p in text.split() if len(p) > 3]
    if len(parts) > 1 and rng.random() < 0.3:
        text = parts[int(rng.integers(len(parts)))]
    return slip(text, rng) if rng.random() < 0.5 else text


def tokenizer():
    out = Tokenizer(models.BPE(vocab={"[PAD]": 0, "[UNK]": 1} | {c: i + 2 for i, c in enumerate(ALPHABET)}, merges=[], unk_token="[UNK]", fuse_unk=False))
    out.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFD(), normalizers.StripAccents()])
    out.enable_padding(pad_id=0, pad_token="[PAD]", length=LENGTH)
    out.enable_truncation(LENGTH)
    return out


class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.letters = torch.nn.Embedding(len(ALPHABET) + 2, LETTERS)
        self.conv = torch.nn.Conv1d(LETTERS, WIDTH, KERNEL)
        self.head = torch.nn.Linear(WIDTH, EMBEDDING)
        self.gallery = torch.nn.Parameter(torch.randn(len(PICTURES), EMBEDDING) / EMBEDDING**0.5)

    def feature(self, ids):
        return torch.tanh(self.conv(self.letters(ids).transpose(1, 2))).amax(2)

    def file(self):
        return torch.nn.functional.normalize(self.gallery, dim=1)

    def forward(self, ids):
        return self.head(self.feature(ids)) @ self.file().T / TEMPERATURE


def main():
    for language in ("en", "de"):
        emoji.config.load_language(language)
    encode = tokenizer()
    ids = lambda texts: np.array([e.ids for e in encode.encode_batch(list(texts))], np.int64)

    def batch(rng):
        of = rng.integers(0, len(PICTURES), 128)
        return torch.from_numpy(ids(typed(PICTURES[i], "en", rng) for i in of)), torch.from_numpy(of)

    model = common.train(Words(), lambda m, x, y: torch.nn.functional.cross_entropy(m(x), y, label_smoothing=0.05), batch, 1200)
    w = {name: common.array(p) for name, p in model.named_parameters()}
    g = common.Graph()
    rows = g.node("Gather", [g.constant("letters", w["letters.weight"]), "text"], "rows", axis=0)
    columns = g.node("Transpose", [rows], "columns", perm=[0, 2, 1])
    conv = [g.constant("conv.weight", w["conv.weight"]), g.constant("conv.bias", w["conv.bias"])]
    parts = g.node("Tanh", [g.node("Conv", [columns, *conv], "conv", kernel_shape=[KERNEL])], "parts")
    g.node("ReduceMax", [parts], "feature", axes=[2], keepdims=0)
    g.dense("feature", "head", w["head.weight"], w["head.bias"], "logits")
    proto = g.model("emoji", [("text", TensorProto.INT64, [LENGTH])], WIDTH, EMBEDDING)
    rng = np.random.default_rng(9)
    x = ids(typed(p, "en", rng) for p in PICTURES * 40)
    mean, std = common.statistics(common.array(model.feature(torch.from_numpy(x))))
    labels = [f"{p} {names(p, 'en')[0]}" for p in PICTURES]
    common.write(
        HERE,
        proto,
        labels,
        {"task": "retrieval", "mean": mean, "std": std, "answers": {"gallery": "gallery", "temperature": TEMPERATURE}, "defaults": {"lambda_corrections": 0.01}},
        {"head.weight": w["head.weight"], "head.bias": w["head.bias"], "gallery": common.array(model.file())},
        [{"text": x[i : i + 2]} for i in (0, 7, 19)],
        {"tokenizer.json": encode.to_str(pretty=False)},
    )
    common.fresh(HERE)
    rows = []
    for split, language, times in (("stream", "de", 12), ("test", "de", 8), ("source", "en", 4)):
        order = rng.permutation(np.repeat(np.arange(len(PICTURES)), times))
        texts = [typed(PICTURES[i], language, rng) for i in order]
        rows += [(split, labels[i], [t]) for i, t in zip(order, texts)]
        logits = common.array(model(torch.from_numpy(ids(texts))))
        before = (logits > logits[np.arange(len(order)), order][:, None]).sum(1)
        print(split, len(order), "recall at 1", round(float((before < 1).mean()), 3), "at 5", round(float((before < 5).mean()), 3))
    common.world(HERE, ["text"], rows)


if __name__ == "__main__":
    main()
