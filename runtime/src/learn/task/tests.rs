use super::*;
use crate::learn::head::HeadBase;
use crate::learn::objective::softmax_into;
use crate::learn::solver::{Row, SolverConfig, canonical_refit, splitmix64};

fn unit(x: u64) -> f64 {
    (splitmix64(x) >> 11) as f64 / (1u64 << 53) as f64
}

/// Uniform in −1..1.
fn noise(x: u64) -> f64 {
    2.0 * unit(x) - 1.0
}

fn task(recipe: &str, labels: &[&str], shipped: Shipped) -> Result<Task, String> {
    let recipe = Recipe::from_json(&format!(r#"{{"feature":"z","logits":"y","mean":[0],"std":[1],{recipe}}}"#))?;
    Task::new(&recipe, &labels.iter().map(|l| l.to_string()).collect::<Vec<_>>(), &shipped)
}

fn outputs(outputs: usize) -> Shipped {
    Shipped { outputs, gallery: None }
}

const STARS: &str =
    r#""task":"score","answers":{"low":0,"high":10,"step":0.25,"sigma":1.5,"tolerance":0.5,"unit":"stars"}"#;

fn stars() -> Task {
    task(STARS, &["rating"], outputs(1)).unwrap()
}

fn genres() -> Task {
    task(r#""task":"multi-label""#, &["Action", "Comedy", "Drama"], outputs(3)).unwrap()
}

fn files() -> Task {
    let gallery = Some((0..7 * 3).map(|i| noise(i) as f32).collect());
    let labels = ["a", "b", "c", "d", "e", "f", "g"];
    let recipe = r#""task":"retrieval","answers":{"gallery":"g","temperature":0.25}"#;
    task(recipe, &labels, Shipped { outputs: 3, gallery }).unwrap()
}

fn wake() -> Task {
    task(r#""task":"wake-word","answers":{"threshold":0.8}"#, &["quiet", "seven"], outputs(1)).unwrap()
}

fn probabilities(logits: &[f32]) -> Vec<f64> {
    let logits: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    let mut p = vec![0.0; logits.len()];
    softmax_into(&logits, &mut p);
    p
}

fn likelihood(task: &Task, feedback: Feedback, shown: usize) -> Vec<f64> {
    let mut l = vec![1.0; task.names().len()];
    task.multiply_likelihood(&mut l, Press::plain(feedback), shown, &Hyper::default()).unwrap();
    l
}

#[test]
fn the_table_of_what_presses_mean_is_that_of_the_rows() {
    let mut text = String::from(
        "# What presses mean\n\nWritten by `HONE_UPDATE=1 cargo test -p hone-runtime --lib learn::task` from the rows \
         of `TASKS`. A long press says the same with emphasis: it is evidence for the gate and never trains. A double \
         click or a chord takes back. Stars lie between 👎 (one) and 👍 (five), \"not sure\" says nothing. Buttons: one \
         is 👎, two are 👍 and 👎, more are a class each and 👎 at last; where there are remarks, two buttons are the two \
         remarks, if there are two, and more are a remark each and 👍 at last. A dial or a list chooses by number: the \
         classes first, then the remarks.\n\n\
         | task | an answer is | 👍 | 👎 | a class named | remarks | right for the gate | `hone eval` reports \
         |\n|---|---|---|---|---|---|---|---|\n",
    );
    for def in TASKS {
        text += &format!(
            "| `{}` | {} | {} | {} | {} | {} | {} | {} |\n",
            def.name, def.answer, def.up, def.down, def.named, def.remarks, def.right, def.measures
        );
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/learn/task/TASKS.md");
    if std::env::var_os("HONE_UPDATE").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), text, "HONE_UPDATE=1 writes it anew");
}

#[test]
fn every_row_has_its_name_once_and_words_for_every_press() {
    for (i, def) in TASKS.iter().enumerate() {
        assert!(TASKS[..i].iter().all(|other| other.name != def.name), "{}", def.name);
        for words in [def.answer, def.up, def.down, def.named, def.remarks, def.right, def.measures] {
            assert!(!words.is_empty(), "{}", def.name);
        }
    }
}

#[test]
fn sets_of_labels_are_the_product_of_their_bernoullis() {
    let s = [0.7_f32, -1.2, 2.5];
    let p = probabilities(&genres().logits(&s));
    for (set, p) in p.iter().enumerate() {
        let product: f64 = (0..3)
            .map(|k| {
                let on = 1.0 / (1.0 + (-f64::from(s[k])).exp());
                if set >> k & 1 == 1 { on } else { 1.0 - on }
            })
            .product();
        assert!((p - product).abs() < 1e-6, "{set}: {p} and {product}");
    }
    let p: Vec<f32> = p.iter().map(|&p| p as f32).collect();
    for ((_, marginal), s) in genres().labels(&p).unwrap().iter().zip(s) {
        assert!((marginal - 1.0 / (1.0 + (-s).exp())).abs() < 1e-5);
    }
    let t = genres();
    assert_eq!((t.truth("Drama + Action"), t.truth("none"), t.truth("Comedy;Drama")), (Some(5), Some(0), Some(6)));
    assert_eq!((t.names()[5].as_str(), t.truth("Western")), ("Action + Drama", None));
    assert_eq!(t.choice("Comedy is wrong"), Some(8 + 1));
}

#[test]
fn a_moved_score_is_the_link_times_how_far_it_moved() {
    let t = stars();
    let (Form::Score(score), link) = (&t.form, t.link().unwrap()) else { panic!("a score") };
    for moved in [-2.0, 0.3, 1.75] {
        let slope = score.slope();
        let by_link: Vec<f32> =
            t.logits(&[6.1]).iter().zip(&slope).map(|(&l, s)| (f64::from(l) + s * moved) as f32).collect();
        let (a, b) = (probabilities(&by_link), probabilities(&t.logits(&[6.1 + moved as f32])));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{moved}");
    }
    assert!(
        link.matrix.iter().zip(score.slope()).all(|(m, s)| (m * score.slope()[0] - s * link.matrix[0]).abs() < 1e-9)
    );
    let p: Vec<f32> = probabilities(&t.logits(&[6.1])).iter().map(|&p| p as f32).collect();
    let estimate = t.estimate(&p).unwrap();
    // The normal's tenth is 1.2816 standard deviations below; the grid rounds to a quarter.
    assert!((estimate.value - 6.1).abs() < 0.02 && (estimate.low - (6.1 - 1.2816 * 1.5)).abs() <= 0.25);
    assert_eq!((estimate.decimals, t.names()[25].as_str(), t.truth("6.3")), (2, "6.25", Some(25)));
}

#[test]
fn the_curvature_through_every_link_is_at_most_one_half() {
    for t in [stars(), genres(), files()] {
        let link = t.link().unwrap();
        let (h, p) = (t.names().len(), link.outputs);
        let mut most: f64 = 0.0;
        for seed in 0..400_u64 {
            // Beliefs as the graph and a correction make them, sharp and flat, and any direction.
            let change: Vec<f64> = (0..p as u64).map(|j| 6.0 * noise(seed * 31 + j)).collect();
            let outputs: Vec<f32> = (0..p as u64).map(|j| 4.0 * noise(seed * 97 + j) as f32).collect();
            let mut logits: Vec<f64> = t.logits(&outputs).iter().map(|&l| f64::from(l)).collect();
            for (l, row) in logits.iter_mut().zip(link.matrix.chunks_exact(p)) {
                *l += dot(row, &change);
            }
            let mut pi = vec![0.0; h];
            softmax_into(&logits, &mut pi);
            let u: Vec<f64> = (0..p as u64).map(|j| noise(seed * 7 + j + 1_000_000)).collect();
            let along: Vec<f64> = link.matrix.chunks_exact(p).map(|row| dot(row, &u)).collect();
            let mean = dot(&pi, &along);
            let variance: f64 = pi.iter().zip(&along).map(|(p, a)| p * (a - mean) * (a - mean)).sum();
            most = most.max(variance / dot(&u, &u));
        }
        assert!(most <= 0.5 + 1e-9 && most > 0.02, "{}: {most}", t.name());
    }
}

#[test]
fn a_correction_of_the_hypotheses_is_taken_back_to_that_of_the_outputs() {
    for t in [stars(), genres(), files(), wake()] {
        let columns = match &t.form {
            Form::Score(score) => vec![score.slope()],
            Form::Sets(sets) => sets.columns(),
            Form::Items(items) => items.columns(),
            _ => vec![vec![0.0, 1.0]],
        };
        let (p, h, width) = (columns.len(), t.names().len(), 4);
        let theta: Vec<f32> = (0..(p * width) as u64).map(|i| noise(i + 5) as f32).collect();
        let at =
            |y: usize, j: usize| (0..p).map(|k| columns[k][y] * f64::from(theta[k * width + j])).sum::<f64>() as f32;
        let values = (0..h).flat_map(|y| (0..width).map(move |j| (y, j))).map(|(y, j)| at(y, j)).collect();
        let back = t.pull(&Theta::new(h, width, values).unwrap()).unwrap();
        assert_eq!(back.classes(), p);
        assert!(back.values().iter().zip(&theta).all(|(a, b)| (a - b).abs() < 1e-4), "{}", t.name());
        // And the outputs so corrected give the logits so corrected, but for a constant.
        let z = [0.3_f64, -1.0, 0.5, 1.0];
        let graph: Vec<f32> = (0..p).map(|k| 1.0 + k as f32).collect();
        let moved: Vec<f32> = (0..p)
            .map(|k| {
                graph[k] + z.iter().enumerate().map(|(j, z)| z * f64::from(theta[k * width + j])).sum::<f64>() as f32
            })
            .collect();
        let by_hypotheses: Vec<f32> = t
            .logits(&graph)
            .iter()
            .enumerate()
            .map(|(y, &l)| l + (0..width).map(|j| z[j] * f64::from(at(y, j))).sum::<f64>() as f32)
            .collect();
        let (a, b) = (probabilities(&by_hypotheses), probabilities(&t.logits(&moved)));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4), "{}", t.name());
    }
}

#[test]
fn a_press_is_the_likelihood_the_table_says() {
    let (high, low) = (0.9, 0.1);
    let is = |l: Vec<f64>, wanted: &dyn Fn(usize) -> bool| {
        l.iter().enumerate().all(|(y, l)| (l - if wanted(y) { high } else { low }).abs() < 1e-12)
    };
    let t = stars();
    // 6.00 was shown, at place 24; half a star is two places.
    let thumb = |up| Feedback::Thumb { up };
    assert!(is(likelihood(&t, thumb(true), 24), &|y| (22..=26).contains(&y)));
    assert!(is(likelihood(&t, thumb(false), 24), &|y| !(22..=26).contains(&y)));
    assert!(is(likelihood(&t, Feedback::Remark { remark: 0 }, 24), &|y| y < 22));
    assert!(is(likelihood(&t, Feedback::Remark { remark: 1 }, 24), &|y| y > 26));
    assert!(is(likelihood(&t, Feedback::Stars { stars: 5 }, 24), &|y| (22..=26).contains(&y)));
    let named = likelihood(&t, Feedback::Correction { class: 30 }, 24);
    assert!(named[30] > 0.9 && named[30] > named[31] && named[31] > 0.5 && named[24] < 0.02 && named[24] > 0.0);
    let t = genres();
    assert!(is(likelihood(&t, Feedback::Remark { remark: 1 }, 0b101), &|y| y & 0b010 != 0));
    assert!(is(likelihood(&t, Feedback::Remark { remark: 2 }, 0b101), &|y| y & 0b100 == 0));
    assert!(is(likelihood(&t, thumb(false), 0b101), &|y| y != 0b101));
    let t = wake();
    assert!(is(likelihood(&t, thumb(false), 1), &|y| y == 0), "a false alarm");
    assert!(is(likelihood(&t, thumb(false), 0), &|y| y == 1), "a miss");
    let mut l = vec![1.0; 8];
    let press = Press::plain(Feedback::Remark { remark: 3 });
    assert!(genres().multiply_likelihood(&mut l, press, 0, &Hyper::default()).is_err(), "there are three labels");
    assert!(wake().multiply_likelihood(&mut l[..2], press, 0, &Hyper::default()).is_err());
}

#[test]
fn the_threshold_is_where_the_answer_changes() {
    let t = wake();
    let logit = (0.8_f64 / 0.2).ln() as f32;
    let answer = |s: f32| crate::learn::argmax(&t.logits(&[s]));
    assert_eq!((answer(logit - 0.01), answer(logit + 0.01)), (0, 1));
    let two = task(r#""task":"detection""#, &["no", "yes"], outputs(2)).unwrap();
    assert_eq!(two.logits(&[0.5, 1.0]), [0.5, 1.0]);
}

/// Rows of features with what was pressed on them, for a head that answers `t` with zero outputs.
fn rows(t: &Task, n: usize, d: usize) -> (HeadBase, Vec<Row>) {
    let h = t.names().len();
    let base = HeadBase::new(vec![0.0; h * d], vec![0.0; h], vec![0.0; d], vec![1.0; d]).unwrap();
    let graph = t.logits(&vec![0.0; t.outputs()]);
    let row = |i: usize| {
        let feature: Vec<f32> = (0..d as u64).map(|j| noise((i * d) as u64 + j) as f32).collect();
        let shown = splitmix64(i as u64 + 77) as usize % t.names().len();
        let remarks = t.remarks().len();
        let feedback = match i % 3 {
            0 if remarks > 0 => Feedback::Remark { remark: i / 3 % remarks },
            0 => Feedback::Correction { class: (shown + 1) % t.names().len() },
            _ => Feedback::Thumb { up: feature[0] > 0.0 },
        };
        let z = base.input(&feature).unwrap();
        Row { z, logits: graph.clone().into(), likelihood: likelihood(t, feedback, shown), names_class: false }
    };
    let rows = (0..n).map(row).collect();
    (base, rows)
}

/// The target under a doubt of 0.2, or under the most with which what a press speaks for is believed no less afterwards.
fn doubted(pi: &[f64], wide: &[f64], likelihood: &[f64]) -> Vec<f64> {
    let target = |delta: f64| -> Vec<f64> {
        let belief: Vec<f64> = pi.iter().zip(wide).map(|(p, q)| (1.0 - delta) * p + delta * q).collect();
        let mass = dot(&belief, likelihood);
        belief.iter().zip(likelihood).map(|(b, l)| b * l / mass).collect()
    };
    let most = likelihood.iter().fold(0.0_f64, |a, &b| a.max(b));
    let spoken_for = |of: &[f64]| -> f64 {
        of.iter().zip(likelihood).filter(|&(_, &l)| l > most * (1.0 - 1e-12)).map(|(p, _)| p).sum()
    };
    let (mut low, mut high) = (0.0, 0.2);
    if spoken_for(&target(high)) >= spoken_for(pi) {
        return target(high);
    }
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if spoken_for(&target(middle)) >= spoken_for(pi) { low = middle } else { high = middle }
    }
    target(low)
}

#[test]
fn the_linked_refit_stands_where_the_gradient_vanishes() {
    for t in [stars(), genres(), files()] {
        let link = t.link().unwrap();
        let (p, width) = (link.outputs, 5);
        let (base, rows) = rows(&t, 40, width - 1);
        let config = SolverConfig {
            link: Some(link.clone()),
            canonical_iterations: 4000,
            delta_presses: f64::INFINITY,
            ..SolverConfig::default()
        };
        let theta = canonical_refit(&base, &rows, &config).unwrap();
        // Θ of the outputs, by the link's own columns: M is of full rank here.
        let mut gradient = vec![0.0; p * width];
        let mut scale: f64 = 0.0;
        // "Too high" about the lowest number says nothing, and moves nothing.
        for row in rows.iter().filter(|row| posterior::is_informative(&row.likelihood)) {
            let z = row.z.z();
            let served: Vec<f64> = theta.apply(&z, &row.logits).unwrap().iter().map(|&l| f64::from(l)).collect();
            let mut pi = vec![0.0; served.len()];
            softmax_into(&served, &mut pi);
            let mut wide = vec![0.0; served.len()];
            softmax_into(&served.iter().map(|l| link.doubt * l).collect::<Vec<_>>(), &mut wide);
            let target = doubted(&pi, &wide, &row.likelihood);
            for y in 0..pi.len() {
                let g = pi[y] - target[y];
                for k in 0..p {
                    for j in 0..width {
                        gradient[k * width + j] += link.matrix[y * p + k] * g * f64::from(z[j]);
                    }
                    scale = scale.max((link.matrix[y * p + k] * g).abs());
                }
            }
        }
        // λΘ_P = −gradient; MΘ_P must be what was handed out.
        let mut worst: f64 = 0.0;
        for y in 0..t.names().len() {
            for j in 0..width {
                let own: f64 = (0..p).map(|k| link.matrix[y * p + k] * -gradient[k * width + j] / 0.03).sum();
                worst = worst.max((own - f64::from(theta.row(y)[j])).abs());
            }
        }
        // Θ is handed out in f32, and n|z|²/2λ multiplies what that rounds: about 1e-4.
        assert!(worst < 1e-3 * theta.norm() && theta.norm() > 0.1, "{}: {worst} of {}", t.name(), theta.norm());
        assert!(scale > 0.01);
    }
}

#[test]
fn one_label_alone_learns_as_the_two_classes_it_is() {
    let one = task(r#""task":"multi-label""#, &["there"], outputs(1)).unwrap();
    let two = task(r#""task":"detection""#, &["not", "there"], outputs(1)).unwrap();
    let (base, rows_of_one) = rows(&one, 60, 6);
    // A remark on the one label is a 👎.
    let link = Link { doubt: 0.0, ..one.link().unwrap() };
    let linked = SolverConfig { link: Some(link), ..SolverConfig::default() };
    let by_sets = canonical_refit(&base, &rows_of_one, &linked).unwrap();
    let by_classes = canonical_refit(&base, &rows_of_one, &SolverConfig::default()).unwrap();
    assert_eq!(two.link(), None);
    for j in 0..7 {
        let difference = |t: &Theta| t.row(1)[j] - t.row(0)[j];
        let (a, b) = (difference(&by_sets), difference(&by_classes));
        assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "{j}: {a} and {b}");
    }
    assert!(by_sets.norm() > 0.1);
}

#[test]
fn settings_that_make_no_sense_are_refused_with_the_task_named() {
    let bad = |recipe: &str, labels: &[&str], shipped: Shipped, part: &str| {
        let why = task(recipe, labels, shipped).unwrap_err();
        assert!(why.contains(part), "{why}");
    };
    bad(r#""task":"poetry""#, &["a", "b"], outputs(2), "wake-word");
    bad(r#""task":"wake-word""#, &["a", "b", "c"], outputs(3), "wake-word: it has 3 labels");
    bad(r#""task":"anomaly","answers":{"threshold":1}"#, &["a", "b"], outputs(1), "threshold");
    bad(r#""task":"score""#, &["a"], outputs(1), "answers.low is missing");
    bad(&STARS.replace("0.25", "3"), &["a"], outputs(1), "sigma");
    bad(&STARS.replace("0.25", "0.001"), &["a"], outputs(1), "numbers");
    bad(&STARS.replace("10", "-1"), &["a"], outputs(1), "no grid");
    bad(r#""task":"multi-label""#, &["l"; 9], outputs(9), "9 labels");
    bad(r#""task":"multi-label""#, &["a", "b"], outputs(3), "3 outputs");
    bad(r#""task":"retrieval""#, &["a", "b"], outputs(3), "gallery");
    bad(r#""task":"retrieval""#, &["a", "b"], Shipped { outputs: 2, gallery: Some(vec![0.0; 5]) }, "5 numbers");
    bad(r#""task":"retrieval""#, &["a", "b"], Shipped { outputs: 1, gallery: Some(vec![f32::NAN; 2]) }, "finite");
    bad(r#""task":"wake-word","answers":{"tau":1}"#, &["a", "b"], outputs(1), "tau");
}

#[test]
fn a_thumb_down_on_a_score_moves_it_nowhere_and_a_remark_where_it_says() {
    let t = stars();
    let base = HeadBase::new(vec![0.0; 41 * 2], vec![0.0; 41], vec![0.0; 2], vec![1.0; 2]).unwrap();
    let config = SolverConfig { link: t.link(), ..SolverConfig::default() };
    let moved = |feedback| {
        let z = base.standardise(&[0.4, -0.2]).unwrap();
        let row = Row {
            z: z.clone().into(),
            logits: t.logits(&[5.0]).into(),
            likelihood: likelihood(&t, feedback, 20),
            names_class: false,
        };
        let theta = canonical_refit(&base, &vec![row; 8], &config).unwrap();
        let p = probabilities(&theta.apply(&z, &t.logits(&[5.0])).unwrap());
        p.iter().enumerate().map(|(b, p)| 0.25 * b as f64 * p).sum::<f64>() - 5.0
    };
    // The grid's ends are not quite symmetric about any number but its middle, which was shown.
    assert!(moved(Feedback::Thumb { up: false }).abs() < 1e-3);
    assert!(moved(Feedback::Thumb { up: true }).abs() < 1e-3);
    assert!(moved(Feedback::Remark { remark: 0 }) < -0.5);
    assert!(moved(Feedback::Remark { remark: 1 }) > 0.5);
}

#[test]
fn a_remark_tells_one_label_and_a_set_tells_all_and_heads_are_judged_where_they_differ() {
    use crate::learn::truth::Truth;
    let t = genres();
    let head = |set: usize| (0..8).map(|h| if h == set { 5.0 } else { 0.0 }).collect::<Vec<f32>>();
    let judged = |truth: Truth, sets: [usize; 3]| {
        let heads = sets.map(head);
        truth.judge(&t, [&heads[0], &heads[1], &heads[2]]).map(|a| (a.right, a.possible))
    };
    // 001 was shown and label 1 is wrong. The first head turns that label only, the second all three, the third none.
    let remarked = Truth::Remarked { shown: 0b001, remark: 1 };
    assert_eq!(judged(remarked, [0b011, 0b110, 0b001]), [(2.0 / 3.0, true), (2.0 / 3.0, true), (1.0 / 3.0, false)]);
    // The truth is 011: the second head is right about label 1 and wrong about the two it turned besides.
    assert_eq!(judged(Truth::Is(0b011), [0b011, 0b110, 0b001]), [(1.0, true), (1.0 / 3.0, false), (2.0 / 3.0, true)]);
}

#[test]
fn a_number_is_judged_by_its_tolerance_and_a_remark_by_what_it_leaves() {
    use crate::learn::truth::Truth;
    let t = stars();
    let heads = [6.0_f32, 5.0, 7.5].map(|mean| t.logits(&[mean]));
    let judged = |truth: Truth| truth.judge(&t, [&heads[0], &heads[1], &heads[2]]);
    // 6.25 is the truth: 6.0 is within half a star, the others are not.
    assert_eq!(judged(Truth::Is(25)).map(|a| a.right), [1.0, 0.0, 0.0]);
    // 6.25 was too high: what is lower than 5.75 is possible, and may be right.
    let [at_6, at_5, at_7] = judged(Truth::Remarked { shown: 25, remark: 0 });
    assert!(!at_6.possible && at_5.possible && !at_7.possible);
    assert!(at_5.right > at_6.right && at_6.right > at_7.right && at_7.right == 0.0);
    // Presses by others are held against it: who said "right" was wrong, who said "too low" too.
    let truth = Truth::Remarked { shown: 25, remark: 0 };
    let says = |feedback| truth.confirms(&t, 41, feedback, 25);
    assert_eq!(says(Feedback::Thumb { up: true }), Some(false));
    assert_eq!(says(Feedback::Thumb { up: false }), Some(true));
    assert_eq!(says(Feedback::Remark { remark: 1 }), Some(false));
    assert_eq!(says(Feedback::Correction { class: 10 }), None);
}
