//! `hone tune`: learn now from what the journal holds, or from labelled data.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use hone_runtime::Class;
use hone_runtime::app::{App, Learned, Settings};
use hone_runtime::bundle::Bundle;
use hone_runtime::journal::ClassChange;
use hone_runtime::learn::{Action, Kept, OBJECTIVES};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde::Serialize;

use crate::exit::fail;
use crate::output;

/// Fits the adapter to everything said so far and puts it before the gate.
#[derive(Args)]
pub(crate) struct Tune {
    /// A .hone bundle.
    bundle: PathBuf,
    /// The state directory; $STATE_DIRECTORY or the XDG state directory if not given.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The objective; the recipe's, or `posterior`, if not given.
    #[arg(long)]
    objective: Option<String>,
    /// What is trained.
    #[arg(long, default_value = "head")]
    scope: String,
    /// The guard between the candidate and use.
    #[arg(long, value_enum, default_value_t = super::Guard::Veto)]
    guard: super::Guard,
    /// A class more; nothing else changes before a press names it. Fits nothing.
    #[arg(long, value_name = "NAME", conflicts_with = "dry_run")]
    add_class: Vec<String>,
    /// Another name for a class. Fits nothing.
    #[arg(long, value_name = "OLD=NEW", value_parser = super::pair, conflicts_with = "dry_run")]
    rename_class: Vec<(String, String)>,
    /// Two classes become the second; what was learned of both stays. Fits nothing.
    #[arg(long, value_name = "FROM=INTO", value_parser = super::pair, conflicts_with = "dry_run")]
    merge_class: Vec<(String, String)>,
    #[command(flatten)]
    learning: super::Learning,
    /// Fit and report, publish nothing.
    #[arg(long)]
    dry_run: bool,
    /// One JSON document in place of text.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    adapter: String,
    scope: String,
    objective: String,
    presses: usize,
    confirmed: usize,
    theta_norm: f64,
    published: bool,
    reason: String,
    retain: &'static str,
    /// What the candidate keeps of the source.
    kept: Option<Kept>,
    /// What was in use before keeps.
    kept_before: Option<Kept>,
    seconds: f64,
}

#[derive(Serialize)]
struct Changed {
    schema: &'static str,
    adapter: String,
    classes: Vec<String>,
}

impl Tune {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(name) = &self.objective
            && !OBJECTIVES.iter().any(|o| o.name == name)
        {
            let known: Vec<&str> = OBJECTIVES.iter().map(|o| o.name).collect();
            return Err(fail(
                Class::Unsupported,
                format!("there is no objective `{name}` in this version; there are {}", known.join(", ")),
            ));
        }
        if self.scope != "head" {
            return Err(fail(
                Class::Unsupported,
                format!("scope `{}` is not in this version, which trains `head`", self.scope),
            ));
        }
        let started = Instant::now();
        let state = StateDir::resolve(self.state.as_deref())?;
        let model = Model::open(Bundle::open(&self.bundle)?, SessionOptions::default())?;
        let settings = Settings { objective: self.objective.clone(), ..self.learning.settings(self.guard) };
        let mut app = App::open_with(model, &state, settings)?;
        if !(self.add_class.is_empty() && self.rename_class.is_empty() && self.merge_class.is_empty()) {
            self.change_classes(&mut app)?;
            return Ok(ExitCode::SUCCESS);
        }
        let presses = app.learner().training_predictions();
        if presses == 0 {
            return Err(fail(
                Class::Failed,
                format!(
                    "nothing was said yet that could train this model in {}; `hone listen` or `hone feedback import` first",
                    state.root().display()
                ),
            ));
        }
        let candidate = app.learner().refit()?;
        let mut document = Document {
            schema: "hone.tune/1",
            adapter: app.current().map_or_else(|| "factory".into(), |a| a.to_string()),
            scope: self.scope,
            objective: app.learner().config().objective.clone(),
            presses,
            confirmed: app.learner().reservoir_ids().len(),
            theta_norm: candidate.norm(),
            published: false,
            reason: "--dry-run: nothing was put before the gate".into(),
            retain: app.retain().name(),
            kept: app.kept(&candidate)?,
            kept_before: app.kept(app.learner().published())?,
            seconds: 0.0,
        };
        let mut refused = false;
        if !self.dry_run
            && let Learned::Decided { decision, changed, .. } = app.decide()?
        {
            document.published = decision.action == Action::Publish;
            refused = !matches!(decision.action, Action::Publish | Action::Hold);
            document.reason = decision.reason;
            if let Some(now) = changed {
                document.adapter = now.map_or_else(|| "factory".into(), |a| a.to_string());
            }
        }
        document.seconds = started.elapsed().as_secs_f64();
        if self.json {
            output::json(&document)?;
        } else {
            output::line(format!(
                "{} presses, {} confirmed; {}: {}; {}",
                document.presses,
                document.confirmed,
                if document.published {
                    format!("adapter {} is in use", document.adapter)
                } else {
                    "nothing published".into()
                },
                document.reason,
                output::kept(document.kept.as_ref())
            ))?;
        }
        Ok(if refused { ExitCode::from(Class::Gate.exit_code()) } else { ExitCode::SUCCESS })
    }

    /// Changes the classes: first additions, then names, then merges.
    fn change_classes(&self, app: &mut App) -> anyhow::Result<()> {
        let adapter = |app: &App| app.current().map_or_else(|| "factory".to_string(), |a| a.to_string());
        for name in &self.add_class {
            app.change_classes(&ClassChange::Add { name: name.clone() })?;
        }
        for (old, name) in &self.rename_class {
            let class = app.classes().find(old)? as u32;
            app.change_classes(&ClassChange::Rename { class, name: name.clone() })?;
        }
        for (from, into) in &self.merge_class {
            let (from, into) = (app.classes().find(from)? as u32, app.classes().find(into)? as u32);
            app.change_classes(&ClassChange::Merge { from, into })?;
        }
        let classes = app.classes().visible_names();
        if self.json {
            let document = Changed { schema: "hone.tune-classes/1", adapter: adapter(app), classes };
            return output::json(&document);
        }
        output::line(format!("adapter {} is in use; the classes are {}", adapter(app), classes.join(", ")))?;
        Ok(())
    }
}
