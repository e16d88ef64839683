//! The truth as confirmed presses tell it, and what another answer is worth then.
//!
//! A press may name the truth, exclude what was shown, or remark on it ("too high"). In the last two cases another
//! answer is right with the probability the heads together give it among what is left: none of them is its own judge.
use super::gate::Answered;
use super::head::argmax;
use super::objective::{Feedback, softmax_into};
use super::rater;
use super::task::Task;
use super::temperature::Told;

/// What is left to a press that a head held impossible: people err when they confirm too, and one press refutes no
/// head.
///
/// Not the ε = 0.02 of a confirmed press as a likelihood
/// ([`Hyper::epsilon_confirmed`](super::Hyper::epsilon_confirmed)). That says how often people err, this how much one
/// press may count where there are five of them: at 0.02 up to a factor of 49, and one press that a bad head foretold
/// by luck covers several it did not. With half of the thumbs wrong, heads in use then stood at .523/.535/.539 after
/// 50/100/200 presses, at 0.05 at .527/.542/.548, at 0.1 at .530/.551/.557 (48 worlds, `benches/feedback/README.md`);
/// at 0.2 thumbs that are all wrong do harm first (.514 after 50 presses, not .534). With right thumbs, or one in ten
/// wrong, all four come to the same.
const CONFIRMED_ERROR: f64 = 0.1;

/// What a confirmed press says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Is(usize),
    IsNot(usize),
    /// As a remark of the task on what was shown says.
    Remarked {
        shown: usize,
        remark: usize,
    },
}

/// What a head answers, the probability that it is right, and whether the press leaves it possible.
#[derive(Clone, Copy)]
struct Answer {
    class: usize,
    right: f64,
    possible: bool,
}

impl Truth {
    /// What a press says about the truth, the class shown given; `None` when it does not tell.
    pub(super) fn of(feedback: Feedback, shown: usize) -> Option<Truth> {
        match feedback {
            Feedback::Correction { class } | Feedback::Demonstration { class } => Some(Truth::Is(class)),
            Feedback::Thumb { up: true } | Feedback::Stars { stars: 5 } => Some(Truth::Is(shown)),
            Feedback::Thumb { up: false } | Feedback::Stars { stars: 1 } => Some(Truth::IsNot(shown)),
            Feedback::Remark { remark } => Some(Truth::Remarked { shown, remark }),
            Feedback::Stars { .. } | Feedback::Preference { .. } | Feedback::NotSure => None,
        }
    }

    /// Whether it leaves hypothesis `y` possible.
    fn leaves(self, task: &Task, y: usize) -> bool {
        match self {
            Truth::Is(truth) => task.near(y, truth),
            Truth::IsNot(wrong) => !task.near(y, wrong),
            Truth::Remarked { shown, remark } => task.agrees(remark, shown, y),
        }
    }

    /// What each head answers, how probably it is right, and how probable it held what the press says.
    pub(super) fn judge(self, task: &Task, heads: [&Vec<f32>; 3]) -> [Answered; 3] {
        let foreseen = heads.map(|head| {
            let logits: Vec<f64> = head.iter().map(|&v| f64::from(v)).collect();
            let mut p = vec![0.0; logits.len()];
            softmax_into(&logits, &mut p);
            p
        });
        let answers = self.answers(task, heads, &foreseen);
        std::array::from_fn(|i| {
            let (Answer { class, right, possible }, p) = (answers[i], &foreseen[i]);
            let said: f64 = (0..p.len()).filter(|&y| self.leaves(task, y)).map(|y| p[y]).sum();
            let foretold = CONFIRMED_ERROR + (1.0 - 2.0 * CONFIRMED_ERROR) * said.clamp(0.0, 1.0);
            Answered { class, right, possible, foretold }
        })
    }

