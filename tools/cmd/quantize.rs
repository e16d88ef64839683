//! `hone quantize`: a float model becomes a small one, and what that costs is measured.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use hone_runtime::Class;
use hone_runtime::bundle::{Bundle, BundleError, Overwrite};
use hone_runtime::cases;
use hone_runtime::compress::{self, Agreement, Compressed, Model, Options, Report, Samples};
use hone_runtime::dataset::Dataset;
use hone_runtime::quant::{Blocks, Calibration, Fit, SCHEMES, Scheme, Settings, scheme};

use crate::exit::fail;
use crate::open::Source;
use crate::{input, output, quantize_report};

/// Quantises a model, measures what it costs, and writes a standard ONNX file or a bundle with one.
///
/// With --max-drop, the layers that cost more than that are found by measuring and stay f32 (of int4, get 8 bits where
/// that is enough); exit code 4 when no layer can be quantised within the limit, or nothing could be measured. The file
/// is written in any case but that.
#[derive(Args)]
pub(crate) struct Quantize {
    /// A .hone bundle (directory or zip) or an .onnx file, in f32.
    model: PathBuf,
    /// The bundle or ONNX file to write.
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// How to quantise.
    #[arg(long, default_value = "int8-qdq", value_parser = scheme_names())]
    scheme: String,
    /// Samples to calibrate and to measure with: for a bundle a data set with labels (index.csv; the split `test` is
    /// measured, the others calibrate), for an ONNX file recorded cases (case*.npz with the inputs as in_NAME).
    #[arg(long, value_name = "DIR")]
    calib: Option<PathBuf>,
    /// How the range of an activation is chosen, for int8-qdq; min-max if not given.
    #[arg(long, value_enum)]
    calibration: Option<Method>,
    /// Share of the values inside the range, for --calibration percentile; 99.99 if not given.
    #[arg(long, value_name = "PERCENT")]
    percentile: Option<f64>,
    /// Move this share (0 to 1, usually 0.5) of the outliers of activations into the weights first (SmoothQuant); for
    /// int8-qdq.
    #[arg(long, value_name = "SHARE")]
    smooth: Option<f64>,
    /// Take off the biases what rounded weights shift the means by; for int8-qdq.
    #[arg(long)]
    bias_correction: bool,
    /// Leave nodes in f32 whose name, or whose result's name, fits this glob pattern; may be given several times.
    #[arg(long, value_name = "PATTERN")]
    keep_f32: Vec<String>,
    /// Points of accuracy (with labels) or agreement (without) that may be lost.
    #[arg(long, value_name = "POINTS")]
    max_drop: Option<f64>,
    /// What agreement with the f32 model means where there are no labels.
    #[arg(long, value_enum, default_value_t = Metric::Cosine)]
    metric: Metric,
    /// Weights of seven bits, for ONNX Runtime on x86 processors without VNNI: eight-bit products saturate there.
    #[arg(long)]
    reduce_range: bool,
    /// Weights of 4 bits that share a scale, for int4; 32 if not given.
    #[arg(long, value_name = "N", value_parser = ["32", "64", "128"])]
    block: Option<String>,
    /// Give each block of 4-bit weights a zero point too, for int4.
    #[arg(long)]
    asymmetric: bool,
    /// How the scale of a block of 4-bit weights is found, for int4; mse if not given.
    #[arg(long, value_enum)]
    fit: Option<BlockFit>,
    /// Most samples to calibrate with.
    #[arg(long, value_name = "N", default_value_t = 100)]
    samples: usize,
    /// Most samples to measure with.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    measure: usize,
    /// Threads that compute.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Writes a self-contained HTML report.
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    /// Write a bundle as a stored zip.
    #[arg(long)]
    zip: bool,
    /// Replace the output if it is there.
    #[arg(long)]
    force: bool,
    /// One JSON document in place of text.
    #[arg(long)]
    json: bool,
}

/// `--calibration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    /// From the smallest to the largest value.
    MinMax,
    /// All but the outermost values.
    Percentile,
    /// The range that loses the least information.
    Entropy,
    /// The range with the smallest squared error.
    Mse,
}

/// `--metric`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Metric {
    /// Cosine of the angle between the first outputs.
    Cosine,
    /// Share of equal largest elements of the first output.
    Top1,
}

/// `--fit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BlockFit {
    /// The scale that just holds the block.
    Range,
    /// The smallest squared error.
    Mse,
    /// The smallest error of most weights, whatever becomes of the largest (half-quadratic).
    Hqq,
}

