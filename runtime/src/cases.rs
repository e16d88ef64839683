//! Recorded inputs and outputs of another framework, and how far ours are from them.
//!
//! A case is one `case*.npz`: inputs as `in_NAME`, outputs as `out_NAME` or `out_0`, `out_1`, … in the graph's order. NumPy
//! has no bf16, no 8-bit floats and no 4-bit integers: such arrays hold the codes, and a member `dtypes` holds a JSON object
//! of member name → type name as UTF-8 bytes.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::bundle::npz;
use crate::class::{Class, Classified};
use crate::session::{Outputs, Session};
use crate::tensor::{DType, Data, Tensor};

/// Why a recorded case cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The directory of recorded cases holds none.
    #[error("{} holds no case*.npz; each has the inputs as in_NAME and the outputs as out_NAME or out_0, out_1 …", dir.display())]
    None {
        /// The directory.
        dir: PathBuf,
    },
    /// A recorded case holds values of a kind hone does not hold.
    #[error("{case}: `{member}` is of type `{dtype}`, which hone does not hold")]
    Type {
        /// Its file name.
        case: String,
        /// The member.
        member: String,
        /// The type named.
        dtype: String,
    },
    /// A recorded case is not one.
    #[error("{case}: {why}")]
    Case {
        /// Its file name.
        case: String,
        /// What is wrong.
        why: String,
    },
}

impl Classified for CaseError {
    fn class(&self) -> Class {
        match self {
            CaseError::Read { .. } => Class::Usage,
            CaseError::Type { .. } => Class::Unsupported,
            _ => Class::Invalid,
        }
    }
}

/// How far two tensors may be apart: `|y − ref| ≤ relative · max|ref| + elementwise · |ref| + absolute`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Of the largest finite reference value of the output.
    pub relative: f64,
    /// Of each reference value.
    pub elementwise: f64,
    /// Whatever the values.
    pub absolute: f64,
}

impl Default for Tolerance {
    /// What two faithful `f32` implementations may differ by.
    fn default() -> Tolerance {
        Tolerance { relative: 5e-4, elementwise: 0.0, absolute: 1e-6 }
    }
}

/// One output of one case beside what was recorded.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Compared {
    /// The case's file name.
    pub case: String,
    /// The output.
    pub output: String,
    /// Largest absolute difference; infinite when type or shape differ, or a NaN or infinity stands elsewhere.
    pub max_abs: f64,
    /// `max_abs` over the largest finite absolute reference value.
    pub max_rel: f64,
    /// Largest absolute difference allowed where the largest is.
    pub allowed: f64,
    /// Within the tolerance.
    pub ok: bool,
    /// Type and shape on both sides when they differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
}

/// Compares a tensor with its reference.
pub fn compare(want: &Tensor, got: &Tensor, tolerance: Tolerance) -> Compared {
    let mut row = Compared {
        case: String::new(),
        output: String::new(),
        max_abs: f64::INFINITY,
        max_rel: f64::INFINITY,
        allowed: 0.0,
        ok: false,
        mismatch: None,
    };
    if want.dtype() != got.dtype() || want.shape() != got.shape() {
        let (w, g) = (want.shape(), got.shape());
        row.mismatch = Some(format!("{} {w:?} recorded, {} {g:?} found", want.dtype(), got.dtype()));
        return row;
    }
    let (a, b) = (want.data().to_f64(), got.data().to_f64());
    let largest = a.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
    let base = tolerance.relative * largest + tolerance.absolute;
    // Eight bits of mantissa: nothing closer has a meaning (the standard's own test runner has the same bound).
    let elementwise =
        if want.dtype() == DType::BF16 { tolerance.elementwise.max(0.015_625) } else { tolerance.elementwise };
    (row.max_abs, row.allowed, row.ok) = (0.0, base, true);
    for (&x, &y) in a.iter().zip(&b) {
        // An infinity equals itself only; a NaN stands where a NaN stood.
        let off = if x == y || (x.is_nan() && y.is_nan()) { 0.0 } else { (x - y).abs() };
        let off = if off.is_nan() { f64::INFINITY } else { off };
        let allowed = if x.is_finite() { base + elementwise * x.abs() } else { base };
        row.ok &= off <= allowed;
        if off > row.max_abs {
            (row.max_abs, row.allowed) = (off, allowed);
        }
    }
    row.max_rel = if row.max_abs == 0.0 { 0.0 } else { row.max_abs / largest.max(f64::MIN_POSITIVE) };
    row
}

