//! Which of two devices runs a model: measured on the model itself, remembered with what it was measured on.
//!
//! It knows no session and no device; the caller times both, and keeps the file where it likes.
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

/// How much faster a GPU has to be to be taken: less is noise.
const MARGIN: f64 = 1.10;

/// How long a verdict is believed before it is measured again.
const VALID: Duration = Duration::from_secs(7 * 24 * 3600);

/// What both took, and which one runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Milliseconds of a run on the CPU.
    pub cpu_ms: f64,
    /// Milliseconds of a run on the GPU.
    pub gpu_ms: f64,
    /// The GPU runs it.
    pub gpu: bool,
    /// When that was measured, in seconds since 1970.
    pub measured_s: u64,
}

impl Verdict {
    /// From two times. The GPU is taken when it is faster by the margin; one that was taken `before` goes on until it is the
    /// slower one. So two that are about as fast do not take turns, and none that was measured to be slower runs.
    pub fn of(cpu_ms: f64, gpu_ms: f64, before: Option<Verdict>, now: SystemTime) -> Verdict {
        let taken = before.is_some_and(|v| v.gpu);
        let gpu = gpu_ms * if taken { 1.0 } else { MARGIN } < cpu_ms;
        Verdict { cpu_ms, gpu_ms, gpu, measured_s: seconds(now) }
    }

    /// Whether it is to be measured again: it is old, or of a time that has not come yet.
    fn is_old(&self, now: SystemTime) -> bool {
        !(self.measured_s..self.measured_s.saturating_add(VALID.as_secs())).contains(&seconds(now))
    }

    /// One line that says why.
    pub fn why(&self) -> String {
        let Verdict { cpu_ms, gpu_ms, gpu, .. } = *self;
        let (which, rule) = match (gpu, gpu_ms * MARGIN < cpu_ms) {
            (true, true) => ("the GPU", "it wins by more than 10 %"),
            (true, false) => ("the GPU", "it won by more than 10 % before, and is still not the slower one"),
            (false, _) if gpu_ms < cpu_ms => ("the CPU", "the GPU has to win by more than 10 %"),
            (false, _) => ("the CPU", "the GPU is not faster"),
        };
        format!("{which}: {gpu_ms:.2} ms on the GPU, {cpu_ms:.2} ms on the CPU; {rule}")
    }
}

