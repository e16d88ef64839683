//! The integration tests: one binary, because linking the importer is slow.

mod bad_input;
mod cli;
mod crash;
mod demo;
mod fuzz;
mod hostile;
mod import;
mod onnx;
mod support;
mod which_digit;
