//! `cargo xtask zoo`: real models that other people published in packages, fetched, and `hone check` run over each, on the CPU or
//! on a GPU.
//!
//! The list is `models/zoo.toml`; what ONNX Runtime answers for each model is recorded under `models/zoo/<name>`.
use std::collections::{BTreeSet, HashSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::ci::cargo_command;
use crate::target_dir;

mod fetch;

use fetch::Fetched;

/// What the command line asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    only: Option<String>,
    list: bool,
    fetch: bool,
    export: bool,
    quick: bool,
    device: Option<String>,
    hone: Option<PathBuf>,
}

impl Options {
    /// What CI runs: everything that can be fetched or made of what is fetched, through a program already built.
    pub(crate) fn with_program(hone: PathBuf) -> Options {
        Options { hone: Some(hone), export: true, ..Options::default() }
    }

    /// The same on a GPU, or of it what is `quick` there.
    pub(crate) fn on_gpu(hone: PathBuf, quick: bool) -> Options {
        Options { quick, device: Some("gpu".into()), ..Options::with_program(hone) }
    }

    /// `None` when the arguments are not those of the usage text.
    pub(crate) fn parse(args: &[&str]) -> Option<Options> {
        let mut options = Options::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--list" => options.list = true,
                "--fetch" => options.fetch = true,
                "--export" => options.export = true,
                "--quick" => options.quick = true,
                "--only" => options.only = Some((*args.next()?).to_owned()),
                "--device" => options.device = Some((*args.next()?).to_owned()),
                "--hone" => options.hone = Some(PathBuf::from(args.next()?)),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// One model of `models/zoo.toml`. `models/zoo/README.md` says what the fields mean.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    name: String,
    registry: Registry,
    package: String,
    version: String,
    file: String,
    path: String,
    sha256: String,
    licence: String,
    shows: String,
    dims: String,
    inputs: String,
    /// A software GPU answers its cases in seconds.
    #[serde(default)]
    quick: bool,
    sways: Option<Sways>,
    export: Option<Export>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Registry {
    Pypi,
    Npm,
}

/// That a GPU's answers may be others than the tolerance allows, since they hang on the last bit of a float.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sways {
    /// How far they may be, relative to the largest value: what one turned code does.
    within: f64,
    why: String,
}

/// For a package that ships weights and no graph: what makes the model of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Export {
    /// A Python program, relative to `models`: `recipe WEIGHTS MODEL`.
    recipe: String,
    /// Of the model it makes.
    sha256: String,
}

impl Model {
    /// The digest of `model.onnx`, fetched or made.
    fn digest(&self) -> &str {
        self.export.as_ref().map_or(&self.sha256, |e| &e.sha256)
    }

