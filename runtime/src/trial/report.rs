//! The figures of many runs: rows of means over worlds, and their learning curves as a picture.
use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::protocol::{CHECKPOINTS, Condition, Curve, Says, World, run};
use crate::learn::{LearnError, LearnerConfig, Mode, ObjectiveDef, Retain};

/// What is run: every objective under every guard and share of wrong presses, with each kind of press it learns from.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The objectives.
    pub objectives: Vec<&'static ObjectiveDef>,
    /// The guards.
    pub guards: Vec<Mode>,
    /// Shares of wrong presses.
    pub wrong: Vec<f64>,
    /// Presses made in each world.
    pub presses: usize,
    /// How much of the source is learned beside the presses.
    pub retain: Retain,
    /// Random Fourier features beside the model's.
    pub random_features: usize,
}

/// Means over worlds, as `hone.bench-feedback/1` has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The objective, or the name of another's learner.
    pub objective: String,
    /// `off`, `veto`, `superiority`; `none` for another's learner.
    pub guard: String,
    /// `thumbs`, `corrections`, or `labels` for a fit to clean labels.
    pub press: String,
    /// Share of wrong presses.
    pub wrong: f64,
    /// Accuracy on the changed world's test by number of presses.
    pub at: BTreeMap<String, f64>,
    /// Wrong answers shown.
    pub regret: f64,
    /// Accuracy on the old world's test at the end.
    pub kept: f64,
    /// Accuracy on the confirmed presses so far, less the factory head's, by number of presses; where a guard has some.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub over_factory: BTreeMap<String, OnConfirmed>,
    /// Runs in which the learner said that presses contradict each other.
    #[serde(default)]
    pub contradicted: usize,
    /// Runs in the mean.
    pub runs: usize,
}

/// Gains over runs, of the head in use over the factory head.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OnConfirmed {
    /// Their mean.
    pub mean: f64,
    /// The least.
    pub worst: f64,
}

impl Plan {
    /// The rows to be made: objective, guard, kind of press, share of wrong presses.
    pub fn cells(&self) -> Vec<(&'static ObjectiveDef, Mode, Says, f64)> {
        let mut cells = Vec::new();
        for &objective in &self.objectives {
            for (says, kind) in [(Says::Thumbs, "thumb"), (Says::Corrections, "correction")] {
                // Those that take both are made for thumbs, but for the default, of which both are wanted.
                let both = objective.name == "posterior";
                let thumbs = objective.learns_from.contains(&"thumb");
                if !objective.learns_from.contains(&kind) || (says == Says::Corrections && thumbs && !both) {
                    continue;
                }
                for &guard in &self.guards {
                    cells.extend(self.wrong.iter().map(|&wrong| (objective, guard, says, wrong)));
                }
            }
        }
        cells
    }
}

