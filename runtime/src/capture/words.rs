//! One window around each spoken word, found by energy alone.
//!
//! The level of blocks of 20 ms is held against the background, which is followed slowly upwards and quickly downwards. A
//! word begins `on_db` above the background (and above `gate_dbfs`); it has ended after `hang_s` under `off_db`. Two
//! thresholds, so that a level between them does not make one word many. The window begins `pre_s` before the word: the
//! first consonant is quieter than the vowel that gave it away. Clicks shorter than 60 ms are no words. No detector of
//! *speech*: a slammed door is a word to it, and a class of its own to the model.
use crate::Note;

use super::pcm::{level_dbfs, mono};

const BLOCK_S: f64 = 0.02;
/// Fewer blocks above the threshold are a click.
const LEAST_BLOCKS: usize = 3;
/// After so long above the threshold, the sound is the background.
const LONGEST_S: f64 = 5.0;
/// The background is believed to lie here, dB relative to full scale: digital silence is not a level to be exceeded.
const FLOOR_DBFS: (f32, f32) = (-80.0, -10.0);
/// How far the background follows a block that is louder, or quieter, as a share of the difference.
const FOLLOW: (f32, f32) = (0.02, 0.3);

/// What makes a word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WordConfig {
    pub(super) pre_s: f64,
    pub(super) hang_s: f64,
    pub(super) on_db: f32,
    pub(super) off_db: f32,
    pub(super) gate_dbfs: f32,
}

impl Default for WordConfig {
    fn default() -> Self {
        WordConfig { pre_s: 0.2, hang_s: 0.3, on_db: 12.0, off_db: 6.0, gate_dbfs: -50.0 }
    }
}

/// Cuts windows around words. Counts in frames: one sample of each channel.
pub(super) struct Words {
    config: WordConfig,
    channels: usize,
    block: usize,
    length: usize,
    pre: usize,
    /// Blocks of quiet that end a word, and of sound that are no word any more.
    hang: usize,
    longest: usize,
    /// The last samples, interleaved; the blocks up to `judged` have been looked at.
    buffer: Vec<f32>,
    judged: usize,
    floor: Option<f32>,
    word: Option<Word>,
}

struct Word {
    /// Where the window begins in the buffer; none once it has been given or was a click.
    start: Option<usize>,
    blocks: usize,
    loud: usize,
    quiet: usize,
}

impl Words {
    /// Windows of `length` frames; a `pre_s` that leaves nothing for the word is cut to the window less a block.
    pub(super) fn new(config: WordConfig, rate_hz: u32, channels: usize, length: usize) -> Words {
        let frames = |seconds: f64| (seconds * f64::from(rate_hz)).round() as usize;
        let block = frames(BLOCK_S).max(1);
        Words {
            config,
            channels,
            block,
            length: length.max(1),
            pre: frames(config.pre_s).min(length.saturating_sub(block)),
            hang: (config.hang_s / BLOCK_S).ceil() as usize,
            longest: (LONGEST_S / BLOCK_S) as usize,
            buffer: vec![],
            judged: 0,
            floor: None,
            word: None,
        }
    }

    pub(super) fn feed(&mut self, samples: &[f32], give: &mut dyn FnMut(Vec<f32>, Vec<Note>)) {
        self.buffer.extend_from_slice(samples);
        while (self.judged + self.block) * self.channels <= self.buffer.len() {
            let block = &self.buffer[self.judged * self.channels..(self.judged + self.block) * self.channels];
            let level = level_dbfs(&mono(block, self.channels));
            self.judge(level);
            self.judged += self.block;
            self.give_if_full(give);
        }
        // What a word that begins in the next block could not reach back to is of no more use.
        let keep = self.word.as_ref().and_then(|w| w.start).unwrap_or(self.judged.saturating_sub(self.pre));
        self.buffer.drain(..keep * self.channels);
        self.judged -= keep;
        if let Some(start) = self.word.as_mut().and_then(|w| w.start.as_mut()) {
            *start -= keep;
        }
    }

