use super::*;

#[derive(serde::Deserialize)]
struct Recorded {
    obp: String,
    actions: usize,
    action: Vec<usize>,
    mu: Vec<f64>,
    reward: Vec<f64>,
    target: Vec<Vec<f64>>,
    model: Vec<Vec<f64>>,
    ips: f64,
    snips: f64,
    dr: f64,
}

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("testdata/obp.json")).unwrap()
}

impl Recorded {
    fn log(&self) -> Vec<Logged> {
        (0..self.action.len())
            .map(|i| Logged {
                action: self.action[i],
                mu: self.mu[i],
                reward: self.reward[i],
                target: self.target[i].clone(),
                model: self.model[i].clone(),
            })
            .collect()
    }
}

fn uniform(x: u64) -> f64 {
    (mixed(x.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(77)) >> 11) as f64 / (1u64 << 53) as f64
}

/// A made-up world of three actions: contexts with their own chances of reward, a log that explores a fifth of the
/// time. Returns the log and the true value of the rule.
fn world(n: usize, seed: u64) -> (Vec<Logged>, f64) {
    let mut value = 0.0;
    let log = (0..n)
        .map(|i| {
            let draw = |k: u64| uniform(seed * 1_000_003 + i as u64 * 17 + k);
            let chance: Vec<f64> = (0..3).map(&draw).collect();
            // The log's favourite is the first action; the rule's is the one it wrongly or rightly thinks best.
            let guess: Vec<f64> = (0..3).map(|k| chance[k as usize] + 0.4 * (draw(3 + k) - 0.5)).collect();
            let best = (0..3).max_by(|&a, &b| guess[a].total_cmp(&guess[b])).unwrap();
            let target: Vec<f64> = (0..3).map(|k| f64::from(u8::from(k == best))).collect();
            value += chance[best] / n as f64;
            let mu = [0.8, 0.1, 0.1];
            let action = if draw(8) < 0.8 {
                0
            } else if draw(9) < 0.5 {
                1
            } else {
                2
            };
            let reward = f64::from(u8::from(draw(10) < chance[action]));
            Logged { action, mu: mu[action], reward, target, model: vec![0.5, 0.4, 0.6] }
        })
        .collect();
    (log, value)
}

#[test]
fn estimates_equal_those_of_the_open_bandit_pipeline_on_a_recorded_log() {
    let r = recorded();
    assert!(r.obp.starts_with("0.") && r.actions == 4 && r.action.len() >= 300);
    let ours = off_policy(&r.log(), 1).unwrap();
    assert!((ours.snips.value - r.snips).abs() < 1e-12, "{} and {}", ours.snips.value, r.snips);
    assert!((ours.dr.value - r.dr).abs() < 1e-12, "{} and {}", ours.dr.value, r.dr);
    // With a model that expects nothing, doubly robust is plain importance weighting.
    let blind: Vec<Logged> = r.log().into_iter().map(|d| Logged { model: vec![0.0; 4], ..d }).collect();
    let plain = off_policy(&blind, 1).unwrap();
    assert!((plain.dr.value - r.ips).abs() < 1e-12, "{} and {}", plain.dr.value, r.ips);
}

#[test]
fn over_many_logs_the_estimates_are_right_on_average_and_intervals_hold_the_truth() {
    let (runs, n) = (200, 250);
    let (mut bias, mut held) = ([0.0_f64; 2], [0_usize; 2]);
    for seed in 0..runs {
        let (log, truth) = world(n, seed);
        let e = off_policy(&log, seed).unwrap();
        for (k, e) in [e.snips, e.dr].into_iter().enumerate() {
            bias[k] += (e.value - truth) / runs as f64;
            held[k] += usize::from((e.low..=e.high).contains(&truth));
        }
    }
    // The estimates of single logs scatter by about 0.07; their mean over 200 by 0.005. Four of those.
    assert!(bias.iter().all(|b| b.abs() < 0.02), "bias {bias:?}");
    // 95 % nominal; the percentile bootstrap at this overlap holds somewhat less. 0.89 is four standard errors below
    // 0.95.
    assert!(held.iter().all(|&h| h as f64 / runs as f64 > 0.87), "held {held:?} of {runs}");
    println!("bias {bias:?}, held {held:?} of {runs}");
}

#[test]
fn a_log_that_never_explored_is_unsupported_and_gives_no_number() {
    let (mut log, _) = world(50, 3);
    log.iter_mut().for_each(|d| d.mu = 1.0);
    let e = off_policy(&log, 1).unwrap_err();
    assert_eq!(e, OffPolicyError::ArgmaxOnly { n: 50 });
    assert_eq!(e.class().exit_code(), 7);
    assert_eq!(off_policy(&[], 1).unwrap_err(), OffPolicyError::Empty);
    // A rule that would have shown none of it.
    let (log, _) = world(50, 3);
    let none: Vec<Logged> = log
        .into_iter()
        .map(|d| Logged { target: (0..3).map(|b| f64::from(u8::from(b == (d.action + 1) % 3))).collect(), ..d })
        .collect();
    assert_eq!(off_policy(&none, 1).unwrap_err(), OffPolicyError::NoOverlap { n: 50 });
}

#[test]
fn decisions_without_an_alternative_are_left_out_and_counted() {
    let (log, _) = world(200, 5);
    let plain = off_policy(&log, 1).unwrap();
    let mut more = log.clone();
    more.extend(log.iter().take(30).map(|d| Logged { mu: 1.0, reward: 0.0, ..d.clone() }));
    let with = off_policy(&more, 1).unwrap();
    assert_eq!((with.snips, with.dr, with.certain), (plain.snips, plain.dr, 30));
}

#[test]
fn snips_follows_a_shift_of_all_rewards_exactly_and_the_sample_size_is_that_of_the_weights() {
    let (log, _) = world(200, 9);
    let shifted: Vec<Logged> = log.iter().map(|d| Logged { reward: d.reward + 3.0, ..d.clone() }).collect();
    let (a, b) = (off_policy(&log, 1).unwrap(), off_policy(&shifted, 1).unwrap());
    assert!((b.snips.value - a.snips.value - 3.0).abs() < 1e-12);
    // The log's own rule: every weight is one, and the log is its own sample.
    let own: Vec<Logged> = log.iter().map(|d| Logged { target: vec![0.8, 0.1, 0.1], ..d.clone() }).collect();
    let same = off_policy(&own, 1).unwrap();
    assert!((same.effective_sample_size - 200.0).abs() < 1e-9);
    assert!((same.snips.value - same.logged.value).abs() < 1e-12);
    assert!(a.effective_sample_size < 100.0, "{}", a.effective_sample_size);
    assert_eq!(off_policy(&log, 1).unwrap(), a, "the same seed gives the same interval");
}

#[test]
fn a_decision_that_cannot_be_is_named() {
    let (log, _) = world(3, 1);
    type Spoil = fn(&mut Logged);
    let cases: [(Spoil, &str); 4] = [
        (|d| d.mu = 0.0, "not in (0, 1]"),
        (|d| d.action = 3, "action 3"),
        (|d| d.reward = f64::NAN, "not finite"),
        (|d| d.target = vec![0.5, 0.1, 0.1], "sum to"),
    ];
    for (spoil, says) in cases {
        let mut log = log.clone();
        spoil(&mut log[1]);
        let e = off_policy(&log, 1).unwrap_err().to_string();
        assert!(e.starts_with("decision 1") && e.contains(says), "{e}");
    }
}
