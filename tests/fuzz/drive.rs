//! What is done with a model whose every byte may be wrong: it is imported, planned and run, and must not panic.
use std::collections::BTreeMap;

use hone_runtime::import::Limits;
use hone_runtime::session::{Outputs, Session, SessionOptions};
use hone_runtime::tensor::checked_len;
use hone_runtime::{DType, Data, Tensor};

/// So little that a model within them runs in no time.
pub(crate) fn limits() -> Limits {
    Limits {
        file_bytes: 1 << 20,
        nodes: 2000,
        depth: 8,
        elements: MOST_ELEMENTS as u64,
        name_bytes: 256,
        run_bytes: 1 << 20,
        turns: 200,
    }
}

const MOST_ELEMENTS: usize = 1 << 16;
/// Length of every dimension the model leaves open.
const OPEN: usize = 2;

/// How far a model came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reached {
    /// It was refused by the importer.
    Refused,
    /// It was imported, and refused when it was planned or run.
    Imported,
    /// It ran.
    Ran,
}

/// Imports, plans and runs a model: by kernels, twice, and by reference.
///
/// # Panics
/// When something in hone does, or when a second run in the same session gives anything else than the first.
pub(crate) fn import_and_run(bytes: &[u8]) -> Reached {
    let open = |reference| {
        let options = SessionOptions { reference, limits: limits(), ..SessionOptions::default() };
        Session::from_onnx(bytes, "fuzz.onnx", options)
    };
    let Ok(mut session) = open(false) else { return Reached::Refused };
    let Some(inputs) = inputs(&session) else { return Reached::Imported };
    let first = session.run(&inputs);
    if let (Ok(a), Ok(b)) = (&first, session.run(&inputs)) {
        assert!(same(a, &b), "a second run differs from the first");
    }
    if let Ok(mut session) = open(true) {
        let _ = session.run(&inputs);
    }
    if first.is_ok() { Reached::Ran } else { Reached::Imported }
}

/// Small numbers for every input; `None` when there is one that cannot be made, or is too large.
fn inputs(session: &Session) -> Option<Vec<(String, Tensor)>> {
    let graph = session.graph();
    let lengths: BTreeMap<String, usize> = graph.symbols().iter().map(|s| (s.to_string(), OPEN)).collect();
    let shapes = graph.input_shapes(&lengths).ok()?;
    shapes
        .into_iter()
        .map(|(name, dtype, shape)| {
            let n = checked_len(&shape).filter(|&n| n <= MOST_ELEMENTS)?;
            let values: Vec<f64> = (0..n).map(|i| f64::from((i * 7 % 5) as u8) - 1.0).collect();
            let least = if dtype.is_float() { -1.0 } else { 0.0 };
            let values: Vec<f64> =
                values.into_iter().map(|v| v.max(least).min(if dtype == DType::Bool { 1.0 } else { 3.0 })).collect();
            Some((name, Tensor::new(&shape, Data::from_f64(dtype, &values)).ok()?))
        })
        .collect()
}

/// Equal bit by bit, so that a NaN equals itself.
fn same(a: &Outputs, b: &Outputs) -> bool {
    let equal = |x: &Tensor, y: &Tensor| {
        x.shape() == y.shape() && x.dtype() == y.dtype() && x.data().as_bytes() == y.data().as_bytes()
    };
    a.len() == b.len() && a.iter().zip(b).all(|((m, x), (n, y))| m == n && equal(x, y))
}
