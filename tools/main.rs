//! `hone`: the whole loop from one command line. It parses, prints and wires; the loop itself is in `hone_runtime`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

#[cfg(feature = "host")]
mod assets;
mod cmd;
mod device;
mod exit;
mod input;
mod machine;
mod open;
mod output;
mod precision;
#[cfg(feature = "host")]
mod quantize_report;
#[cfg(feature = "host")]
mod report;
mod steps;

/// Models that learn from a thumb: run, be told, adapt, on the device.
#[derive(Parser)]
#[command(name = "hone", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: cmd::Verb,
}

fn main() -> ExitCode {
    // clap itself exits with 2 on a wrong command line, as our table of exit codes has it.
    let cli = Cli::parse();
    match cli.verb.run() {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::say(format!("hone: {}", output::paragraph(&error)));
            ExitCode::from(exit::code_of(&error))
        }
    }
}
