"""The model in PyTorch, and its training.

Letters: N batch, D feature width, C = 10 classes, M = 3 modalities (image, audio, text).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import sources
from front import MEAN, MELS, STD, TEXT_LENGTH, tokenizer

D, C, M = 128, 10, 3
EMBED, HIDDEN = 24, 72
FUSIONS = ("attention", "concat", "weighted")


class ImageEncoder(nn.Module):
    """[N, 1, 28, 28] -> [N, D]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1)
        self.dense = nn.Linear(64 * 3 * 3, D)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), 2)
        return self.dense(F.dropout(x.flatten(1), 0.2, self.training))


class AudioEncoder(nn.Module):
    """Log-mel [N, 40, 100] -> [N, D]."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.conv3 = nn.Conv2d(32, 48, 3, padding=1)
        self.dense = nn.Linear(48 * 5 * 6, D)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x.unsqueeze(1))), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.max_pool2d(F.relu(self.conv3(x)), (2, 4))
        return self.dense(F.dropout(x.flatten(1), 0.2, self.training))


class TextEncoder(nn.Module):
    """Character ids [N, 16] -> [N, D]."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, EMBED)
        self.lstm = nn.LSTM(EMBED, HIDDEN)
        self.dense = nn.Linear(HIDDEN, D)

    def forward(self, ids):
        _, (last, _) = self.lstm(self.embedding(ids).transpose(0, 1))
        return self.dense(F.dropout(last[0], 0.1, self.training))


class WhichDigit(nn.Module):
    """(image, audio, text, present) -> (logits [N, C], feature [N, D], attention [N, M])."""

    def __init__(self, fusion="attention", bounded=True):
        super().__init__()
        self.fusion, self.bounded = fusion, bounded
        self.image, self.audio = ImageEncoder(), AudioEncoder()
        self.text = TextEncoder(tokenizer().get_vocab_size())
        if fusion == "attention":
            self.score = nn.Linear(D, 1)
        elif fusion == "weighted":
            self.score = nn.Parameter(torch.zeros(M))
        else:
            self.mix = nn.Linear(M * D, D)
        self.head = nn.Linear(D, C)

    def encode(self, image, audio, text):
        """The three modality features, [N, M, D]; in -1 to 1 when `bounded`.

        The tanh keeps the feature of an unfamiliar input nearly as long as that of a familiar one: a learner
        on top then hears both, where a linear layer would shrink what it does not know.
        """
        features = torch.stack([self.image(image), self.audio(audio), self.text(text)], 1)
        return torch.tanh(features) if self.bounded else features

    def fuse(self, features, present):
        """Features [N, M, D] and mask [N, M] -> (feature, attention). A missing modality weighs exactly 0."""
        if self.fusion == "concat":
            count = present.sum(1, True) + (1 - present.amax(1, True))  # 1 when nothing is present
            return torch.tanh(self.mix((features * present.unsqueeze(2)).flatten(1))), present / count
        score = self.score(features).squeeze(2) if self.fusion == "attention" else self.score
        weight = torch.softmax(score + (present - 1) * 1e4, 1) * present
        return (features * weight.unsqueeze(2)).sum(1), weight

    def forward(self, image, audio, text, present):
        feature, attention = self.fuse(self.encode(image, audio, text), present)
        return self.head(feature), feature, attention


def parameters_of(model):
    return sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- training data


def log_mel(waves, filters, window):
    """[N, 16000] -> [N, 40, 100]: the arithmetic of `WhisperFeatureExtractor`, in batches."""
    power = torch.stft(waves, 400, 160, window=window, return_complex=True)[..., :-1].abs() ** 2
    log = torch.clamp(filters.T @ power, min=1e-10).log10()
    log = torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0)
    return (log + 4.0) / 4.0


