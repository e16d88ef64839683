//! `train/recipe.json` and `config.json`: what learning and showing need to know about a model.
use std::collections::BTreeMap;

use serde::Deserialize;

/// `train/recipe.json`: how presses change this model. Every number is finite.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What is learned, by its name in `learn::task::TASKS`; absent: `classification`.
    #[serde(default = "classification")]
    pub task: String,
    /// The tensor (`f32 [1, d]`) a head is learned on.
    pub feature: String,
    /// The tensor (`f32 [1, C]`) that holds the answer before softmax.
    pub logits: String,
    /// Mean of each feature on the source data, length `d`.
    pub mean: Vec<f32>,
    /// Standard deviation of each feature on the source data, length `d`, all above 0.
    pub std: Vec<f32>,
    /// The names of the shipped head's weight and bias in the graph, when it has one.
    #[serde(default)]
    pub head: Option<Head>,
    /// Weights of the graph a low-rank adapter may be put on.
    #[serde(default)]
    pub lora_targets: Vec<String>,
    /// Share of each class in the source data, length `C`, summing to 1. Absent: uniform.
    #[serde(default)]
    pub prior: Option<Vec<f32>>,
    /// Settings the maker recommends.
    #[serde(default)]
    pub defaults: Defaults,
    /// What the task has to know of its answers.
    #[serde(default)]
    pub answers: Answers,
}

fn classification() -> String {
    "classification".to_string()
}

/// What a task has to know of its answers beside their labels; which of it is needed, the task says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// `wake-word`, `detection`, `anomaly`: the probability from which something is reported, in (0, 1); ½ if absent.
    #[serde(default)]
    pub threshold: Option<f32>,
    /// `score`: the lowest number.
    #[serde(default)]
    pub low: Option<f32>,
    /// `score`: the highest number.
    #[serde(default)]
    pub high: Option<f32>,
    /// `score`: from one number of the grid to the next, at most `sigma`.
    #[serde(default)]
    pub step: Option<f32>,
    /// `score`: standard deviation of the shipped head's errors on source data.
    #[serde(default)]
    pub sigma: Option<f32>,
    /// `score`: how far off is still right.
    #[serde(default)]
    pub tolerance: Option<f32>,
    /// `score`: the unit, for people.
    #[serde(default)]
    pub unit: Option<String>,
    /// `retrieval`: tensor of `train/head.safetensors`, `f32 [N, P]`, a row for each label.
    #[serde(default)]
    pub gallery: Option<String>,
    /// `retrieval`: what inner products are divided by, above 0; 1 if absent.
    #[serde(default)]
    pub temperature: Option<f32>,
}

/// The shipped head `W0 z + b0`, by the names of its initializers in the graph.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Initializer of `W0`, `[C, d]` or, as the graph multiplies it, `[d, C]`.
    pub weight: String,
    /// Initializer of `b0`, `[C]`.
    #[serde(default)]
    pub bias: Option<String>,
}

/// Settings of the learner; what is absent is the learner's own default.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Name of the objective.
    #[serde(default)]
    pub objective: Option<String>,
    /// Ridge strength for thumbs, above 0.
    #[serde(default)]
    pub lambda_thumb: Option<f32>,
    /// Ridge strength for corrections, above 0.
    #[serde(default)]
    pub lambda_corrections: Option<f32>,
    /// Assumed share of wrong presses, in `[0, 0.5)`.
    #[serde(default)]
    pub epsilon: Option<f32>,
    /// Share of the uniform distribution mixed into the target, in `[0, 1]`.
    #[serde(default)]
    pub delta: Option<f32>,
    /// How much what comes after an answer counts, in `[0, 1)`: of the objective `q-learning` alone.
    #[serde(default)]
    pub discount: Option<f32>,
    /// Iterations of the canonical refit, at least 1. Stopping early holds the head near the shipped one.
    #[serde(default)]
    pub iterations: Option<u32>,
    /// Largest extrapolation factor of the canonical refit, in `[0, 1)`; 0 for plain iterations.
    #[serde(default)]
    pub momentum: Option<f32>,
    /// How much of the source is learned beside the presses: `adapt`, `balanced` or `keep`; needs
    /// `train/coreset.safetensors`.
    #[serde(default)]
    pub retain: Option<String>,
    /// Random Fourier features a head is learned on beside the graph's; 0 for none.
    #[serde(default)]
    pub random_features: Option<u32>,
}

