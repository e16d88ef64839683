//! `cargo xtask peers --gpu`: models on a GPU in hone, beside ONNX Runtime's on the same GPU where a Python has one that runs on it,
//! and beside both on the CPU.
//!
//! What the GPU can do at most is measured first, by `runtime/gpu/examples/roofline.rs`: how far a model is from that says more than
//! its milliseconds. No time can be less than that of its products at the device's best, nor than that of reading their weights and the
//! inputs once. The peer's ratio is the other judge. Rounds alternate, as those on the CPU do.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{Ours, Round, make, median, ours, peer, program, round};
use crate::ci::{cargo_command, gpu_example};
use crate::python::{commit, cpu, environment, interpreter, quietly};
use crate::target_dir;
use crate::zoo::OnGpu;

/// Models of `make.py` that are timed.
const MODELS: [&str; 2] = ["mobilenetv2", "minilm"];
/// Batches that `make.py` has inputs of.
const BATCHES: [usize; 2] = [1, 32];

/// What is computed in.
struct Precision {
    name: &'static str,
    /// `--precision` of hone, and on its CPU, which has no f16.
    hone: &'static str,
    cpu: &'static str,
    /// The end of the file's name.
    file: &'static str,
    /// Of a weight.
    bytes: f64,
    /// Whose operations bound it.
    operations: fn(&Roofline) -> f64,
}

const PRECISIONS: [Precision; 4] = [
    Precision { name: "f32", hone: "f32", cpu: "f32", file: "", bytes: 4.0, operations: |r| r.f32_ops_per_s },
    // Weights of 16 bits, and sums of 32.
    Precision { name: "bf16", hone: "bf16", cpu: "bf16", file: "", bytes: 2.0, operations: |r| r.f32_ops_per_s },
    // Where the device multiplies matrices of it, by those: no roofline of theirs is measured, and the part may exceed one.
    Precision { name: "f16", hone: "f16", cpu: "bf16", file: "", bytes: 2.0, operations: |r| r.f32_ops_per_s },
    Precision { name: "int8", hone: "f32", cpu: "f32", file: "-qdq", bytes: 1.0, operations: |r| r.i8_ops_per_s },
];

/// What the command line asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    only: Vec<String>,
    batches: Vec<usize>,
    threads: usize,
    rounds: usize,
    seconds: f64,
    hone: Option<PathBuf>,
    /// One that may have a peer for GPUs, beside the task's own and the system's.
    python: Option<PathBuf>,
    /// An adapter that is a program, built without optimisation: whether all this works, and no figure of anything.
    software: bool,
}

impl Options {
    /// `None` when the arguments are not those of the usage text.
    pub(crate) fn parse(args: &[&str]) -> Option<Options> {
        let mut o = Options {
            only: Vec::new(),
            batches: BATCHES.to_vec(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            rounds: 3,
            seconds: 1.0,
            hone: None,
            python: None,
            software: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match *arg {
                "--only" => o.only.push(args.next().filter(|m| MODELS.contains(m)).map(|m| (*m).to_owned())?),
                "--batches" => {
                    let list: Option<Vec<usize>> = args.next()?.split(',').map(|n| n.parse().ok()).collect();
                    o.batches = list.filter(|l| l.iter().all(|n| BATCHES.contains(n)))?;
                }
                "--threads" => o.threads = args.next()?.parse().ok().filter(|&n| n > 0)?,
                "--rounds" => o.rounds = args.next()?.parse().ok().filter(|&n| n > 0)?,
                "--seconds" => o.seconds = args.next()?.parse().ok().filter(|s: &f64| *s > 0.0 && s.is_finite())?,
                "--hone" => o.hone = Some(PathBuf::from(args.next()?)),
                "--python" => o.python = Some(PathBuf::from(args.next()?)),
                "--software" => o.software = true,
                _ => return None,
            }
        }
        Some(o)
    }
}

/// What one image or text takes, as `make.py` counts it.
#[derive(Deserialize)]
struct Work {
    operations: f64,
    weights: f64,
}

/// What the device can do at most, as the example prints it.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Roofline {
    adapter: String,
    kind: String,
    driver: String,
    copy_bytes_per_s: f64,
    read_bytes_per_s: f64,
    f32_ops_per_s: f64,
    i8_ops_per_s: f64,
    f16_ops_per_s: Option<f64>,
}