    /// Takes in the level of the block that begins at `judged`.
    fn judge(&mut self, level: f32) {
        let floor = *self.floor.get_or_insert(level.clamp(FLOOR_DBFS.0, FLOOR_DBFS.1));
        let loud = level >= floor + self.config.on_db && level >= self.config.gate_dbfs;
        let Some(word) = &mut self.word else {
            if loud {
                let start = Some(self.judged.saturating_sub(self.pre));
                self.word = Some(Word { start, blocks: 1, loud: 1, quiet: 0 });
            } else {
                let follow = if level > floor { FOLLOW.0 } else { FOLLOW.1 };
                self.floor = Some((floor + follow * (level - floor)).clamp(FLOOR_DBFS.0, FLOOR_DBFS.1));
            }
            return;
        };
        word.blocks += 1;
        word.loud += usize::from(loud);
        word.quiet = if level < floor + self.config.off_db { word.quiet + 1 } else { 0 };
        if word.quiet >= self.hang && word.loud < LEAST_BLOCKS {
            word.start = None;
        }
        if word.blocks > self.longest {
            self.floor = Some(level.clamp(FLOOR_DBFS.0, FLOOR_DBFS.1));
            word.quiet = self.hang;
        }
        if word.quiet >= self.hang && word.start.is_none() {
            self.word = None;
        }
    }

    fn give_if_full(&mut self, give: &mut dyn FnMut(Vec<f32>, Vec<Note>)) {
        let (hang, judged) = (self.hang, self.judged);
        let Some(word) = &mut self.word else { return };
        let Some(start) = word.start.filter(|start| judged - start >= self.length) else { return };
        word.start = None;
        let (ended, is_word) = (word.quiet >= hang, word.loud >= LEAST_BLOCKS);
        if is_word {
            let window = self.buffer[start * self.channels..(start + self.length) * self.channels].to_vec();
            let notes = if word.quiet == 0 {
                let seconds = self.length as f64 / self.block as f64 * BLOCK_S;
                vec![Note::new("truncated", "a sound that goes on", format!("{seconds:.2} s"))]
            } else {
                vec![]
            };
            give(window, notes);
        }
        if ended {
            self.word = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: usize = 16_000;

    /// Noise of about −60 dBFS with a tone of about −13 dBFS at each of `tones`, in seconds.
    fn recording(seconds: f64, tones: &[(f64, f64)]) -> Vec<f32> {
        let mut seed = 1u32;
        let noise = |n: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let t = n as f64 / RATE as f64;
            let hiss = (f64::from(seed >> 8) / f64::from(1 << 24) - 0.5) * 0.0035;
            let loud = tones.iter().any(|&(from, to)| (from..to).contains(&t));
            (hiss + if loud { 0.3 * (t * 440.0 * std::f64::consts::TAU).sin() } else { 0.0 }) as f32
        };
        (0..(seconds * RATE as f64) as usize).map(noise).collect()
    }

    fn words(samples: &[f32], chunk: usize) -> Vec<(Vec<f32>, Vec<Note>)> {
        let mut words = Words::new(WordConfig::default(), RATE as u32, 1, RATE);
        let mut given = vec![];
        for chunk in samples.chunks(chunk) {
            words.feed(chunk, &mut |window, notes| given.push((window, notes)));
            assert!(words.buffer.len() <= RATE + RATE / 2 + chunk.len(), "memory is bounded by the window");
        }
        given
    }

    /// Seconds into the window at which the tone begins.
    fn onset(window: &[f32]) -> f64 {
        window.iter().position(|x| x.abs() > 0.05).map_or(f64::NAN, |n| n as f64 / RATE as f64)
    }

    #[test]
    fn each_word_gives_one_window_of_the_length_asked_for_with_the_moment_before_it_whatever_the_chunks() {
        let samples = recording(8.0, &[(1.0, 1.5), (3.33, 3.7), (6.0, 6.2)]);
        for chunk in [37, 320, 4096, samples.len()] {
            let given = words(&samples, chunk.min(8192));
            assert_eq!(given.len(), 3, "chunks of {chunk}");
            for (window, notes) in &given {
                assert_eq!((window.len(), notes.len()), (RATE, 0));
                let onset = onset(window);
                assert!((0.2..0.225).contains(&onset), "the word begins {onset} s into its window");
            }
        }
    }

    #[test]
    fn a_word_in_two_syllables_is_one_and_one_after_a_pause_is_another() {
        assert_eq!(words(&recording(4.0, &[(1.0, 1.2), (1.35, 1.5)]), 512).len(), 1);
        assert_eq!(words(&recording(5.0, &[(1.0, 1.2), (2.6, 2.8)]), 512).len(), 2);
    }

    #[test]
    fn a_click_silence_and_a_noise_that_has_come_to_stay_are_not_words_for_ever() {
        assert_eq!(words(&recording(4.0, &[(1.0, 1.03)]), 512).len(), 0, "a click");
        assert_eq!(words(&vec![0.0; 5 * RATE], 512).len(), 0, "digital silence");
        let given = words(&recording(30.0, &[(1.0, 30.0)]), 512);
        assert_eq!(given.len(), 1, "a fan that was switched on is noticed once");
        assert_eq!(given[0].1[0].code, "truncated");
    }
}
