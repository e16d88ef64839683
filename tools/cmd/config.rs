//! `hone config`: what is configured, where it stands, and whether it makes sense.
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hone_runtime::Class;
use hone_runtime::bundle::Bundle;
use hone_runtime::config::{Config as Settings, KEYS};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use serde_json::{Map, Value, json};

use crate::exit::fail;
use crate::output;

/// Checks the configuration, or shows what is in force.
#[derive(Args)]
pub(crate) struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Reads the configuration and tells every fault with file and line; exit code 78 if there is one.
    Check {
        /// A file to read in place of /etc/hone/hone.toml and ~/.config/hone/hone.toml.
        file: Option<PathBuf>,
        /// A .hone bundle whose labels and classes the meanings of buttons must fit.
        #[arg(long, value_name = "BUNDLE")]
        bundle: Option<PathBuf>,
    },
    /// Shows every value in force.
    Show {
        /// A file to read in place of /etc/hone/hone.toml and ~/.config/hone/hone.toml.
        file: Option<PathBuf>,
        /// Also where each stands: `FILE:LINE`, or `default`.
        #[arg(long)]
        origin: bool,
        /// One JSON document, with origins.
        #[arg(long)]
        json: bool,
    },
    /// Explains every key.
    Keys,
}

impl Config {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.what {
            What::Check { file, bundle } => {
                let settings = Settings::load(file.as_deref())?;
                if let Some(bundle) = bundle {
                    let model = Model::open(Bundle::open(&bundle)?, SessionOptions::default())?;
                    let fits = settings.policy.check(&model.vocabulary());
                    fits.map_err(|wrong| fail(Class::Config, wrong.join("\n")))?;
                }
                let files: Vec<String> = settings.files.iter().map(|f| f.display().to_string()).collect();
                let read = if files.is_empty() { "no file, all is by default".into() } else { files.join(", ") };
                output::line(format!("the configuration is good: {read}"))?;
            }
            What::Show { file, origin, json } => show(&Settings::load(file.as_deref())?, origin, json)?,
            What::Keys => {
                let mut rows: Vec<Vec<String>> = KEYS.iter().map(|key| vec![key.name.into(), key.doc.into()]).collect();
                rows.push(vec![
                    "buttons.N.click|long|double, buttons.chord, buttons.chord-held".into(),
                    format!("what it means: {}; `!` in front confirms", hone_runtime::feedback::words::WORDS),
                ]);
                output::line("in [feedback] for every pad, in [pads.NAME] for one (with uid, port):")?;
                output::line(output::table(&rows))?;
                output::line("in [people.BADGE] for whoever shows that badge: name, trains, buttons")?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(settings: &Settings, origin: bool, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let rows: Map<String, Value> = settings
            .settings
            .iter()
            .map(|(key, setting)| (key.clone(), json!({"value": setting.value, "origin": setting.origin})))
            .collect();
        let files: Vec<String> = settings.files.iter().map(|f| f.display().to_string()).collect();
        return output::document("hone.config/1", json!({"files": files, "settings": rows}));
    }
    let row = |(key, setting): (&String, &hone_runtime::config::Setting)| {
        let mut row = vec![key.clone(), format!("= {}", setting.value)];
        if origin {
            row.push(format!("# {}", setting.origin));
        }
        row
    };
    output::line(output::table(&settings.settings.iter().map(row).collect::<Vec<_>>()))?;
    Ok(())
}
