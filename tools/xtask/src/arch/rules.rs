//! The rules that need no more than tokens and manifests.
use super::Finding;
use super::rust::RustFile;
use super::tree::Tree;

/// Where `unsafe` may be written.
const UNSAFE_ALLOWED: &[&str] = &["runtime/kernels/", "runtime/gpu/", "firmware/boards/"];

/// The folders of the repository; loose files and dot-files may lie beside them.
const TOP_LEVEL: &[&str] = &["runtime", "firmware", "tools", "models", "tests", "benches"];

/// Which of our crates a crate may depend on. Development dependencies are free.
const CRATES: &[(&str, &[&str])] = &[
    ("hone", &["hone-runtime", "hone-pad", "hone-wire"]),
    ("hone-runtime", &["hone-kernels", "hone-gpu", "hone-pad", "hone-wire"]),
    ("hone-gpu", &["hone-kernels"]),
    ("hone-kernels", &[]),
    ("hone-pad", &["hone-wire"]),
    ("hone-wire", &[]),
    ("hone-fuzz", &["hone-runtime"]),
    ("hone-guest", &["hone-runtime", "hone-wire"]),
    ("hone-pad-fuzz", &["hone-pad", "hone-wire"]),
    ("xtask", &[]),
];

pub(super) fn parses(tree: &Tree) -> Vec<Finding> {
    tree.broken.iter().map(|(path, line, why)| Finding::new(path, *line, why)).collect()
}

pub(super) fn top_level(tree: &Tree) -> Vec<Finding> {
    tree.texts("")
        .filter_map(|(path, _)| path.split_once('/').map(|(top, _)| (path, top)))
        .filter(|(_, top)| !top.starts_with('.') && !TOP_LEVEL.contains(top))
        .map(|(path, top)| Finding::new(path, 0, format!("`{top}/` is not one of {}", TOP_LEVEL.join(", "))))
        .collect()
}

pub(super) fn unsafe_code(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for (path, file) in tree.rust("").filter(|(p, _)| !UNSAFE_ALLOWED.iter().any(|a| p.starts_with(a))) {
        for t in file.tokens().iter().filter(|t| t.text == "unsafe") {
            out.push(Finding::new(path, t.line, "`unsafe`"));
        }
    }
    out
}

pub(super) fn forbid_unsafe(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for (dir, manifest) in tree.manifests().filter(|(d, _)| !UNSAFE_ALLOWED.contains(d) && !is_board(d)) {
        for root in crate_roots(tree, dir, manifest) {
            if tree.rust_file(&root).is_some_and(|f| !f.has_inner("forbid", "unsafe_code")) {
                out.push(Finding::new(&root, 1, "the crate root does not forbid unsafe_code"));
            }
        }
    }
    out
}

/// Library and program roots of a package; nothing for a manifest that is only a workspace.
fn crate_roots(tree: &Tree, dir: &str, manifest: &toml::Table) -> Vec<String> {
    if !manifest.contains_key("package") {
        return Vec::new();
    }
    let path_of = |t: &toml::Value| t.get("path").and_then(|p| p.as_str()).map(|p| format!("{dir}{p}"));
    let mut roots: Vec<String> = manifest.get("lib").and_then(path_of).into_iter().collect();
    roots.extend(manifest.get("bin").and_then(|b| b.as_array()).into_iter().flatten().filter_map(path_of));
    for usual in ["src/lib.rs", "src/main.rs"] {
        roots.push(format!("{dir}{usual}"));
    }
    roots.retain(|r| tree.rust_file(r).is_some());
    roots.dedup();
    roots
}

fn is_board(dir: &str) -> bool {
    dir.starts_with("firmware/boards/")
}

/// Words that only the files under `allowed` may say: crates kept behind one door.
fn only_in(tree: &Tree, allowed: &str, manifests: &[&str], is_it: fn(&str) -> bool) -> Vec<Finding> {
    let mut out = Vec::new();
    for (path, file) in tree.rust("").filter(|(p, _)| !p.starts_with(allowed)) {
        for t in file.tokens().iter().filter(|t| is_it(&t.text)) {
            out.push(Finding::new(path, t.line, format!("`{}` outside {allowed}", t.text)));
        }
    }
    for (dir, manifest) in tree.manifests().filter(|(d, _)| !manifests.contains(d)) {
        for name in dependencies(manifest).filter(|n| is_it(&n.replace('-', "_"))) {
            let path = format!("{dir}Cargo.toml");
            let line = tree.line_of(&path, name);
            out.push(Finding::new(&path, line, format!("depends on {name}")));
        }
    }
    out
}

pub(super) fn importer(tree: &Tree) -> Vec<Finding> {
    only_in(tree, "runtime/src/import", &["runtime/"], |word| word.starts_with("tract_"))
}

pub(super) fn database(tree: &Tree) -> Vec<Finding> {
    only_in(tree, "runtime/src/journal", &["runtime/"], |word| matches!(word, "rusqlite" | "libsqlite3_sys"))
}