/// `--percentile`, where it is not given.
const PERCENTILE: f64 = 99.99;

fn scheme_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(
        SCHEMES.iter().map(|s| clap::builder::PossibleValue::new(s.name).help(s.doc)),
    )
}

impl Quantize {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if self.percentile.is_some_and(|p| !(50.0..=100.0).contains(&p)) {
            return Err(fail(Class::Usage, "--percentile is from 50 to 100"));
        }
        if self.max_drop.is_some_and(|d| !(0.0..=100.0).contains(&d)) {
            return Err(fail(Class::Usage, "--max-drop is from 0 to 100 points"));
        }
        if self.smooth.is_some_and(|s| !(0.0..=1.0).contains(&s)) {
            return Err(fail(Class::Usage, "--smooth is from 0 to 1"));
        }
        let options = self.options()?;
        if let Some(why) = self.in_vain(options.settings.scheme) {
            return Err(fail(Class::Usage, why));
        }
        if !self.force && self.output.exists() {
            return Err(fail(Class::Usage, format!("{} exists already; --force replaces it", self.output.display())));
        }
        let source = Source::open(&self.model)?;
        let (data, paths) = self.data(&source)?;
        let samples = match (&data, &paths) {
            (Some(d), _) => Samples::Dataset(d),
            (None, Some(p)) => Samples::Cases(p),
            (None, None) => Samples::None,
        };
        let bytes;
        let model = match &source {
            Source::Bundle(b) => Model::Bundle(b),
            Source::Onnx => {
                bytes = input::read(&self.model)?;
                Model::Onnx { path: &self.model, bytes: &bytes }
            }
        };
        let done = compress::compress(&model, &samples, &options)?;
        if let Some(path) = &self.report {
            input::write(path, quantize_report::html(&path_of(&self.model), &done.report).as_bytes())?;
            eprintln!("report: {}", path.display());
        }
        if self.json {
            output::document("hone.quantize/1", &done.report)?;
        } else {
            text(&done.report)?;
        }
        if !done.report.ok {
            output::say(refusal(&done.report));
            return Ok(ExitCode::from(Class::Gate.exit_code()));
        }
        self.write(&source, &done)?;
        Ok(ExitCode::SUCCESS)
    }

    fn options(&self) -> anyhow::Result<Options<'_>> {
        let scheme = scheme(&self.scheme).ok_or_else(|| fail(Class::Usage, format!("no scheme `{}`", self.scheme)))?;
        let calibration = match self.calibration {
            None | Some(Method::MinMax) => Calibration::MinMax,
            Some(Method::Percentile) => Calibration::Percentile(self.percentile.unwrap_or(PERCENTILE)),
            Some(Method::Entropy) => Calibration::Entropy,
            Some(Method::Mse) => Calibration::Mse,
        };
        let usual = Blocks::default();
        let blocks = Blocks {
            size: self.block.as_ref().map_or(Ok(usual.size), |b| b.parse())?,
            symmetric: !self.asymmetric,
            fit: match self.fit {
                None => usual.fit,
                Some(BlockFit::Range) => Fit::Range,
                Some(BlockFit::Mse) => Fit::Mse,
                Some(BlockFit::Hqq) => Fit::Hqq,
            },
        };
        let settings = Settings {
            scheme,
            calibration,
            smooth: self.smooth,
            correct_bias: self.bias_correction,
            reduced: self.reduce_range,
            blocks,
            fixed: Default::default(),
        };
        Ok(Options {
            settings,
            keep: &self.keep_f32,
            max_drop: self.max_drop,
            agreement: match self.metric {
                Metric::Cosine => Agreement::Cosine,
                Metric::Top1 => Agreement::Top1,
            },
            calibrate: self.samples,
            measure: self.measure,
            threads: self.threads.max(1),
        })
    }

    /// What is wrong with an option that was given and that this scheme does not look at.
    fn in_vain(&self, scheme: &Scheme) -> Option<String> {
        type Options = [(&'static str, bool)];
        type Takes = fn(&Scheme) -> bool;
        let of_ranges: &Options = &[
            ("--calibration", self.calibration.is_some()),
            ("--percentile", self.percentile.is_some()),
            ("--smooth", self.smooth.is_some()),
            ("--bias-correction", self.bias_correction),
        ];
        let of_blocks: &Options =
            &[("--block", self.block.is_some()), ("--asymmetric", self.asymmetric), ("--fit", self.fit.is_some())];
        let groups: [(&Options, Takes); 2] = [(of_ranges, |s| s.calibrated), (of_blocks, |s| s.widens)];
        for (options, takes) in groups {
            let given = options.iter().find(|(_, given)| *given && !takes(scheme));
            if let Some((option, _)) = given {
                let schemes: Vec<&str> = SCHEMES.iter().filter(|s| takes(s)).map(|s| s.name).collect();
                let (name, schemes) = (scheme.name, schemes.join(" or "));
                return Some(format!(
                    "{option} does nothing with --scheme {name}: give --scheme {schemes}, or leave it out"
                ));
            }
        }
        let percentile = self.percentile.is_some() && self.calibration != Some(Method::Percentile);
        percentile.then(|| "--percentile does nothing without --calibration percentile: give both, or neither".into())
    }

    /// The data set or the recorded cases of `--calib`.
    fn data(&self, source: &Source) -> anyhow::Result<(Option<Dataset>, Option<Vec<PathBuf>>)> {
        let Some(dir) = &self.calib else { return Ok((None, None)) };
        let recorded = !dir.join("index.csv").exists() && cases::files(dir).is_ok();
        Ok(match source {
            Source::Bundle(_) if !recorded => (Some(Dataset::from_dir(dir)?), None),
            _ => (None, Some(cases::files(dir)?)),
        })
    }

    fn write(&self, source: &Source, done: &Compressed) -> anyhow::Result<()> {
        let Source::Bundle(bundle) = source else { return input::write(&self.output, &done.onnx) };
        let bundle = compress::rebundle(bundle, &done.onnx)?;
        let overwrite = if self.force { Overwrite::Replace } else { Overwrite::Refuse };
        let write = if self.zip { Bundle::write_zip } else { Bundle::write_dir };
        write(&bundle, &self.output, overwrite).map_err(|e| match e {
            BundleError::Exists { path } => {
                fail(Class::Usage, format!("{} exists already; --force replaces it", path.display()))
            }
            e => e.into(),
        })
    }
}

fn path_of(model: &Path) -> String {
    model.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Why exit code 4.
fn refusal(r: &Report) -> String {
    match (r.max_drop, r.drop) {
        _ if r.layers.is_empty() => "hone: no layer can be quantised within --max-drop; nothing was written".into(),
        (Some(limit), Some(drop)) => {
            format!("hone: {drop:.2} points are lost, more than --max-drop {limit}; nothing was written")
        }
        _ => "hone: --max-drop needs something to measure: give --calib DIR; nothing was written".into(),
    }
}

/// `—` for what was not measured.
pub(crate) fn optional(v: Option<f64>, show: impl Fn(f64) -> String) -> String {
    v.map_or_else(|| "—".into(), show)
}

fn text(r: &Report) -> anyhow::Result<()> {
    let side = |name: &str, s: &compress::Side| {
        vec![
            name.to_string(),
            s.bytes.to_string(),
            optional(s.accuracy, |v| format!("{:.2} %", 100.0 * v)),
            optional(s.latency_p50_ms, |v| format!("{v:.3}")),
        ]
    };
    let heads = ["", "bytes", r.metric, "ms p50"].map(String::from).to_vec();
    output::line(output::table(&[heads, side("before", &r.before), side("after", &r.after)]))?;
    output::line(format!(
        "{}: {:.2}x smaller, {} points lost on {} samples, ranges from {} samples",
        r.scheme,
        r.smaller,
        optional(r.drop, |v| format!("{v:.2}")),
        r.measured_on,
        r.calibrated_on
    ))?;
    let mut table = vec![["layer", "operator", "weights", "bits", "weight dB", "result dB"].map(String::from).to_vec()];
    for l in &r.layers {
        table.push(vec![
            l.name.clone(),
            l.op.to_string(),
            l.weight_elements.to_string(),
            l.bits.to_string(),
            optional(l.weight_snr_db, |v| format!("{v:.1}")),
            optional(l.snr_db, |v| format!("{v:.1}")),
        ]);
    }
    output::line("")?;
    output::line(output::table(&table))?;
    if !r.kept.is_empty() {
        let mut table = vec![["treated apart", "operator", "why", "points alone"].map(String::from).to_vec()];
        for k in &r.kept {
            let alone = optional(k.alone, |v| format!("{v:.2}"));
            table.push(vec![k.name.clone(), k.op.clone(), k.why.to_string(), alone]);
        }
        output::line("")?;
        output::line(output::table(&table))?;
    }
    Ok(())
}
