//! From an error to an exit code: the one place that knows every error type of the library.
use hone_runtime::{Class, Classified};

/// An error the command line itself finds, with its class.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    class: Class,
    message: String,
}

/// An error of the given class; `message` says what, where, why, and the next command.
pub(crate) fn fail(class: Class, message: impl Into<String>) -> anyhow::Error {
    Failure { class, message: message.into() }.into()
}

/// The exit code of an error: that of the first link of its chain that has a class, else 1.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    for link in error.chain() {
        if let Some(f) = link.downcast_ref::<Failure>() {
            return f.class.exit_code();
        }
        macro_rules! classified {
            ($($t:ty),* $(,)?) => { $(if let Some(e) = link.downcast_ref::<$t>() { return e.class().exit_code(); })* };
        }
        classified!(
            hone_runtime::adapters::AdapterError,
            hone_runtime::app::AppError,
            hone_runtime::app::listen::ListenError,
            hone_runtime::app::rehearsal::RehearsalError,
            hone_runtime::bundle::BundleError,
            hone_runtime::cases::CaseError,
            hone_runtime::config::ConfigError,
            hone_runtime::compress::CompressError,
            hone_runtime::dataset::DatasetError,
            hone_runtime::export::ExportError,
            hone_runtime::feedback::SourceError,
            hone_runtime::flash::FlashError,
            hone_runtime::gpio::GpioError,
            hone_runtime::import::ImportError,
            hone_runtime::import::WriteError,
            hone_runtime::journal::StoreError,
            hone_runtime::learn::ClassesError,
            hone_runtime::learn::LearnError,
            hone_runtime::modality::ModalityError,
            hone_runtime::metrics::OffPolicyError,
            hone_runtime::model::ModelError,
            hone_runtime::scope::ScopeError,
            hone_runtime::session::SessionError,
            hone_runtime::state::StateError,
            hone_runtime::tune::TuneError,
            hone_runtime::trial::WorldError,
        );
    }
    Class::Failed.exit_code()
}
