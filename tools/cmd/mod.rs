//! The verbs, one file each.
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use hone_runtime::learn::Mode;

mod demo;
pub(crate) mod eval;
mod run;
mod tune;

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Verb {
    Demo(demo::Demo),
    Eval(eval::Eval),
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
            Verb::Demo(v) => v.run(),
            Verb::Eval(v) => v.run(),
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
