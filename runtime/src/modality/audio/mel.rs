//! Log-mel spectrograms, in double precision as librosa and transformers compute them.
//!
//! Letters: `T` frames, `F = n_fft/2 + 1` bins, `M` bands. Sources: `transformers.audio_utils.spectrogram`,
//! `mel_filter_bank`; `librosa.feature.melspectrogram`, `librosa.power_to_db`.
use std::f64::consts::PI;
use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

use super::super::ModalityError;
use super::{FILE, refuse};
use crate::Tensor;

/// The perceptual scale the bands are evenly spaced on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Linear below 1 kHz, logarithmic above (librosa's default).
    Slaney,
    /// `2595 log10(1 + f/700)`.
    Htk,
}

/// What stands before the first and after the last sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pad {
    /// Nothing: frames lie within the clip.
    None,
    /// `n_fft/2` zeros on each side.
    Zeros,
    /// `n_fft/2` samples mirrored at each end.
    Reflect,
}

/// What is taken of each band.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Log {
    /// The band itself.
    None,
    /// Natural logarithm of at least `floor`.
    Ln {
        /// Smallest argument.
        floor: f64,
    },
    /// Decimal logarithm of at least `floor`.
    Log10 {
        /// Smallest argument.
        floor: f64,
    },
    /// Decibels below the loudest band (20 log10 when the power is 1, else 10 log10), at most `top_db` of them.
    Db {
        /// Smallest argument.
        floor: f64,
        /// Range kept below the loudest, in dB.
        top_db: Option<f64>,
    },
    /// `(max(log10 max(x, 1e-10), loudest − 8) + 4) / 4`, as Whisper has it.
    Whisper,
}

/// All that decides a log-mel spectrogram.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MelConfig {
    /// Samples a second.
    pub rate_hz: u32,
    /// Length of the Fourier transform, in samples.
    pub n_fft: usize,
    /// Length of the (periodic Hann) window, at most `n_fft`, in whose middle it stands.
    pub win_length: usize,
    /// Samples from one frame to the next.
    pub hop_length: usize,
    /// Number of bands `M`.
    pub n_mels: usize,
    /// Lower edge of the first band, Hz.
    pub fmin: f64,
    /// Upper edge of the last band, Hz.
    pub fmax: f64,
    /// Spacing of the bands.
    pub scale: Scale,
    /// Divide each band by its width (`norm="slaney"`).
    pub area_normalised: bool,
    /// Exponent of the magnitude: 1 or 2.
    pub power: f64,
    /// What stands around the clip.
    pub pad: Pad,
    /// What is taken of each band.
    pub log: Log,
    /// Leave out the last frame, as Whisper does.
    pub drop_last_frame: bool,
}

/// A prepared spectrogram: window, transform and filters of one [`MelConfig`].
pub struct LogMel {
    config: MelConfig,
    window: Vec<f64>,
    fft: Arc<dyn RealToComplex<f64>>,
    /// For each band its first bin and the weights from there: a triangle touches few bins.
    filters: Vec<(usize, Vec<f64>)>,
}

impl LogMel {
    /// Computes window, transform and filters.
    ///
    /// # Errors
    /// [`ModalityError::Config`] naming the key that makes no sense.
    pub fn new(config: MelConfig) -> Result<LogMel, ModalityError> {
        let bad = |key: &str, reason: String| Err(ModalityError::Config { file: FILE, key: key.into(), reason });
        let c = &config;
        if c.rate_hz == 0 || c.n_fft < 2 || c.hop_length == 0 || c.n_mels == 0 {
            return bad("n_fft", "rate, n_fft, hop_length and n_mels must be above 0".into());
        }
        if c.win_length == 0 || c.win_length > c.n_fft {
            return bad("win_length", format!("{} is not from 1 to n_fft = {}", c.win_length, c.n_fft));
        }
        if !(c.fmin >= 0.0 && c.fmin < c.fmax && c.fmax.is_finite()) {
            return bad("fmax", format!("{} to {} Hz is not a range", c.fmin, c.fmax));
        }
        if c.power != 1.0 && c.power != 2.0 {
            return bad("power", format!("{} is not 1 or 2", c.power));
        }
        let before = (c.n_fft - c.win_length) / 2;
        let mut window = vec![0.0; c.n_fft];
        for (i, w) in window[before..before + c.win_length].iter_mut().enumerate() {
            *w = 0.5 - 0.5 * (2.0 * PI * i as f64 / c.win_length as f64).cos();
        }
        let fft = RealFftPlanner::new().plan_fft_forward(c.n_fft);
        Ok(LogMel { window, fft, filters: filters(&config), config })
    }

