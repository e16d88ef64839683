//! Samples out of a stream of bytes: a WAV stream or bare samples of a declared type, cut into windows.
//!
//! WAV streams are of unknown length, so the sizes their headers claim are believed only where they are plausible.
use super::stream::{Decoder, Out};
use super::words::{WordConfig, Words};
use super::{Kind, Pcm, Sound};
use crate::Note;

/// Longest chunk of a WAV header that is not samples.
const MAX_CHUNK_BYTES: u64 = 1 << 20;
/// Sizes from here on mean "until it ends": recorders write 0, 0x7FFFFFFF or 0xFFFFFFFF, some less their header.
const ENDLESS: u32 = 0x7F00_0000;

/// How a sample is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SampleType {
    U8,
    S16,
    S24,
    S32,
    F32,
}

impl SampleType {
    fn parse(name: &str) -> Option<SampleType> {
        Some(match name {
            "u8" => SampleType::U8,
            "s16le" => SampleType::S16,
            "s24le" => SampleType::S24,
            "s32le" => SampleType::S32,
            "f32le" => SampleType::F32,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            SampleType::U8 => 1,
            SampleType::S16 => 2,
            SampleType::S24 => 3,
            SampleType::S32 | SampleType::F32 => 4,
        }
    }

    /// One sample, full scale ±1; `None` for a float that is not finite.
    fn decode(self, bytes: &[u8]) -> Option<f32> {
        Some(match (self, bytes) {
            (SampleType::U8, &[a]) => (f32::from(a) - 128.0) / 128.0,
            (SampleType::S16, &[a, b]) => f32::from(i16::from_le_bytes([a, b])) / 32_768.0,
            (SampleType::S24, &[a, b, c]) => (i32::from_le_bytes([0, a, b, c]) >> 8) as f32 / 8_388_608.0,
            (SampleType::S32, &[a, b, c, d]) => (f64::from(i32::from_le_bytes([a, b, c, d])) / 2_147_483_648.0) as f32,
            (SampleType::F32, &[a, b, c, d]) => {
                return Some(f32::from_le_bytes([a, b, c, d])).filter(|x| x.is_finite());
            }
            _ => return None,
        })
    }
}

/// What the samples of a stream are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PcmFormat {
    pub(super) sample: SampleType,
    pub(super) rate_hz: u32,
    pub(super) channels: usize,
}

impl PcmFormat {
    /// `TYPE:RATE:CHANNELS`; `None` for anything else and for rates and channel counts no microphone has.
    pub(super) fn parse(text: &str) -> Option<PcmFormat> {
        let mut parts = text.split(':');
        let format = PcmFormat {
            sample: SampleType::parse(parts.next()?)?,
            rate_hz: parts.next()?.parse().ok()?,
            channels: parts.next()?.parse().ok()?,
        };
        (parts.next().is_none() && format.plausible()).then_some(format)
    }

    fn plausible(self) -> bool {
        (1000..=384_000).contains(&self.rate_hz) && (1..=8).contains(&self.channels)
    }
}

/// How samples become windows. Lengths in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CutFormat {
    pub(super) length_s: f64,
    pub(super) hop_s: f64,
    /// Around words, rather than one after the other.
    pub(super) words: Option<WordConfig>,
}

/// Windows of sound out of bytes.
pub(super) struct Microphone {
    cut: CutFormat,
    header: Option<WavHeader>,
    samples: Option<Samples>,
    /// Bytes of samples the WAV header promised that are still to come.
    left: Option<u64>,
}

struct Samples {
    format: PcmFormat,
    /// The beginning of a frame (one sample of each channel).
    partial: Vec<u8>,
    cutter: Cutter,
    not_finite: u64,
}

enum Cutter {
    Windows { buffer: Vec<f32>, length: usize, hop: usize, gap: usize },
    Words(Box<Words>),
}

impl Microphone {
    /// With no `format` the stream is to be WAV.
    pub(super) fn new(format: Option<PcmFormat>, cut: CutFormat) -> Microphone {
        let header = format.is_none().then(WavHeader::default);
        Microphone { cut, header, samples: format.map(|format| Samples::new(format, cut)), left: None }
    }
}

