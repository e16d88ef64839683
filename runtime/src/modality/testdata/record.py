"""Writes the golden files of this folder with the libraries that exporters use.

Run in a virtual environment outside the repository:
    pip install pillow==13.0.0 numpy==2.4.6 transformers==5.23.0 tokenizers==0.23.3 librosa==0.11.0 soundfile==0.14.0
    python record.py

Without torch installed `transformers.WhisperFeatureExtractor` takes its NumPy path, which is the one compared with.
"""

import io
import json
import struct
import zlib
from pathlib import Path

import librosa
import numpy as np
import soundfile
import soxr
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import WhisperFeatureExtractor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

HERE = Path(__file__).parent


def main():
    images()
    sounds()
    texts()


def scene(width, height):
    """Slopes, a hard edge, fine stripes and noise: every filter shows its character on it."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:height, 0:width]
    r = 255 * x / width
    g = 255 * (((x // 3) + (y // 2)) % 2)
    b = np.where((x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2, 230, 20)
    return (np.stack([r, g, b], 2) + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)


def images():
    rgb = Image.fromarray(scene(61, 47))
    rgb.save(HERE / "rgb.png")
    gray = rgb.convert("L")
    gray.save(HERE / "gray.png")
    alpha = rgb.copy()
    alpha.putalpha(gray)
    alpha.save(HERE / "rgba.png")
    gray_alpha = gray.copy()
    gray_alpha.putalpha(rgb.getchannel("G"))
    gray_alpha.save(HERE / "gray_alpha.png")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=37).save(HERE / "palette.png")
    rgb.convert("1").save(HERE / "bilevel.png")
    rgb.save(HERE / "rgb.jpg", quality=93, subsampling=0)
    gray.save(HERE / "gray.jpg", quality=93)
    wide = np.random.default_rng(2).integers(0, 65536, (9, 13, 3))
    (HERE / "rgb16.png").write_bytes(png16(wide))
    (HERE / "gray16.png").write_bytes(png16(wide[..., :1]))

    decoded = {}
    for path in sorted([*HERE.glob("*.png"), *HERE.glob("*.jpg")]):
        with Image.open(path) as picture:
            if picture.mode == "I;16":
                # Pillow clips 16-bit gray at 255; hone keeps the high byte, as Pillow does for 16-bit colour.
                decoded[path.name] = (np.asarray(picture) >> 8).astype(np.uint8)
                continue
            decoded[path.name + ":rgb"] = np.asarray(picture.convert("RGB"))
            decoded[path.name] = np.asarray(picture.convert("L"))
    np.savez(HERE / "decoded.npz", **decoded)

    resized = {}
    for code in range(6):
        for width, height in [(20, 33), (90, 70), (61, 11), (5, 47), (70, 20), (55, 12)]:
            for name, picture in [("gray", gray), ("rgb", rgb)]:
                if name == "gray" or (width, height) == (20, 33):
                    resized[f"{name}_{code}_{width}x{height}"] = np.asarray(picture.resize((width, height), code))
    np.savez(HERE / "resized.npz", **resized)

    settings = {
        "clip": dict(size={"shortest_edge": 24}, crop_size={"height": 20, "width": 22}, resample=3, do_convert_rgb=True),
        "crop_pads": dict(size={"shortest_edge": 16}, crop_size={"height": 21, "width": 30}, resample=2, do_convert_rgb=True),
        "plain": dict(size={"height": 17, "width": 19}, resample=1, do_center_crop=False, do_normalize=False, do_convert_rgb=True),
    }
    pixels, configs = {}, {}
    for name, setting in settings.items():
        processor = CLIPImageProcessorPil(**setting)
        configs[name] = json.loads(processor.to_json_string())
        pixels[name] = np.asarray(processor(rgb)["pixel_values"][0], np.float32)[None]
    (HERE / "processors.json").write_text(json.dumps(configs, indent=1) + "\n")
    np.savez(HERE / "pixels.npz", **pixels)


def png16(values):
    """A 16-bit PNG of `values` [height, width, 1 or 3], which Pillow cannot write for colour."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sound(rate, seconds, seed, noise=0.003, pause=0.9):
    """A chirp from 100 Hz to 3 kHz with a little noise and a pause."""
    t = np.arange(int(rate * seconds)) / rate
    x = 0.5 * np.sin(2 * np.pi * (100 * t + (2900 / (2 * seconds)) * t**2))
    x *= 1 - pause * ((t > 0.4 * seconds) & (t < 0.5 * seconds))
    return x + np.random.default_rng(seed).normal(0, noise, len(t))


