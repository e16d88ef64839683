"""The front ends as Hugging Face configurations, and the same steps done with their own libraries.

image: Pillow (grayscale, bilinear resize), then rescale and normalise.
audio: `transformers.WhisperFeatureExtractor`. text: `tokenizers`.
"""

import functools
import logging

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers
from transformers import WhisperFeatureExtractor

MEAN, STD = 0.1307, 0.3081
MELS = 40
TEXT_LENGTH = 16
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 .,!?'-#"

IMAGE_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_grayscale": True,
    "do_resize": True,
    "size": {"height": 28, "width": 28},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [MEAN],
    "image_std": [STD],
}


@functools.cache
def tokenizer():
    """One token a character, lower case, accents stripped; [PAD] = 0, [UNK] = 1; always 16 ids."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {c: i + 2 for i, c in enumerate(ALPHABET)}
    # A BPE without merges is the plainest "one token a character" that `tokenizers` has.
    out = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]", fuse_unk=False))
    out.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.NFD(), normalizers.StripAccents()])
    out.enable_padding(pad_id=0, pad_token="[PAD]", length=TEXT_LENGTH)
    out.enable_truncation(TEXT_LENGTH)
    return out


@functools.cache
def feature_extractor():
    """40 log-mel bands of one second at 16 kHz: 100 frames."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return WhisperFeatureExtractor(
        feature_size=MELS, sampling_rate=16_000, hop_length=160, n_fft=400, chunk_length=1, padding_value=0.0
    )


def image_tensor(picture):
    """A Pillow image -> f32 [1, 28, 28]."""
    gray = picture.convert("L").resize((28, 28), Image.Resampling.BILINEAR)
    pixels = np.asarray(gray, np.float32) * np.float32(IMAGE_PROCESSOR["rescale_factor"])
    return ((pixels - np.float32(MEAN)) / np.float32(STD))[None]


def audio_tensor(samples):
    """Mono f32 samples at 16 kHz -> f32 [40, 100]."""
    return feature_extractor()(samples, sampling_rate=16_000)["input_features"][0].astype(np.float32)


def text_tensor(text):
    """A string -> i64 [16]."""
    return np.array(tokenizer().encode(text).ids, np.int64)
