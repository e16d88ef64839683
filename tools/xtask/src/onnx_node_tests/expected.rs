//! Which cases hone is known not to pass, and why.
use std::fmt;

use anyhow::ensure;
use serde::Deserialize;

use super::{Case, Index};

/// What hone said of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Every output within the tolerance.
    Pass,
    /// Another result.
    Differs,
    /// Refused: an operator, type or attribute it does not do.
    Unsupported,
    /// Refused: no valid model or data.
    Invalid,
    /// A panic, caught; never expected.
    Panic,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Pass => "pass",
            Verdict::Differs => "differs",
            Verdict::Unsupported => "unsupported",
            Verdict::Invalid => "invalid",
            Verdict::Panic => "panic",
        })
    }
}

/// The committed list; its head documents the format.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expected {
    #[serde(rename = "failure", default)]
    groups: Vec<Group>,
}

/// Cases that fail for one reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub(super) reason: String,
    pub(super) verdict: Verdict,
    #[serde(default)]
    cases: Vec<String>,
    #[serde(default)]
    ops: Vec<String>,
    #[serde(default)]
    types: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
}

impl Expected {
    /// Reads the list.
    ///
    /// # Errors
    /// For what is not TOML of that form, a group that expects a pass or a panic, and one without reason or selector.
    pub(super) fn parse(text: &str) -> anyhow::Result<Expected> {
        let expected: Expected = toml::from_str(text)?;
        for g in &expected.groups {
            ensure!(!g.reason.trim().is_empty(), "a group has an empty reason");
            let failing = !matches!(g.verdict, Verdict::Pass | Verdict::Panic);
            ensure!(failing, "\"{}\": `{}` cannot be expected of a failure", g.reason, g.verdict);
            let selects = [&g.cases, &g.ops, &g.types].into_iter().any(|s| !s.is_empty());
            ensure!(selects, "\"{}\": neither cases nor ops nor types", g.reason);
        }
        Ok(expected)
    }

    /// Every group, in its order.
    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group that explains why this case fails: the first that takes it. None for a case that is to pass.
    pub(super) fn of(&self, name: &str, case: &Case) -> Option<&Group> {
        self.groups.iter().find(|g| g.takes(name, case))
    }

    /// Patterns that hit no case, as `REASON: PATTERN`: renamed, misspelt or of another version. A pattern of `except`
    /// must hit something its group would take.
    pub(super) fn idle_patterns(&self, index: &Index) -> Vec<String> {
        let mut idle = Vec::new();
        for g in &self.groups {
            let patterns = [(Kind::Case, &g.cases), (Kind::Op, &g.ops), (Kind::Type, &g.types)];
            for (kind, patterns) in patterns {
                let unused = |p: &&String| !index.cases.iter().any(|(name, case)| kind.hit(p, name, case));
                idle.extend(patterns.iter().filter(unused).map(|p| format!("\"{}\": {p}", g.reason)));
            }
            let unused = |p: &&String| !index.cases.iter().any(|(n, c)| matches(p, n) && g.selects(n, c));
            idle.extend(g.except.iter().filter(unused).map(|p| format!("\"{}\": except {p}", g.reason)));
        }
        idle
    }
}

impl Group {
    fn takes(&self, name: &str, case: &Case) -> bool {
        self.selects(name, case) && !self.except.iter().any(|p| matches(p, name))
    }

    fn selects(&self, name: &str, case: &Case) -> bool {
        self.cases.iter().any(|p| Kind::Case.hit(p, name, case))
            || self.ops.iter().any(|p| Kind::Op.hit(p, name, case))
            || self.types.iter().any(|p| Kind::Type.hit(p, name, case))
    }
}

/// What a pattern is about.
#[derive(Clone, Copy)]
enum Kind {
    Case,
    Op,
    Type,
}

impl Kind {
    fn hit(self, pattern: &str, name: &str, case: &Case) -> bool {
        match self {
            Kind::Case => matches(pattern, name),
            Kind::Op => case.ops.iter().any(|op| matches(pattern, op)),
            Kind::Type => case.types.iter().any(|t| matches(pattern, t)),
        }
    }
}