impl Decoder for Microphone {
    fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out)) {
        let mut bytes = bytes.to_vec();
        if let Some(header) = &mut self.header {
            match header.feed(&bytes, out) {
                Header::More => return,
                Header::Samples { format, left, rest } => {
                    self.samples = Some(Samples::new(format, self.cut));
                    self.left = left;
                    self.header = None;
                    bytes = rest;
                }
            }
        }
        let Some(samples) = &mut self.samples else { return };
        if let Some(left) = &mut self.left {
            let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= taken as u64;
            if taken < bytes.len() {
                out(Out::Skipped((bytes.len() - taken) as u64));
                bytes.truncate(taken);
            }
        }
        samples.feed(&bytes, out);
    }

    /// A window that is not full is not given.
    fn finish(&mut self, out: &mut dyn FnMut(Out)) {
        let partial = self.samples.as_ref().map_or(0, |s| s.partial.len());
        let header = self.header.as_ref().map_or(0, |h| h.buffer.len());
        if partial + header > 0 {
            out(Out::Skipped((partial + header) as u64));
        }
    }
}

impl Samples {
    fn new(format: PcmFormat, cut: CutFormat) -> Samples {
        let frames = |seconds: f64| ((seconds * f64::from(format.rate_hz)).round() as usize).max(1);
        let (length, hop) = (frames(cut.length_s), frames(cut.hop_s));
        let cutter = match cut.words {
            Some(config) => Cutter::Words(Box::new(Words::new(config, format.rate_hz, format.channels, length))),
            None => {
                Cutter::Windows { buffer: vec![], length: length * format.channels, hop: hop * format.channels, gap: 0 }
            }
        };
        Samples { format, partial: vec![], cutter, not_finite: 0 }
    }

    fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out)) {
        let size = self.format.sample.bytes();
        let frame = size * self.format.channels;
        self.partial.extend_from_slice(bytes);
        let whole = self.partial.len() / frame * frame;
        let mut decoded = Vec::with_capacity(whole / size);
        for sample in self.partial[..whole].chunks_exact(size) {
            decoded.push(self.format.sample.decode(sample).unwrap_or_else(|| {
                self.not_finite += 1;
                0.0
            }));
        }
        self.partial.drain(..whole);
        if decoded.is_empty() {
            return;
        }
        out(Out::Progress);
        out(Out::Level(level_dbfs(&decoded)));
        let PcmFormat { rate_hz, channels, .. } = self.format;
        let not_finite = &mut self.not_finite;
        let mut give = |samples: Vec<f32>, mut notes: Vec<Note>| {
            if std::mem::take(not_finite) > 0 {
                notes.push(Note::new("not-finite", "samples that are no numbers", "0"));
            }
            let clipped = samples.iter().filter(|x| x.abs() >= 0.999).count();
            // One full-scale sample in a thousand is what a loud room does; more is a gain set too high.
            if clipped * 1000 > samples.len() {
                notes.push(Note::new("clipped", format!("{clipped} of {} samples at full scale", samples.len()), "±1"));
            }
            out(Out::Frame(Kind::Audio(Sound::Pcm(Pcm { rate_hz, channels, samples })), notes));
        };
        match &mut self.cutter {
            Cutter::Words(words) => words.feed(&decoded, &mut give),
            Cutter::Windows { buffer, length, hop, gap } => {
                let passed = decoded.len().min(*gap);
                *gap -= passed;
                buffer.extend_from_slice(&decoded[passed..]);
                while buffer.len() >= *length {
                    give(buffer[..*length].to_vec(), vec![]);
                    let there = buffer.len().min(*hop);
                    buffer.drain(..there);
                    *gap = *hop - there;
                }
            }
        }
    }
}

/// Root mean square in dB relative to full scale, at least −120.
pub(super) fn level_dbfs(samples: &[f32]) -> f32 {
    let mean = samples.iter().map(|x| f64::from(x * x)).sum::<f64>() / samples.len().max(1) as f64;
    (10.0 * mean.max(1e-12).log10()) as f32
}

/// The mean of the channels.
pub(super) fn mono(samples: &[f32], channels: usize) -> Vec<f32> {
    samples.chunks_exact(channels.max(1)).map(|frame| frame.iter().sum::<f32>() / channels.max(1) as f32).collect()
}

/// A WAV header as it comes in.
#[derive(Default)]
struct WavHeader {
    buffer: Vec<u8>,
    /// `RIFF` has been seen.
    begun: bool,
    format: Option<PcmFormat>,
    /// Said once: what comes is no WAV that can be used.
    refused: bool,
}

enum Header {
    More,
    Samples { format: PcmFormat, left: Option<u64>, rest: Vec<u8> },
}