impl Recipe {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// A sentence naming the member: unknown or missing members, empty or unequal lengths, numbers that are not finite
    /// or out of range.
    pub(crate) fn from_json(text: &str) -> Result<Recipe, String> {
        let recipe: Recipe = serde_json::from_str(text).map_err(|e| e.to_string())?;
        recipe.check()?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), String> {
        for (name, value) in [("task", &self.task), ("feature", &self.feature), ("logits", &self.logits)] {
            if value.is_empty() {
                return Err(format!("{name} is empty"));
            }
        }
        if self.mean.is_empty() || self.mean.len() != self.std.len() {
            return Err(format!("mean has {} numbers and std {}; both must be d > 0", self.mean.len(), self.std.len()));
        }
        if let Some(i) = self.mean.iter().position(|v| !v.is_finite()) {
            return Err(format!("mean[{i}] is not finite"));
        }
        if let Some(i) = self.std.iter().position(|v| !v.is_finite() || *v <= 0.0) {
            return Err(format!("std[{i}] is not finite and above 0"));
        }
        if let Some(prior) = &self.prior {
            if let Some(i) = prior.iter().position(|v| !v.is_finite() || *v < 0.0) {
                return Err(format!("prior[{i}] is not a share"));
            }
            let sum: f32 = prior.iter().sum();
            if (sum - 1.0).abs() > 1e-3 {
                return Err(format!("prior sums to {sum}, not 1"));
            }
        }
        let d = &self.defaults;
        for (name, value) in [("lambda_thumb", d.lambda_thumb), ("lambda_corrections", d.lambda_corrections)] {
            if value.is_some_and(|v| !v.is_finite() || v <= 0.0) {
                return Err(format!("defaults.{name} is not finite and above 0"));
            }
        }
        if d.retain.as_deref().is_some_and(|r| !["adapt", "balanced", "keep"].contains(&r)) {
            return Err("defaults.retain is none of adapt, balanced, keep".into());
        }
        if d.random_features.is_some_and(|n| n > 4096) {
            return Err("defaults.random_features is above 4096".into());
        }
        if d.iterations == Some(0) {
            return Err("defaults.iterations is 0".into());
        }
        if d.momentum.is_some_and(|v| !(0.0..1.0).contains(&v)) {
            return Err("defaults.momentum is not in [0, 1)".into());
        }
        if d.discount.is_some_and(|v| !(0.0..1.0).contains(&v)) {
            return Err("defaults.discount is not in [0, 1)".into());
        }
        if d.epsilon.is_some_and(|v| !(0.0..0.5).contains(&v)) {
            return Err("defaults.epsilon is not in [0, 0.5)".into());
        }
        if d.delta.is_some_and(|v| !(0.0..=1.0).contains(&v)) {
            return Err("defaults.delta is not in [0, 1]".into());
        }
        Ok(())
    }
}

/// The class names of a Hugging Face `config.json`, in class order.
///
/// # Errors
/// A sentence: no `id2label`, keys that are not `0 … C−1`.
pub(crate) fn labels_from_config(text: &str) -> Result<Vec<String>, String> {
    // Every other member of config.json belongs to its maker and is left alone.
    #[derive(Deserialize)]
    struct Config {
        id2label: Option<BTreeMap<String, String>>,
    }
    let config: Config = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let by_id = config.id2label.ok_or("id2label is missing; the model's classes have no names")?;
    if by_id.is_empty() {
        return Err("id2label is empty".into());
    }
    (0..by_id.len())
        .map(|i| by_id.get(&i.to_string()).cloned().ok_or(format!("id2label has {} entries but no '{i}'", by_id.len())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"task":"classification","feature":"z","logits":"y","mean":[0,1.5],"std":[1,2],
        "head":{"weight":"w","bias":"b"},"prior":[0.5,0.25,0.25],
        "defaults":{"objective":"posterior","lambda_thumb":0.03,"lambda_corrections":0.1,"epsilon":0.1,"delta":0.2}}"#;

    #[test]
    fn a_recipe_reads_and_every_broken_number_in_it_is_refused_by_name() {
        let recipe = Recipe::from_json(GOOD).unwrap();
        assert_eq!(recipe.mean, [0.0, 1.5]);
        assert_eq!(recipe.defaults.lambda_thumb, Some(0.03));
        for (from, to, name) in [
            ("[0,1.5]", "[0]", "mean"),
            ("[0,1.5]", "[0,1e39]", "out of range"),
            ("[1,2]", "[1,0]", "std[1]"),
            ("[0.5,0.25,0.25]", "[0.5,0.25,0.5]", "prior"),
            ("[0.5,0.25,0.25]", "[-0.5,1.5]", "prior[0]"),
            ("0.03", "0", "lambda_thumb"),
            ("\"epsilon\":0.1", "\"epsilon\":0.5", "epsilon"),
            ("\"delta\":0.2", "\"delta\":1.2", "delta"),
            ("\"z\"", "\"\"", "feature"),
            ("\"task\"", "\"tsk\"", "tsk"),
        ] {
            let e = Recipe::from_json(&GOOD.replace(from, to)).unwrap_err();
            assert!(e.contains(name), "{name}: {e}");
        }
    }

    #[test]
    fn labels_come_in_numeric_order_and_a_gap_is_an_error() {
        let eleven: String = (0..11).map(|i| format!("\"{i}\":\"c{i}\",")).collect();
        let text = format!("{{\"id2label\":{{{}}},\"x\":1}}", eleven.trim_end_matches(','));
        let labels = labels_from_config(&text).unwrap();
        assert_eq!(labels[2], "c2");
        assert_eq!(labels[10], "c10");
        assert!(labels_from_config(r#"{"id2label":{"0":"a","2":"b"}}"#).unwrap_err().contains("'1'"));
        assert!(labels_from_config("{}").is_err());
    }
}