/// Whether the whole of `text` is the pattern, in which `*` stands for any text, also for none.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(head) else {
        return false;
    };
    (0..=text.len()).filter(|&i| text.is_char_boundary(i)).any(|i| matches(rest, &text[i..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(ops: &[&str], types: &[&str]) -> Case {
        let owned = |v: &[&str]| v.iter().map(|s| s.to_string()).collect();
        Case { ops: owned(ops), types: owned(types) }
    }

    #[test]
    fn a_star_stands_for_any_text_and_everything_else_for_itself() {
        for (pattern, text) in
            [("a", "a"), ("*", ""), ("a*", "a"), ("a*c", "abbc"), ("*b*", "abc"), ("a*b*c", "a_b_b_c")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("a", "ab"), ("a*", "ba"), ("a*c", "abcd"), ("a.b", "axb"), ("Sequence*", "ReverseSequence")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_group_takes_by_name_operator_or_type_except_what_it_excepts_and_the_first_group_wins() {
        let e = Expected::parse(
            r#"
            [[failure]]
            reason = "ml"
            verdict = "unsupported"
            ops = ["ai.onnx.ml.*"]
            types = ["sequence"]
            except = ["test_easy"]
            [[failure]]
            reason = "noise"
            verdict = "differs"
            cases = ["test_dft*", "test_ml"]
            "#,
        )
        .unwrap();
        let reason = |name: &str, c: Case| e.of(name, &c).map(|g| g.reason.clone());
        assert_eq!(reason("test_ml", case(&["Add", "ai.onnx.ml.Scaler"], &[])).as_deref(), Some("ml"));
        assert_eq!(reason("test_seq", case(&["Identity"], &["f32", "sequence"])).as_deref(), Some("ml"));
        assert_eq!(reason("test_easy", case(&["ai.onnx.ml.Scaler"], &[])), None);
        assert_eq!(reason("test_dft_axis", case(&["DFT"], &["f32"])).as_deref(), Some("noise"));
        assert_eq!(reason("test_add", case(&["Add"], &["f32"])), None);
    }

    #[test]
    fn patterns_that_hit_nothing_are_named() {
        let e = Expected::parse(
            "[[failure]]\nreason = \"r\"\nverdict = \"invalid\"\ncases = [\"a\", \"gone*\"]\nops = [\"Add\"]\n\
             types = [\"f3\"]\nexcept = [\"b\", \"a\"]\n",
        )
        .unwrap();
        let cases = [("a", case(&["Sub"], &["f32"])), ("b", case(&["Mul"], &[]))];
        let index = Index { onnx: String::new(), cases: cases.map(|(n, c)| (n.to_string(), c)).into() };
        assert_eq!(e.idle_patterns(&index), ["\"r\": gone*", "\"r\": Add", "\"r\": f3", "\"r\": except b"]);
    }

    #[test]
    fn a_list_that_expects_a_panic_or_gives_no_reason_or_selects_nothing_is_refused() {
        let refused = |t: &str| Expected::parse(t).unwrap_err().to_string();
        let group = |reason: &str, verdict: &str, rest: &str| {
            format!("[[failure]]\nreason = {reason:?}\nverdict = {verdict:?}\n{rest}\n")
        };
        let one = "cases = [\"a\"]";
        assert_eq!(refused(&group("r", "panic", one)), "\"r\": `panic` cannot be expected of a failure");
        assert_eq!(refused(&group("r", "pass", one)), "\"r\": `pass` cannot be expected of a failure");
        assert_eq!(refused(&group(" ", "differs", one)), "a group has an empty reason");
        assert_eq!(refused(&group("r", "differs", "except = [\"a\"]")), "\"r\": neither cases nor ops nor types");
        assert!(refused(&group("r", "differs", "case = [\"a\"]")).contains("unknown field"));
    }
}
