//! Every rule is shown a violation and must find it where it is, and must stay silent when it is taken away.
use super::tree::Tree;
use super::{Finding, RULES};

/// Rule, file that breaks it, its text, and the line to be named.
const PLANTED: &[(&str, &str, &str, usize)] = &[
    ("parses", "runtime/src/ops/a.rs", "\nfn broken( {}\n", 2),
    ("parses", "runtime/Cargo.toml", "[dependencies\n", 0),
    ("top-level", "scripts/a.py", "\n", 0),
    ("unsafe", "runtime/src/plan/a.rs", "fn f(p: *const u8) -> u8 {\n    unsafe { *p }\n}\n", 2),
    ("unsafe", "tests/a.rs", "#[cfg(test)]\nmod t {\n    unsafe fn g() {}\n}\n", 3),
    ("forbid-unsafe", "tools/xtask/src/main.rs", "//! No attribute.\nfn main() {}\n", 1),
    ("tract", "runtime/src/session.rs", "\nuse tract_onnx::prelude::*;\n", 2),
    ("tract", "tools/xtask/Cargo.toml", "[dependencies]\ntract-core = \"1\"\n", 2),
    ("rusqlite", "runtime/src/adapters.rs", "fn f(_: &rusqlite::Connection) {}\n", 1),
    ("wgpu", "runtime/src/device.rs", "use wgpu::Device;\n", 1),
    ("wgpu", "runtime/Cargo.toml", "[target.'cfg(unix)'.dependencies]\nwgpu = \"30\"\n", 2),
    ("kernels", "runtime/kernels/src/a.rs", "fn f() {\n    let _ = vec![0u8; 4];\n}\n", 2),
    ("kernels", "runtime/kernels/src/a.rs", "fn f(s: &[u8]) -> impl Sized {\n    s.to_vec()\n}\n", 2),
    ("kernels", "runtime/kernels/Cargo.toml", "[dependencies]\nlibc = \"0.2\"\n", 2),
    ("no-std", "firmware/pad/src/lib.rs", "//! No attribute.\n", 1),
    ("no-std", "firmware/wire/src/a.rs", "use core::fmt;\nuse std::vec;\n", 2),
    ("no-std", "firmware/wire/src/a.rs", "fn f() -> alloc::string::String { todo }\n", 1),
    ("pad-clock", "firmware/pad/src/a.rs", "fn now() -> Instant {\n    Instant::now()\n}\n", 1),
    ("wire-io", "firmware/wire/Cargo.toml", "[dependencies]\nembedded-io = \"1\"\n", 2),
    ("wire-io", "firmware/wire/src/a.rs", "use embedded_hal::digital::InputPin;\n", 1),
    ("network", "runtime/src/feedback/a.rs", "use std::{io, net};\n", 1),
    ("network", "runtime/src/capture/a.rs", "fn f() {\n    let _ = Some(TcpStream::connect);\n}\n", 2),
    ("network", "runtime/Cargo.toml", "[dependencies]\nureq = \"3\"\n", 2),
    (
        "crates",
        "runtime/kernels/Cargo.toml",
        "[package]\nname = \"hone-kernels\"\n[dependencies]\nhone-wire = \"0\"\n",
        4,
    ),
    ("crates", "runtime/new/Cargo.toml", "[package]\nname = \"hone-new\"\n", 0),
    ("modules", "runtime/src/session.rs", "use crate::graph::Graph;\nuse crate::feedback::Press;\n", 2),
    ("modules", "runtime/src/learn/gate.rs", "fn f(_: super::super::feedback::serial::Port) {}\n", 1),
    ("modules", "runtime/src/graph/dim.rs", "fn f() {\n    std::fs::read(\"x\").ok();\n}\n", 2),
    ("modules", "runtime/src/tensor.rs", "use crate::ops::Attrs;\n", 1),
    ("modules", "runtime/src/unheard_of.rs", "\n", 0),
    ("signatures", "runtime/src/bundle/a.rs", "pub fn f() -> Option<serde_json::Value> {\n    None\n}\n", 1),
    ("signatures", "runtime/src/journal/a.rs", "use rusqlite::Error as Sql;\npub enum E {\n    A(Sql),\n}\n", 3),
    (
        "signatures",
        "runtime/src/import/a.rs",
        "pub struct S {\n    a: tract_onnx::A,\n    pub b: tract_onnx::A,\n}\n",
        3,
    ),
    ("signatures", "runtime/src/import/a.rs", "pub use tract_onnx::prelude::*;\n", 1),
    ("signatures", "runtime/src/journal/a.rs", "pub struct E;\nimpl From<rusqlite::Error> for E {}\n", 2),
    ("signatures", "runtime/src/journal/a.rs", "pub trait T {\n    fn f(&self, c: &rusqlite::Row<'_>);\n}\n", 2),
    ("unfinished", "runtime/src/a.rs", concat!("fn f() {\n    // TO", "DO later\n}\n"), 2),
    ("unfinished", "runtime/src/a.rs", "fn f() {\n    todo!()\n}\n", 2),
    ("unfinished", "tests/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn a() {}\n", 2),
    ("unfinished", "models/a/README.md", concat!("FIX", "ME\n"), 1),
    ("machine-paths", "README.md", concat!("\ncd \"/ho", "me/somebody/hone\"\n"), 2),
    ("machine-paths", "runtime/src/a.rs", concat!("const P: &str = \"/t", "mp/x\";\n"), 1),
    ("lints", "runtime/Cargo.toml", "[package]\nname = \"hone-runtime\"\n", 0),
    ("lints", "Cargo.toml", "[workspace]\nmembers = []\n", 0),
    ("lints", "runtime/src/a.rs", "#![allow(missing_docs)]\n", 1),
    ("length", "runtime/src/long.rs", LONG, 1300),
];