/// A recorded case: inputs and outputs by their names in the graph.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its file name.
    pub name: String,
    /// Inputs.
    pub inputs: Vec<(String, Tensor)>,
    /// Outputs, as recorded.
    pub outputs: Vec<(String, Tensor)>,
}

impl Case {
    /// Reads a case for the model in `session`.
    ///
    /// # Errors
    /// [`CaseError`] when the file cannot be read, a member names nothing of the model, or there is no output.
    pub fn read(path: &Path, session: &Session) -> Result<Case, CaseError> {
        let (name, members) = members(path)?;
        let bad = |why: String| CaseError::Case { case: name.clone(), why };
        let names = session.output_names();
        let mut inputs = Vec::new();
        let mut outputs: Vec<(String, Tensor)> = Vec::new();
        let mut numbered: Vec<(usize, Tensor)> = Vec::new();
        for (key, tensor) in members {
            if let Some(input) = key.strip_prefix("in_") {
                inputs.push((input.to_string(), tensor));
            } else if let Some(output) = key.strip_prefix("out_") {
                match output.parse::<usize>() {
                    _ if names.contains(&output) => outputs.push((output.to_string(), tensor)),
                    Ok(i) if i < names.len() => numbered.push((i, tensor)),
                    _ => return Err(bad(format!("`{key}` names no output; there are: {}", names.join(", ")))),
                }
            } else {
                return Err(bad(format!("`{key}` begins with neither in_ nor out_")));
            }
        }
        for (i, tensor) in numbered {
            if outputs.iter().all(|(n, _)| n != names[i]) {
                outputs.push((names[i].to_string(), tensor));
            }
        }
        if outputs.is_empty() {
            return Err(bad("it has no outputs (out_NAME)".into()));
        }
        Ok(Case { name, inputs, outputs })
    }

    /// The inputs alone (`in_NAME`); what else the file holds is not looked at.
    ///
    /// # Errors
    /// [`CaseError`] when the file cannot be read or has no inputs.
    pub fn inputs(path: &Path) -> Result<Vec<(String, Tensor)>, CaseError> {
        let (case, members) = members(path)?;
        let named = |(key, t): (String, Tensor)| Some((key.strip_prefix("in_")?.to_string(), t));
        let inputs: Vec<(String, Tensor)> = members.into_iter().filter_map(named).collect();
        if inputs.is_empty() {
            return Err(CaseError::Case { case, why: "it has no inputs (in_NAME)".into() });
        }
        Ok(inputs)
    }

    /// Every recorded output beside the one found.
    pub fn compare(&self, found: &Outputs, tolerance: Tolerance) -> Vec<Compared> {
        let one = |(output, want): &(String, Tensor)| {
            let got = found.iter().find(|(n, _)| n == output).map(|(_, t)| t);
            let missing = Tensor::zeros(DType::Bool, &[0]).expect("an empty tensor fits everywhere");
            let row = compare(want, got.unwrap_or(&missing), tolerance);
            Compared { case: self.name.clone(), output: output.clone(), ..row }
        };
        self.outputs.iter().map(one).collect()
    }
}

/// The `case*.npz` of a directory, sorted by name.
///
/// # Errors
/// [`CaseError`] when it cannot be read or holds none.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>, CaseError> {
    let fail = |source| CaseError::Read { path: dir.to_path_buf(), source };
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("case") && name.ends_with(".npz") {
            cases.push(path);
        }
    }
    cases.sort();
    if cases.is_empty() { Err(CaseError::None { dir: dir.to_path_buf() }) } else { Ok(cases) }
}

