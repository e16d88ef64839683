//! The integration tests: one binary, because linking the importer is slow.

mod bad_input;
mod cli;
mod crash;
mod demo;
mod full_disk;
mod fuzz;
mod hostile;
mod import;
mod onnx;
mod pads;
mod rollback;
mod support;
mod tune;
mod unplugged;
mod which_digit;