    fn source(&self) -> String {
        let registry = match self.registry {
            Registry::Pypi => "PyPI",
            Registry::Npm => "npm",
        };
        format!("{registry} {} {}", self.package, self.version)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything that was fetched is what it should be.
    Well,
    /// A digest differs, or a fetched model fails its check.
    Badly,
    /// There was nothing to check: no registry was reached.
    NothingFetched,
}

/// Fetches and checks.
///
/// # Errors
/// When the list is malformed, the options name no model of it, or the program to check with cannot be built.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<Ended> {
    let path = root.join("models/zoo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut models = parse(&text).context("models/zoo.toml")?;
    if let Some(name) = &options.only {
        models.retain(|m| m.name == *name);
        ensure!(
            !models.is_empty(),
            "models/zoo.toml has no model `{name}`; `cargo xtask zoo --list` shows what it has"
        );
    }
    if options.quick {
        models.retain(|m| m.quick);
    }
    let zoo = target_dir(root).join("zoo");
    if options.list {
        list(&models, &zoo);
        return Ok(Ended::Well);
    }
    let mut rows = Vec::new();
    let mut here = Vec::new();
    for model in &models {
        let dir = zoo.join(&model.name);
        let fetched = fetch::fetch(root, &zoo, model, options.export);
        println!("{:32} {} ({})", model.name, said(&fetched), model.source());
        match fetched {
            Ok(Fetched::Cached | Fetched::Now) => {
                let cases = lay_cases(&root.join("models/zoo").join(&model.name), &dir)
                    .with_context(|| format!("the recorded cases of {}", model.name))?;
                ensure!(cases > 0, "{}: no cases are recorded; run models/zoo/record.py", model.name);
                here.push((model, dir));
            }
            Ok(Fetched::Not(_)) => rows.push(Row::new(model, Verdict::NotFetched)),
            Err(_) => rows.push(Row::new(model, Verdict::Failed("not what zoo.toml describes".into()))),
        }
    }
    if options.fetch {
        let well = rows.iter().all(|r| r.verdict == Verdict::NotFetched);
        return Ok(if well { Ended::Well } else { Ended::Badly });
    }
    let program = Program { root, built: options.hone.as_deref(), device: options.device.as_deref() };
    if !here.is_empty() && options.hone.is_none() {
        program.build()?;
    }
    for (model, dir) in &here {
        let began = Instant::now();
        let mut verdict = program.check(dir)?;
        if let (Verdict::Differs { worst, at }, Some(sways), true) = (&verdict, &model.sways, program.on_gpu())
            && *worst <= sways.within
        {
            verdict = Verdict::Sways { worst: *worst, at: at.clone(), why: sways.why.clone() };
        }
        let row = Row::new(model, verdict);
        eprintln!("{row}  ({:.1} s)", began.elapsed().as_secs_f64());
        rows.push(row);
    }
    rows.sort_by_key(|r| models.iter().position(|m| m.name == r.name));
    println!("\n{:32} {:12} worst difference, relative to the largest value", "model", "result");
    rows.iter().for_each(|r| println!("{r}"));
    let of = |which: fn(&Verdict) -> bool| rows.iter().filter(|r| which(&r.verdict)).count();
    let agree = of(|v| matches!(v, Verdict::Agrees { .. }));
    let sway = of(|v| matches!(v, Verdict::Sways { .. }));
    let absent = of(|v| *v == Verdict::NotFetched);
    let failed = rows.len() - agree - sway - absent;
    let swaying = if sway > 0 { format!("{sway} differ as models/zoo.toml explains, ") } else { String::new() };
    println!("\n{agree} agree, {swaying}{failed} failed, {absent} not fetched");
    Ok(match (agree + sway, failed) {
        (0, 0) => {
            eprintln!("nothing was fetched, so nothing was checked");
            Ended::NothingFetched
        }
        (_, 0) => Ended::Well,
        _ => Ended::Badly,
    })
}

/// The gradients that PyTorch computes for some of the models.
const GRADIENTS: &str = "runtime/src/scope/testdata/real.json";

/// Where the models lie, and those with recorded gradients that are not there.
///
/// # Errors
/// When the list or the recording cannot be read.
pub(crate) fn with_gradients(root: &Path) -> anyhow::Result<(PathBuf, Vec<String>)> {
    let models = parse(&std::fs::read_to_string(root.join("models/zoo.toml")).context("models/zoo.toml")?)?;
    let zoo = target_dir(root).join("zoo");
    let recorded = recorded_gradients(root)?;
    let mut missing = BTreeSet::new();
    for Gradients { model: name, sha256 } in recorded {
        let model = models.iter().find(|m| m.name == name).with_context(|| format!("{GRADIENTS} names `{name}`"))?;
        ensure!(sha256 == model.digest(), "the gradients of {name} are recorded from another file");
        if !fetch::there(&zoo, model) {
            missing.insert(name);
        }
    }
    Ok((zoo, missing.into_iter().collect()))
}

/// A case of recorded gradients, as far as it is of the list.
#[derive(Deserialize)]
struct Gradients {
    model: String,
    sha256: String,
}

fn recorded_gradients(root: &Path) -> anyhow::Result<Vec<Gradients>> {
    let bytes = std::fs::read(root.join(GRADIENTS)).with_context(|| format!("cannot read {GRADIENTS}"))?;
    serde_json::from_slice(&bytes).context(GRADIENTS)
}

/// The models of a list.
///
/// # Errors
/// When it is no such list, or an entry is incomplete, malformed or there twice: the entry and the field.
fn parse(text: &str) -> anyhow::Result<Vec<Model>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct List {
        model: Vec<Model>,
    }
    let List { model: models } = toml::from_str(text)?;
    let mut names = HashSet::new();
    for m in &models {
        validate(m).with_context(|| format!("model `{}`", m.name))?;
        ensure!(names.insert(&m.name), "model `{}` is there twice", m.name);
    }
    Ok(models)
}