fn seconds(t: SystemTime) -> u64 {
    t.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The class of inputs of those names and shapes: every length rounded up to a power of two. Inputs of one class are expected
/// to be computed at one speed, so that a verdict on some of them holds for all.
pub fn class<'a>(inputs: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> String {
    let one = |(name, shape): (&str, &[usize])| {
        let lengths: Vec<String> = shape.iter().map(|n| n.next_power_of_two().to_string()).collect();
        format!("{name} [{}]", lengths.join(", "))
    };
    inputs.into_iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The verdict under `key` in `file`: remembered, or measured now and remembered; an old one is measured again. The file's
/// being missing, damaged or not writable only means that it is measured again next time.
///
/// # Errors
/// Those of the two timers, each of which gives milliseconds of a run; the GPU's is told the CPU's, so that it can end early.
pub fn choose<E>(
    key: &str,
    file: Option<&Path>,
    now: SystemTime,
    cpu: impl FnOnce() -> Result<f64, E>,
    gpu: impl FnOnce(f64) -> Result<f64, E>,
) -> Result<Verdict, E> {
    let before = file.map(remembered).unwrap_or_default().remove(key);
    if let Some(v) = before.filter(|v| !v.is_old(now)) {
        return Ok(v);
    }
    let cpu_ms = cpu()?;
    let verdict = Verdict::of(cpu_ms, gpu(cpu_ms)?, before, now);
    if let Some(file) = file {
        // Another process may have written in the meantime.
        let mut known = remembered(file);
        known.insert(key.to_string(), verdict);
        keep(file, &known);
    }
    Ok(verdict)
}

/// Every verdict in a file, by its key.
pub fn remembered(file: &Path) -> BTreeMap<String, Verdict> {
    std::fs::read(file).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
}

fn keep(file: &Path, known: &BTreeMap<String, Verdict>) {
    let Ok(text) = serde_json::to_vec_pretty(known) else { return };
    let part = file.with_extension(format!("{}.part", std::process::id()));
    let written =
        file.parent().is_none_or(|d| std::fs::create_dir_all(d).is_ok()) && std::fs::write(&part, text).is_ok();
    if !written || std::fs::rename(&part, file).is_err() {
        let _ = std::fs::remove_file(&part);
    }
}

/// How many times as slow as the other device one is without hope.
const HOPELESS: f64 = 4.0;

/// Milliseconds of the fastest of several runs in about `budget`, the first one not counted. A run that alone takes the budget is the
/// only one. Where the other device takes `against` milliseconds, it ends when this one is hopelessly behind.
///
/// # Errors
/// Those of `run`.
pub fn fastest_ms<E>(budget: Duration, against: Option<f64>, mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    for n in 0.. {
        let start = Instant::now();
        run()?;
        let took = start.elapsed();
        let over = began.elapsed() >= budget;
        if n > 0 || over {
            best = best.min(took.as_secs_f64() * 1e3);
        }
        // Two that count: in the first ones a device still makes what it needs.
        if over || n > 1 && against.is_some_and(|other| best > HOPELESS * other) {
            break;
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + n * 86_400)
    }

    #[test]
    fn a_gpu_has_to_win_by_more_than_a_tenth_to_be_taken_and_to_be_slower_to_be_left() {
        let of = |cpu, gpu, before: Option<bool>| {
            let before = before.map(|gpu| Verdict { cpu_ms: 1.0, gpu_ms: 1.0, gpu, measured_s: 0 });
            Verdict::of(cpu, gpu, before, day(0)).gpu
        };
        for before in [None, Some(false)] {
            assert!(!of(10.0, 9.5, before) && of(10.0, 9.0, before) && !of(10.0, 20.0, before), "{before:?}");
        }
        let taken = Some(true);
        assert!(of(10.0, 9.5, taken) && of(10.0, 9.0, taken));
        assert!(!of(10.0, 10.0, taken) && !of(10.0, 10.1, taken), "a GPU that is not faster does not run");
    }

    #[test]
    fn a_verdict_says_by_which_rule_it_was_reached() {
        let why = |cpu_ms, gpu_ms, gpu| Verdict { cpu_ms, gpu_ms, gpu, measured_s: 0 }.why();
        let all = [why(10.0, 5.0, true), why(10.0, 9.5, true), why(10.0, 9.5, false), why(10.0, 11.0, false)];
        assert_eq!(all[0], "the GPU: 5.00 ms on the GPU, 10.00 ms on the CPU; it wins by more than 10 %");
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a.split("; ").nth(1) != b.split("; ").nth(1)), "{a}");
        }
    }

    #[test]
    fn what_was_measured_is_not_measured_again_until_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("deep/devices.json");
        let measured =
            |key: &str, n, cpu, gpu| choose(key, Some(&file), day(n), || Ok::<_, ()>(cpu), |_| Ok(gpu)).unwrap();
        let first = measured("a", 0, 10.0, 1.0);
        assert!(first.gpu);
        let never = || -> Result<f64, ()> { panic!("measured again") };
        assert_eq!(choose("a", Some(&file), day(6), never, |_| never()).unwrap(), first);
        assert!(!measured("b", 0, 1.0, 10.0).gpu);
        assert_eq!(remembered(&file).len(), 2);
        // An old one is measured again, and goes on within the margin; the next one is not within it.
        let second = measured("a", 7, 10.0, 9.5);
        assert!(second.gpu && second.measured_s > first.measured_s);
        assert!(!measured("a", 14, 10.0, 10.5).gpu);
        assert!(!measured("a", 21, 10.0, 9.5).gpu);
        assert!(measured("a", 20, 10.0, 1.0).gpu, "the clock was wrong before");
        std::fs::write(&file, "{").unwrap();
        assert!(measured("b", 0, 10.0, 1.0).gpu, "a damaged file says nothing");
        assert_eq!(choose("c", None, day(0), || Err("no model"), |_| Ok(1.0)), Err("no model"));
        let told = choose("c", None, day(0), || Ok::<_, ()>(7.0), |cpu| Ok(cpu / 2.0)).unwrap();
        assert_eq!((told.cpu_ms, told.gpu_ms, told.gpu), (7.0, 3.5, true), "the GPU's timer is told the CPU's time");
    }

    #[test]
    fn inputs_are_of_one_class_when_their_lengths_are_of_one_power_of_two() {
        let of = |shape: &[usize]| class([("ids", shape), ("mask", &[1][..])]);
        assert_eq!(of(&[1, 100]), "ids [1, 128], mask [1]");
        assert_eq!(of(&[1, 65]), of(&[1, 128]));
        assert_ne!(of(&[1, 64]), of(&[1, 65]));
        assert_ne!(of(&[1, 128]), of(&[2, 128]));
        assert_eq!(class([("scalar", &[][..])]), "scalar []");
    }

    /// How often `ms` after `ms` is run, and what is found.
    fn timed(budget: u64, against: Option<f64>, ms: &[u64]) -> (usize, f64) {
        let mut runs = 0;
        let found = fastest_ms(Duration::from_millis(budget), against, || {
            std::thread::sleep(Duration::from_millis(ms[runs.min(ms.len() - 1)]));
            runs += 1;
            Ok::<_, ()>(())
        });
        (runs, found.unwrap())
    }

    #[test]
    fn the_first_run_is_not_counted_unless_there_is_no_time_for_another() {
        let (runs, found) = timed(400, None, &[30, 3]);
        assert!(runs > 1 && (3.0..30.0).contains(&found), "{runs} runs, {found} ms");
        let (runs, found) = timed(20, None, &[30, 3]);
        assert!(runs == 1 && found >= 30.0, "{runs} runs, {found} ms");
    }

    #[test]
    fn a_device_that_is_hopelessly_behind_is_not_timed_for_longer() {
        let (runs, found) = timed(60_000, Some(1.0), &[50, 20]);
        assert!(runs == 3 && found >= 20.0, "{runs} runs, {found} ms");
        // One that is not is timed on.
        assert!(timed(600, Some(5.0), &[2]).0 > 3);
    }
}