const LONG: &str = {
    const BYTES: [u8; 1300] = [b'\n'; 1300];
    match std::str::from_utf8(&BYTES) {
        Ok(text) => text,
        Err(_) => panic!("newlines are UTF-8"),
    }
};

/// A tree that breaks no rule.
const CLEAN: &[(&str, &str)] = &[
    ("Cargo.toml", "[workspace]\n[workspace.lints.rust]\nmissing_docs = \"deny\"\n"),
    (
        "runtime/Cargo.toml",
        "[package]\nname = \"hone-runtime\"\n[dependencies]\nrusqlite = \"1\"\ntract-onnx = \"1\"\n[lints]\nworkspace = true\n",
    ),
    ("runtime/src/lib.rs", "#![forbid(unsafe_code)]\npub mod session;\n#[cfg(test)]\nmod checks;\n"),
    ("runtime/src/import/mod.rs", "use tract_onnx::prelude as tract;\npub(super) fn f(_: tract::Graph) {}\n"),
    ("runtime/src/journal/mod.rs", "use crate::state::Dir;\nstruct Store {\n    c: rusqlite::Connection,\n}\n"),
    ("runtime/src/session.rs", "use crate::import;\n#[cfg(test)]\nmod tests {\n    use crate::feedback::Press;\n}\n"),
    // Comments, strings and longer words are not code.
    (
        "runtime/src/ops/mod.rs",
        "//! No std::fs here, nothing unsafe.\nconst A: &str = \"std::net, unsafe, tract_onnx\";\nfn unsafely() {}\n",
    ),
    ("runtime/src/ops/relu.rs", "use super::super::tensor::Tensor;\nuse crate::graph::Dim;\n"),
    (
        "runtime/kernels/Cargo.toml",
        "[package]\nname = \"hone-kernels\"\n[dependencies]\n[dev-dependencies]\nproptest = \"1\"\n[lints]\nworkspace = true\n",
    ),
    (
        "runtime/kernels/src/lib.rs",
        "//! A Vec of words.\npub fn f(x: &[f32]) -> f32 {\n    // SAFETY: none needed.\n    unsafe { *x.as_ptr() }\n}\n#[cfg(test)]\nmod tests {\n    fn g() {\n        let _ = vec![1];\n    }\n}\n",
    ),
    (
        "firmware/wire/src/lib.rs",
        "#![no_std]\n#![forbid(unsafe_code)]\nuse core::fmt;\n#[cfg(test)]\nextern crate std;\n",
    ),
    ("firmware/wire/tests/golden.rs", "use std::vec::Vec;\n"),
    ("tools/xtask/Cargo.toml", "[package]\nname = \"xtask\"\n[lints]\nworkspace = true\n"),
    ("README.md", "See models/work/x and https://example.com/home/page; TODOS is a word.\n"),
];

fn tree(extra: &[(&str, &str)]) -> Tree {
    let own = |(p, t): &(&str, &str)| (p.to_string(), t.to_string());
    // A planted file replaces the clean one of the same name.
    Tree::of(CLEAN.iter().map(own).chain(extra.iter().map(own)))
}

fn found(rule: &str, tree: &Tree) -> Vec<Finding> {
    let rule = RULES.iter().find(|r| r.name == rule).unwrap_or_else(|| panic!("no rule is named {rule}"));
    let mut found = (rule.check)(tree);
    found.sort();
    found.dedup();
    found
}

#[test]
fn a_clean_tree_breaks_no_rule() {
    let clean = tree(&[]);
    for rule in RULES {
        assert_eq!(found(rule.name, &clean), [], "{}", rule.name);
    }
}

#[test]
fn every_rule_finds_the_violation_planted_for_it_and_names_its_line() {
    for (rule, path, text, line) in PLANTED {
        let found = found(rule, &tree(&[(path, text)]));
        assert!(
            found.iter().any(|f| f.path == *path && f.line == *line),
            "{rule} does not find {path}:{line} in {text:?}, only {found:?}"
        );
    }
}

#[test]
fn no_rule_is_without_a_planted_violation() {
    for rule in RULES {
        assert!(PLANTED.iter().any(|(name, ..)| *name == rule.name), "{} has none", rule.name);
    }
}

#[test]
fn a_file_of_a_test_module_may_do_what_the_product_may_not() {
    let text = "use crate::feedback::Press;\n";
    let guarded =
        tree(&[("runtime/src/learn/mod.rs", "#[cfg(test)]\nmod checks;\n"), ("runtime/src/learn/checks.rs", text)]);
    assert_eq!(found("modules", &guarded), []);
    let bare = tree(&[("runtime/src/learn/mod.rs", "mod checks;\n"), ("runtime/src/learn/checks.rs", text)]);
    assert_eq!(found("modules", &bare).len(), 1);
}
