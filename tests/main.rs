//! The integration tests: one binary, because linking the importer is slow.

mod bad_input;
mod classes;
mod cli;
mod crash;
mod decisions;
mod demo;
mod full_disk;
mod fuzz;
mod hostile;
mod import;
mod loop_settings;
mod memory;
mod onnx;
mod pads;
mod raters;
mod rollback;
mod said;
mod stream;
mod support;
mod tasks;
mod tune;
mod unplugged;
mod which_digit;