    /// What each head answers; `foreseen` are the heads' probabilities.
    fn answers(self, task: &Task, heads: [&Vec<f32>; 3], foreseen: &[Vec<f64>; 3]) -> [Answer; 3] {
        if let (Truth::Is(_) | Truth::Remarked { .. }, Some(parts)) = (self, task.parts()) {
            return self.judge_parts(parts, heads.map(|head| argmax(head)));
        }
        let classes = heads[0].len();
        let mut mean = vec![0.0; classes];
        for p in foreseen {
            mean.iter_mut().zip(p).for_each(|(m, p)| *m += p / 3.0);
        }
        if task.is_graded() {
            let left: Vec<usize> = (0..classes).filter(|&y| self.leaves(task, y)).collect();
            let mass = left.iter().map(|&y| mean[y]).sum::<f64>().max(f64::MIN_POSITIVE);
            return heads.map(|head| {
                let class = argmax(head);
                // What was refused is refused, though a neighbour of it might be the truth and near enough.
                let possible = match self {
                    Truth::Is(truth) => task.near(class, truth),
                    _ => self.leaves(task, class),
                };
                let near = left.iter().filter(|&&y| task.near(class, y)).map(|&y| mean[y]).sum::<f64>();
                let right = match self {
                    Truth::Is(_) => f64::from(u8::from(possible)),
                    _ => near / mass,
                };
                Answer { class, right: right.clamp(0.0, 1.0), possible }
            });
        }
        heads.map(|head| {
            let class = argmax(head);
            let right = match self {
                Truth::Is(truth) => f64::from(u8::from(class == truth)),
                Truth::IsNot(wrong) if class == wrong => 0.0,
                Truth::IsNot(wrong) => mean[class] / (1.0 - mean[wrong]).max(f64::MIN_POSITIVE),
                Truth::Remarked { .. } => f64::from(u8::from(self.leaves(task, class))),
            };
            Answer { class, right: right.clamp(0.0, 1.0), possible: self.leaves(task, class) }
        })
    }

    /// Of sets of labels: the share right of those labels on which the heads differ. A remark tells one of them; the
    /// others are as likely right as wrong, and not right because nobody spoke of them: who sees two labels wrong names
    /// one.
    fn judge_parts(self, parts: usize, answers: [usize; 3]) -> [Answer; 3] {
        let bit = |set: usize, k: usize| set >> k & 1;
        let differing: Vec<usize> =
            (0..parts).filter(|&k| answers.iter().any(|&a| bit(a, k) != bit(answers[0], k))).collect();
        let right = |answer: usize, k: usize| match self {
            Truth::Is(truth) => f64::from(u8::from(bit(answer, k) == bit(truth, k))),
            Truth::Remarked { shown, remark } if remark == k => f64::from(u8::from(bit(answer, k) != bit(shown, k))),
            _ => 0.5,
        };
        answers.map(|class| {
            let share = differing.iter().map(|&k| right(class, k)).sum::<f64>() / differing.len().max(1) as f64;
            let possible = match self {
                Truth::Remarked { shown, remark } => bit(class, remark) != bit(shown, remark),
                // Of two heads that differ the one right about more of it: told in full, the harsh count need not
                // guess.
                _ => share > 0.5,
            };
            Answer { class, right: share, possible }
        })
    }

    /// As a temperature is fitted on it; `None` where it is not about one hypothesis.
    pub(super) fn told(self, task: &Task) -> Option<Told> {
        match self {
            _ if task.is_graded() => None,
            Truth::Is(class) => Some(Told::Is(class)),
            Truth::IsNot(class) => Some(Told::IsNot(class)),
            Truth::Remarked { .. } => None,
        }
    }

    /// Whether a press on `shown` agrees with it, of `classes` hypotheses; `None` where that does not tell.
    pub(super) fn confirms(self, task: &Task, classes: usize, feedback: Feedback, shown: usize) -> Option<bool> {
        if task.is_plain() {
            return rater::agrees(feedback, shown, self);
        }
        let claimed = |y: usize| match feedback {
            Feedback::Thumb { up } => Some(task.near(y, shown) == up),
            Feedback::Stars { stars } if stars != 3 => Some(task.near(y, shown) == (stars > 3)),
            Feedback::Correction { class } | Feedback::Demonstration { class } => Some(task.near(y, class)),
            Feedback::Remark { remark } => Some(task.agrees(remark, shown, y)),
            Feedback::Stars { .. } | Feedback::Preference { .. } | Feedback::NotSure => None,
        };
        let claims: Option<Vec<bool>> = (0..classes).filter(|&y| self.leaves(task, y)).map(claimed).collect();
        match claims? {
            all if all.iter().all(|&c| c) => Some(true),
            none if none.iter().all(|&c| !c) => Some(false),
            _ => None,
        }
    }
}