pub(super) fn gpu(tree: &Tree) -> Vec<Finding> {
    only_in(tree, "runtime/gpu", &["runtime/gpu/"], |word| matches!(word, "wgpu" | "naga"))
}

/// Names in `[dependencies]`, `[build-dependencies]`, and the same of every target.
fn dependencies(manifest: &toml::Table) -> impl Iterator<Item = &str> {
    let targets = manifest.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values());
    std::iter::once(manifest)
        .chain(targets.filter_map(|t| t.as_table()))
        .flat_map(|t| ["dependencies", "build-dependencies"].into_iter().filter_map(|k| t.get(k)?.as_table()))
        .flat_map(|t| t.keys().map(String::as_str))
}

pub(super) fn kernels(tree: &Tree) -> Vec<Finding> {
    const DIR: &str = "runtime/kernels/";
    const ALLOCATING: &[&str] = &[
        "Vec",
        "VecDeque",
        "Box",
        "String",
        "Rc",
        "Arc",
        "BTreeMap",
        "BTreeSet",
        "HashMap",
        "HashSet",
        "vec",
        "format",
        "to_vec",
        "to_string",
        "to_owned",
        "collect",
        "alloc",
    ];
    let mut out = Vec::new();
    for (dir, manifest) in tree.manifests().filter(|(d, _)| *d == DIR) {
        for name in dependencies(manifest) {
            let path = format!("{dir}Cargo.toml");
            out.push(Finding::new(&path, tree.line_of(&path, name), format!("depends on {name}")));
        }
    }
    // Starting threads takes memory once; running on them takes none.
    for (path, file) in tree.rust(DIR).filter(|(p, _)| !p.ends_with("src/threads.rs")) {
        for t in file.product_tokens().filter(|t| ALLOCATING.contains(&t.text.as_str())) {
            out.push(Finding::new(path, t.line, format!("`{}` allocates", t.text)));
        }
    }
    out
}

pub(super) fn no_std(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for dir in ["firmware/wire/", "firmware/pad/"] {
        let root = format!("{dir}src/lib.rs");
        if tree.rust_file(&root).is_some_and(|f| !f.has_inner("no_std", "")) {
            out.push(Finding::new(&root, 1, "the crate root does not say #![no_std]"));
        }
        out.extend(named(tree, &format!("{dir}src/"), &["std", "alloc"], "is not in core"));
    }
    out
}

/// Paths outside tests under `dir` that begin with one of `prefixes`.
fn named(tree: &Tree, dir: &str, prefixes: &[&str], why: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    for (path, file) in tree.rust(dir) {
        for m in file.product_mentions().filter(|m| prefixes.iter().any(|p| m.begins(p))) {
            out.push(Finding::new(path, m.line, format!("`{m}` {why}")));
        }
    }
    out
}

/// Words outside tests under `dir`.
fn words(tree: &Tree, dir: &str, of: &[&str], why: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    for (path, file) in tree.rust(dir) {
        for t in file.product_tokens().filter(|t| of.contains(&t.text.as_str())) {
            out.push(Finding::new(path, t.line, format!("`{}` {why}", t.text)));
        }
    }
    out
}

/// Dependencies of one crate that are forbidden to it.
fn depends(tree: &Tree, of: &str, forbidden: &[&str], why: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    for (dir, manifest) in tree.manifests().filter(|(d, _)| *d == of) {
        for name in dependencies(manifest).filter(|n| forbidden.contains(n)) {
            let path = format!("{dir}Cargo.toml");
            out.push(Finding::new(&path, tree.line_of(&path, name), format!("{name} {why}")));
        }
    }
    out
}

pub(super) fn pad_clock(tree: &Tree) -> Vec<Finding> {
    let mut out = words(tree, "firmware/pad/src/", &["Instant", "SystemTime"], "is a clock");
    out.extend(depends(tree, "firmware/pad/", &["embassy-time", "fugit-timer", "chrono", "time"], "is a clock"));
    out
}

pub(super) fn wire_io(tree: &Tree) -> Vec<Finding> {
    const IO: &[&str] = &["embedded-hal", "embedded-io", "embedded-hal-nb", "serialport", "nb"];
    let mut out = depends(tree, "firmware/wire/", IO, "does I/O");
    out.extend(named(
        tree,
        "firmware/wire/src/",
        &["std::io", "embedded_hal", "embedded_io", "serialport"],
        "does I/O",
    ));
    out
}

pub(super) fn network(tree: &Tree) -> Vec<Finding> {
    const NET: &[&str] = &["reqwest", "ureq", "hyper", "curl", "isahc", "attohttpc", "tungstenite", "rumqttc"];
    let mut out = depends(tree, "runtime/", NET, "opens network connections");
    for dir in ["runtime/src/", "runtime/kernels/", "runtime/gpu/"] {
        out.extend(words(
            tree,
            dir,
            &["TcpStream", "TcpListener", "UdpSocket", "ToSocketAddrs"],
            "is a network socket",
        ));
        out.extend(named(tree, dir, &["std::net"], "opens network connections"));
    }
    out
}