impl Roofline {
    /// Milliseconds that so many operations on so many bytes take at the least.
    fn least_ms(&self, precision: &Precision, operations: f64, bytes: f64) -> f64 {
        1e3 * (operations / (precision.operations)(self)).max(bytes / self.read_bytes_per_s)
    }

    fn told(&self) -> String {
        let giga = |v: f64| format!("{:.1}", v / 1e9);
        let half = self.f16_ops_per_s.map_or("none".into(), giga);
        format!(
            "It moves {} GB/s when it copies and {} when it reads; GFLOP/s of f32 {}, of f16 {half}; products of bytes {} GOP/s",
            giga(self.copy_bytes_per_s),
            giga(self.read_bytes_per_s),
            giga(self.f32_ops_per_s),
            giga(self.i8_ops_per_s),
        )
    }
}

/// What a model took.
#[derive(Serialize)]
struct Row {
    model: String,
    batch: usize,
    precision: &'static str,
    /// Operations of a run, and what it takes at the least.
    operations: f64,
    least_ms: f64,
    /// Medians over rounds, of the median and the 99th percentile of a run in milliseconds; who did not run it is not there.
    ms: BTreeMap<String, [f64; 2]>,
    /// Which steps ran on the GPU.
    steps: String,
}

const HONE: &str = "hone";
const HONE_CPU: &str = "hone, CPU";
const ORT_CPU: &str = "onnxruntime";

impl Row {
    fn line(&self, peers: &[&str]) -> String {
        let of = |who: &str| self.ms.get(who).map(|ms| ms[0]);
        let ms = |who: &str| of(who).map_or("–".into(), |ms| format!("{ms:.3}"));
        let [p50, p99] = self.ms.get(HONE).copied().unwrap_or([f64::NAN; 2]);
        let mut line = format!(
            "| {} | {} | {} | {p50:.3} ({p99:.3}) | {:.1} | {:.0} % |",
            self.model,
            self.batch,
            self.precision,
            self.operations / p50 / 1e6,
            100.0 * self.least_ms / p50,
        );
        for peer in peers {
            let ratio = of(peer).map_or("–".into(), |ms| format!("{:.2}", p50 / ms));
            line += &format!(" {} | {ratio} |", ms(peer));
        }
        line + &format!(" {} | {} | {} |", ms(HONE_CPU), ms(ORT_CPU), self.steps)
    }
}