fn validate(m: &Model) -> anyhow::Result<()> {
    // The name becomes a folder, so it must be one.
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    ensure!(!m.name.is_empty() && m.name.chars().all(letter), "the name is not of a-z, 0-9, - and _");
    for (field, value) in [
        ("package", &m.package),
        ("version", &m.version),
        ("licence", &m.licence),
        ("shows", &m.shows),
        ("dims", &m.dims),
        ("inputs", &m.inputs),
        ("sways.why", m.sways.as_ref().map_or(&m.inputs, |s| &s.why)),
    ] {
        ensure!(!value.trim().is_empty(), "`{field}` is empty");
    }
    for (field, value) in [("package", &m.package), ("version", &m.version)] {
        // They become an argument of pip or npm, where these would begin an option, an address, or a range of versions.
        let plain = !value.starts_with('-') && !value.contains([':', '*', '^', '~', '<', '>', '=', '!', ' ', ',']);
        ensure!(plain, "`{field}` is not plain: `{value}`");
    }
    // A source distribution would run its own code to tell pip its name.
    let suffix = match m.registry {
        Registry::Pypi => ".whl",
        Registry::Npm => ".tgz",
    };
    ensure!(m.file.ends_with(suffix) && !m.file.contains(['/', '\\']), "`file` is no {suffix}: `{}`", m.file);
    ensure!(inside(&m.path), "`path` leaves the archive: `{}`", m.path);
    ensure!(is_sha256(&m.sha256), "`sha256` is not 64 digits of 0-9 and a-f: `{}`", m.sha256);
    if let Some(export) = &m.export {
        ensure!(inside(&export.recipe), "`export.recipe` leaves the repository: `{}`", export.recipe);
        ensure!(is_sha256(&export.sha256), "`export.sha256` is not 64 digits of 0-9 and a-f: `{}`", export.sha256);
    }
    Ok(())
}

fn inside(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn list(models: &[Model], zoo: &Path) {
    for m in models {
        let here = if fetch::there(zoo, m) { "here" } else { "" };
        println!("{:32} {here:5} {}, {}\n{:38} {}", m.name, m.source(), m.licence, "", m.shows);
        println!("{:38} symbolic: {}; inputs: {}", "", m.dims, m.inputs);
    }
}

fn said(fetched: &anyhow::Result<Fetched>) -> String {
    match fetched {
        Ok(Fetched::Cached) => "there".into(),
        Ok(Fetched::Now) => "fetched".into(),
        Ok(Fetched::Not(why)) => format!("not fetched: {why}"),
        Err(e) => format!("WRONG: {e:#}"),
    }
}

/// Copies the recorded cases and their `meta.json` beside the model and removes those of an earlier recording; returns how many.
fn lay_cases(from: &Path, to: &Path) -> anyhow::Result<usize> {
    let names = |dir: &Path| -> anyhow::Result<Vec<String>> {
        let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let names = entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
        names.collect::<anyhow::Result<Vec<_>>>()
    };
    let is_case = |n: &str| n.starts_with("case") && n.ends_with(".npz");
    for old in names(to)?.iter().filter(|n| is_case(n)) {
        std::fs::remove_file(to.join(old))?;
    }
    let recorded = names(from)?;
    for name in recorded.iter().filter(|n| is_case(n) || *n == "meta.json") {
        std::fs::copy(from.join(name), to.join(name)).with_context(|| format!("cannot copy {name}"))?;
    }
    Ok(recorded.iter().filter(|n| is_case(n)).count())
}

/// What became of one model.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Every output of every case is within its tolerance. `worst` is relative to the largest value of the output.
    Agrees {
        worst: f64,
        /// What ran on a GPU, where one was asked for.
        gpu: Option<OnGpu>,
    },
    /// An output is outside; which one, of which case.
    Differs {
        worst: f64,
        at: String,
    },
    /// That, on a GPU, of a model whose answers hang on the last bit of a float; why.
    Sways {
        worst: f64,
        at: String,
        why: String,
    },
    Unsupported(String),
    Failed(String),
    NotFetched,
}

