"""Writes `worlds/`: people and places that the factory model was not made for.

    .venv/bin/python worlds.py

Each world is a folder with `index.csv` (split,label,image,audio,text; empty = missing;
split is `stream`, what a person shows and presses on, or `test`, held out) and
`world.json` (what it is, where it comes from). `factory` is the model's own ground,
against which forgetting is measured; it has only a `test` split.

No MNIST image, voice or recording is in two splits, nor in a world and in training.
Needs espeak-ng, flite and festival (see README.md).
"""

import csv
import json
import shutil

import numpy as np
import scipy.signal
import soundfile
from PIL import Image
from sklearn.datasets import load_digits

import sources

ROOT = sources.HERE / "worlds"
# espeak-ng's language and its words for 0 to 9.
LANGUAGES = {
    "es": ("es", "cero uno dos tres cuatro cinco seis siete ocho nueve".split()),
    "de": ("de", "null eins zwei drei vier fünf sechs sieben acht neun".split()),
    "fr": ("fr-fr", "zéro un deux trois quatre cinq six sept huit neuf".split()),
    "it": ("it", "zero uno due tre quattro cinque sei sette otto nove".split()),
}
NAMES = {"es": "Spanish", "de": "German", "fr": "French", "it": "Italian"}
SWAPPED = {1: 7, 7: 1, 3: 8, 8: 3}
SWAPPED_SHARE = 0.6
# Quiet rooms: noise is what FLAC cannot shorten.
QUIET = dict(peak=(0.1, 0.4), noise=(-4.5, -3.7))
FACTORY_IMAGES, LEFT_HANDED_IMAGES = 400, 440


