//! Operators that run graphs. The plan knows how (`plan::control`); here are their rows.
use super::shape::depends_on_data;
use super::{Attrs, Kind, OpDef, OpError};
use crate::tensor::Tensor;

fn run_by_the_plan(_: &Attrs, _: &[Option<&Tensor>]) -> Result<Vec<Tensor>, OpError> {
    Err(OpError::unsupported("a control operator outside a plan"))
}

const fn control(name: &'static str, doc: &'static str) -> OpDef {
    OpDef::new(name, doc, depends_on_data, run_by_the_plan).kind(Kind::Control)
}

static IF: OpDef = control("If", "one of two graphs, by a condition");
static LOOP: OpDef = control("Loop", "a graph, for a number of turns or while a condition holds");
static SCAN: OpDef = control("Scan", "a graph over the steps of sequences, with states");

/// The rows of this family.
pub(super) static OPS: &[&OpDef] = &[&IF, &LOOP, &SCAN];
