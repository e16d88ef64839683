//! `hone check`: recorded inputs and outputs of another framework against ours.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use hone_runtime::Class;
use hone_runtime::Tensor;
use hone_runtime::cases::{self, Case, Compared, Tolerance};
use hone_runtime::device::Device;
use hone_runtime::precision::RELATIVE;
use hone_runtime::session::{Outputs, Session, SessionOptions};
use serde::Serialize;

use crate::device::{self, Choice};
use crate::exit::{code_of, fail};
use crate::open::Source;
use crate::output;
use crate::precision::{self, Precise};

/// Runs recorded cases of another framework through hone and shows how far the outputs are apart.
///
/// A case is a file case*.npz with the inputs as in_NAME and the outputs as out_NAME, or out_0, out_1 … in the model's
/// order. Each case runs twice; the two results must be equal. Exit code 4 when they are not, or an output is outside
/// the tolerance.
#[derive(Args)]
pub(crate) struct Check {
    /// A .hone bundle (directory or zip) or an .onnx file.
    #[arg(required_unless_present = "batch")]
    model: Option<PathBuf>,
    /// The directory of the recorded cases.
    #[arg(long, value_name = "DIR", required_unless_present = "batch")]
    cases: Option<PathBuf>,
    /// Allowed relative to each recorded value; given, only --rtol and --atol count. In 16 bits 2 % of the largest is
    /// allowed.
    #[arg(long, value_name = "R")]
    rtol: Option<f64>,
    /// Allowed whatever the value.
    #[arg(long, value_name = "A")]
    atol: Option<f64>,
    /// Where to run. `auto` is of no use here.
    #[arg(long, default_value_t)]
    device: Choice,
    /// What products of floats with fixed weights are computed in; the rest is always f32.
    #[arg(long, value_enum, default_value_t = Precise::F32)]
    precision: Precise,
    /// Run every operator by its reference function.
    #[arg(long)]
    reference: bool,
    /// One JSON document.
    #[arg(long)]
    json: bool,
    /// Check every directory in this one that holds a model.onnx and its cases: one JSON line each.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["model", "cases"], requires = "jsonl")]
    batch: Option<PathBuf>,
    /// One JSON line for each directory of --batch: {case, verdict, detail}, the verdict one of pass, differs,
    /// unsupported, invalid, panic.
    #[arg(long, requires = "batch")]
    jsonl: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    rows: &'a [Compared],
    precision: &'static str,
    /// Why, where another than f32 was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    precision_why: Option<String>,
    /// What of the last case's plan ran where, on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<device::Ran>,
    ok: bool,
}

#[derive(Serialize)]
struct Verdict {
    case: String,
    verdict: &'static str,
    detail: String,
}