/// Measures the device, then the models on it; prints the table and writes it beside them.
///
/// # Errors
/// When there is no GPU, the environment cannot be made, hone cannot be built, or hone does not run a model on the GPU.
pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<bool> {
    let home = target_dir(root).join("peers");
    let recipes = root.join("benches/peers");
    let roofline = roofline(root, options.software)?;
    println!("{} ({}), {}. {}", roofline.adapter, roofline.kind, roofline.driver, roofline.told());
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let python = environment(&home.join("venv"), &recipes.join("requirements.txt"))?;
    make(root, &home, &recipes, &python)?;
    let work: BTreeMap<String, Work> = serde_json::from_slice(&std::fs::read(home.join("work.json"))?)?;
    let hone = match &options.hone {
        Some(hone) => hone.clone(),
        None => program(root, &["--features", "gpu"], if options.software { "debug" } else { "release" })?,
    };
    let peers = peers(&recipes, [python.clone(), interpreter().into()].into_iter().chain(options.python.clone()))?;
    let names: Vec<&str> = peers.keys().map(String::as_str).collect();
    if peers.is_empty() {
        println!(
            "no Python here has an ONNX Runtime for GPUs (CUDA or WebGPU; --python names one that has): hone's GPU stands \
             beside CPUs alone"
        );
    }
    let mut rows = Vec::new();
    for model in MODELS.iter().filter(|m| options.only.is_empty() || options.only.iter().any(|o| o == *m)) {
        for &batch in &options.batches {
            let inputs = home.join(format!("inputs/batch{batch}/{model}.npz"));
            for precision in &PRECISIONS {
                let file = home.join(format!("{model}{}.onnx", precision.file));
                let what = format!("{model}, batch {batch}, {}", precision.name);
                let on =
                    |device, precision| Ours { device, precision, threads: options.threads, seconds: options.seconds };
                let timed = |python: &Path, who: &str| {
                    peer(python, &recipes, who, &file, &inputs, options.threads, options.seconds)
                };
                let mut rounds: BTreeMap<String, Vec<Round>> = BTreeMap::new();
                let mut steps = String::new();
                for _ in 0..options.rounds {
                    let row = ours(&hone, &file, &inputs, &on("gpu", precision.hone)).with_context(|| what.clone())?;
                    let ran: OnGpu = serde_json::from_value(row["gpu"].clone()).with_context(|| what.clone())?;
                    ran.used().with_context(|| what.clone())?;
                    steps = ran.to_string();
                    let cpu = ours(&hone, &file, &inputs, &on("cpu", precision.cpu)).with_context(|| what.clone())?;
                    let mut take = |who: &str, one: anyhow::Result<Round>| match one {
                        Ok(one) => rounds.entry(who.to_owned()).or_default().push(one),
                        // A peer that cannot run a model is a fact about the peer.
                        Err(e) => eprintln!("{what}: {who} does not run it: {e:#}"),
                    };
                    take(HONE, Ok(round(&row)?));
                    take(HONE_CPU, Ok(round(&cpu)?));
                    take(ORT_CPU, timed(&python, ORT_CPU));
                    for (who, python) in &peers {
                        take(who, timed(python, who));
                    }
                }
                let middle = |f: fn(&Round) -> f64, r: &[Round]| median(r.iter().map(f).collect());
                let ms = rounds.iter().map(|(who, r)| (who.clone(), [middle(|r| r.p50, r), middle(|r| r.p99, r)]));
                let work = work.get(*model).with_context(|| format!("make.py has not counted the work of {model}"))?;
                let operations = batch as f64 * work.operations;
                let bytes = precision.bytes * work.weights + std::fs::metadata(&inputs)?.len() as f64;
                let row = Row {
                    model: (*model).to_owned(),
                    batch,
                    precision: precision.name,
                    operations,
                    least_ms: roofline.least_ms(precision, operations, bytes),
                    ms: ms.collect(),
                    steps,
                };
                println!("{}", row.line(&names));
                rows.push(row);
            }
        }
    }
    let machine = format!(
        "{}, commit {}, {} rounds, {} threads of the CPU",
        cpu(),
        commit(root),
        options.rounds,
        options.threads
    );
    let table = table(&roofline, &rows, &names, &machine);
    println!("\n{table}");
    let document = serde_json::json!({
        "schema": "hone.peers.gpu/1", "machine": machine, "roofline": roofline, "rows": rows,
    });
    for (name, text) in [("gpu.md", &table), ("gpu.json", &serde_json::to_string_pretty(&document)?)] {
        std::fs::write(home.join(name), text)?;
    }
    println!("written to {}", home.join("gpu.md").display());
    Ok(true)
}

/// Runs the example. Its kernels are the driver's affair, so that how it is built does not matter.
fn roofline(root: &Path, software: bool) -> anyhow::Result<Roofline> {
    let mut command = cargo_command(root);
    command.args(gpu_example("roofline"));
    command.args(if software { &["--", "--software"][..] } else { &["--release"] });
    serde_json::from_str(&quietly(&mut command)?).context("the roofline is none")
}