impl WavHeader {
    /// Refuses once what is no usable WAV and then swallows everything: the producer counts as silent, and is started again.
    fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out)) -> Header {
        if self.refused {
            out(Out::Skipped(bytes.len() as u64));
            return Header::More;
        }
        self.buffer.extend_from_slice(bytes);
        match self.parse() {
            Ok(header) => header,
            Err(why) => {
                self.refused = true;
                out(Out::Refused(format!("a sound that {why}")));
                out(Out::Skipped(std::mem::take(&mut self.buffer).len() as u64));
                Header::More
            }
        }
    }

    fn parse(&mut self) -> Result<Header, String> {
        if !self.begun {
            let Some(start) = self.buffer.get(..12) else { return Ok(Header::More) };
            if &start[..4] != b"RIFF" || &start[8..] != b"WAVE" {
                return Err("is not WAV; say what it is with format=raw:TYPE:RATE:CHANNELS".into());
            }
            self.begun = true;
            self.buffer.drain(..12);
        }
        loop {
            let Some(&[a, b, c, d, e, f, g, h]) = self.buffer.first_chunk::<8>() else { return Ok(Header::More) };
            let size = u32::from_le_bytes([e, f, g, h]);
            if &[a, b, c, d] == b"data" {
                let format = self.format.ok_or("has samples before it says of which type")?;
                let left = (size != 0 && size < ENDLESS).then_some(u64::from(size));
                return Ok(Header::Samples { format, left, rest: self.buffer.split_off(8) });
            }
            // Chunks are padded to an even length.
            let padded = u64::from(size) + u64::from(size & 1);
            if padded > MAX_CHUNK_BYTES {
                return Err(format!("has a header of more than {MAX_CHUNK_BYTES} bytes"));
            }
            let Some(body) = self.buffer.get(8..8 + padded as usize) else { return Ok(Header::More) };
            if &[a, b, c, d] == b"fmt " {
                self.format = Some(wav_format(body)?);
            }
            self.buffer.drain(..8 + padded as usize);
        }
    }
}

