//! Which of several calls with the same results is the fastest on a device: measured, once, and kept with what passed there.
//!
//! A call has others that are to give the same bits ([`Call::others`]). They are run on operands of the same sizes, whose content
//! does not matter for the time; one that gives other bits on this device, which only its compiler can be the reason of, is
//! not taken: what a model answers may not hang on what was faster in some second.
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::cache::Sum;
use super::{ALIGN, Binding, Builder, Device, GpuError, locked};
use crate::kernel::{Call, Draws, Needs, bytes_of};

/// How long a process measures at most; what is met after that is called as it stands, and measured by the next process.
const BUDGET: Duration = Duration::from_secs(1);
/// Calls of a submission that is timed, unless one takes longer than [`LONG`].
const REPEATS: usize = 16;
/// A call that needs no repetition to be timed.
const LONG: Duration = Duration::from_millis(2);
/// A call that takes longer is not compared: a device that slow would spend all the time on it.
const TOO_LONG: Duration = Duration::from_millis(50);
/// Submissions that are timed, of which the fastest counts.
const ROUNDS: usize = 3;
/// What another call must not take more of, to be taken: the first one is taken where there is no difference.
const WORTH: f64 = 0.9;

/// What was measured, and what is left of the time for it.
pub(super) struct Choices {
    /// The number of the fastest: 0 is the call itself, then its others.
    known: Mutex<BTreeMap<Sum, u32>>,
    spent: Mutex<Duration>,
}

impl Choices {
    /// With what is known from before.
    pub(super) fn new(known: BTreeMap<Sum, u32>) -> Choices {
        Choices { known: Mutex::new(known), spent: Mutex::default() }
    }
}

impl Device {
    /// The call that is to be recorded for `call` with bindings of so many bytes, and why others were not even tried.
    ///
    /// # Errors
    /// [`GpuError::Lost`].
    pub(super) fn fastest<'c>(&self, call: &'c Call, bytes: &[usize]) -> Result<(&'c Call, Vec<GpuError>), GpuError> {
        let all: Vec<&Call> =
            std::iter::once(call).chain(call.others.iter().filter(|o| self.has(o.kernel.needs))).collect();
        if all.len() == 1 {
            return Ok((call, Vec::new()));
        }
        let choices = &self.inner.choices;
        let key = key(&all);
        if let Some(&known) = locked(&choices.known).get(&key) {
            return Ok((all.get(known as usize).copied().unwrap_or(call), Vec::new()));
        }
        if *locked(&choices.spent) > BUDGET {
            return Ok((call, Vec::new()));
        }
        let began = Instant::now();
        let (best, refused) = match self.measured(&all, bytes) {
            Ok(measured) => measured,
            // No room to try: nothing is known, and the call itself needs none of it.
            Err(GpuError::Memory { .. }) => return Ok((call, Vec::new())),
            Err(e) => return Err(e),
        };
        *locked(&choices.spent) += began.elapsed();
        locked(&choices.known).insert(key, best as u32);
        if let Some(cache) = &self.inner.cache {
            cache.choose(key, best as u32);
        }
        Ok((all[best], refused))
    }

    /// The number of the fastest, and why others were not measured.
    fn measured(&self, all: &[&Call], bytes: &[usize]) -> Result<(usize, Vec<GpuError>), GpuError> {
        let (mut best, mut least, mut refused) = (0, f64::INFINITY, Vec::new());
        let mut first: Option<Vec<u8>> = None;
        let mut at = 0;
        let areas: Vec<_> = bytes
            .iter()
            .map(|bytes| {
                let range = at..at + bytes.max(&4);
                at = range.end.next_multiple_of(ALIGN);
                range
            })
            .collect();
        let bindings: Vec<Binding> = areas.iter().cloned().map(Binding::Arena).collect();
        let content = bytes_of(&Draws::new(1).floats(1 << 14));
        for (number, call) in all.iter().enumerate() {
            let pipeline = match self.pipeline(&call.kernel) {
                Ok(pipeline) => pipeline,
                Err(e @ GpuError::Kernel { .. }) if number > 0 => {
                    // Of several sizes that subgroups may have one is right: that the others are not says nothing.
                    if !matches!(call.kernel.needs, Needs::Subgroups(_)) || self.inner.subgroups.len() == 1 {
                        refused.push(e);
                    }
                    continue;
                }
                Err(e) => return Err(e),
            };
            let mut builder = Builder::new(self, at);
            builder.place(&pipeline, call, &bindings)?;
            builder.segment();
            for _ in 0..REPEATS {
                builder.place(&pipeline, call, &bindings)?;
            }
            let mut recording = builder.finish()?;
            for area in &areas[..call.kernel.reads] {
                for start in area.clone().step_by(content.len()) {
                    recording.upload(start, &content[..content.len().min(area.end - start)])?;
                }
            }
            let mut found = Vec::new();
            recording.run(0, &areas[call.kernel.reads..], |_, bytes| found.extend_from_slice(bytes))?;
            if first.as_ref().is_some_and(|first| *first != found) {
                continue;
            }
            first.get_or_insert(found);
            let mut time = |segment: usize| {
                let began = Instant::now();
                recording.run(segment, &[], |_, _| {}).map(|()| began.elapsed())
            };
            let mut once = time(0)?;
            for _ in 1..ROUNDS {
                // Whatever else the machine does may have been in its way.
                if once > TOO_LONG {
                    once = once.min(time(0)?);
                }
            }
            if once > TOO_LONG {
                break;
            }
            let (segment, calls) = if once > LONG { (0, 1) } else { (1, REPEATS) };
            let mut took = f64::INFINITY;
            for _ in 0..ROUNDS {
                took = took.min(time(segment)?.as_secs_f64() / calls as f64);
            }
            if number == 0 {
                least = took * WORTH;
            } else if took < least {
                (best, least) = (number, took);
            }
        }
        Ok((best, refused))
    }
}

/// What a measurement is kept under: the texts, parameters and grids.
fn key(all: &[&Call]) -> Sum {
    let mut parts = Vec::new();
    for call in all {
        parts.extend(super::cache::of(&call.kernel));
        parts.extend(call.params.iter().chain(&call.groups).flat_map(|v| v.to_le_bytes()));
    }
    super::cache::sum(&[&parts])
}
