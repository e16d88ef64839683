"""Makes `seven`, a wake word: was "seven" said?

    python3 -m venv .venv && .venv/bin/pip install -r ../requirements.txt && .venv/bin/python make.py

Needs espeak-ng 1.51. Speech comes from `../which-digit`: espeak-ng's speaker variants, no variant in two splits.
The source speaks English with five accents; whoever is listened to later speaks German and says the same word in
their way, "sieben", among the other nine.
"""

import pathlib
import sys

import numpy as np
import soundfile
import torch
from onnx import TensorProto

HERE = pathlib.Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "which-digit")]
import common  # noqa: E402
import front  # noqa: E402
import sources  # noqa: E402

WIDTH, SEVEN = 48, 7
WORDS = {"de": "null eins zwei drei vier fünf sechs sieben acht neun".split()}


def clips(name, variants, languages, words, repeats, seed, others):
    """Recordings and whether each is the word; of the nine other words a share `others` is kept."""
    jobs, digits = sources.espeak_jobs(variants, languages, words, repeats, seed)
    rng = np.random.default_rng(seed)
    keep = [i for i, d in enumerate(digits) if d == SEVEN or rng.random() < others]
    spoken = sources.speak(name, sources.espeak, [jobs[i] for i in keep])
    sound = [sources.record(clip, rng, peak=(0.1, 0.4), noise=(-5.2, -4.6)) for clip in spoken]
    return sound, (digits[keep] == SEVEN).astype(np.float32)


def mels(sound):
    return np.stack([front.audio_tensor(clip) for clip in sound]).astype(np.float32)


class Seven(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.head = torch.nn.Linear(10 * 25, WIDTH), torch.nn.Linear(WIDTH, 1)

    def feature(self, x):
        return torch.tanh(self.dense(torch.nn.functional.avg_pool2d(x[:, None], 4).flatten(1)))

    def forward(self, x):
        return self.head(self.feature(x))[:, 0]


def main():
    cut = sources.espeak_variants()
    sound, y = clips("seven-train", cut["train"], sources.ACCENTS, sources.ENGLISH, 1, 31, 0.5)
    x = mels(sound)
    model = common.train(
        Seven(),
        lambda m, x, y: torch.nn.functional.binary_cross_entropy_with_logits(m(x), y),
        lambda rng: (lambda i: (torch.from_numpy(x[i]), torch.from_numpy(y[i])))(rng.integers(0, len(x), 64)),
        600,
    )
    g = common.Graph()
    plane = g.node("Unsqueeze", ["audio", g.constant("axis", np.array([1], np.int64))], "plane")
    pooled = g.node("AveragePool", [plane], "pooled", kernel_shape=[4, 4], strides=[4, 4])
    flat = g.node("Flatten", [pooled], "flat", axis=1)
    w = {name: common.array(p) for name, p in model.named_parameters()}
    g.node("Tanh", [g.dense(flat, "dense", w["dense.weight"], w["dense.bias"], "hidden")], "feature")
    g.dense("feature", "head", w["head.weight"], w["head.bias"], "logits")
    proto = g.model("seven", [("audio", TensorProto.FLOAT, [40, 100])], WIDTH, 1)
    mean, std = common.statistics(common.array(model.feature(torch.from_numpy(x))))
    recipe = {"task": "wake-word", "mean": mean, "std": std, "prior": [0.65, 0.35], "answers": {"threshold": 0.5}}
    audio = {k: v for k, v in front.feature_extractor().to_dict().items() if k not in ("processor_class",)}
    keys = "chunk_length dither feature_extractor_type feature_size hop_length n_fft n_samples nb_max_frames padding_side padding_value return_attention_mask sampling_rate".split()
    common.write(
        HERE,
        proto,
        ["quiet", "seven"],
        recipe,
        {"head.weight": w["head.weight"], "head.bias": w["head.bias"]},
        [{"audio": x[i : i + 2]} for i in (0, 7, 19)],
        {"preprocessor_config.json": {"feature_extractor": {k: audio[k] for k in keys if k in audio}}},
    )
    folder, rows = common.fresh(HERE), []
    for split, variants, language, words, repeats, others, seed in (
        ("stream", cut["stream"][:12], ["de"], WORDS, 4, 0.2, 41),
        ("test", cut["test"], ["de"], WORDS, 2, 0.2, 43),
        ("source", cut["factory"], sources.ACCENTS[:2], sources.ENGLISH, 1, 0.15, 47),
    ):
        sound, y = clips(f"seven-{split}", variants, language, words, repeats, seed, others)
        for i, (clip, label) in enumerate(zip(sound, y)):
            name = f"{split}-{i:04}.flac"
            soundfile.write(folder / name, clip, sources.RATE, subtype="PCM_16", compression_level=1.0)
            rows.append((split, ("quiet", "seven")[int(label)], [name]))
        p = common.array(torch.sigmoid(model(torch.from_numpy(mels(sound)))))
        print(split, len(y), "words", int(y.sum()), "false alarms", round(float((p[y == 0] > 0.5).mean()), 3), "missed", round(float((p[y == 1] <= 0.5).mean()), 3))
    common.world(HERE, ["audio"], rows)


if __name__ == "__main__":
    main()
