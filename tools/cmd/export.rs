//! `hone export`: an ONNX file, its configuration and recorded cases become a bundle.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use hone_runtime::Class;
use hone_runtime::bundle::{Bundle, BundleError, Manifest, Overwrite};
use hone_runtime::cases::Compared;
use hone_runtime::dataset::Dataset;
use hone_runtime::export::{HEAD_TOLERANCE, Source, with_source};
use serde::Serialize;

use crate::exit::fail;
use crate::output;

/// Makes a .hone bundle from an ONNX file, after running every recorded case of the other framework.
///
/// Nothing is written when a case comes out differently (exit code 3).
#[derive(Args)]
// Here --version is the model's.
#[command(disable_version_flag = true)]
pub(crate) struct Export {
    /// The ONNX file.
    model: PathBuf,
    /// The bundle to write.
    #[arg(short, long, value_name = "OUT.hone")]
    output: PathBuf,
    /// Directory of config.json, preprocessor_config.json, tokenizer.json, recipe.json, head.safetensors,
    /// coreset.safetensors, README.md.
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Directory of recorded cases, case*.npz: inputs as in_NAME, outputs as out_NAME or out_0, out_1 …
    #[arg(long, value_name = "DIR")]
    check: Option<PathBuf>,
    /// Directory with index.csv of data the model was made from: features of some of it are shipped, to be held on to
    /// and to measure what is forgotten.
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// Which split of that data.
    #[arg(long, value_name = "SPLIT", default_value = "source", requires = "source")]
    source_split: String,
    /// Name of the model; that of the output, if not given.
    #[arg(long)]
    name: Option<String>,
    /// Version of the model.
    #[arg(long = "version", value_name = "VERSION", default_value = "1.0.0")]
    model_version: String,
    /// When it was made, RFC 3339 in UTC to the second; now, if not given.
    #[arg(long, value_name = "RFC3339")]
    created: Option<String>,
    /// What an input is made from (image, audio, text, sensor, present), where its name does not say.
    #[arg(long, value_name = "NAME=MODALITY", value_parser = super::pair)]
    input: Vec<(String, String)>,
    /// An input that is, from the second sample of a stream on, what that output was; zeros before the first.
    #[arg(long, value_name = "INPUT=OUTPUT", value_parser = super::pair)]
    state: Vec<(String, String)>,
    /// Write a stored zip in place of a directory.
    #[arg(long)]
    zip: bool,
    /// Replace a bundle of that name.
    #[arg(long)]
    force: bool,
    /// One JSON document in place of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    bundle: String,
    name: &'a str,
    version: &'a str,
    base_digest: &'a str,
    digest: String,
    bytes: u64,
    head_max_abs: Option<f32>,
    rows: &'a [Compared],
    ok: bool,
}

impl Export {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let stem = self.output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let created =
            self.created.clone().unwrap_or_else(|| humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
        let manifest = Manifest::new(self.name.as_deref().unwrap_or(&stem), &self.model_version, &created);
        let export = hone_runtime::export::Export::prepare(&Source {
            onnx: &self.model,
            config: self.config.as_deref(),
            check: self.check.as_deref(),
            manifest,
            modalities: &self.input,
            state: &self.state,
        })?;
        let rows = export.compared.clone();
        let head_max_abs = export.head_difference;
        if !self.json {
            self.print(&rows, head_max_abs)?;
        }
        let mut bundle = export.into_bundle()?;
        if let Some(dir) = &self.source {
            let (with, report) = with_source(bundle, &Dataset::from_dir(dir)?, &self.source_split)?;
            bundle = with;
            output::say(format!(
                "hone: {} source samples to learn from, {} to measure by, of which {:.1} % are answered rightly",
                report.train,
                report.probe,
                100.0 * report.accuracy
            ));
        }
        let overwrite = if self.force { Overwrite::Replace } else { Overwrite::Refuse };
        let write = if self.zip { Bundle::write_zip } else { Bundle::write_dir };
        write(&bundle, &self.output, overwrite).map_err(|e| match e {
            BundleError::Exists { path } => {
                fail(Class::Usage, format!("{} exists already; --force replaces it", path.display()))
            }
            e => e.into(),
        })?;
        let m = bundle.manifest();
        let bytes = m.files.iter().map(|f| f.size).sum();
        if self.json {
            let body = Body {
                bundle: self.output.display().to_string(),
                name: &m.name,
                version: &m.version,
                base_digest: bundle.base_digest(),
                digest: bundle.digest(),
                bytes,
                head_max_abs,
                rows: &rows,
                ok: true,
            };
            output::document("hone.export/1", body)?;
        } else {
            let (name, version) = (&m.name, &m.version);
            let files = m.files.len();
            let path = self.output.display();
            output::line(format!(
                "{path}: {name} {version}, {files} files, {bytes} bytes, base {}",
                bundle.base_digest()
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, rows: &[Compared], head: Option<f32>) -> anyhow::Result<()> {
        if rows.is_empty() {
            output::say(
                "hone: nothing was compared and the bundle has no golden sample: give --check DIR with case*.npz",
            );
            return Ok(());
        }
        let mut table = vec![["case", "output", "max abs", "max rel", "allowed", ""].map(String::from).to_vec()];
        for r in rows {
            let verdict = if r.ok { "ok" } else { "DIFFERS" };
            table.push(vec![
                r.case.clone(),
                r.output.clone(),
                format!("{:.1e}", r.max_abs),
                format!("{:.1e}", r.max_rel),
                format!("{:.1e}", r.allowed),
                verdict.to_string(),
            ]);
        }
        output::line(output::table(&table))?;
        if let Some(difference) = head {
            output::line(format!(
                "head: feature · weightᵀ + bias = logits to {difference:.1e}, allowed {HEAD_TOLERANCE:.0e}"
            ))?;
        }
        Ok(())
    }
}
