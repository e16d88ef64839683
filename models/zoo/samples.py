"""Pictures, sounds and texts for the recorded cases: drawn and computed, so that they are the same everywhere and need no
file. Their values sit on coarse grids (8-bit pixels, 16-bit samples), which is what devices deliver and what compresses.
"""

import numpy as np

# 5 × 7 pixels a letter, one row a number, the leftmost pixel its highest bit.
_LETTERS = {
    "A": (14, 17, 17, 31, 17, 17, 17), "D": (30, 17, 17, 17, 17, 17, 30), "E": (31, 16, 16, 30, 16, 16, 31),
    "H": (17, 17, 17, 31, 17, 17, 17), "I": (14, 4, 4, 4, 4, 4, 14), "L": (16, 16, 16, 16, 16, 16, 31),
    "M": (17, 27, 21, 21, 17, 17, 17), "N": (17, 25, 21, 19, 17, 17, 17), "O": (14, 17, 17, 17, 17, 17, 14),
    "R": (30, 17, 17, 30, 20, 18, 17), "S": (15, 16, 16, 14, 1, 1, 30), "T": (31, 4, 4, 4, 4, 4, 4),
    "0": (14, 17, 19, 21, 25, 17, 14), "1": (4, 12, 4, 4, 4, 4, 14), "2": (14, 17, 1, 6, 8, 16, 31),
    "6": (6, 8, 16, 30, 17, 17, 14), " ": (0,) * 7,
}  # fmt: skip


def landscape(height, width, seed):
    """An 8-bit RGB picture (height, width, 3): sky, sun, hills, a house; `seed` moves them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    picture = np.stack([90 + 90 * y, 150 + 60 * y, 230 - 20 * y], axis=-1)
    sun_x, sun_y = rng.uniform(0.2, 0.8), rng.uniform(0.1, 0.3)
    picture[(x - sun_x) ** 2 + (y - sun_y) ** 2 < 0.008] = (250, 220, 90)
    for depth, colour in enumerate([(110, 130, 120), (70, 110, 60), (40, 80, 30)]):
        waves, phase = rng.uniform(2, 9, 2), rng.uniform(0, 6, 2)
        ridge = (
            0.45 + 0.15 * depth + 0.06 * np.sin(waves[0] * x + phase[0]) + 0.03 * np.sin(2 * waves[1] * x + phase[1])
        )
        picture[y > ridge] = colour
    left = rng.uniform(0.1, 0.6)
    picture[(x > left) & (x < left + 0.25) & (y > 0.62) & (y < 0.85)] = (170, 90, 60)
    picture[(y > 0.5) & (y < 0.62) & (np.abs(x - left - 0.125) < (y - 0.5) * 1.4)] = (90, 40, 30)
    picture[(np.abs(x - left - 0.06) < 0.03) & (np.abs(y - 0.7) < 0.04)] = (230, 230, 160)
    return picture.round().astype(np.uint8)


def face(height, width, seed):
    """An 8-bit RGB picture (height, width, 3) of a face before a wall."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    x, y = x - 0.5 + rng.uniform(-0.05, 0.05), y - 0.5 + rng.uniform(-0.05, 0.05)
    inside = lambda cx, cy, rx, ry: ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    picture = np.full((height, width, 3), (120, 135, 140), np.float64)
    picture[inside(0, -0.05, 0.29, 0.37)] = (60, 40, 30)
    picture[inside(0, 0.5, 0.4, 0.2)] = (60, 70, 120)
    head = inside(0, 0, 0.24, 0.32)
    picture[head] = (np.array([215, 170, 145]) * (1 - 0.25 * np.abs(x[..., None]) - 0.15 * y[..., None]))[head]
    for side in (-0.1, 0.1):
        picture[inside(side, -0.12, 0.065, 0.014)] = (70, 45, 35)
        picture[inside(side, -0.06, 0.05, 0.022)] = (240, 238, 235)
        picture[inside(side, -0.06, 0.02, 0.022)] = (45, 30, 25)
        picture[inside(side * 0.25, 0.075, 0.012, 0.01)] = (120, 80, 70)
    picture[inside(0, 0.04, 0.018, 0.06)] = (195, 148, 125)
    picture[inside(0, 0.16, 0.085, 0.025)] = (165, 75, 75)
    return picture.round().astype(np.uint8)


