//! What hone said against what is expected of it.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::Index;
use super::expected::{Expected, Verdict};
use super::reference::Reference;

/// Most surprises of one kind that are printed with their detail; the rest by name.
const DETAILED: usize = 200;

/// One line of `hone check --batch DIR --jsonl`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct CaseResult {
    case: String,
    verdict: Verdict,
    /// Why it did not pass.
    #[serde(default)]
    detail: Option<String>,
}

impl CaseResult {
    /// Every line, by case.
    ///
    /// # Errors
    /// Naming the line that cannot be read, or the case that is there twice.
    pub(super) fn parse_all(jsonl: &str) -> anyhow::Result<BTreeMap<String, CaseResult>> {
        let mut all = BTreeMap::new();
        for (at, line) in jsonl.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let result: CaseResult =
                serde_json::from_str(line).with_context(|| format!("line {} of hone's verdicts: {line}", at + 1))?;
            let name = result.case.clone();
            ensure!(all.insert(name.clone(), result).is_none(), "line {} of hone's verdicts: {name} again", at + 1);
        }
        Ok(all)
    }
}

/// Something that did not end as expected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Surprise {
    /// A panic, expected or not.
    Panics,
    /// Expected to pass.
    StartsToFail(Verdict),
    /// Expected to fail.
    StartsToPass,
    /// Expected to fail in another way.
    FailsOtherwise(Verdict),
    /// No verdict at all.
    Missing,
    /// A verdict about a case that is not there.
    Unknown,
    /// A pattern of the list, in place of the name, that hits no case.
    IdlePattern,
}

/// The verdicts, compared.
#[derive(Debug)]
pub(super) struct Judgement {
    verdicts: BTreeMap<String, Verdict>,
    /// What is not as expected: the surprise, the case, and its detail or the reason it was expected for.
    surprises: BTreeSet<(Surprise, String, String)>,
    /// Failures as expected, by reason, in the order of the list.
    explained: Vec<(String, usize)>,
}

impl Judgement {
    /// Compares the verdict of every case of the index with the list.
    ///
    /// # Errors
    /// When there are no cases, which would pass for as expected.
    pub(super) fn of(
        index: &Index,
        expected: &Expected,
        results: &BTreeMap<String, CaseResult>,
    ) -> anyhow::Result<Judgement> {
        ensure!(!index.cases.is_empty(), "there are no cases");
        let mut surprises = BTreeSet::new();
        let mut surprise = |what, case: &str, why: &str| {
            surprises.insert((what, case.to_string(), why.to_string()));
        };
        let mut explained: Vec<(String, usize)> = expected.groups().iter().map(|g| (g.reason.clone(), 0)).collect();
        for (name, case) in &index.cases {
            let group = expected.of(name, case);
            let Some(result) = results.get(name) else {
                surprise(Surprise::Missing, name, "");
                continue;
            };
            let detail = result.detail.as_deref().unwrap_or_default();
            match (group, result.verdict) {
                (_, Verdict::Panic) => surprise(Surprise::Panics, name, detail),
                (None, Verdict::Pass) => {}
                (None, verdict) => surprise(Surprise::StartsToFail(verdict), name, detail),
                (Some(g), Verdict::Pass) => surprise(Surprise::StartsToPass, name, &g.reason),
                (Some(g), verdict) if verdict == g.verdict => {
                    explained.iter_mut().filter(|(r, _)| *r == g.reason).for_each(|(_, n)| *n += 1);
                }
                (Some(g), verdict) => {
                    surprise(Surprise::FailsOtherwise(verdict), name, &format!("not {}: {detail}", g.verdict));
                }
            }
        }
        results.keys().filter(|c| !index.cases.contains_key(*c)).for_each(|c| surprise(Surprise::Unknown, c, ""));
        expected.idle_patterns(index).iter().for_each(|p| surprise(Surprise::IdlePattern, p, ""));
        let verdicts = results.iter().map(|(n, r)| (n.clone(), r.verdict)).collect();
        Ok(Judgement { verdicts, surprises, explained })
    }

    /// Whether nothing is otherwise than the list says.
    pub(super) fn as_expected(&self) -> bool {
        self.surprises.is_empty()
    }

