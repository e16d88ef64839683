//! The HTML report of `hone quantize`: one self-contained file, no script.
use std::fmt::Write;

use hone_runtime::compress::{Report, Side};

use crate::cmd::quantize::optional;
use crate::report::{STYLE, escape, percent};

/// A ratio whose bar is full, in decibels.
const FULL_DB: f64 = 60.0;

/// The report about the model of that name.
pub(crate) fn html(model: &str, r: &Report) -> String {
    let mut h = String::new();
    let title = format!("hone quantize · {} · {}", escape(model), r.scheme);
    let _ = write!(h, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>");
    let _ = write!(h, "<style>{STYLE}</style><h1>{title}</h1>");
    let _ = write!(h, "<table><tr><th><th>bytes<th>{}<th>median ms", r.metric);
    let mut side = |name: &str, s: &Side| {
        let ms = optional(s.latency_p50_ms, |v| format!("{v:.3}"));
        let _ = write!(h, "<tr><td>{name}<td>{}<td>{}<td>{ms}", s.bytes, optional(s.accuracy, percent));
    };
    side("before", &r.before);
    side("after", &r.after);
    let points = |v: f64| format!("{v:.2} points");
    let _ = write!(
        h,
        "</table><p>{:.2}× smaller; lost: {}; allowed: {}. Measured on {} samples, ranges from {}.</p>",
        r.smaller,
        optional(r.drop, points),
        optional(r.max_drop, points),
        r.measured_on,
        r.calibrated_on
    );
    h.push_str("<h2>Quantised layers</h2><p>Signal-to-noise ratio of the weight alone, and of the result with all quantisation before it.</p>");
    h.push_str("<table><tr><th>layer<th>operator<th>weights<th>bits<th>weight dB<th>result dB<th>");
    for l in &r.layers {
        let db = |v: Option<f64>| optional(v, |v| format!("{v:.1}"));
        let width = 120.0 * (l.snr_db.unwrap_or(0.0) / FULL_DB).clamp(0.0, 1.0);
        let _ = write!(
            h,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td><svg width=\"120\" height=\"10\"><rect width=\"{width:.1}\" \
             height=\"10\" fill=\"#5b86b5\"/></svg>",
            escape(&l.name),
            l.op,
            l.weight_elements,
            l.bits,
            db(l.weight_snr_db),
            db(l.snr_db)
        );
    }
    h.push_str("</table>");
    if !r.kept.is_empty() {
        h.push_str("<h2>Treated apart</h2><p>In f32, or where said in 8 bits.</p><table><tr><th>node<th>operator<th>why<th>points lost alone");
        for k in &r.kept {
            let alone = optional(k.alone, |v| format!("{v:.2}"));
            let _ = write!(h, "<tr><td>{}<td>{}<td>{}<td>{alone}", escape(&k.name), escape(&k.op), k.why);
        }
        h.push_str("</table>");
    }
    h.push_str("</html>\n");
    h
}
