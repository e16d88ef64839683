//! What kind of trouble an error is: the one link between library errors and the program's exit codes.

/// The kind of an error, as the program's exit codes tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Anything without a code of its own: exit 1.
    Failed,
    /// The command or its arguments make no sense: exit 2.
    Usage,
    /// A bundle, model, signature or input file is not what it says it is: exit 3.
    Invalid,
    /// A gate (accuracy, baseline) was not met: exit 4.
    Gate,
    /// A device or sensor cannot be reached: exit 5.
    Device,
    /// The store or the disk failed: exit 6.
    Store,
    /// An operator or device is not supported: exit 7.
    Unsupported,
    /// Somebody else holds it, try again: exit 75.
    TryAgain,
    /// The configuration is wrong: exit 78.
    Config,
}

impl Class {
    /// The process exit code of this class.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Failed => 1,
            Class::Usage => 2,
            Class::Invalid => 3,
            Class::Gate => 4,
            Class::Device => 5,
            Class::Store => 6,
            Class::Unsupported => 7,
            Class::TryAgain => 75,
            Class::Config => 78,
        }
    }
}

/// An error that knows its [`Class`]. Every public error enum of this crate implements it.
pub trait Classified: std::error::Error {
    /// The class that decides the exit code.
    fn class(&self) -> Class;
}