/// The body of a `fmt ` chunk. Source: Microsoft, Multiple Channel Audio Data and WAVE Files.
fn wav_format(body: &[u8]) -> Result<PcmFormat, String> {
    let word = |at: usize| body.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]])).ok_or("has a torn header");
    let rate_hz = u32::from(word(4)?) | u32::from(word(6)?) << 16;
    let (channels, bits) = (usize::from(word(2)?), word(14)?);
    // WAVE_FORMAT_EXTENSIBLE keeps the true tag further on.
    let tag = if word(0)? == 0xFFFE { word(24)? } else { word(0)? };
    let sample = match (tag, bits) {
        (1, 8) => SampleType::U8,
        (1, 16) => SampleType::S16,
        (1, 24) => SampleType::S24,
        (1, 32) => SampleType::S32,
        (3, 32) => SampleType::F32,
        _ => {
            return Err(format!(
                "has {bits}-bit samples of WAV type {tag}; PCM of 8, 16, 24, 32 bits and 32-bit floats are known"
            ));
        }
    };
    let format = PcmFormat { sample, rate_hz, channels };
    format
        .plausible()
        .then_some(format)
        .ok_or_else(|| format!("has {channels} channels at {rate_hz} Hz; 1 to 8 at 1000 to 384000 Hz are known"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::stream::tests::{Decoded, decode};
    use super::*;
    use proptest::prelude::*;

    const CUT: CutFormat = CutFormat { length_s: 0.01, hop_s: 0.005, words: None };

    fn s16(samples: impl IntoIterator<Item = i16>) -> Vec<u8> {
        samples.into_iter().flat_map(i16::to_le_bytes).collect()
    }

    fn wav(tag: u16, bits: u16, channels: u16, rate: u32, data_size: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"RIFF\xFF\xFF\xFF\xFFWAVELIST\x03\0\0\0abc\0fmt \x10\0\0\0".to_vec();
        bytes.extend([tag, channels].iter().flat_map(|w| w.to_le_bytes()));
        bytes.extend(rate.to_le_bytes());
        bytes.extend((rate * u32::from(channels * bits / 8)).to_le_bytes());
        bytes.extend([channels * bits / 8, bits].iter().flat_map(|w| w.to_le_bytes()));
        bytes.extend(b"data");
        bytes.extend(data_size.to_le_bytes());
        bytes.extend(data);
        bytes
    }

    fn windows(decoded: &Decoded) -> Vec<&Pcm> {
        let pcm = |kind| match kind {
            &Kind::Audio(Sound::Pcm(ref pcm)) => pcm,
            other => panic!("{other:?}"),
        };
        decoded.frames.iter().map(pcm).collect()
    }

    #[test]
    fn windows_of_a_wav_stream_overlap_by_the_hop_whatever_the_chunks_and_the_size_it_claims() {
        let data = s16(0..400);
        for (claim, chunk) in [(0, 1), (0xFFFF_FFFF, 7), (0x7FFF_FFD8, 64), (800, 10_000)] {
            let decoded = decode(&mut Microphone::new(None, CUT), &wav(1, 16, 1, 16_000, claim, &data), chunk);
            let windows = windows(&decoded);
            assert_eq!(windows.len(), (400 - 160) / 80 + 1);
            for (n, window) in windows.iter().enumerate() {
                assert_eq!((window.rate_hz, window.channels, window.samples.len()), (16_000, 1, 160));
                assert_eq!(window.samples[5], (80 * n + 5) as f32 / 32_768.0);
            }
            assert_eq!((decoded.skipped, decoded.refused.len()), (0, 0));
        }
    }

    #[test]
    fn what_follows_the_samples_of_a_file_is_no_sound() {
        let mut bytes = wav(1, 16, 1, 16_000, 320, &s16(0..160));
        bytes.extend(b"LIST\x04\0\0\0name");
        let decoded = decode(&mut Microphone::new(None, CUT), &bytes, 33);
        assert_eq!((decoded.frames.len(), decoded.skipped), (1, 12));
    }

    #[test]
    fn every_sample_type_reaches_full_scale_with_its_sign() {
        let cut = CutFormat { length_s: 0.002, hop_s: 0.002, words: None };
        let cases: [(&str, &[u8]); 5] = [
            ("u8", &[0, 192]),
            ("s16le", &[0x00, 0x80, 0x00, 0x40]),
            ("s24le", &[0, 0, 0x80, 0, 0, 0x40]),
            ("s32le", &[0, 0, 0, 0x80, 0, 0, 0, 0x40]),
            ("f32le", &[0, 0, 0x80, 0xBF, 0, 0, 0, 0x3F]),
        ];
        for (name, bytes) in cases {
            let format = PcmFormat::parse(&format!("{name}:1000:1")).unwrap();
            let decoded = decode(&mut Microphone::new(Some(format), cut), bytes, 1);
            assert_eq!(windows(&decoded)[0].samples, [-1.0, 0.5], "{name}");
        }
    }

    #[test]
    fn stereo_stays_interleaved_and_brings_a_note_when_it_is_made_mono() {
        let format = PcmFormat::parse("s16le:1000:2").unwrap();
        let cut = CutFormat { length_s: 0.002, hop_s: 0.002, words: None };
        let decoded = decode(&mut Microphone::new(Some(format), cut), &s16([8192, 16_384, 0, -16_384]), 3);
        let window = windows(&decoded)[0].clone();
        assert_eq!(window.samples, [0.25, 0.5, 0.0, -0.5]);
        let (mono, note) = window.into_mono();
        assert_eq!((mono, note.unwrap().code.as_str()), (vec![0.375, -0.25], "downmixed"));
    }

    #[test]
    fn clipping_and_samples_that_are_no_numbers_are_notes() {
        let format = PcmFormat::parse("f32le:1000:1").unwrap();
        let cut = CutFormat { length_s: 0.002, hop_s: 0.002, words: None };
        let bytes = [f32::NAN, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        let decoded = decode(&mut Microphone::new(Some(format), cut), &bytes, 8);
        assert_eq!(windows(&decoded)[0].samples, [0.0, 1.0]);
        let codes: Vec<_> = decoded.notes[0].iter().map(|n| n.code.as_str()).collect();
        assert_eq!(codes, ["not-finite", "clipped"]);
    }

    #[test]
    fn what_is_no_usable_wav_is_refused_once_and_never_counts_as_sound() {
        for (bytes, part) in [
            (b"this is no sound at all, not in the least".to_vec(), "is not WAV"),
            (wav(6, 8, 1, 8000, 0, &[0; 100]), "WAV type 6"),
            (wav(1, 16, 0, 8000, 0, &[0; 100]), "0 channels"),
            (b"RIFF\0\0\0\0WAVEdata\0\0\0\0\0\0\0\0".to_vec(), "before it says"),
            (b"RIFF\0\0\0\0WAVEjunk\xFF\xFF\xFF\xFF".to_vec(), "a header of more than"),
        ] {
            let decoded = decode(&mut Microphone::new(None, CUT), &bytes, 5);
            assert_eq!((decoded.frames.len(), decoded.refused.len(), decoded.progress), (0, 1, false));
            assert!(decoded.refused[0].contains(part), "{:?}", decoded.refused);
        }
    }

    proptest! {
        #[test]
        fn no_header_panics(tail in prop::collection::vec(any::<u8>(), 0..80), chunk in 1usize..20) {
            let bytes = [&b"RIFF\0\0\0\0WAVEfmt \x12\0\0\0"[..], &tail].concat();
            decode(&mut Microphone::new(None, CUT), &bytes, chunk);
        }
    }
}
