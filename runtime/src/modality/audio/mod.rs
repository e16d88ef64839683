//! WAV, FLAC and MP3 bytes → mono samples → the log-mel features of `preprocessor_config.json`.
//!
//! The spectrogram is ours ([`mel`]), because it must be the exporter's to 1e-4; decoding and resampling are crates'.
use std::io::Cursor;

use rubato::audioadapter_buffers::direct::SequentialSliceOfSlices;
use rubato::{Fft, FixedSync, Resampler};
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::errors::Error as SymphoniaError;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

use super::ModalityError;
use super::config::Members;
use crate::{Note, Tensor};

pub mod mel;

use mel::{Log, LogMel, MelConfig, Pad, Scale};

/// Most samples that are decoded, all channels together: 23 minutes of stereo at 48 kHz, 256 MiB.
const MAX_SAMPLES: usize = 64 << 20;
/// Rates that are resampled.
const RATES_HZ: std::ops::RangeInclusive<u32> = 1_000..=768_000;
/// About how many samples the resampler takes at once.
const BLOCK_SAMPLES: usize = 1024;
const FILE: &str = "preprocessor_config.json (feature_extractor)";

/// Mono samples, full scale ±1.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// Samples a second.
    pub rate_hz: u32,
    /// The samples, all finite, at least one.
    pub samples: Vec<f32>,
}

fn refuse(reason: impl Into<String>) -> ModalityError {
    ModalityError::Audio { reason: reason.into() }
}

/// Decodes a whole WAV, FLAC or MP3 of any rate, depth and channel count to mono.
///
/// Channels are averaged (note `downmixed`).
///
/// # Errors
/// [`ModalityError::Audio`] for an unknown format, no samples, damage, fewer samples than the file declares, samples
/// that are not finite, or more than 64 Mi of them.
pub fn decode(bytes: &[u8]) -> Result<(Clip, Vec<Note>), ModalityError> {
    if bytes.is_empty() {
        return Err(refuse("there are no bytes"));
    }
    let said = |e: SymphoniaError| refuse(e.to_string());
    // The decoder keeps its source for `'static`, so the (compressed) bytes are copied once.
    let source = MediaSourceStream::new(Box::new(Cursor::new(bytes.to_vec())), Default::default());
    let mut format = symphonia::default::get_probe()
        .probe(&Hint::new(), source, FormatOptions::default(), MetadataOptions::default())
        .map_err(said)?;
    let track = format.default_track(TrackType::Audio).ok_or_else(|| refuse("it has no audio track"))?;
    let (id, declared) = (track.id, track.num_frames);
    let parameters =
        track.codec_params.as_ref().and_then(|p| p.audio()).ok_or_else(|| refuse("it does not say how it is coded"))?;
    let options = AudioDecoderOptions::default().verify(true);
    let mut decoder = symphonia::default::get_codecs().make_audio_decoder(parameters, &options).map_err(said)?;

    let mut layout: Option<(u32, usize)> = None;
    let mut samples: Vec<f32> = vec![];
    let mut total = 0usize;
    let mut interleaved: Vec<f32> = vec![];
    while let Some(packet) = format.next_packet().map_err(said)? {
        if packet.track_id != id {
            continue;
        }
        let buffer = decoder.decode(&packet).map_err(said)?;
        let (rate, channels) = (buffer.spec().rate(), buffer.spec().channels().count());
        if channels == 0 || *layout.get_or_insert((rate, channels)) != (rate, channels) {
            return Err(refuse("its rate or channels change on the way"));
        }
        total = total.saturating_add(buffer.frames().saturating_mul(channels));
        if total > MAX_SAMPLES {
            return Err(refuse(format!("it has more than {MAX_SAMPLES} samples")));
        }
        buffer.copy_to_vec_interleaved(&mut interleaved);
        samples.extend(interleaved.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() / channels as f32));
    }
    let (rate_hz, channels) = layout.filter(|_| !samples.is_empty()).ok_or_else(|| refuse("it has no samples"))?;
    if let Some(declared) = declared.filter(|&d| d > samples.len() as u64) {
        return Err(refuse(format!("it is cut off: {declared} samples declared, {} present", samples.len())));
    }
    if decoder.finalize().verify_ok == Some(false) {
        return Err(refuse("its samples do not match its checksum"));
    }
    let mut notes = vec![];
    if channels > 1 {
        notes.push(Note::new("downmixed", format!("{channels} channels"), "1 channel"));
    }
    Ok((clip(rate_hz, samples)?, notes))
}

/// A clip of samples that were recorded here.
///
/// # Errors
/// [`ModalityError::Audio`] for a rate outside 1 kHz to 768 kHz, no samples, or one that is not finite.
pub fn clip(rate_hz: u32, samples: Vec<f32>) -> Result<Clip, ModalityError> {
    if !RATES_HZ.contains(&rate_hz) {
        return Err(refuse(format!("{rate_hz} Hz is not a rate from {} to {} Hz", RATES_HZ.start(), RATES_HZ.end())));
    }
    if samples.is_empty() {
        return Err(refuse("it has no samples"));
    }
    if let Some(at) = samples.iter().position(|v| !v.is_finite()) {
        return Err(refuse(format!("sample {at} is not finite")));
    }
    Ok(Clip { rate_hz, samples })
}

