//! Where the time of runs goes, as rows of a report.
use serde::Serialize;

use hone_runtime::plan::{Profile, StepTime};

/// One step of a plan: its part of a run.
#[derive(Clone, Serialize)]
pub(crate) struct StepRow {
    node: String,
    op: String,
    kernel: &'static str,
    calls_per_run: f64,
    ms_per_run: f64,
    share: f64,
}

impl StepRow {
    /// What a profile collected in so many runs, longest first; it begins anew.
    pub(crate) fn of(profile: &Profile, runs: usize) -> Vec<StepRow> {
        let ms = |s: &StepTime| s.time.as_secs_f64() * 1e3;
        let steps = profile.take();
        let all: f64 = steps.iter().map(ms).sum();
        let per_run = |x: f64| x / runs.max(1) as f64;
        let row = |s: StepTime| StepRow {
            calls_per_run: per_run(s.calls as f64),
            ms_per_run: per_run(ms(&s)),
            share: ms(&s) / all.max(f64::MIN_POSITIVE),
            node: s.step.node,
            op: s.step.op,
            kernel: s.step.kernel,
        };
        steps.into_iter().map(row).collect()
    }

    /// The rows in Markdown, for the model of that name.
    pub(crate) fn table(rows: &[StepRow], model: &str) -> String {
        let mut table = format!("\n| ms/run | share | calls/run | operator | kernel | node of {model} |\n");
        table += "| --- | --- | --- | --- | --- | --- |";
        for s in rows {
            table += &format!(
                "\n| {:.4} | {:.1} % | {:.0} | {} | {} | {} |",
                s.ms_per_run,
                100.0 * s.share,
                s.calls_per_run,
                s.op,
                s.kernel,
                s.node
            );
        }
        table
    }
}
