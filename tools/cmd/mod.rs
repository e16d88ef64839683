//! The verbs, one file each.
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use hone_runtime::app::Settings;
use hone_runtime::learn::{Mode, Retain};

mod adapter;
#[cfg(feature = "host")]
mod bench;
#[cfg(feature = "host")]
mod bench_feedback;
#[cfg(feature = "host")]
mod check;
#[cfg(feature = "host")]
mod completions;
mod config;
#[cfg(feature = "host")]
mod demo;
mod doctor;
#[cfg(feature = "host")]
pub(crate) mod eval;
#[cfg(feature = "host")]
mod export;
mod feedback;
#[cfg(feature = "host")]
mod flash;
mod inspect;
mod listen;
#[cfg(feature = "host")]
mod man;
#[cfg(feature = "host")]
mod offpolicy;
mod pad;
#[cfg(feature = "host")]
pub(crate) mod quantize;
pub(crate) mod run;
mod tune;

/// The verbs as clap sees them, and each one's doing; those of a host are left out of a program for a device.
macro_rules! verbs {
    ($($(#[$gate:meta])* $verb:ident($module:ident),)*) => {
        /// What to do.
        #[derive(Subcommand)]
        // Which verb is the largest depends on features, so the lint is not always there to be expected.
        #[allow(clippy::large_enum_variant, reason = "one value in the life of a command")]
        pub(crate) enum Verb {
            $($(#[$gate])* $verb($module::$verb),)*
        }

        impl Verb {
            /// Does it; the exit code when nothing failed (0, or 4 for a gate not met).
            ///
            /// # Errors
            /// Anything; `exit::code_of` knows the code.
            pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
                match self {
                    $($(#[$gate])* Verb::$verb(verb) => verb.run(),)*
                }
            }
        }
    };
}

verbs! {
    Adapter(adapter),
    #[cfg(feature = "host")]
    Bench(bench),
    #[cfg(feature = "host")]
    Check(check),
    #[cfg(feature = "host")]
    Completions(completions),
    Config(config),
    #[cfg(feature = "host")]
    Demo(demo),
    Doctor(doctor),
    #[cfg(feature = "host")]
    Eval(eval),
    #[cfg(feature = "host")]
    Export(export),
    Feedback(feedback),
    #[cfg(feature = "host")]
    Flash(flash),
    Inspect(inspect),
    Listen(listen),
    #[cfg(feature = "host")]
    Man(man),
    Pad(pad),
    #[cfg(feature = "host")]
    Quantize(quantize),
    Run(run),
    Tune(tune),
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
    #[cfg(feature = "host")]
    pub(crate) fn name(self) -> &'static str {
        self.mode().name()
    }
}

/// How a head is learned, where a person chooses.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Learning {
    /// How much of what the model was made from is learned beside the presses; as the adapter in use or the recipe, if
    /// not given.
    #[arg(long, value_enum)]
    retain: Option<Retention>,
    /// How much what comes after an answer counts beside what is said of it, from 0 to below 1, where answers lead to
    /// what is seen next: with the objective q-learning; as the recipe, if not given.
    #[arg(long, value_name = "SHARE")]
    discount: Option<f64>,
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

impl Retention {
    /// The learner's mode.
    fn mode(self) -> Retain {
        match self {
            Retention::Adapt => Retain::Adapt,
            Retention::Balanced => Retain::Balanced,
            Retention::Keep => Retain::Keep,
        }
    }
}

impl Learning {
    /// The settings of a loop behind that guard.
    pub(crate) fn settings(self, guard: Guard) -> Settings {
        let retain = self.retain.map(Retention::mode);
        let random_features = self.random_features.map(|n| n as usize);
        let discount = self.discount;
        Settings { gate: guard.mode(), retain, discount, random_features, ..Settings::default() }
    }
}

/// `KEY=VALUE`, for options that take pairs.
fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_string(), value.to_string())),
        _ => Err(format!("`{text}` is not KEY=VALUE")),
    }
}