impl Check {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if self.device == Choice::Auto {
            return Err(fail(Class::Usage, "a check is of one device: say --device cpu or --device gpu"));
        }
        let device = self.device.open()?.device;
        if let Some(dir) = &self.batch {
            return self.batch(dir, &device);
        }
        let (Some(model), Some(dir)) = (&self.model, &self.cases) else {
            return Err(fail(Class::Usage, "give a model and --cases DIR"));
        };
        let mut session = Source::open(model)?.session(model, self.options(&device))?;
        let rows = self.compare(&mut session, dir)?;
        let ok = rows.iter().all(|r| r.ok);
        if let Some(told) = device::told(session.on_gpu().as_ref()) {
            output::say(format!("hone: {told}"));
        }
        if let Some(told) = precision::told(session.precision()) {
            output::say(format!("hone: {told}"));
        }
        if self.json {
            let chosen = session.precision();
            let (precision, precision_why) = (chosen.name(), precision::why(chosen));
            let gpu = session.on_gpu().map(device::Ran::of);
            output::document("hone.check/1", Body { rows: &rows, precision, precision_why, gpu, ok })?;
        } else {
            print(&rows)?;
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(Class::Gate.exit_code()) })
    }

    fn options(&self, device: &Device) -> SessionOptions {
        let precision = self.precision.asked();
        SessionOptions { reference: self.reference, device: device.clone(), precision, ..SessionOptions::default() }
    }

    fn tolerance(&self, dir: &Path, half: bool) -> anyhow::Result<Tolerance> {
        if self.rtol.is_none() && self.atol.is_none() {
            let recorded = cases::tolerance(dir)?;
            let relative = if half { recorded.relative.max(RELATIVE) } else { recorded.relative };
            return Ok(Tolerance { relative, ..recorded });
        }
        let (elementwise, absolute) = (self.rtol.unwrap_or(0.0), self.atol.unwrap_or(0.0));
        if !(elementwise >= 0.0 && absolute >= 0.0) {
            return Err(fail(Class::Usage, "--rtol and --atol are not negative"));
        }
        Ok(Tolerance { relative: 0.0, elementwise, absolute })
    }

    fn compare(&self, session: &mut Session, dir: &Path) -> anyhow::Result<Vec<Compared>> {
        let tolerance = self.tolerance(dir, session.precision().half.is_some())?;
        let mut rows = Vec::new();
        for path in cases::files(dir)? {
            let case = Case::read(&path, session)?;
            let found = session.run(&case.inputs)?;
            let again = session.run(&case.inputs)?;
            let mut compared = case.compare(&found, tolerance);
            // Nothing may stay from one run to the next.
            for row in &mut compared {
                let of = |outputs: &Outputs| outputs.iter().find(|(n, _)| *n == row.output).map(|(_, t)| t.clone());
                if let (Some(first), Some(second)) = (of(&found), of(&again))
                    && !same(&first, &second)
                {
                    row.ok = false;
                    row.mismatch = Some("a second run gave another result".into());
                }
            }
            rows.extend(compared);
        }
        Ok(rows)
    }

    fn batch(&self, dir: &Path, device: &Device) -> anyhow::Result<ExitCode> {
        let mut models: Vec<PathBuf> = std::fs::read_dir(dir)
            .map_err(|e| fail(Class::Usage, format!("{}: {e}", dir.display())))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| p.join("model.onnx").is_file())
            .collect();
        models.sort();
        let mut all = true;
        for path in models {
            let case = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let model = path.join("model.onnx");
            let one = || {
                let mut session = Source::open(&model)?.session(&model, self.options(device))?;
                self.compare(&mut session, &path)
            };
            // A panic is a verdict about the model that caused it, not the end of the list.
            let (verdict, detail) = match catch_unwind(AssertUnwindSafe(one)) {
                Err(_) => ("panic", "see the standard error stream".to_string()),
                Ok(Err(e)) if code_of(&e) == Class::Unsupported.exit_code() => ("unsupported", format!("{e:#}")),
                Ok(Err(e)) => ("invalid", format!("{e:#}")),
                Ok(Ok(rows)) => match rows.iter().find(|r| !r.ok) {
                    None => ("pass", String::new()),
                    Some(r) => ("differs", describe(r)),
                },
            };
            all &= verdict == "pass";
            output::json_lines([Verdict { case, verdict, detail }])?;
        }
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(Class::Gate.exit_code()) })
    }
}

/// Equal to the last bit.
fn same(a: &Tensor, b: &Tensor) -> bool {
    a.dtype() == b.dtype() && a.shape() == b.shape() && a.data().as_bytes() == b.data().as_bytes()
}

fn describe(r: &Compared) -> String {
    match &r.mismatch {
        Some(m) => format!("output `{}`: {m}", r.output),
        None => format!("output `{}`: {:.2e} apart, {:.2e} allowed", r.output, r.max_abs, r.allowed),
    }
}

fn print(rows: &[Compared]) -> anyhow::Result<()> {
    let mut table = vec![["case", "output", "max abs", "max rel", "allowed", ""].map(String::from).to_vec()];
    for r in rows {
        let verdict = match (&r.mismatch, r.ok) {
            (_, true) => "ok".to_string(),
            (None, false) => "DIFFERS".to_string(),
            (Some(m), false) => format!("DIFFERS: {m}"),
        };
        let figure = |v: f64| format!("{v:.1e}");
        let (case, output) = (r.case.clone(), r.output.clone());
        table.push(vec![case, output, figure(r.max_abs), figure(r.max_rel), figure(r.allowed), verdict]);
    }
    Ok(output::line(output::table(&table))?)
}