def page(height, width, lines, scale):
    """An 8-bit RGB picture (height, width, 3) of dark lines of text on paper, letters 7·`scale` pixels high."""
    picture = np.full((height, width, 3), (244, 240, 230), np.uint8)
    for row, line in enumerate(lines):
        top = scale * (2 + 10 * row)
        for column, letter in enumerate(line):
            write(picture, letter, top, scale * (2 + 6 * column), scale)
    return picture


def write(picture, letter, top, left, scale):
    for dy, bits in enumerate(_LETTERS[letter]):
        for dx in range(5):
            if bits >> (4 - dx) & 1:
                y, x = top + dy * scale, left + dx * scale
                picture[y : y + scale, x : x + scale] = (40, 36, 50)


def table(height, width, rows, columns):
    """An 8-bit RGB picture (height, width, 3) of a ruled table with a number in each cell."""
    picture = np.full((height, width, 3), 255, np.uint8)
    tops = np.linspace(4, height - 6, rows + 1).astype(int)
    lefts = np.linspace(4, width - 6, columns + 1).astype(int)
    for y in tops:
        picture[y : y + 2, 4 : width - 4] = 30
    for x in lefts:
        picture[4 : height - 4, x : x + 2] = 30
    for i, y in enumerate(tops[:-1]):
        for j, x in enumerate(lefts[:-1]):
            write(picture, "0126"[(i + 2 * j) % 4], y + 10, x + 10, 2)
            write(picture, "0126"[(3 * i + j) % 4], y + 10, x + 22, 2)
    return picture


def speech(seconds, rate, seed):
    """Vowels in syllables, with pauses: 16-bit samples (N) scaled to −1…1."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    formants = np.array([(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480)])
    syllables = max(1, round(seconds * 4))
    of = np.minimum((t * syllables / seconds).astype(int), syllables - 1)
    within = t * syllables / seconds - of
    vowels, loud = rng.integers(0, 4, syllables), rng.uniform(0, 1, syllables) > 0.2
    pitch = 110 + 25 * np.sin(2 * np.pi * 0.7 * t + seed) - 8 * t
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = np.zeros_like(t)
    for harmonic in range(1, 26):
        centres = formants[vowels[of]]
        height = (1 / (1 + ((harmonic * pitch[:, None] - centres) / 90) ** 2) * (1, 0.6, 0.3)).sum(axis=1)
        wave += (height + 0.02 / harmonic) * np.sin(harmonic * phase) * (harmonic * pitch < 0.45 * rate)
    wave *= np.sin(np.pi * within) ** 2 * loud[of]
    wave += 0.002 * rng.standard_normal(len(t))
    return (np.round(wave / np.abs(wave).max() * 0.6 * 32767) / 32768).astype(np.float32)


def chord(seconds, rate, notes):
    """Struck strings: MIDI `notes`, one after another and ringing together; 16-bit samples (N) scaled to −1…1."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.zeros_like(t)
    for i, note in enumerate(notes):
        since = np.maximum(t - i * seconds / (len(notes) + 1), 0)
        f = 440 * 2 ** ((note - 69) / 12)
        for k in range(1, 9):
            wave += np.sin(2 * np.pi * k * f * since) * np.exp(-since * (1.5 + k)) * (since > 0) / k
    return (np.round(wave / np.abs(wave).max() * 0.6 * 32767) / 32768).astype(np.float32)


def mel(audio, bands, rate, window, hop):
    """The power of `audio` in `bands` mel bands (bands, frames), frames of `window` samples every `hop`, centred."""
    padded = np.pad(audio.astype(np.float64), window // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1], axis=1)) ** 2
    scale = lambda hz: 2595 * np.log10(1 + hz / 700)
    edges = 700 * (10 ** (np.linspace(0, scale(rate / 2), bands + 2) / 2595) - 1)
    hz = np.arange(window // 2 + 1) * rate / window
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    weights = np.maximum(0, np.minimum((hz - low) / (mid - low), (high - hz) / (high - mid))) * 2 / (high - low)
    return weights @ power.T


def grid(values, step):
    """`values` rounded to multiples of `step` (a power of two, so that they are exact), as float32."""
    return (np.round(np.asarray(values, np.float64) / step) * step).astype(np.float32)
