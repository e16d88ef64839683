//! The verbs, one file each.
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use hone_runtime::app::Settings;
use hone_runtime::learn::{Mode, Retain};

mod adapter;
mod bench;
mod bench_feedback;
mod check;
mod completions;
mod config;
mod demo;
mod doctor;
pub(crate) mod eval;
mod export;
mod feedback;
mod flash;
mod inspect;
mod listen;
mod man;
mod offpolicy;
mod pad;
pub(crate) mod quantize;
pub(crate) mod run;
mod tune;

/// What to do.
#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "one value in the life of a command")]
pub(crate) enum Verb {
    Adapter(adapter::Adapter),
    Bench(bench::Bench),
    Check(check::Check),
    Completions(completions::Completions),
    Config(config::Config),
    Demo(demo::Demo),
    Doctor(doctor::Doctor),
    Eval(eval::Eval),
    Export(export::Export),
    Feedback(feedback::Feedback),
    Flash(flash::Flash),
    Inspect(inspect::Inspect),
    Listen(listen::Listen),
    Man(man::Man),
    Pad(pad::Pad),
    Quantize(quantize::Quantize),
    Run(run::Run),
    Tune(tune::Tune),
}

impl Verb {
    /// Does it; the exit code when nothing failed (0, or 4 for a gate not met).
    ///
    /// # Errors
    /// Anything; `exit::code_of` knows the code.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Verb::Adapter(v) => v.run(),
            Verb::Bench(v) => v.run(),
            Verb::Check(v) => v.run(),
            Verb::Completions(v) => v.run(),
            Verb::Config(v) => v.run(),
            Verb::Demo(v) => v.run(),
            Verb::Doctor(v) => v.run(),
            Verb::Eval(v) => v.run(),
            Verb::Export(v) => v.run(),
            Verb::Feedback(v) => v.run(),
            Verb::Flash(v) => v.run(),
            Verb::Inspect(v) => v.run(),
            Verb::Listen(v) => v.run(),
            Verb::Man(v) => v.run(),
            Verb::Pad(v) => v.run(),
            Verb::Quantize(v) => v.run(),
            Verb::Run(v) => v.run(),
            Verb::Tune(v) => v.run(),
        }
    }
}

/// The guard between a candidate and use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guard {
    /// Refuse what is probably worse.
    Veto,
    /// Use only what is probably better.
    Superiority,
    /// Use everything at once.
    Off,
}

impl Guard {
    /// The gate's mode.
    pub(crate) fn mode(self) -> Mode {
        match self {
            Guard::Veto => Mode::Veto,
            Guard::Superiority => Mode::Superiority,
            Guard::Off => Mode::Off,
        }
    }

    /// Its name in documents.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Guard::Veto => "veto",
            Guard::Superiority => "superiority",
            Guard::Off => "off",
        }
    }
}

/// How a head is learned, where a person chooses.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Learning {
    /// How much of what the model was made from is learned beside the presses; as the adapter in use or the recipe, if not
    /// given.
    #[arg(long, value_enum)]
    retain: Option<Retention>,
    /// Learn on so many random Fourier features beside the model's; as the adapter in use or the recipe, if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=4096))]
    random_features: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Retention {
    /// Nothing: the presses alone decide.
    Adapt,
    /// Thirty samples.
    Balanced,
    /// A hundred and twenty samples.
    Keep,
}

impl Learning {
    /// The settings of a loop behind that guard.
    pub(crate) fn settings(self, guard: Guard) -> Settings {
        let retain = self.retain.map(|r| match r {
            Retention::Adapt => Retain::Adapt,
            Retention::Balanced => Retain::Balanced,
            Retention::Keep => Retain::Keep,
        });
        let random_features = self.random_features.map(|n| n as usize);
        Settings { gate: guard.mode(), retain, random_features, ..Settings::default() }
    }
}

/// `KEY=VALUE`, for options that take pairs.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}