/// Where a model ran, as hone's documents say it.
#[derive(Debug, Default, Deserialize, PartialEq)]
pub(crate) struct OnGpu {
    steps: usize,
    on_cpu: Vec<String>,
    left: Option<String>,
    refused: Vec<String>,
}

impl OnGpu {
    /// That a GPU was used as far as hone can use one.
    ///
    /// # Errors
    /// When it was left, a step refused, or none ran there.
    pub(crate) fn used(&self) -> anyhow::Result<()> {
        // A model that is all one `If` has its steps in the graphs of that, which make plans of their own.
        let nested = self.on_cpu.iter().any(|op| matches!(&op[..], "If" | "Loop" | "Scan"));
        match &self.left {
            Some(why) if !(nested && why == NO_STEP) => bail!("the GPU was left: {why}"),
            _ => {}
        }
        ensure!(self.refused.is_empty(), "not on the GPU: {}", self.refused.join("; "));
        ensure!(self.steps > 0 || nested, "no step ran on the GPU");
        Ok(())
    }
}

impl std::fmt::Display for OnGpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} steps on the GPU", self.steps)?;
        if self.on_cpu.is_empty() { Ok(()) } else { write!(f, ", on the CPU: {}", self.on_cpu.join(", ")) }
    }
}

struct Row {
    name: String,
    verdict: Verdict,
}

impl Row {
    fn new(model: &Model, verdict: Verdict) -> Row {
        Row { name: model.name.clone(), verdict }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.verdict {
            Verdict::Agrees { worst, gpu } => {
                write!(f, "{:32} {:12} {worst:.1e}", self.name, "agrees")?;
                gpu.iter().try_for_each(|gpu| write!(f, "  {gpu}"))
            }
            Verdict::Differs { worst, at } => write!(f, "{:32} {:12} {worst:.1e} at {at}", self.name, "DIFFERS"),
            Verdict::Sways { worst, at, why } => {
                write!(f, "{:32} {:12} {worst:.1e} at {at}: {why}", self.name, "sways")
            }
            Verdict::Unsupported(what) => write!(f, "{:32} {:12} {what}", self.name, "UNSUPPORTED"),
            Verdict::Failed(why) => write!(f, "{:32} {:12} {why}", self.name, "FAILED"),
            Verdict::NotFetched => write!(f, "{:32} {:12}", self.name, "not fetched"),
        }
    }
}

/// What a plan says that has no step for a GPU.
const NO_STEP: &str = "no step has a kernel for it";

/// The program that checks.
struct Program<'o> {
    root: &'o Path,
    /// Where it is; `None` for cargo's own, which is then built.
    built: Option<&'o Path>,
    /// As `hone check --device` takes it; `None` for the CPU.
    device: Option<&'o str>,
}