/// One row: the mean of a run in each of `worlds`, of one of `plan`'s cells.
///
/// # Errors
/// [`LearnError`] of settings that make no sense.
pub fn row(
    worlds: &[World],
    plan: &Plan,
    (objective, guard, says, wrong): (&'static ObjectiveDef, Mode, Says, f64),
) -> Result<Row, LearnError> {
    let mut learner = LearnerConfig { objective: objective.name.to_string(), ..LearnerConfig::default() };
    learner.gate.mode = guard;
    let (presses, retain, random_features) = (plan.presses, plan.retain, plan.random_features);
    let condition = Condition { learner, says, wrong, presses, retain, random_features };
    let curves = worlds.iter().map(|world| run(world, &condition, |_, _| ())).collect::<Result<Vec<Curve>, _>>()?;
    let mean = |f: &dyn Fn(&Curve) -> f64| curves.iter().map(f).sum::<f64>() / curves.len().max(1) as f64;
    let points = curves.first().map_or(0, |c| c.at.len());
    Ok(Row {
        objective: objective.name.to_string(),
        guard: guard.name().to_string(),
        press: if says == Says::Thumbs { "thumbs" } else { "corrections" }.to_string(),
        wrong,
        at: (0..points).map(|k| (curves[0].at[k].0.to_string(), mean(&|c| c.at[k].1))).collect(),
        regret: mean(&|c| c.regret as f64),
        kept: mean(&|c| c.kept),
        over_factory: (0..curves.first().map_or(0, |c| c.over_factory.len()))
            .map(|k| {
                let worst = curves.iter().map(|c| c.over_factory[k].1).fold(f64::INFINITY, f64::min);
                let figures = OnConfirmed { mean: mean(&|c| c.over_factory[k].1), worst };
                (curves[0].over_factory[k].0.to_string(), figures)
            })
            .collect(),
        contradicted: curves.iter().filter(|c| c.contradiction.is_some()).count(),
        runs: curves.len(),
    })
}

/// What the factory head does in the same worlds, as a row.
///
/// # Errors
/// [`LearnError`] when a world's head does not fit it.
pub fn no_adaptation(worlds: &[World], presses: usize) -> Result<Row, LearnError> {
    let mut row = Row {
        objective: "no adaptation".into(),
        guard: "none".into(),
        press: "none".into(),
        wrong: 0.0,
        at: BTreeMap::new(),
        regret: 0.0,
        kept: 0.0,
        over_factory: BTreeMap::new(),
        contradicted: 0,
        runs: worlds.len(),
    };
    let mut accuracy = 0.0;
    let n = worlds.len().max(1) as f64;
    for world in worlds {
        let factory = crate::learn::Theta::zeros(world.base.classes(), world.base.features() + 1);
        accuracy += super::accuracy(&world.base, &factory, &world.test)? / n;
        row.kept += super::accuracy(&world.base, &factory, &world.source_test)? / n;
        let shown: Vec<_> = world.order.iter().take(presses).map(|&i| world.stream[i].clone()).collect();
        row.regret += (1.0 - super::accuracy(&world.base, &factory, &shown)?) * shown.len() as f64 / n;
    }
    row.at = CHECKPOINTS.iter().filter(|&&c| c <= presses).map(|c| (c.to_string(), accuracy)).collect();
    Ok(row)
}

const COLOURS: [&str; 8] = ["#0b5394", "#cc4125", "#38761d", "#b45f06", "#741b47", "#134f5c", "#7f6000", "#444444"];
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;

/// Learning curves of `rows` with one share of wrong presses, as an SVG document.
pub fn plot(title: &str, rows: &[&Row]) -> String {
    let (left, top, right, bottom) = (52.0, 36.0, 200.0, 44.0);
    let last = rows.iter().flat_map(|r| r.at.keys()).filter_map(|k| k.parse().ok()).fold(1.0, f64::max);
    let x =
        |presses: f64| left + (WIDTH - left - right) * (presses.max(25.0) / 25.0).ln() / (last.max(26.0) / 25.0).ln();
    let y = |accuracy: f64| HEIGHT - bottom - (HEIGHT - top - bottom) * (accuracy - 0.3) / 0.7;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n<text x=\"{left}\" y=\"20\" \
         font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    for k in 3..=10 {
        let v = f64::from(k) / 10.0;
        let (at, edge) = (y(v), WIDTH - right);
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{edge}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dddddd\"/><text x=\"{}\" \
             y=\"{:.1}\" text-anchor=\"end\">{v:.1}</text>",
            left - 6.0,
            at + 4.0
        );
    }
    for presses in CHECKPOINTS.iter().map(|&c| c as f64).filter(|&c| c <= last) {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{presses}</text>",
            x(presses),
            HEIGHT - bottom + 16.0
        );
    }
    let middle = (left + WIDTH - right) / 2.0;
    let _ = writeln!(out, "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">presses</text>", HEIGHT - 8.0);
    for (k, row) in rows.iter().enumerate() {
        let colour = COLOURS[k % COLOURS.len()];
        let mut points: Vec<(f64, f64)> =
            row.at.iter().filter_map(|(n, v)| Some((n.parse::<f64>().ok()?, *v))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let line: Vec<String> = points.iter().map(|(n, v)| format!("{:.1},{:.1}", x(*n), y(*v))).collect();
        let dash = if row.guard == "none" { " stroke-dasharray=\"5 3\"" } else { "" };
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/>",
            line.join(" ")
        );
        let name =
            if row.guard == "none" { row.objective.clone() } else { format!("{}, guard {}", row.objective, row.guard) };
        let at = top + 8.0 + 18.0 * k as f64;
        let from = WIDTH - right + 14.0;
        let _ = writeln!(
            out,
            "<line x1=\"{from}\" x2=\"{}\" y1=\"{at}\" y2=\"{at}\" stroke=\"{colour}\" stroke-width=\"2\"{dash}/><text \
             x=\"{}\" y=\"{}\">{}</text>",
            from + 22.0,
            from + 28.0,
            at + 4.0,
            escaped(&name)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::OBJECTIVES;

    #[test]
    fn every_objective_has_a_row_for_each_guard_and_share_and_the_default_one_for_both_kinds_of_press() {
        let plan = Plan {
            objectives: OBJECTIVES.to_vec(),
            guards: vec![Mode::Off, Mode::Veto],
            wrong: vec![0.0, 0.1],
            presses: 10,
            retain: Retain::Adapt,
            random_features: 0,
        };
        let cells = plan.cells();
        for objective in OBJECTIVES {
            let n = cells.iter().filter(|c| c.0.name == objective.name).count();
            assert_eq!(n, if objective.name == "posterior" { 8 } else { 4 }, "{}", objective.name);
        }
    }

    #[test]
    fn a_plot_has_a_line_for_each_row_and_escapes_names() {
        let row = |objective: &str, guard: &str| Row {
            objective: objective.into(),
            guard: guard.into(),
            press: "thumbs".into(),
            wrong: 0.1,
            at: [("50", 0.5), ("500", 0.9)].map(|(n, v)| (n.to_string(), v)).into(),
            regret: 1.0,
            kept: 0.5,
            over_factory: BTreeMap::new(),
            contradicted: 0,
            runs: 1,
        };
        let (a, b) = (row("a<b", "off"), row("river", "none"));
        let svg = plot("10 % wrong & more", &[&a, &b]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a&lt;b, guard off") && svg.contains("&amp; more") && svg.contains("stroke-dasharray"));
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