    /// Mono samples at the configured rate → `f32 [1, M, T]`.
    ///
    /// # Errors
    /// [`ModalityError::Audio`] when there is not one whole frame.
    pub fn features(&self, samples: &[f32]) -> Result<Tensor, ModalityError> {
        let (c, bands) = (&self.config, self.config.n_mels);
        let around = if c.pad == Pad::None { 0 } else { c.n_fft / 2 };
        let padded = samples.len() + 2 * around;
        let whole = (padded.checked_sub(c.n_fft)).map_or(0, |rest| rest / c.hop_length + 1);
        let frames = whole - usize::from(c.drop_last_frame && whole > 0);
        if frames == 0 || samples.is_empty() {
            return Err(refuse(format!("{} samples are less than one frame of {}", samples.len(), c.n_fft)));
        }
        let mut input = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut powers = vec![0.0; spectrum.len()];
        let mut values = vec![0.0f64; bands * frames];
        for t in 0..frames {
            for (n, (x, w)) in input.iter_mut().zip(&self.window).enumerate() {
                let at = (t * c.hop_length + n) as isize - around as isize;
                *x = w * sample(samples, at, c.pad);
            }
            self.fft
                .process_with_scratch(&mut input, &mut spectrum, &mut scratch)
                .map_err(|e| refuse(e.to_string()))?;
            for (p, z) in powers.iter_mut().zip(&spectrum) {
                *p = if c.power == 2.0 { z.norm_sqr() } else { z.norm() };
            }
            for (m, (first, weights)) in self.filters.iter().enumerate() {
                values[m * frames + t] = weights.iter().zip(&powers[*first..]).map(|(w, p)| w * p).sum();
            }
        }
        self.take_log(&mut values);
        Ok(Tensor::f32(&[1, bands, frames], values.into_iter().map(|v| v as f32).collect())?)
    }

    fn take_log(&self, values: &mut [f64]) {
        let loudest = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match self.config.log {
            Log::None => {}
            Log::Ln { floor } => values.iter_mut().for_each(|v| *v = v.max(floor).ln()),
            Log::Log10 { floor } => values.iter_mut().for_each(|v| *v = v.max(floor).log10()),
            Log::Db { floor, top_db } => {
                // librosa squares amplitude and floor, then takes 10 log10: the same as 20 log10 of the amplitude.
                let factor = 20.0 / self.config.power;
                let reference = factor * loudest(values).max(floor).log10();
                values.iter_mut().for_each(|v| *v = factor * v.max(floor).log10() - reference);
                if let Some(range) = top_db {
                    let least = loudest(values) - range;
                    values.iter_mut().for_each(|v| *v = v.max(least));
                }
            }
            Log::Whisper => {
                values.iter_mut().for_each(|v| *v = v.max(1e-10).log10());
                let least = loudest(values) - 8.0;
                values.iter_mut().for_each(|v| *v = (v.max(least) + 4.0) / 4.0);
            }
        }
    }
}

/// The sample at `at`, which may lie outside.
fn sample(samples: &[f32], at: isize, pad: Pad) -> f64 {
    let length = samples.len() as isize;
    if (0..length).contains(&at) {
        return f64::from(samples[at as usize]);
    }
    if pad != Pad::Reflect {
        return 0.0;
    }
    if length == 1 {
        return f64::from(samples[0]);
    }
    // A mirror at each end repeats with twice the distance between them; a short clip is mirrored more than once.
    let period = 2 * (length - 1);
    let folded = at.rem_euclid(period);
    f64::from(samples[folded.min(period - folded) as usize])
}

/// Triangles of height 1 (or area-normalised) over the bins, `[M]` of (first bin, weights).
fn filters(c: &MelConfig) -> Vec<(usize, Vec<f64>)> {
    let bins = c.n_fft / 2 + 1;
    let (low, high) = (to_mel(c.fmin, c.scale), to_mel(c.fmax, c.scale));
    let edge = |i: usize| from_mel(low + (high - low) * i as f64 / (c.n_mels + 1) as f64, c.scale);
    let edges: Vec<f64> = (0..c.n_mels + 2).map(edge).collect();
    let hz = |bin: usize| bin as f64 * f64::from(c.rate_hz) / c.n_fft as f64;
    (0..c.n_mels)
        .map(|m| {
            let (left, middle, right) = (edges[m], edges[m + 1], edges[m + 2]);
            let norm = if c.area_normalised { 2.0 / (right - left) } else { 1.0 };
            let weight = |bin: usize| {
                let (up, down) = ((hz(bin) - left) / (middle - left), (right - hz(bin)) / (right - middle));
                up.min(down).max(0.0) * norm
            };
            let first = (0..bins).find(|&b| weight(b) > 0.0).unwrap_or(0);
            (first, (first..bins).map(weight).take_while(|&w| w > 0.0).collect())
        })
        .collect()
}

const LINEAR_HZ_PER_MEL: f64 = 200.0 / 3.0;
const BREAK_HZ: f64 = 1000.0;
const BREAK_MEL: f64 = BREAK_HZ / LINEAR_HZ_PER_MEL;

/// Natural logarithm of the frequency ratio of one mel above the break.
fn log_step() -> f64 {
    6.4f64.ln() / 27.0
}

fn to_mel(hz: f64, scale: Scale) -> f64 {
    match scale {
        Scale::Htk => 2595.0 * (1.0 + hz / 700.0).log10(),
        Scale::Slaney if hz >= BREAK_HZ => BREAK_MEL + (hz / BREAK_HZ).ln() / log_step(),
        Scale::Slaney => hz / LINEAR_HZ_PER_MEL,
    }
}

fn from_mel(mel: f64, scale: Scale) -> f64 {
    match scale {
        Scale::Htk => 700.0 * (10f64.powf(mel / 2595.0) - 1.0),
        Scale::Slaney if mel >= BREAK_MEL => BREAK_HZ * (log_step() * (mel - BREAK_MEL)).exp(),
        Scale::Slaney => LINEAR_HZ_PER_MEL * mel,
    }
}
