//! Named `f32` tensors as a safetensors file.
use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::{DType, Data, Tensor};

/// What a file holds: tensors by name, in the order of the names, and its metadata.
pub type Contents = (Vec<(String, Tensor)>, HashMap<String, String>);

/// The bytes of a file of `tensors`.
///
/// # Errors
/// A sentence for a tensor that is not `f32`.
pub fn write(tensors: &[(String, Tensor)], metadata: HashMap<String, String>) -> Result<Vec<u8>, String> {
    let mut bytes: Vec<Cow<'_, [u8]>> = Vec::with_capacity(tensors.len());
    for (name, t) in tensors {
        let v = t.as_f32().map_err(|e| format!("`{name}`: {e}"))?;
        bytes.push(match cfg!(target_endian = "little") {
            true => t.data().as_bytes().into(),
            false => v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into(),
        });
    }
    let mut views = Vec::with_capacity(tensors.len());
    for ((name, t), bytes) in tensors.iter().zip(&bytes) {
        let view = TensorView::new(Dtype::F32, t.shape().to_vec(), bytes).map_err(|e| format!("`{name}`: {e}"))?;
        views.push((name.clone(), view));
    }
    serialize(views, Some(metadata)).map_err(|e| e.to_string())
}

/// What is in a file.
///
/// # Errors
/// A sentence for a damaged file, and for a tensor that is not `f32`.
pub fn read(bytes: &[u8]) -> Result<Contents, String> {
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| e.to_string())?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let mut names = file.names();
    names.sort_unstable();
    let mut out = Vec::with_capacity(names.len());
    for name in names {
        let view = file.tensor(name).map_err(|e| e.to_string())?;
        if view.dtype() != Dtype::F32 {
            return Err(format!("tensor `{name}` is {:?}, not F32", view.dtype()));
        }
        let t = Tensor::new(view.shape(), Data::from_le_bytes(DType::F32, view.data())).map_err(|e| e.to_string())?;
        out.push((name.to_string(), t));
    }
    Ok((out, header.metadata().clone().unwrap_or_default()))
}
