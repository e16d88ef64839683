//! Rows of one layer: how long each form takes, and how much of the core's peak that is.
use criterion::BenchmarkGroup;
use criterion::measurement::WallTime;

use crate::support::Peak;

/// Multiply-adds above which the reference would take too long.
const SLOW: usize = 1 << 24;

/// The rows of one layer.
pub(crate) struct Rows<'a> {
    /// Its name.
    pub what: &'a str,
    /// Where its rows go.
    pub group: BenchmarkGroup<'a, WallTime>,
    /// What one core can do; `None` prints nothing.
    pub peak: Option<&'a Peak>,
    /// Multiply-adds by the definition, so that rows can be compared with each other and with the roofline.
    pub macs: usize,
    /// Bytes that have to be read and written, where elements are of one byte.
    pub bytes: usize,
}

impl Rows<'_> {
    /// One form on elements of so many bytes. A reference, named so, is left out where it would take too long.
    pub(crate) fn row(&mut self, name: &str, element: usize, mut f: impl FnMut()) {
        if name.ends_with("reference") && self.macs > SLOW {
            return;
        }
        self.group.bench_function(name, |b| b.iter(&mut f));
        if let Some(peak) = self.peak.filter(|_| !name.ends_with("reference")) {
            peak.reached(&format!("{}: {name}", self.what), self.macs, element * self.bytes, f);
        }
    }
}