pub(super) fn crates(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for (dir, manifest) in tree.manifests().filter(|(d, _)| !is_board(d)) {
        let Some(name) = manifest.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str()) else { continue };
        let path = format!("{dir}Cargo.toml");
        let Some((_, allowed)) = CRATES.iter().find(|(n, _)| *n == name) else {
            out.push(Finding::new(&path, 0, format!("crate {name} has no row in CRATES: say what it may depend on")));
            continue;
        };
        for dep in dependencies(manifest).filter(|d| CRATES.iter().any(|(n, _)| n == d) && !allowed.contains(d)) {
            out.push(Finding::new(&path, tree.line_of(&path, dep), format!("{name} may not depend on {dep}")));
        }
    }
    out
}

/// Files that are written by people: the ones whose text is checked for words.
fn written(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    const KINDS: &[&str] =
        &["rs", "py", "md", "toml", "sh", "yml", "yaml", "wgsl", "html", "js", "css", "service", "x"];
    tree.texts("").filter(|(path, _)| {
        let file = path.rsplit('/').next().unwrap_or(path);
        match file.rsplit_once('.') {
            Some((stem, kind)) if !stem.is_empty() => KINDS.contains(&kind),
            // Scripts such as `.ci/run` have no extension.
            _ => !file.starts_with("LICENSE"),
        }
    })
}

/// Whether `word` stands in `line` with nothing of a longer word on either side.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word)
        .any(|(i, _)| !part(line[..i].chars().next_back()) && !part(line[i + word.len()..].chars().next()))
}

pub(super) fn unfinished(tree: &Tree) -> Vec<Finding> {
    // Spelled in halves, so that this file does not find itself.
    let markers = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let mut out = Vec::new();
    for (path, text) in written(tree) {
        for (i, line) in text.lines().enumerate() {
            for marker in markers.iter().filter(|m| has_word(line, m)) {
                out.push(Finding::new(path, i + 1, format!("`{marker}`: finish it, or write down why it is not done")));
            }
        }
    }
    for (path, file) in tree.rust("") {
        let t = file.tokens();
        for i in 0..t.len() {
            let next = t.get(i + 1).map_or("", |n| n.text.as_str());
            let macro_call = matches!(t[i].text.as_str(), "todo" | "unimplemented" | "dbg") && next == "!";
            let ignored = t[i].text == "ignore" && i >= 2 && t[i - 1].text == "[" && t[i - 2].text == "#";
            if macro_call || ignored {
                out.push(Finding::new(path, t[i].line, format!("`{}`", t[i].text)));
            }
        }
    }
    out
}

pub(super) fn machine_paths(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for (path, text) in written(tree) {
        for (i, line) in text.lines().enumerate() {
            for top in ["root", "home", "work", "tmp", "Users"] {
                let needle = format!("/{top}");
                let hit = line.match_indices(&needle).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    let after = line[at + needle.len()..].chars().next();
                    let starts_here = before.is_none_or(|c| !(c.is_alphanumeric() || "_-.~$}{*)]>/".contains(c)));
                    starts_here && after == Some('/')
                });
                if hit {
                    out.push(Finding::new(path, i + 1, format!("`{needle}/…` is a path of one machine")));
                }
            }
        }
    }
    out
}

pub(super) fn lints(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for (dir, manifest) in tree.manifests().filter(|(d, _)| !is_board(d)) {
        let path = format!("{dir}Cargo.toml");
        let takes = manifest.get("lints").and_then(|l| l.get("workspace")).and_then(|w| w.as_bool()) == Some(true);
        if manifest.contains_key("package") && !takes {
            out.push(Finding::new(&path, 0, "has no `[lints] workspace = true`"));
        }
        if let Some(workspace) = manifest.get("workspace") {
            let level = workspace.get("lints").and_then(|l| l.get("rust")?.get("missing_docs")?.as_str());
            if !matches!(level, Some("deny" | "forbid")) {
                out.push(Finding::new(&path, 0, "the workspace does not deny missing_docs"));
            }
        }
    }
    for (path, file) in tree.rust("").filter(|(_, f)| !f.test_only) {
        for t in allowed_missing_docs(file) {
            out.push(Finding::new(path, t, "allows missing_docs"));
        }
    }
    out
}

/// Lines that say `allow(… missing_docs …)`.
fn allowed_missing_docs(file: &RustFile) -> Vec<usize> {
    let t = file.tokens();
    (0..t.len())
        .filter(|&i| t[i].text == "missing_docs")
        .filter(|&i| t[..i].iter().rev().take_while(|t| t.text != "]").any(|t| t.text == "allow" || t.text == "expect"))
        .filter(|&i| t[..i].iter().rev().take(12).any(|t| t.text == "#"))
        .map(|i| t[i].line)
        .collect()
}

pub(super) fn length(tree: &Tree) -> Vec<Finding> {
    tree.texts("")
        .filter(|(path, _)| [".rs", ".py", ".wgsl"].iter().any(|e| path.ends_with(e)))
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > 1200)
        .map(|(path, lines)| Finding::new(path, lines, format!("{lines} lines; split it where the subject changes")))
        .collect()
}