impl Program<'_> {
    fn on_gpu(&self) -> bool {
        self.device.is_some_and(|d| d.starts_with("gpu"))
    }

    fn cargo(&self, verb: &str) -> Command {
        let mut cargo = cargo_command(self.root);
        cargo.args([verb, "--release", "--locked", "--package", "hone"]);
        if self.device.is_some() {
            cargo.args(["--features", "gpu"]);
        }
        cargo
    }

    /// Builds it once, so that a build that fails is said once and not for every model.
    fn build(&self) -> anyhow::Result<()> {
        ensure!(self.cargo("build").status()?.success(), "the program to check with does not build");
        Ok(())
    }

    /// Runs `hone check` on one model.
    ///
    /// # Errors
    /// When the program cannot be started.
    fn check(&self, dir: &Path) -> anyhow::Result<Verdict> {
        let mut command = match self.built {
            Some(path) => Command::new(path),
            None => {
                let mut cargo = self.cargo("run");
                cargo.args(["--quiet", "--"]);
                cargo
            }
        };
        command.arg("check").arg(dir.join("model.onnx")).arg("--cases").arg(dir).arg("--json");
        if let Some(device) = self.device {
            command.args(["--device", device]);
        }
        let out =
            command.output().with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        let stderr = String::from_utf8_lossy(&out.stderr);
        let first = stderr.lines().find(|l| !l.trim().is_empty()).unwrap_or("it said nothing").trim().to_string();
        Ok(match out.status.code() {
            Some(0 | 4) => judge(&out.stdout, out.status.code() == Some(0), self.on_gpu())
                .unwrap_or_else(|e| Verdict::Failed(format!("{e:#}"))),
            Some(7) => Verdict::Unsupported(first),
            _ => Verdict::Failed(format!("{}: {first}", out.status)),
        })
    }
}