def jitter_images(images, rng):
    """uint8 [N, 28, 28] -> normalised [N, 1, 28, 28], each turned, scaled, sheared and moved a little."""
    n = len(images)
    angle = np.deg2rad(rng.uniform(-10, 10, n))
    scale = rng.uniform(0.9, 1.1, (n, 2))
    shear = rng.uniform(-0.1, 0.1, n)
    move = rng.uniform(-2 / 14, 2 / 14, (n, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    across = np.stack([cos * scale[:, 0], -sin + shear, move[:, 0]], 1)
    down = np.stack([sin, cos * scale[:, 1], move[:, 1]], 1)
    x = torch.from_numpy(images[:, None].astype(np.float32) / 255)
    theta = torch.from_numpy(np.stack([across, down], 1).astype(np.float32))
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    return (F.grid_sample(x, grid, align_corners=False) - MEAN) / STD


def jitter_audio(clips, extractor, rng):
    """Clips, each played up to 8 % faster or slower, moved in time, at another level, in noise -> [N, 40, 100]."""
    waves = np.zeros((len(clips), sources.RATE), np.float32)
    for row, clip in zip(waves, clips):
        at = np.arange(0, len(clip) - 1, rng.uniform(0.92, 1.08))
        clip = np.interp(at, np.arange(len(clip)), clip).astype(np.float32)
        wave = sources.record(clip, rng, peak=(0.2, 0.9), noise=(-4, -2.3))
        row[: len(wave)] = wave
    filters = torch.from_numpy(extractor.mel_filters).float()
    return log_mel(torch.from_numpy(waves), filters, torch.hann_window(400))


class Stream:
    """Endless training batches: an image, a recording and a text of the same digit."""

    def __init__(self, extractor, seed):
        self.rng = np.random.default_rng(seed)
        self.extractor, self.tokens = extractor, tokenizer()
        images, labels, _, _ = sources.mnist()
        self.images = [images[labels == c] for c in range(C)]
        jobs, spoken = sources.espeak_jobs(sources.espeak_variants()["train"], sources.ACCENTS, sources.ENGLISH, 2, seed=2)
        clips = sources.speak("train", sources.espeak, jobs)
        self.clips = [[clip for clip, label in zip(clips, spoken) if label == c] for c in range(C)]

    def batch(self, n):
        rng = self.rng
        labels = rng.integers(0, C, n)
        image = jitter_images(np.stack([self.images[c][rng.integers(len(self.images[c]))] for c in labels]), rng)
        audio = jitter_audio([self.clips[c][rng.integers(len(self.clips[c]))] for c in labels], self.extractor, rng)
        words = [sources.typed(int(c), rng) for c in labels]
        text = torch.tensor([e.ids for e in self.tokens.encode_batch(words)])
        return image, audio, text, torch.from_numpy(labels)


def random_presence(n, rng):
    """[N, M] masks: one modality in half of the rows, two in a quarter, all three in the rest."""
    present = np.ones((n, M), np.float32)
    for row in present:
        kind = rng.random()
        if kind < 0.5:
            row[:] = 0
            row[rng.integers(M)] = 1
        elif kind < 0.75:
            row[rng.integers(M)] = 0
    return torch.from_numpy(present)


def train(model, stream, steps, peak, smoothing=0.0, batch=96, log=print):
    """Trains in place, up to the learning rate `peak`. Every step sees each modality alone and a random mix of them."""
    optim = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.02)
    plan = torch.optim.lr_scheduler.OneCycleLR(optim, peak, total_steps=steps, pct_start=0.1)
    alone = torch.eye(M)
    model.train()
    seen = 0.0
    for step in range(steps):
        image, audio, text, labels = stream.batch(batch)
        features = model.encode(image, audio, text)
        masks = [alone[m].expand(batch, M) for m in range(M)] + [random_presence(batch, stream.rng)]
        loss = sum(
            F.cross_entropy(model.head(model.fuse(features, mask)[0]), labels, label_smoothing=smoothing) for mask in masks
        )
        optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optim.step()
        plan.step()
        seen = 0.98 * seen + 0.02 * loss.item() if step else loss.item()
        if (step + 1) % 100 == 0:
            log(f"{model.fusion}: step {step + 1}/{steps}, loss {seen:.3f}", flush=True)
    model.eval()


@torch.no_grad()
def feature_statistics(model, stream, batches=8, batch=250):
    """Mean, standard deviation [D] and class prior [C] over training examples with modalities mixed."""
    rows = []
    for _ in range(batches):
        image, audio, text, _ = stream.batch(batch)
        rows.append(model(image, audio, text, random_presence(batch, stream.rng))[1])
    rows = torch.cat(rows)
    return rows.mean(0).numpy(), rows.std(0).numpy(), np.full(C, 1 / C)
