//! `hone man`: the manual pages, made from the same text as `--help`.
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use hone_runtime::Class;

use crate::exit::fail;

/// Writes the manual: hone(1) to standard output, or a page for each verb into a directory.
#[derive(Args)]
pub(crate) struct Man {
    /// A directory that exists.
    dir: Option<PathBuf>,
}

impl Man {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.dir {
            Some(dir) => clap_mangen::generate_to(crate::Cli::command(), &dir)
                .map_err(|e| fail(Class::Store, format!("cannot write into {}: {e}", dir.display())))?,
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(crate::Cli::command()).render(&mut page)?;
                std::io::stdout().lock().write_all(&page)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