/// The peers that run on a GPU, each with the first Python that has it.
fn peers(recipes: &Path, pythons: impl Iterator<Item = PathBuf>) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut all = BTreeMap::new();
    for python in pythons {
        let said = quietly(Command::new(&python).arg(recipes.join("time.py")).arg("--gpu"));
        // The system's may lack what the script itself needs.
        let Ok(said) = said else { continue };
        let there: BTreeMap<String, String> = serde_json::from_str(&said)?;
        for (who, version) in there {
            println!("{who} {version}: {}", python.display());
            all.entry(who).or_insert_with(|| python.clone());
        }
    }
    Ok(all)
}

/// Ratios are hone over the peer; below 1 hone is faster.
fn table(roofline: &Roofline, rows: &[Row], peers: &[&str], machine: &str) -> String {
    let Roofline { adapter, kind, driver, .. } = roofline;
    let mut text = format!("{adapter} ({kind}), {driver}; {machine}\n\n");
    if kind == "software" {
        text += "NO GPU: a program stands for one, and all this says is that the measurement works.\n\n";
    }
    text += &format!(
        "{}.\n\n| model | batch | precision | hone ms, p50 (p99) | GFLOP/s | of the roofline |",
        roofline.told()
    );
    let more: String = peers.iter().map(|p| format!(" {p} ms | hone / {p} |")).collect();
    text += &format!("{more} hone CPU ms | ONNX Runtime CPU ms | steps |\n|{}\n", "---|".repeat(9 + 2 * peers.len()));
    rows.iter().for_each(|row| text += &(row.line(peers) + "\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Roofline {
        let said = r#"{"adapter":"A","kind":"discrete","driver":"D 1","copy_bytes_per_s":4e11,"read_bytes_per_s":5e11,
            "f32_ops_per_s":1e13,"i8_ops_per_s":4e13,"f16_ops_per_s":null}"#;
        serde_json::from_str(said).unwrap()
    }

    #[test]
    fn options_are_those_of_the_usage_text() {
        let o = Options::parse(&["--only", "minilm", "--batches", "1", "--threads", "4", "--software"]).unwrap();
        assert_eq!((o.only, o.batches, o.threads, o.software), (vec!["minilm".to_owned()], vec![1], 4, true));
        for bad in [&["--batches", "2"][..], &["--only", "resnet"], &["--rounds", "0"], &["--python"], &["minilm"]] {
            assert_eq!(Options::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn nothing_is_faster_than_its_operations_or_its_bytes_whichever_takes_longer() {
        let [f32, .., int8] = &PRECISIONS;
        assert_eq!(device().least_ms(f32, 1e10, 1e6), 1.0);
        assert_eq!(device().least_ms(int8, 1e10, 1e6), 0.25);
        assert_eq!(device().least_ms(f32, 1e9, 1e9), 2.0);
    }

    #[test]
    fn a_row_says_how_much_of_the_roofline_is_reached_and_a_peer_that_failed_has_no_ratio() {
        let ms = [(HONE, [2.0, 3.0]), ("onnxruntime-cuda", [4.0, 4.0]), (ORT_CPU, [9.0, 9.0])];
        let ms = ms.map(|(who, ms)| (who.to_owned(), ms)).into();
        let (operations, least_ms) = (1e10, 1.0);
        let row =
            Row { model: "m".into(), batch: 1, precision: "f32", operations, least_ms, ms, steps: "7 steps".into() };
        let peers = ["onnxruntime-cuda", "onnxruntime-webgpu"];
        let line = row.line(&peers);
        assert_eq!(
            line,
            "| m | 1 | f32 | 2.000 (3.000) | 5000.0 | 50 % | 4.000 | 0.50 | – | – | – | 9.000 | 7 steps |"
        );
        let text = table(&device(), &[row], &peers, "here");
        let columns: Vec<usize> = text.lines().filter(|l| l.starts_with('|')).map(|l| l.matches('|').count()).collect();
        assert_eq!(columns, [14; 3], "{text}");
        assert!(!text.contains("NO GPU"), "{text}");
        let software = Roofline { kind: "software".into(), ..device() };
        assert!(table(&software, &[], &[], "here").contains("NO GPU"));
    }
}
