"""Writes `golden/`: files and strings with the tensors that the reference front ends make of them.

`index.json` lists the cases: kind, input file (or text), expected `.npz` (array `expected`),
`tolerance` (greatest absolute difference) and, where the file must be resampled or is lossy,
`tolerance_mean` (mean absolute difference) with the reason in `note`.
"""

import json
import shutil

import numpy as np
import scipy.io.wavfile
import scipy.signal
import soundfile
import soxr
from PIL import Image

import front
import sources

ROOT = sources.HERE / "golden"
EXACT = 1e-4
# One grey level after normalisation; JPEG decoders may differ by two.
LEVEL = 1 / 255 / front.STD

TEXTS = [
    "seven", "SEVEN", "Zéro", "nine!", "number four", "7", "no. 8", "", " ", "  two  ", "fünf", "Ñoño", "e\u0301ight",
    "straße", "İstanbul", "ΣΊΣΥΦΟΣ", "three\tfour", "line\nbreak", "五", "👍 one", "７", "٣", "ﬁve", "o'clock #3, or-so?",
    "this is much longer than sixteen", "exactly sixteen.", "Å å ø œ", "[PAD] [UNK]",
]


def write(root=ROOT):
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    cases = images(root) + sounds(root) + texts(root)
    (root / "index.json").write_text(json.dumps(cases, indent=1, ensure_ascii=False) + "\n")
    return len(cases)


def images(root):
    rng = np.random.default_rng(60)
    _, _, digits, _ = sources.mnist()

    def scene(width, height, mode):
        """A digit enlarged onto a slope of colours, so that every channel and edge counts."""
        base = Image.fromarray(digits[int(rng.integers(len(digits)))]).resize((width, height), Image.Resampling.BICUBIC)
        ink = np.asarray(base, np.float32)
        slope = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None] * np.array([1.0, 0.2, -0.5])
        rgb = (ink[..., None] * np.array([0.9, 0.7, 0.5]) + slope).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(rgb)
        if mode == "RGBA":
            picture.putalpha(Image.fromarray((255 - ink / 2).astype(np.uint8)))
        return picture if mode in ("RGB", "RGBA") else picture.convert(mode)

    plan = [
        ("gray-28x28.png", 28, 28, "L", "no resize"),
        ("gray-57x31.png", 57, 31, "L", "odd size, both sides shrink"),
        ("gray-9x7.png", 9, 7, "L", "both sides grow"),
        ("gray-13x201.png", 13, 201, "L", "one side grows, the other shrinks"),
        ("rgb-101x67.png", 101, 67, "RGB", "ITU-R 601-2 luma as Pillow rounds it"),
        ("rgb-320x240.png", 320, 240, "RGB", "antialiased bilinear at a large factor"),
        ("rgba-45x45.png", 45, 45, "RGBA", "alpha is dropped, not blended"),
        ("palette-64x48.png", 64, 48, "P", "palette"),
        ("rgb-133x99.jpg", 133, 99, "RGB", "JPEG, 4:2:0"),
        ("gray-77x90.jpg", 77, 90, "L", "JPEG, grey"),
    ]
    cases = []
    for name, width, height, mode, note in plan:
        scene(width, height, mode).save(root / name, **({"quality": 92} if name.endswith("jpg") else {}))
        with Image.open(root / name) as picture:
            expected = front.image_tensor(picture)
        lossy = name.endswith("jpg")
        note += "; decoders may differ by two grey levels" if lossy else ""
        cases.append(case(root, "image", name, expected, 2.5 * LEVEL if lossy else EXACT, note))
    return cases


def sounds(root):
    jobs = [(f"en-gb+{sources.espeak_variants()['factory'][i]}", 160, 50, word) for i, word in enumerate(sources.ENGLISH)]
    clips = sources.speak("golden", sources.espeak, jobs)
    rng = np.random.default_rng(61)

    def at(clip, rate):
        return soxr.resample(sources.record(clip, rng), sources.RATE, rate).astype(np.float32)

    left = at(clips[4], 44_100)
    stereo = np.stack([left, np.roll(left, 40) * 0.6], 1)
    long = np.concatenate([at(clips[i], 16_000) for i in (2, 5, 7)])
    plan = [
        ("mono-16k.wav", at(clips[1], 16_000), 16_000, "PCM_16"),
        ("mono-16k.flac", at(clips[3], 16_000), 16_000, "PCM_16"),
        ("mono-16k-float.wav", at(clips[6], 16_000), 16_000, "FLOAT"),
        ("stereo-16k.wav", np.stack([at(clips[8], 16_000)] * 2, 1) * [[1.0, 0.3]], 16_000, "PCM_16"),
        ("longer-than-a-second-16k.flac", long, 16_000, "PCM_16"),
        ("silence-16k.wav", np.zeros(4_000, np.float32), 16_000, "PCM_16"),
        ("stereo-44k1-24bit.wav", stereo, 44_100, "PCM_24"),
        ("mono-8k.flac", at(clips[0], 8_000), 8_000, "PCM_16"),
        ("mono-48k.wav", at(clips[9], 48_000), 48_000, "PCM_16"),
        ("mono-22k05.wav", at(clips[7], 22_050), 22_050, "PCM_16"),
    ]
    cases = []
    for name, samples, rate, subtype in plan:
        if subtype == "FLOAT":
            # libsndfile would stamp the time of day into a PEAK chunk.
            scipy.io.wavfile.write(root / name, rate, samples)
        else:
            soundfile.write(root / name, samples, rate, subtype=subtype)
        mono, rate = soundfile.read(root / name, dtype="float32")
        mono = mono.mean(1) if mono.ndim == 2 else mono
        if rate == sources.RATE:
            cases.append(case(root, "audio", name, front.audio_tensor(mono), EXACT, "channels are averaged; one second is kept"))
            continue
        expected = front.audio_tensor(soxr.resample(mono, rate, sources.RATE, quality="HQ"))
        # How far other good resamplers come out, doubled: no one of them is the right one.
        divisor = np.gcd(rate, sources.RATE)
        others = [
            soxr.resample(mono, rate, sources.RATE, quality="VHQ"),
            soxr.resample(mono, rate, sources.RATE, quality="MQ"),
            scipy.signal.resample_poly(mono, sources.RATE // divisor, rate // divisor).astype(np.float32),
        ]
        apart = [np.abs(front.audio_tensor(other) - expected) for other in others]
        note = "soxr HQ after averaging the channels; tolerances are twice the disagreement of soxr VHQ, soxr MQ and scipy resample_poly"
        if rate < sources.RATE // 2 + 1:
            note += "; above 4 kHz only the resampler's leakage is left, so the mean is the test and the maximum says nothing"
        worst, mean = (2 * max(float(f(a)) for a in apart) for f in (np.max, np.mean))
        cases.append(case(root, "audio", name, expected, round(worst, 3), note) | {"tolerance_mean": round(mean, 4)})
    return cases


def texts(root):
    expected = np.stack([front.text_tensor(text) for text in TEXTS])
    np.savez_compressed(root / "text.npz", expected=expected)
    return [
        {"kind": "text", "text": text, "expected": "text.npz", "row": i, "tolerance": 0} for i, text in enumerate(TEXTS)
    ]


def case(root, kind, name, expected, tolerance, note):
    np.savez_compressed(root / f"{name}.npz", expected=expected)
    return {"kind": kind, "file": name, "expected": f"{name}.npz", "tolerance": tolerance, "note": note}
