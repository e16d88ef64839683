//! Where the time of runs goes, step by step.
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::StepInfo;

/// The time of one step, over all runs since the profile was made or taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepTime {
    /// Which step. Steps of graphs inside a node are listed beside it, and their time is part of its own.
    pub step: StepInfo,
    /// How often it ran.
    pub calls: u64,
    /// How long that took in all.
    pub time: Duration,
}

/// A collector that a session's plans share, those of nested graphs among them.
#[derive(Debug, Default)]
pub struct Profile(Mutex<BTreeMap<StepInfo, (u64, Duration)>>);

impl Profile {
    pub(super) fn add(&self, step: StepInfo, time: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = all.entry(step).or_default();
        entry.0 += 1;
        entry.1 += time;
    }

    /// What was collected, longest first; collecting begins anew.
    pub fn take(&self) -> Vec<StepTime> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut all: Vec<StepTime> =
            all.into_iter().map(|(step, (calls, time))| StepTime { step, calls, time }).collect();
        all.sort_by_key(|s| std::cmp::Reverse(s.time));
        all
    }
}
