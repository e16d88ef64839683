//! What ONNX Runtime does with the cases, as recorded.
use std::collections::BTreeMap;

use anyhow::{Context, ensure};

use super::Index;

/// Element types that ONNX Runtime's Python interface cannot take from NumPy, nor give to it. "The cases that ONNX Runtime
/// passes" are commonly counted through that interface, without these.
const NOT_NUMPY: &[&str] =
    &["bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f8e8m0", "f4e2m1", "i4", "u4", "i2", "u2"];

/// The committed record.
#[derive(Debug)]
pub(super) struct Reference {
    /// The version of the `onnx` package whose cases were run.
    pub(super) onnx: String,
    /// The version of ONNX Runtime.
    pub(super) onnxruntime: String,
    cases: usize,
    /// The cases it does not pass, with `fail …` or `error …`.
    failures: BTreeMap<String, String>,
}

impl Reference {
    /// Reads the record: `#` comments; `onnx VERSION`, `onnxruntime VERSION`, `cases COUNT`; then `CASE fail|error REASON`.
    ///
    /// # Errors
    /// Naming the line that is none of these, or doubled.
    pub(super) fn parse(text: &str) -> anyhow::Result<Reference> {
        let mut lines = text.lines().enumerate().filter(|(_, l)| !l.starts_with('#'));
        let mut head = |key: &str| {
            let (_, line) = lines.next().with_context(|| format!("no line `{key} …`"))?;
            let value = line.strip_prefix(key).and_then(|v| v.strip_prefix(' '));
            value.map(str::to_string).with_context(|| format!("`{line}` is not `{key} …`"))
        };
        let (onnx, onnxruntime, cases) = (head("onnx")?, head("onnxruntime")?, head("cases")?);
        let cases = cases.parse().with_context(|| format!("`{cases}` is no count"))?;
        let mut failures = BTreeMap::new();
        for (at, line) in lines {
            let words = line.split_once(' ').filter(|(_, r)| r.starts_with("fail ") || r.starts_with("error "));
            let (case, reason) = words.with_context(|| format!("line {}: not `CASE fail|error REASON`", at + 1))?;
            let doubled = failures.insert(case.to_string(), reason.to_string());
            ensure!(doubled.is_none(), "line {}: {case} is there twice", at + 1);
        }
        Ok(Reference { onnx, onnxruntime, cases, failures })
    }

    /// Whether the record is one of these cases.
    ///
    /// # Errors
    /// Naming the other version, the other count, or a case that is not there.
    pub(super) fn check(&self, index: &Index) -> anyhow::Result<()> {
        ensure!(self.onnx == index.onnx, "recorded with onnx {}, but the cases are of onnx {}", self.onnx, index.onnx);
        ensure!(self.cases == index.cases.len(), "recorded over {} cases, now {}", self.cases, index.cases.len());
        for case in self.failures.keys() {
            ensure!(index.cases.contains_key(case), "there is no case {case}");
        }
        Ok(())
    }

    /// Whether ONNX Runtime passes the case, its tensors handed over in whatever way works.
    pub(super) fn passes(&self, case: &str) -> bool {
        !self.failures.contains_key(case)
    }

    /// Whether it passes the case through NumPy arrays.
    pub(super) fn passes_by_numpy(&self, index: &Index, case: &str) -> bool {
        self.passes(case) && index.cases[case].types.iter().all(|t| !NOT_NUMPY.contains(&t.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str =
        "# why\nonnx 1.2\nonnxruntime 3.4\ncases 3\nb error no kernel\nc fail 1 of 2 elements differ\n";

    fn index(cases: &[&str]) -> Index {
        Index { onnx: "1.2".into(), cases: cases.iter().map(|c| (c.to_string(), Default::default())).collect() }
    }

    #[test]
    fn a_record_says_who_passes_and_by_which_interface() {
        let r = Reference::parse(RECORD).unwrap();
        let mut cases = index(&["a", "b", "c"]);
        r.check(&cases).unwrap();
        assert_eq!([r.passes("a"), r.passes("b"), r.passes("c")], [true, false, false]);
        assert!(r.passes_by_numpy(&cases, "a"));
        cases.cases.get_mut("a").unwrap().types = vec!["f32".into(), "bf16".into()];
        assert!(r.passes("a") && !r.passes_by_numpy(&cases, "a"));
    }

    #[test]
    fn a_record_of_other_cases_is_refused_by_name() {
        let r = Reference::parse(RECORD).unwrap();
        let refused = |i: &Index| r.check(i).unwrap_err().to_string();
        assert_eq!(refused(&index(&["a", "b"])), "recorded over 3 cases, now 2");
        assert_eq!(refused(&index(&["a", "b", "d"])), "there is no case c");
        let newer = Index { onnx: "1.3".into(), ..index(&["a", "b", "c"]) };
        assert_eq!(refused(&newer), "recorded with onnx 1.2, but the cases are of onnx 1.3");
    }

    #[test]
    fn a_damaged_record_is_refused_with_its_line() {
        let refused = |t: &str| Reference::parse(t).unwrap_err().to_string();
        assert_eq!(refused("onnx 1\ncases 2\n"), "`cases 2` is not `onnxruntime …`");
        assert_eq!(refused(&format!("{RECORD}d passes\n")), "line 7: not `CASE fail|error REASON`");
        assert_eq!(refused(&format!("{RECORD}b fail x\n")), "line 7: b is there twice");
    }
}
