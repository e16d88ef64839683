//! The verbs, one file each.
use std::process::ExitCode;

use clap::Subcommand;

mod run;

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Verb {
    Run(run::Run),
}

impl Verb {
    /// Does it; the exit code when nothing failed (0, or 4 for a gate not met).
    ///
    /// # Errors
    /// Anything; `exit::code_of` knows the code.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Verb::Run(v) => v.run(),
        }
    }
}
