//! The integration tests: one binary, because linking the importer is slow.

mod which_digit;
