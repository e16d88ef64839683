//! The integration tests: one binary, because linking the importer is slow.

mod cli;
mod which_digit;
