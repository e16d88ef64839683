//! The arrows between the modules of `runtime`, as what each module must know nothing of.
use super::Finding;
use super::tree::Tree;

/// A module of `runtime/src` and the paths it may not name: modules of ours (`feedback`, `feedback::serial`) or of
/// others (`std::fs`). The table is the third column of the one in ARCHITECTURE.md.
static KNOWS_NOTHING_OF: &[(&str, &[&str])] = &[
    ("adapters", &["session", "model", "graph", "ops", "plan", "import", "feedback", "capture", "modality"]),
    ("app", &["graph", "ops", "plan", "import"]),
    ("autodiff", &["import", "bundle", "session", "learn", "feedback", "journal", "capture", "std::fs"]),
    ("bundle", &["graph", "ops", "plan", "import", "session", "model", "learn", "feedback", "journal", "capture"]),
    ("capture", &["session", "model", "graph", "ops", "plan", "import", "learn", "feedback", "journal"]),
    (
        "cases",
        &["graph", "ops", "plan", "import", "model", "learn", "feedback", "journal", "capture", "adapters", "app"],
    ),
    ("choice", EVERYTHING),
    ("class", EVERYTHING),
    (
        "config",
        &["session", "model", "graph", "ops", "plan", "import", "learn", "journal", "capture", "adapters", "app"],
    ),
    ("compress", &["feedback", "journal", "app", "capture", "adapters", "learn", "model"]),
    ("cpu", EVERYTHING),
    ("dataset", &["session", "model", "graph", "ops", "plan", "import", "learn", "feedback", "journal", "app"]),
    ("device", &["import", "bundle", "learn", "feedback", "journal", "capture", "modality"]),
    ("export", &["feedback", "journal", "app", "capture", "adapters"]),
    ("external", EVERYTHING),
    ("feedback", &["session", "model", "graph", "ops", "plan", "import", "learn", "adapters", "capture", "modality"]),
    (
        "flash",
        &["session", "model", "graph", "ops", "plan", "import", "learn", "feedback", "journal", "capture", "app"],
    ),
    ("gpio", &["session", "model", "graph", "ops", "plan", "import", "learn", "feedback", "journal", "capture", "app"]),
    ("graph", &["import", "bundle", "session", "plan", "learn", "feedback", "journal", "capture", "device", "std::fs"]),
    ("import", &["bundle", "session", "model", "learn", "feedback", "journal", "capture", "modality", "std::fs"]),
    ("journal", &["session", "model", "graph", "ops", "plan", "import", "learn", "modality", "feedback::serial"]),
    ("learn", &["feedback", "capture", "modality", "session", "model", "import", "app"]),
    ("metrics", &["session", "model", "graph", "ops", "plan", "import", "learn", "feedback", "journal", "capture"]),
    ("modality", &["session", "model", "graph", "ops", "plan", "import", "learn", "feedback", "journal", "capture"]),
    ("model", &["feedback", "journal", "app", "capture"]),
    ("note", EVERYTHING),
    ("ops", &["import", "bundle", "session", "model", "learn", "feedback", "journal", "capture", "std::fs"]),
    ("plan", &["import", "bundle", "session", "model", "learn", "feedback", "journal", "capture", "std::fs"]),
    (
        "precision",
        &[
            "session", "model", "graph", "ops", "plan", "import", "learn", "feedback", "journal", "capture", "device",
            "bundle",
        ],
    ),
    ("quant", &["import", "bundle", "session", "learn", "feedback", "journal", "capture", "std::fs"]),
    (
        "scope",
        &[
            "import", "bundle", "session", "model", "learn", "feedback", "journal", "capture", "modality", "train",
            "std::fs",
        ],
    ),
    ("session", &["feedback", "journal", "learn", "adapters", "app", "capture", "modality"]),
    ("state", &["session", "model", "graph", "ops", "plan", "import", "learn", "feedback", "capture", "modality"]),
    ("tensor", EVERYTHING),
    ("trial", &["session", "model", "import", "app", "feedback", "journal", "capture", "adapters", "std::fs"]),
    (
        "train",
        &["import", "bundle", "session", "model", "learn", "feedback", "journal", "capture", "modality", "std::fs"],
    ),
    ("tune", &["import", "session", "model", "feedback", "journal", "capture", "adapters", "app"]),
];

/// A leaf: it may name no module of ours.
const EVERYTHING: &[&str] = &["*"];

pub(super) fn modules(tree: &Tree) -> Vec<Finding> {
    let known = |name: &str| KNOWS_NOTHING_OF.iter().any(|(m, _)| *m == name);
    let mut out = Vec::new();
    for (path, file) in tree.rust("runtime/src/") {
        let inside = module_path(path);
        let Some(own) = inside.first() else { continue };
        let Some((_, forbidden)) = KNOWS_NOTHING_OF.iter().find(|(m, _)| m == own) else {
            out.push(Finding::new(
                path,
                0,
                format!("module `{own}` has no row in KNOWS_NOTHING_OF (tools/xtask/src/arch/modules.rs): write one"),
            ));
            continue;
        };
        for m in file.product_mentions() {
            let Some(target) = absolute(&inside, &m.segments) else { continue };
            if target.first() == Some(own) {
                continue;
            }
            let breaks = forbidden.iter().find(|f| {
                **f == "*" && target.first().is_some_and(|t| known(t) && is_ours(&m.segments))
                    || target.len() >= f.split("::").count() && f.split("::").zip(&target).all(|(a, b)| a == b)
            });
            if breaks.is_some() {
                out.push(Finding::new(path, m.line, format!("`{own}` knows nothing of `{}`", target.join("::"))));
            }
        }
    }
    out
}

fn is_ours(segments: &[String]) -> bool {
    matches!(segments.first().map(String::as_str), Some("crate" | "super"))
}

/// `runtime/src/a/b.rs` is module `a::b`; the crate root is the empty path.
fn module_path(path: &str) -> Vec<String> {
    let inner = path.trim_start_matches("runtime/src/").trim_end_matches(".rs");
    let mut parts: Vec<String> = inner.split('/').map(str::to_string).collect();
    if parts.last().is_some_and(|l| l == "mod" || l == "lib") {
        parts.pop();
    }
    parts
}

/// The path from the crate's root for one written in module `inside`; a path of another crate stays as it is when it
/// begins with `std`; a relative one is nobody else's business.
fn absolute(inside: &[String], segments: &[String]) -> Option<Vec<String>> {
    match segments.first()?.as_str() {
        "crate" => Some(segments[1..].to_vec()),
        "super" => {
            let ups = segments.iter().take_while(|s| *s == "super").count();
            let mut target = inside[..inside.len().saturating_sub(ups)].to_vec();
            target.extend_from_slice(&segments[ups..]);
            Some(target)
        }
        "std" => Some(segments.to_vec()),
        _ => None,
    }
}