/// The clip at `rate_hz`, with the note `resampled`. Band-limited (FFT, Blackman-Harris²), without delay.
///
/// # Errors
/// [`ModalityError::Audio`] for a rate outside 1 kHz to 768 kHz.
pub fn resample(from: Clip, rate_hz: u32) -> Result<(Clip, Option<Note>), ModalityError> {
    if from.rate_hz == rate_hz {
        return Ok((from, None));
    }
    if !RATES_HZ.contains(&rate_hz) {
        return Err(refuse(format!("it cannot be resampled to {rate_hz} Hz")));
    }
    let note = Note::new("resampled", format!("{} Hz", from.rate_hz), format!("{rate_hz} Hz"));
    let frames = from.samples.len();
    // The delay is half a block and is cut off in whole samples, so a block must be even on both sides: with an odd one
    // everything comes out half a sample late.
    let (rate_in, rate_out) = (from.rate_hz as usize, rate_hz as usize);
    let least = rate_in / greatest_common_divisor(rate_in, rate_out);
    let block = least * 2 * (BLOCK_SAMPLES / 2).div_ceil(least);
    let window = rubato::WindowFunction::BlackmanHarris2;
    let mut fft = Fft::<f32>::new_custom(rate_in, rate_out, block, 1, 1, window, FixedSync::Both)
        .map_err(|e| refuse(e.to_string()))?;
    let channels = [from.samples.as_slice()];
    let input = SequentialSliceOfSlices::new(&channels, 1, frames).map_err(|e| refuse(e.to_string()))?;
    let output = fft.process_all(&input, frames, None).map_err(|e| refuse(e.to_string()))?;
    Ok((clip(rate_hz, output.take_data())?, Some(note)))
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Samples → features, as the feature extractor of the bundle makes them.
pub struct AudioProcessor {
    rate_hz: u32,
    /// Samples of the window that is looked at; `None`: all of them.
    samples: Option<usize>,
    padding_value: f32,
    mel: LogMel,
}

impl AudioProcessor {
    /// Reads the JSON of a feature extractor, one of two kinds by `feature_extractor_type`.
    ///
    /// `WhisperFeatureExtractor` (also when absent): `feature_size` (80), `sampling_rate` (16000), `hop_length` (160),
    /// `n_fft` (400), `chunk_length` in seconds (30), `padding_value` (0). `n_samples` and `nb_max_frames` must agree.
    ///
    /// `LogMelSpectrogram`, hone's own with librosa's names: `sampling_rate`, `n_fft`, `hop_length`, `n_mels`, and
    /// optionally `win_length` (n_fft), `fmin` (0), `fmax` (half the rate), `htk` (false), `norm` (`"slaney"` or null),
    /// `power` (2), `center` (true), `pad_mode` (`"constant"` or `"reflect"`), `log` (`"none"`, `"ln"`, `"log10"`, `"db"`
    /// or `"whisper"`), `floor` (1e-10), `top_db` (only for db; the reference is then the loudest value), `n_samples`
    /// (absent: the whole clip), `padding_value`.
    ///
    /// # Errors
    /// [`ModalityError::Config`] naming the key: missing, out of range, or unknown. A `dither` other than 0 is refused:
    /// it is random, and a model that needs it cannot be checked.
    pub fn from_json(text: &str) -> Result<AudioProcessor, ModalityError> {
        let mut m = Members::parse(FILE, text)?;
        let kind = m.text("feature_extractor_type")?.unwrap_or_else(|| "WhisperFeatureExtractor".into());
        match kind.as_str() {
            "WhisperFeatureExtractor" => AudioProcessor::whisper(m),
            "LogMelSpectrogram" => AudioProcessor::log_mel(m),
            other => Err(m.refuse("feature_extractor_type", format!("'{other}' is not one hone has"))),
        }
    }

    fn whisper(mut m: Members) -> Result<AudioProcessor, ModalityError> {
        let bands = m.count("feature_size", 1..=512)?.unwrap_or(80);
        let rate_hz = m.count("sampling_rate", 1_000..=768_000)?.unwrap_or(16_000) as u32;
        let hop = m.count("hop_length", 1..=1 << 16)?.unwrap_or(160);
        let n_fft = m.count("n_fft", 2..=1 << 16)?.unwrap_or(400);
        let seconds = m.number("chunk_length")?.unwrap_or(30.0);
        let exact = seconds * f64::from(rate_hz);
        if !(exact >= n_fft as f64 && exact <= MAX_SAMPLES as f64) || exact.fract() != 0.0 {
            return Err(m.refuse("chunk_length", format!("{seconds} s is not a usable number of samples")));
        }
        let samples = exact as usize;
        for (key, derived) in [("n_samples", samples), ("nb_max_frames", samples / hop)] {
            if let Some(given) = m.whole(key)?.filter(|&g| g != derived as u64) {
                return Err(m.refuse(key, format!("{given} does not fit the other keys, which give {derived}")));
            }
        }
        if m.number("dither")?.is_some_and(|d| d != 0.0) {
            return Err(m.refuse("dither", "is random noise; only 0 gives the same features twice"));
        }
        let padding_value = m.number("padding_value")?.unwrap_or(0.0) as f32;
        if m.text("padding_side")?.is_some_and(|s| s != "right") {
            return Err(m.refuse("padding_side", "only right is known"));
        }
        m.finish(&["processor_class", "return_attention_mask", "image_processor_type"])?;
        let config = MelConfig {
            rate_hz,
            n_fft,
            win_length: n_fft,
            hop_length: hop,
            n_mels: bands,
            fmin: 0.0,
            // A constant of the extractor, whatever the rate.
            fmax: 8000.0,
            scale: Scale::Slaney,
            area_normalised: true,
            power: 2.0,
            pad: Pad::Reflect,
            log: Log::Whisper,
            drop_last_frame: true,
        };
        Ok(AudioProcessor { rate_hz, samples: Some(samples), padding_value, mel: LogMel::new(config)? })
    }

    fn log_mel(mut m: Members) -> Result<AudioProcessor, ModalityError> {
        let missing = |m: &Members, key: &str| m.refuse(key, "is missing");
        let rate_hz = m.count("sampling_rate", 1_000..=768_000)?.ok_or_else(|| missing(&m, "sampling_rate"))? as u32;
        let n_fft = m.count("n_fft", 2..=1 << 16)?.ok_or_else(|| missing(&m, "n_fft"))?;
        let hop_length = m.count("hop_length", 1..=1 << 16)?.ok_or_else(|| missing(&m, "hop_length"))?;
        let n_mels = m.count("n_mels", 1..=512)?.ok_or_else(|| missing(&m, "n_mels"))?;
        let floor = m.number("floor")?.unwrap_or(1e-10);
        if floor <= 0.0 {
            return Err(m.refuse("floor", "is not above 0"));
        }
        let top_db = m.number("top_db")?;
        let log = match m.text("log")?.as_deref() {
            None | Some("none") => Log::None,
            Some("ln") => Log::Ln { floor },
            Some("log10") => Log::Log10 { floor },
            Some("db") => Log::Db { floor, top_db },
            Some("whisper") => Log::Whisper,
            Some(other) => return Err(m.refuse("log", format!("'{other}' is not none, ln, log10, db or whisper"))),
        };
        if top_db.is_some_and(|t| t <= 0.0) || (top_db.is_some() && !matches!(log, Log::Db { .. })) {
            return Err(m.refuse("top_db", "needs log = db and a number above 0"));
        }
        let area_normalised = match m.text("norm")?.as_deref() {
            None => false,
            Some("slaney") => true,
            Some(other) => return Err(m.refuse("norm", format!("'{other}' is not slaney or null"))),
        };
        let pad = match (m.flag("center")?.unwrap_or(true), m.text("pad_mode")?.as_deref()) {
            (false, _) => Pad::None,
            (true, None | Some("constant")) => Pad::Zeros,
            (true, Some("reflect")) => Pad::Reflect,
            (true, Some(other)) => return Err(m.refuse("pad_mode", format!("'{other}' is not constant or reflect"))),
        };
        let config = MelConfig {
            rate_hz,
            n_fft,
            win_length: m.count("win_length", 2..=1 << 16)?.unwrap_or(n_fft),
            hop_length,
            n_mels,
            fmin: m.number("fmin")?.unwrap_or(0.0),
            fmax: m.number("fmax")?.unwrap_or(f64::from(rate_hz) / 2.0),
            scale: if m.flag("htk")?.unwrap_or(false) { Scale::Htk } else { Scale::Slaney },
            area_normalised,
            power: m.number("power")?.unwrap_or(2.0),
            pad,
            log,
            drop_last_frame: false,
        };
        let samples = m.count("n_samples", 1..=MAX_SAMPLES as u64)?;
        let padding_value = m.number("padding_value")?.unwrap_or(0.0) as f32;
        m.finish(&["processor_class"])?;
        Ok(AudioProcessor { rate_hz, samples, padding_value, mel: LogMel::new(config)? })
    }

    /// The rate features are made at.
    pub fn rate_hz(&self) -> u32 {
        self.rate_hz
    }

    /// A clip → `f32 [1, bands, frames]`, with notes `resampled`, `truncated` (the beginning is kept), `padded`.
    ///
    /// # Errors
    /// [`ModalityError::Audio`] when the clip is too short for one frame.
    pub fn encode(&self, clip: Clip) -> Result<(Tensor, Vec<Note>), ModalityError> {
        let (mut clip, note) = resample(clip, self.rate_hz)?;
        let mut notes: Vec<Note> = note.into_iter().collect();
        if let Some(wanted) = self.samples {
            let found = clip.samples.len();
            if found != wanted {
                let code = if found > wanted { "truncated" } else { "padded" };
                notes.push(Note::new(code, format!("{found} samples"), format!("{wanted} samples")));
                clip.samples.resize(wanted, self.padding_value);
            }
        }
        Ok((self.mel.features(&clip.samples)?, notes))
    }
}
