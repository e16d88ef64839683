//! The HTML report of `hone eval`: one self-contained file, plots as inline SVG, no script.
use std::fmt::Write;

use hone_runtime::metrics::Latency;

use crate::cmd::eval::{Document, Figures};

pub(crate) const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}\
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse}td,th{padding:.2rem .7rem;\
text-align:right;border-bottom:1px solid #dde3ea}th:first-child,td:first-child{text-align:left}\
.plots{display:flex;flex-wrap:wrap;gap:2rem}figure{margin:0}figcaption{color:#5b6b7b;font-size:.85rem}\
svg text{font:11px system-ui,sans-serif;fill:#1c2733}";

/// The report of a document.
pub(crate) fn html(d: &Document, latency: &Latency) -> String {
    let mut h = String::new();
    let title = format!("hone eval · {}", escape(&d.model));
    let _ = write!(h, "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>");
    let _ = write!(h, "<style>{STYLE}</style><h1>{title}</h1><p>Data: {}</p>", escape(&d.data));
    h.push_str("<table><tr><th>adapter<th>samples<th>accuracy<th>95 % interval<th>precision<th>recall<th>F1<th>calibration error");
    for f in d.compared_with.iter().chain([&d.figures]) {
        let _ = write!(
            h,
            "<tr><td>{}<td>{}<td>{}<td>{} – {}<td>{}<td>{}<td>{}<td>{:.3}",
            escape(&f.adapter),
            f.n,
            percent(f.accuracy),
            percent(f.accuracy_interval.0),
            percent(f.accuracy_interval.1),
            percent(f.precision),
            percent(f.recall),
            percent(f.f1),
            f.ece
        );
    }
    h.push_str("</table>");
    for f in d.compared_with.iter().chain([&d.figures]) {
        let _ = write!(h, "<h2>Adapter {}</h2><div class=\"plots\">", escape(&f.adapter));
        if !f.confusion.is_empty() {
            let _ = write!(
                h,
                "<figure>{}<figcaption>Confusion: rows truth, columns answer</figcaption></figure>",
                confusion(f, &d.labels)
            );
        }
        let _ = write!(
            h,
            "<figure>{}<figcaption>Reliability: confidence against accuracy; the area of a dot is its share</figcaption></figure>",
            reliability(f)
        );
        h.push_str("</div>");
    }
    let _ = write!(
        h,
        "<h2>Latency</h2><figure>{}<figcaption>p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, mean {:.2} ms; preprocessing included</figcaption></figure>",
        histogram(latency),
        d.latency_ms.p50,
        d.latency_ms.p95,
        d.latency_ms.p99,
        d.latency_ms.mean
    );
    h.push_str("<h2>Per class</h2><table><tr><th>class<th>precision<th>recall<th>F1<th>samples");
    for l in &d.labels {
        let p = &d.figures.per_class[l];
        let _ = write!(
            h,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}",
            escape(l),
            percent(p.precision),
            percent(p.recall),
            percent(p.f1),
            p.support
        );
    }
    h.push_str("</table>");
    if !d.notes.is_empty() {
        h.push_str("<h2>Notes</h2><ul>");
        for (code, n) in &d.notes {
            let _ = write!(h, "<li>{} × {n}", escape(code));
        }
        h.push_str("</ul>");
    }
    h.push_str("</html>\n");
    h
}

pub(crate) fn percent(v: f64) -> String {
    format!("{:.1} %", 100.0 * v)
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn confusion(f: &Figures, labels: &[String]) -> String {
    let n = f.confusion.len();
    let cell = (360 / n.max(1)).clamp(12, 36);
    let (left, top) = (48, 22);
    let mut s = format!("<svg width=\"{}\" height=\"{}\">", left + n * cell + 4, top + n * cell + 4);
    for (i, row) in f.confusion.iter().enumerate() {
        let total: u64 = row.iter().sum();
        let y = top + i * cell;
        let _ = write!(
            s,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            left - 6,
            y + cell / 2 + 4,
            escape(&labels[i])
        );
        let x = left + i * cell + cell / 2;
        let _ = write!(s, "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{}</text>", top - 7, escape(&labels[i]));
        for (j, &count) in row.iter().enumerate() {
            let share = count as f64 / total.max(1) as f64;
            let colour = if i == j { "35,120,85" } else { "190,60,45" };
            let x = left + j * cell;
            let _ = write!(
                s,
                "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"rgba({colour},{:.3})\" stroke=\"#e6ebf0\"/>",
                cell - 1,
                cell - 1,
                share.sqrt()
            );
            if count > 0 && cell >= 20 {
                let fill = if share > 0.5 { " style=\"fill:#fff\"" } else { "" };
                let _ = write!(
                    s,
                    "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\"{fill}>{count}</text>",
                    x + cell / 2,
                    y + cell / 2 + 4
                );
            }
        }
    }
    s + "</svg>"
}

fn reliability(f: &Figures) -> String {
    let side = 320.0;
    let at = |v: f64| 36.0 + v * (side - 50.0);
    let up = |v: f64| side - 30.0 - v * (side - 50.0);
    let mut s = format!("<svg width=\"{side}\" height=\"{side}\">");
    let _ = write!(
        s,
        "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"#9fb0c0\" stroke-dasharray=\"4\"/>",
        at(0.0),
        up(0.0),
        at(1.0),
        up(1.0)
    );
    for v in [0.0, 0.5, 1.0] {
        let _ = write!(s, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{v}</text>", at(v), side - 12.0);
        let _ = write!(s, "<text x=\"30\" y=\"{}\" text-anchor=\"end\">{v}</text>", up(v) + 4.0);
    }
    let n: usize = f.calibration.bins.iter().map(|b| b.n).sum();
    for b in f.calibration.bins.iter().filter(|b| b.n > 0) {
        let r = 3.0 + 14.0 * (b.n as f64 / n.max(1) as f64).sqrt();
        let _ = write!(
            s,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{r:.1}\" fill=\"rgba(40,90,160,.6)\"><title>{} samples, confidence {:.2}, accuracy {:.2}</title></circle>",
            at(b.confidence),
            up(b.accuracy),
            b.n,
            b.confidence,
            b.accuracy
        );
    }
    s + "</svg>"
}

fn histogram(latency: &Latency) -> String {
    let bars = latency.histogram(40);
    let most = bars.iter().map(|b| b.1).max().unwrap_or(1).max(1) as f64;
    let mut s = String::from("<svg width=\"480\" height=\"150\">");
    for (i, (_, n)) in bars.iter().enumerate() {
        let h = 120.0 * *n as f64 / most;
        let _ = write!(
            s,
            "<rect x=\"{}\" y=\"{:.1}\" width=\"10\" height=\"{h:.1}\" fill=\"#5b86b5\"/>",
            4 + i * 11,
            124.0 - h
        );
    }
    if let (Some(first), Some(last)) = (bars.first(), bars.last()) {
        let _ = write!(s, "<text x=\"4\" y=\"142\">{:.2} ms</text>", first.0);
        let _ = write!(s, "<text x=\"444\" y=\"142\" text-anchor=\"end\">{:.2} ms</text>", last.0);
    }
    s + "</svg>"
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_from_data_cannot_become_markup() {
        assert_eq!(super::escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