def sounds():
    files = {
        "mono-16k-s16.wav": (sound(16_000, 0.3, 3), 16_000, "PCM_16"),
        "mono-8k-u8.wav": (sound(8_000, 0.3, 4), 8_000, "PCM_U8"),
        "stereo-44k1-s24.flac": (np.stack([sound(44_100, 0.2, 5), 0.3 * sound(44_100, 0.2, 6)], 1), 44_100, "PCM_24"),
        "mono-22k05-f32.wav": (2.5 * sound(22_050, 0.2, 7), 22_050, "FLOAT"),
        "stereo-48k-s32.wav": (np.stack([sound(48_000, 0.05, 8)] * 2, 1), 48_000, "PCM_32"),
        "mono-32k.mp3": (sound(32_000, 0.3, 9), 32_000, "MPEG_LAYER_III"),
    }
    decoded = {}
    for name, (samples, rate, subtype) in files.items():
        soundfile.write(HERE / name, samples, rate, subtype=subtype)
        samples, _ = soundfile.read(HERE / name, dtype="float32", always_2d=True)
        decoded[name] = samples.mean(1, dtype=np.float32)
    np.savez(HERE / "samples.npz", **decoded)

    # No noise and no edges: two good resamplers differ in their transition bands, and a click reaches those.
    resampled = {}
    for rate in (8_000, 22_050, 44_100):
        x = sound(rate, 0.25, 10, noise=0, pause=0).astype(np.float32)
        resampled[f"from_{rate}"] = x
        resampled[f"to_16000_from_{rate}"] = soxr.resample(x, rate, 16_000, quality="HQ")
    np.savez(HERE / "resampled.npz", **resampled)

    mel, configs = {}, {}
    clips = {"short": sound(16_000, 0.7, 11), "long": sound(16_000, 1.4, 12), "silence": np.zeros(4_000)}
    for bands, seconds in [(80, 1), (40, 1)]:
        extractor = WhisperFeatureExtractor(feature_size=bands, chunk_length=seconds)
        configs[f"whisper{bands}"] = json.loads(extractor.to_json_string())
        for name, clip in clips.items():
            if bands == 40 or name == "long":
                mel[f"whisper{bands}_{name}"] = extractor(clip.astype(np.float32), sampling_rate=16_000)["input_features"]
    for name, clip in clips.items():
        mel[f"clip_{name}"] = clip.astype(np.float32)
    short = clips["short"].astype(np.float32).astype(np.float64)
    power = librosa.feature.melspectrogram(
        y=short, sr=16_000, n_fft=512, hop_length=200, win_length=400, n_mels=32, fmin=50, fmax=7000, htk=True, norm=None
    )
    mel["librosa_db"] = librosa.power_to_db(power, ref=np.max, top_db=80.0)[None].astype(np.float32)
    amplitude = librosa.feature.melspectrogram(
        y=short, sr=16_000, n_fft=400, hop_length=160, n_mels=24, fmin=0, fmax=8000, power=1.0, center=False
    )
    mel["librosa_ln"] = np.log(np.maximum(amplitude, 1e-5))[None].astype(np.float32)
    (HERE / "extractors.json").write_text(json.dumps(configs, indent=1) + "\n")
    np.savez(HERE / "mel.npz", **mel)


CORPUS = [
    "the quick brown fox jumps over the lazy dog", "turn the kitchen light on", "seven eight nine ten eleven twelve",
    "learning from a press of the thumb", "don't stop me now, it's a good time", "an edge device that listens and learns",
] * 4
TEXTS = [
    "seven", "Turn the LIGHT on!", "", " ", "  two  spaces ", "Zéro", "e\u0301ight", "naïve café", "don't", "李 五", "👍 one",
    "three\tfour\nfive", "straße İstanbul", "３ ﬁve", "<unk> [UNK] [SEP]", "a much longer sentence that has to be cut somewhere in the middle",
]


def texts():
    byte_bpe = Tokenizer(models.BPE())
    byte_bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_bpe.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer()
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]))
    wordpiece.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    wordpiece.enable_truncation(12)
    wordpiece.enable_padding(pad_id=0, pad_token="[PAD]", length=12)
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>"))
    ids = {}
    for name, tokenizer in [("byte_bpe", byte_bpe), ("wordpiece", wordpiece), ("unigram", unigram)]:
        tokenizer.save(str(HERE / f"{name}.json"), pretty=False)
        for i, text in enumerate(TEXTS):
            ids[f"{name}_{i}"] = np.array(tokenizer.encode(text).ids, np.int64)
    (HERE / "texts.json").write_text(json.dumps(TEXTS, ensure_ascii=False, indent=1) + "\n")
    np.savez(HERE / "ids.npz", **ids)


main()