/// The tolerance for the cases of a directory: the default, or ten times what the reference itself varies by
/// (`reference_own_spread` in `meta.json`, relative to the largest value) where that is more.
///
/// # Errors
/// [`CaseError::Case`] when `meta.json` is there and is not JSON.
pub fn tolerance(dir: &Path) -> Result<Tolerance, CaseError> {
    let mut tolerance = Tolerance::default();
    let Ok(bytes) = std::fs::read(dir.join("meta.json")) else { return Ok(tolerance) };
    let meta: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| CaseError::Case { case: "meta.json".into(), why: e.to_string() })?;
    if let Some(spread) = meta.get("reference_own_spread").and_then(serde_json::Value::as_f64) {
        tolerance.relative = tolerance.relative.max(10.0 * spread);
    }
    Ok(tolerance)
}

/// The file's name and its arrays, those of types NumPy has not as what they are.
fn members(path: &Path) -> Result<(String, Vec<(String, Tensor)>), CaseError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bad = |why: String| CaseError::Case { case: name.clone(), why };
    let bytes = std::fs::read(path).map_err(|source| CaseError::Read { path: path.to_path_buf(), source })?;
    let mut members = npz::read_npz(&bytes).map_err(|e| bad(e.to_string()))?;
    let mut types: BTreeMap<String, DType> = BTreeMap::new();
    for (member, dtype) in type_names(&mut members).map_err(bad)? {
        match DType::from_name(&dtype) {
            Some(known) => types.insert(member, known),
            None => return Err(CaseError::Type { case: name.clone(), member, dtype }),
        };
    }
    let typed = |(key, tensor): (String, Tensor)| match types.get(&key) {
        Some(&dtype) => coded(dtype, tensor).map(|t| (key.clone(), t)).map_err(|why| bad(format!("`{key}` {why}"))),
        None => Ok((key, tensor)),
    };
    let members = members.into_iter().map(typed).collect::<Result<_, _>>()?;
    Ok((name, members))
}

/// Takes the member `dtypes` out and reads it.
fn type_names(members: &mut Vec<(String, Tensor)>) -> Result<BTreeMap<String, String>, String> {
    let Some(at) = members.iter().position(|(n, _)| n == "dtypes") else { return Ok(BTreeMap::new()) };
    let (_, member) = members.remove(at);
    let Data::U8(text) = member.data() else { return Err("`dtypes` is not UTF-8 bytes (uint8)".into()) };
    serde_json::from_slice(text).map_err(|e| format!("`dtypes`: {e}"))
}

/// The tensor whose codes were recorded.
fn coded(dtype: DType, codes: Tensor) -> Result<Tensor, String> {
    if codes.dtype() == dtype {
        return Ok(codes);
    }
    if codes.dtype().size_bytes() != dtype.size_bytes() {
        return Err(format!("holds {} where the codes of {dtype} are said to be", codes.dtype()));
    }
    let data = Data::from_bytes(dtype, codes.data().as_bytes());
    Tensor::new(codes.shape(), data).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f(v: &[f32]) -> Tensor {
        Tensor::f32(&[v.len()], v.to_vec()).unwrap()
    }

    #[test]
    fn a_difference_beyond_the_tolerance_a_nan_and_an_infinity_are_seen() {
        let t = Tolerance { relative: 0.0, elementwise: 0.0, absolute: 1e-5 };
        assert!(compare(&f(&[1.0, f32::NAN]), &f(&[1.000_001, f32::NAN]), t).ok);
        assert!(!compare(&f(&[1.0]), &f(&[1.001]), t).ok);
        assert!(!compare(&f(&[1.0]), &f(&[f32::NAN]), t).ok);
        assert!(!compare(&f(&[f32::NAN]), &f(&[1.0]), t).ok);
        assert!(!compare(&f(&[f32::INFINITY]), &f(&[f32::MAX]), Tolerance { absolute: 1e9, ..t }).ok);
        let wrong = compare(&f(&[1.0]), &Tensor::i64(&[1], vec![1]).unwrap(), t);
        assert!(!wrong.ok && wrong.mismatch.is_some());
    }

    #[test]
    fn codes_become_the_type_that_was_recorded() {
        let codes = Tensor::new(&[2], Data::U16(vec![0x3f80, 0x4000])).unwrap();
        assert_eq!(coded(DType::BF16, codes.clone()).unwrap().data().to_f64(), [1.0, 2.0]);
        assert!(coded(DType::I4, codes).is_err());
    }
}