    /// Every surprise by name, and the figures beside ONNX Runtime's.
    pub(super) fn report(&self, index: &Index, reference: &Reference) -> String {
        let mut out = String::new();
        let mut kinds: Vec<&Surprise> = self.surprises.iter().map(|(s, ..)| s).collect();
        kinds.dedup();
        for kind in kinds {
            let of_kind: Vec<_> = self.surprises.iter().filter(|(s, ..)| s == kind).collect();
            let title = match kind {
                Surprise::Panics => "panic".to_string(),
                Surprise::StartsToFail(v) => format!("to pass, but now: {v}"),
                Surprise::StartsToPass => "pass now; take them off the list of expected failures".to_string(),
                Surprise::FailsOtherwise(v) => format!("fail otherwise than expected: {v}"),
                Surprise::Missing => "without a verdict".to_string(),
                Surprise::Unknown => "verdicts on cases that are not there".to_string(),
                Surprise::IdlePattern => "patterns of expected failures that hit nothing".to_string(),
            };
            let _ = writeln!(out, "\n{} {title}", of_kind.len());
            for (at, (_, case, why)) in of_kind.into_iter().enumerate() {
                let why = if at < DETAILED && !why.is_empty() { format!("  ({why})") } else { String::new() };
                let _ = writeln!(out, "  {case}{why}");
            }
        }

        let mine = |case: &str| self.verdicts.get(case) == Some(&Verdict::Pass);
        let ort = |case: &str| reference.passes(case);
        let numpy = |case: &str| reference.passes_by_numpy(index, case);
        let count = |among: &dyn Fn(&str) -> bool| index.cases.keys().filter(|c| among(c)).count();
        let _ = writeln!(
            out,
            "\nnode tests of onnx {:26} {:>6} {:>6} {:>22}",
            index.onnx,
            "cases",
            "hone",
            format!("ONNX Runtime {}", reference.onnxruntime)
        );
        let mut row = |name: &str, among: &dyn Fn(&str) -> bool| {
            let all = count(among);
            let (us, them) = (count(&|c| among(c) && mine(c)), count(&|c| among(c) && ort(c)));
            let _ = writeln!(out, "  {name:42} {all:>6} {us:>6} {them:>22}");
        };
        row("all", &|_| true);
        row("that ONNX Runtime passes", &ort);
        row("that it passes through NumPy arrays", &numpy);
        row("that it does not pass", &|c| !ort(c));

        out.push_str("\nverdicts:");
        for v in [Verdict::Pass, Verdict::Differs, Verdict::Unsupported, Verdict::Invalid, Verdict::Panic] {
            let n = index.cases.keys().filter(|c| self.verdicts.get(*c) == Some(&v)).count();
            let _ = write!(out, "  {v} {n}");
        }
        out.push_str("\nfailures as expected:\n");
        for (reason, n) in &self.explained {
            let _ = writeln!(out, "  {n:>5}  {reason}");
        }
        let _ = match self.surprises.len() {
            0 => writeln!(out, "every case is as expected"),
            n => writeln!(out, "{n} not as expected, see above"),
        };
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::Case;
    use super::*;

    const EXPECTED: &str = r#"
        [[failure]]
        reason = "no strings"
        verdict = "unsupported"
        types = ["string"]
        [[failure]]
        reason = "noise"
        verdict = "differs"
        cases = ["test_dft*"]
    "#;

    /// Two that pass, a string, a DFT.
    fn index() -> Index {
        let case = |op: &str, t: &str| Case { ops: vec![op.into()], types: vec![t.into()] };
        let cases = [
            ("test_add", case("Add", "f32")),
            ("test_cast", case("Cast", "bf16")),
            ("test_dft", case("DFT", "f32")),
            ("test_upper", case("StringNormalizer", "string")),
        ];
        Index { onnx: "1.2".into(), cases: cases.map(|(n, c)| (n.to_string(), c)).into() }
    }

    /// A judgement of these verdicts on top of the expected ones; an empty verdict is none.
    fn judged(planted: &[(&str, &str)]) -> Judgement {
        let mut said: BTreeMap<&str, &str> =
            [("test_add", "pass"), ("test_cast", "pass"), ("test_dft", "differs"), ("test_upper", "unsupported")]
                .into();
        said.extend(planted.iter().copied());
        said.retain(|_, v| !v.is_empty());
        let line = |(c, v): (&&str, &&str)| format!("{{\"case\":{c:?},\"verdict\":{v:?},\"detail\":\"because\"}}\n");
        let results = CaseResult::parse_all(&said.iter().map(line).collect::<String>()).unwrap();
        Judgement::of(&index(), &Expected::parse(EXPECTED).unwrap(), &results).unwrap()
    }

    fn surprises(planted: &[(&str, &str)]) -> Vec<(Surprise, String, String)> {
        let j = judged(planted);
        assert_eq!(j.as_expected(), j.surprises.is_empty());
        j.surprises.into_iter().collect()
    }

    fn one(what: Surprise, case: &str, why: &str) -> Vec<(Surprise, String, String)> {
        vec![(what, case.into(), why.into())]
    }

    #[test]
    fn verdicts_as_expected_surprise_nobody_and_are_counted_by_reason() {
        let j = judged(&[]);
        assert!(j.as_expected(), "{j:?}");
        assert_eq!(j.explained, [("no strings".to_string(), 1), ("noise".to_string(), 1)]);
    }

    #[test]
    fn a_case_that_starts_to_fail_is_named_with_its_detail() {
        for (verdict, v) in
            [("differs", Verdict::Differs), ("unsupported", Verdict::Unsupported), ("invalid", Verdict::Invalid)]
        {
            assert_eq!(surprises(&[("test_add", verdict)]), one(Surprise::StartsToFail(v), "test_add", "because"));
        }
    }

    #[test]
    fn a_case_that_starts_to_pass_is_named_with_the_reason_it_was_listed_for() {
        assert_eq!(surprises(&[("test_dft", "pass")]), one(Surprise::StartsToPass, "test_dft", "noise"));
    }

    #[test]
    fn a_case_that_fails_in_another_way_is_named() {
        let wrong = one(Surprise::FailsOtherwise(Verdict::Differs), "test_upper", "not unsupported: because");
        assert_eq!(surprises(&[("test_upper", "differs")]), wrong, "wrong in silence where it was refused");
    }

    #[test]
    fn a_panic_is_named_also_where_a_failure_is_expected() {
        assert_eq!(surprises(&[("test_add", "panic")]), one(Surprise::Panics, "test_add", "because"));
        assert_eq!(surprises(&[("test_upper", "panic")]), one(Surprise::Panics, "test_upper", "because"));
    }

    #[test]
    fn a_case_without_verdict_and_a_verdict_without_case_are_named() {
        assert_eq!(surprises(&[("test_add", "")]), one(Surprise::Missing, "test_add", ""));
        assert_eq!(
            surprises(&[("test_dft", "")]),
            one(Surprise::Missing, "test_dft", ""),
            "though a failure is expected"
        );
        assert_eq!(surprises(&[("test_new", "pass")]), one(Surprise::Unknown, "test_new", ""));
    }

    #[test]
    fn a_pattern_that_hits_nothing_is_named() {
        let mut without = index();
        without.cases.remove("test_dft");
        let results = CaseResult::parse_all("{\"case\":\"test_add\",\"verdict\":\"pass\"}").unwrap();
        let j = Judgement::of(&without, &Expected::parse(EXPECTED).unwrap(), &results).unwrap();
        assert!(j.surprises.contains(&(Surprise::IdlePattern, "\"noise\": test_dft*".into(), String::new())), "{j:?}");
    }

    #[test]
    fn lines_that_are_no_verdicts_are_refused_and_so_is_a_case_that_comes_twice() {
        let refused = |t: &str| format!("{:#}", CaseResult::parse_all(t).unwrap_err());
        let line = "{\"case\":\"a\",\"verdict\":\"pass\",\"detail\":null}\n";
        assert!(CaseResult::parse_all(line).is_ok());
        assert_eq!(refused(&format!("{line}{line}")), "line 2 of hone's verdicts: a again");
        assert!(refused("{\"case\":\"a\",\"verdict\":\"fine\"}").starts_with("line 1 of hone's verdicts"));
        assert!(refused("thread 'main' panicked").starts_with("line 1 of hone's verdicts"));
    }

    #[test]
    fn no_cases_at_all_are_an_error_and_not_a_success() {
        let none = Index { onnx: String::new(), cases: BTreeMap::new() };
        Judgement::of(&none, &Expected::parse("").unwrap(), &BTreeMap::new()).unwrap_err();
    }

    #[test]
    fn the_report_has_hones_figures_beside_those_of_onnx_runtime_and_every_surprise_by_name() {
        let reference = Reference::parse("onnx 1.2\nonnxruntime 3.4\ncases 4\ntest_dft fail x\n").unwrap();
        let text = judged(&[("test_cast", "differs"), ("test_dft", "pass")]).report(&index(), &reference);
        let figures = |name: &str| -> Vec<usize> {
            let line = text
                .lines()
                .find(|l| l.trim_start().starts_with(&format!("{name}  ")))
                .unwrap_or_else(|| panic!("{text}"));
            line.split_whitespace()
                .rev()
                .take(3)
                .map(|w| w.parse().unwrap())
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect()
        };
        assert_eq!(figures("all"), [4, 2, 3], "{text}");
        assert_eq!(figures("that ONNX Runtime passes"), [3, 1, 3]);
        assert_eq!(figures("that it passes through NumPy arrays"), [2, 1, 2], "bf16 is not among them");
        assert_eq!(figures("that it does not pass"), [1, 1, 0]);
        for part in
            ["1 to pass, but now: differs\n  test_cast  (because)\n", "  test_dft  (noise)\n", "2 not as expected"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