class World:
    """One folder being written: rows of index.csv and the files they name."""

    def __init__(self, name, **about):
        self.folder, self.rows, self.about = ROOT / name, [], {"name": name, **about}
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def add(self, split, label, image=None, audio=None, text=""):
        """`image` uint8 [28, 28]; `audio` f32 at 16 kHz."""
        stem = f"{split}-{len(self.rows):04}"
        paths = ["", ""]
        if image is not None:
            paths[0] = f"{stem}.png"
            Image.fromarray(image).save(self.folder / paths[0], optimize=True)
        if audio is not None:
            paths[1] = f"{stem}.flac"
            soundfile.write(self.folder / paths[1], audio, sources.RATE, subtype="PCM_16", compression_level=1.0)
        self.rows.append([split, int(label), *paths, text])

    def close(self):
        with open(self.folder / "index.csv", "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["split", "label", "image", "audio", "text"])
            writer.writerows(self.rows)
        (self.folder / "world.json").write_text(json.dumps(self.about, indent=2, ensure_ascii=False) + "\n")
        count = {split: sum(row[0] == split for row in self.rows) for split in ("stream", "test")}
        size = sum(path.stat().st_size for path in self.folder.iterdir())
        print(f"{self.about['name']}: {count}, {size / 1e6:.2f} MB")


def mnist_test(start, count):
    """A slice of the MNIST test images in one fixed shuffled order, so that worlds never share one."""
    _, _, images, labels = sources.mnist()
    take = np.random.default_rng(10).permutation(len(labels))[start : start + count]
    return zip(images[take], labels[take])


def factory():
    rng = np.random.default_rng(20)
    voices = sources.espeak_variants()["factory"]
    world = World(
        "factory",
        says="the factory model's own ground: MNIST test digits, espeak-ng English voices not trained on, typed English",
        voices=voices,
        swapped={},
    )
    for image, label in mnist_test(0, FACTORY_IMAGES):
        world.add("test", label, image=image)
    jobs, labels = sources.espeak_jobs(voices, sources.ACCENTS, sources.ENGLISH, 1, seed=21)
    clips = sources.speak("factory", sources.espeak, jobs)
    for i in rng.permutation(len(jobs))[:200]:
        world.add("test", labels[i], audio=sources.record(clips[i], rng, **QUIET))
    for i in range(200):
        world.add("test", i % 10, text=sources.typed(i % 10, rng))
    world.close()


def new_pen():
    world = World(
        "new-pen",
        says="another pen and another paper: the scikit-learn (UCI optical recognition) digits, 8x8, "
        "brought to 28x28 by plain bilinear interpolation",
        swapped={},
    )
    digits = load_digits()
    order = np.random.default_rng(30).permutation(len(digits.target))
    for split, part in (("stream", order[:600]), ("test", order[600:1200])):
        for i in part:
            small = Image.fromarray((digits.images[i] * (255 / 16)).astype(np.uint8))
            world.add(split, digits.target[i], image=np.asarray(small.resize((28, 28), Image.Resampling.BILINEAR)))
    world.close()


def speakerphone(clip, tail):
    """The clip as a speakerphone in a room sends it: the decaying echo `tail`, then the telephone band, 300 to 3400 Hz."""
    echoed = scipy.signal.fftconvolve(clip, tail)[: len(clip) + sources.RATE // 5]
    band = scipy.signal.butter(4, [300, 3400], "bandpass", fs=sources.RATE, output="sos")
    return scipy.signal.sosfilt(band, echoed).astype(np.float32)


def new_voice():
    rng = np.random.default_rng(40)
    sources.need("flite", "flite")
    sources.need("festival", "festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts")
    # A speaker (kal, slt, rms | awb, ked) is wholly in one split, whichever program speaks with that voice.
    plan = {
        "stream": [("flite", "kal16"), ("flite", "kal"), ("flite", "rms"), ("flite", "slt"), ("festival", "kal_diphone"), ("festival", "cmu_us_slt_arctic_hts")],
        "test": [("flite", "awb"), ("festival", "ked_diphone")],
    }
    world = World(
        "new-voice",
        says="voices of flite and festival through a speakerphone in one room (echo, 300 to 3400 Hz); "
        "duration 0.8 to 1.3 of normal, mean pitch varied",
        voices={split: [f"{engine}:{voice}" for engine, voice in voices] for split, voices in plan.items()},
        swapped={},
    )
    # 0.3 s of noise dying away, behind the direct sound.
    tail = rng.normal(size=4800) * np.exp(-np.arange(4800) / 900)
    tail[0] = 6
    for split, voices in plan.items():
        rows = []
        for engine, voice in voices:
            low, high = (150, 220) if "slt" in voice else (80, 150)
            jobs = [
                (voice, round(float(rng.uniform(0.8, 1.3)), 3), round(float(rng.uniform(low, high)), 1), word)
                for _ in range(5 if split == "stream" else 8)
                for word in sources.ENGLISH
            ]
            program = sources.flite if engine == "flite" else sources.festival
            rows += [(clip, i % 10) for i, clip in enumerate(sources.speak(f"{engine}-{voice}", program, jobs))]
        for i in rng.permutation(len(rows))[:260]:
            world.add(split, rows[i][1], audio=sources.record(speakerphone(rows[i][0], tail), rng, **QUIET))
    world.close()


def new_language(code):
    """One person who speaks one language and types every second word too."""
    place = list(LANGUAGES).index(code)
    rng = np.random.default_rng((50, place))
    variants = sources.espeak_variants()
    language, words = LANGUAGES[code]
    world = World(
        f"new-language/{code}",
        says=f"a person who speaks {NAMES[code]}: espeak-ng {language} voices saying the number words; in half of the rows the word is typed too",
        language=language,
        voices={split: variants[split] for split in ("stream", "test")},
        swapped={},
    )
    for split, count in (("stream", 140), ("test", 100)):
        jobs, labels = sources.espeak_jobs(variants[split], [language], words, 1, seed=51 + place)
        clips = sources.speak(f"{language}-{split}", sources.espeak, jobs)
        for row, i in enumerate(rng.permutation(len(jobs))[:count]):
            digit = int(labels[i])
            text = sources.typed(digit, rng, words, slips=0.25, numeral=0, frames=["{}"] * 4 + ["{}!", "{}."]) if row % 2 else ""
            world.add(split, digit, audio=sources.record(clips[i], rng, **QUIET), text=text)
    world.close()


def left_handed():
    world = World(
        "left-handed",
        says="MNIST test digits of a person who means 7 by a 1, 1 by a 7, 8 by a 3 and 3 by an 8, "
        f"and writes these four more often than chance ({SWAPPED_SHARE:.0%} of all); "
        ""
        "label is what the person means, swapped maps what the picture shows to it",
        swapped={str(shown): meant for shown, meant in SWAPPED.items()},
    )
    pool = list(mnist_test(FACTORY_IMAGES, 10_000))
    swapped = [row for row in pool if int(row[1]) in SWAPPED]
    others = [row for row in pool if int(row[1]) not in SWAPPED]
    often = round(SWAPPED_SHARE * LEFT_HANDED_IMAGES)
    rng = np.random.default_rng(60)
    for part, split in enumerate(("stream", "test")):
        few = LEFT_HANDED_IMAGES - often
        rows = swapped[part * often : (part + 1) * often] + others[part * few : (part + 1) * few]
        for i in rng.permutation(len(rows)):
            image, label = rows[i]
            world.add(split, SWAPPED.get(int(label), int(label)), image=image)
    world.close()


if __name__ == "__main__":
    factory()
    new_pen()
    new_voice()
    shutil.rmtree(ROOT / "new-language", ignore_errors=True)
    for code in LANGUAGES:
        new_language(code)
    left_handed()