/// The verdict that a report of `hone check` contains, held against the exit code it came with, and against the device that was
/// asked for: an answer of the CPU's says nothing of a GPU.
fn judge(report: &[u8], accepted: bool, on_gpu: bool) -> anyhow::Result<Verdict> {
    #[derive(Deserialize)]
    struct Report {
        schema: String,
        rows: Vec<Output>,
        gpu: Option<OnGpu>,
        ok: bool,
    }
    #[derive(Deserialize)]
    struct Output {
        case: serde_json::Value,
        output: serde_json::Value,
        /// JSON has no NaN and no infinity: a difference that is neither a number is null.
        max_rel: Option<f64>,
        ok: bool,
    }
    let report: Report = serde_json::from_slice(report).context("the report is not that of `hone check`")?;
    ensure!(report.schema == "hone.check/1", "the report's schema is `{}`, not hone.check/1", report.schema);
    ensure!(!report.rows.is_empty(), "no output was compared");
    if report.ok != accepted || report.ok != report.rows.iter().all(|r| r.ok) {
        bail!("exit code, report and its rows do not say the same");
    }
    if on_gpu {
        report.gpu.as_ref().context("a GPU was asked for, and the report knows none")?.used()?;
    }
    let size = |r: &Output| r.max_rel.unwrap_or(f64::INFINITY);
    // Of the outputs that are outside where there are any: another's larger difference may be within its tolerance.
    let rows = report.rows.iter().filter(|r| r.ok == report.ok);
    let worst = rows.max_by(|a, b| size(a).total_cmp(&size(b))).context("no output was compared")?;
    if report.ok {
        return Ok(Verdict::Agrees { worst: size(worst), gpu: report.gpu });
    }
    let plain = |v: &serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    Ok(Verdict::Differs { worst: size(worst), at: format!("{}, {}", plain(&worst.case), plain(&worst.output)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"
        [[model]]
        name = "a"
        registry = "npm"
        package = "@b/c"
        version = "1.0.0"
        file = "b-c-1.0.0.tgz"
        path = "package/a.onnx"
        sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        licence = "MIT"
        shows = "Conv"
        dims = "none"
        inputs = "noise"
    "#;

    #[test]
    fn the_list_of_this_repository_is_complete_and_every_model_has_recorded_cases() {
        let root = crate::root();
        let models = parse(&std::fs::read_to_string(root.join("models/zoo.toml")).unwrap()).unwrap();
        assert!(models.len() >= 23, "{}", models.len());
        for m in &models {
            let dir = root.join("models/zoo").join(&m.name);
            assert!(dir.join("case0.npz").is_file(), "{}: no case is recorded", m.name);
            let meta: serde_json::Value =
                serde_json::from_slice(&std::fs::read(dir.join("meta.json")).unwrap()).unwrap();
            assert_eq!(meta["name"], m.name.as_str());
            assert_eq!(meta["sha256"], m.digest(), "{}: recorded from another file", m.name);
            assert_eq!(meta["licence"], m.licence.as_str(), "{}", m.name);
            assert!(meta["reference_own_spread"].is_number(), "{}", m.name);
            if let Some(export) = &m.export {
                assert!(root.join("models").join(&export.recipe).is_file(), "{}", export.recipe);
            }
        }
    }

    #[test]
    fn gradients_are_recorded_of_the_models_that_the_list_names() {
        let root = crate::root();
        let models = parse(&std::fs::read_to_string(root.join("models/zoo.toml")).unwrap()).unwrap();
        let recorded = recorded_gradients(&root).unwrap();
        assert!(recorded.len() >= 4, "{}", recorded.len());
        for r in recorded {
            let model = models.iter().find(|m| m.name == r.model).unwrap_or_else(|| panic!("{}", r.model));
            assert_eq!(r.sha256, model.digest(), "{}: recorded from another file", r.model);
        }
    }

    #[test]
    fn every_folder_of_recorded_cases_belongs_to_a_model_of_the_list() {
        let root = crate::root();
        let models = parse(&std::fs::read_to_string(root.join("models/zoo.toml")).unwrap()).unwrap();
        for entry in std::fs::read_dir(root.join("models/zoo")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().join("meta.json").exists() {
                assert!(models.iter().any(|m| m.name == name), "{name}");
            }
        }
    }

    #[test]
    fn an_entry_that_lacks_a_field_has_an_unknown_one_or_an_odd_value_is_refused_by_name() {
        parse(ENTRY).unwrap();
        for (from, to, says) in [
            ("licence = \"MIT\"", "", "licence"),
            ("licence = \"MIT\"", "licence = \" \"", "`licence` is empty"),
            ("shows =", "show =", "show"),
            ("\"npm\"", "\"cran\"", "cran"),
            ("e3b0c4", "E3B0C4", "`sha256`"),
            ("e3b0c4", "", "`sha256`"),
            ("package/a.onnx", "package/../../a.onnx", "`path`"),
            ("package/a.onnx", "/a.onnx", "`path`"),
            ("1.0.0.tgz", "1.0.0.tar.gz", "`file`"),
            ("version = \"1.0.0\"", "version = \"^1\"", "`version`"),
            ("\"@b/c\"", "\"--registry\"", "`package`"),
            ("name = \"a\"", "name = \"../a\"", "name"),
        ] {
            let text = ENTRY.replacen(from, to, 1);
            assert_ne!(text, ENTRY);
            let said = format!("{:#}", parse(&text).unwrap_err());
            assert!(said.contains(says), "{from} → {to}: {said}");
        }
        let said = format!("{:#}", parse(&format!("{ENTRY}{ENTRY}")).unwrap_err());
        assert!(said.contains("`a` is there twice"), "{said}");
    }

    #[test]
    fn options_are_those_of_the_usage_text_and_nothing_else() {
        let parsed = Options::parse(&["--only", "a", "--export", "--hone", "h"]).unwrap();
        let expected = Options { only: Some("a".into()), export: true, hone: Some("h".into()), ..Options::default() };
        assert_eq!(parsed, expected);
        let parsed = Options::parse(&["--export", "--device", "gpu", "--quick", "--hone", "h"]).unwrap();
        assert_eq!(parsed, Options::on_gpu("h".into(), true));
        assert_eq!(Options::parse(&["--only"]), None);
        assert_eq!(Options::parse(&["--device"]), None);
        assert_eq!(Options::parse(&["--onyl", "a"]), None);
    }

    #[test]
    fn a_report_is_believed_only_when_it_agrees_with_its_rows_and_the_exit_code() {
        let report = |ok: bool, rows: &str| format!(r#"{{"schema":"hone.check/1","rows":[{rows}],"ok":{ok}}}"#);
        let fine = r#"{"case":"case0","output":"y","max_abs":1,"max_rel":0.001,"ok":true}"#;
        let off = r#"{"case":"case1","output":"y","max_abs":2,"max_rel":0.0005,"ok":false}"#;
        let nan = r#"{"case":"case1","output":"z","max_abs":null,"max_rel":null,"ok":false}"#;
        let judged = |r: &str, accepted| judge(r.as_bytes(), accepted, false);
        assert_eq!(judged(&report(true, fine), true).unwrap(), Verdict::Agrees { worst: 0.001, gpu: None });
        let differs = Verdict::Differs { worst: 0.0005, at: "case1, y".into() };
        assert_eq!(judged(&report(false, &format!("{fine},{off}")), false).unwrap(), differs);
        let infinite = Verdict::Differs { worst: f64::INFINITY, at: "case1, z".into() };
        assert_eq!(judged(&report(false, &format!("{off},{nan}")), false).unwrap(), infinite);
        assert!(judged(&report(true, fine), false).is_err());
        assert!(judged(&report(true, off), true).is_err());
        assert!(judged(&report(true, ""), true).is_err());
        assert!(judged("not JSON", true).is_err());
    }

    #[test]
    fn an_answer_that_no_gpu_gave_says_nothing_of_one() {
        let row = r#"{"case":"case0","output":"y","max_abs":1,"max_rel":0.001,"ok":true}"#;
        let judged = |gpu: &str| {
            judge(format!(r#"{{"schema":"hone.check/1","rows":[{row}],{gpu}"ok":true}}"#).as_bytes(), true, true)
        };
        let there = r#""gpu":{"steps":3,"on_cpu":["LSTM"],"left":null,"refused":[]},"#;
        let Verdict::Agrees { gpu: Some(gpu), .. } = judged(there).unwrap() else { panic!("it agrees") };
        assert_eq!(gpu.to_string(), "3 steps on the GPU, on the CPU: LSTM");
        judged(r#""gpu":{"steps":0,"on_cpu":["If"],"left":"no step has a kernel for it","refused":[]},"#).unwrap();
        for (gpu, says) in [
            ("", "knows none"),
            (r#""gpu":{"steps":3,"on_cpu":[],"left":"it is lost","refused":[]},"#, "it is lost"),
            (r#""gpu":{"steps":3,"on_cpu":[],"left":null,"refused":["a kernel"]},"#, "a kernel"),
            (r#""gpu":{"steps":0,"on_cpu":[],"left":null,"refused":[]},"#, "no step"),
            (r#""gpu":{"steps":0,"on_cpu":["If"],"left":"it is lost","refused":[]},"#, "it is lost"),
            (r#""gpu":{"steps":0,"on_cpu":["Cos"],"left":"no step has a kernel for it","refused":[]},"#, "no step"),
        ] {
            let said = format!("{:#}", judged(gpu).unwrap_err());
            assert!(said.contains(says), "{gpu}: {said}");
        }
    }

    #[test]
    fn cases_of_an_earlier_recording_do_not_stay_beside_the_model() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["case0.npz", "meta.json", "README.md"] {
            std::fs::write(from.path().join(name), name).unwrap();
        }
        for name in ["case1.npz", "model.onnx"] {
            std::fs::write(to.path().join(name), name).unwrap();
        }
        assert_eq!(lay_cases(from.path(), to.path()).unwrap(), 1);
        let mut names: Vec<_> =
            std::fs::read_dir(to.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["case0.npz", "meta.json", "model.onnx"]);
    }
}
