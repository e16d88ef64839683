//! NumPy `.npz` archives of tensors: golden inputs and outputs, and data for evaluation.
//!
//! Stored or deflated (`numpy.savez`, `savez_compressed`), C or Fortran order, either byte order; written stored.
use std::io::{Cursor, Read};

use npyz::{Deserialize, NpyFile, Order, TypeChar, TypeStr, WriterBuilder};

use super::{BundleError, stored};
use crate::tensor::{DType, Data, Tensor, checked_len};

/// Most bytes all arrays of an archive may have once inflated.
const MAX_BYTES: u64 = 1 << 30;

/// Every array of the archive under its name without `.npy`, in archive order.
///
/// # Errors
/// [`BundleError::Npz`] naming the member that is damaged, whose header does not fit its bytes, or whose element type
/// hone does not have; [`BundleError::TooLarge`] for an archive that says it inflates to more than 1 GiB.
pub fn read_npz(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, BundleError> {
    let archive = |reason: String| BundleError::Npz { member: "(archive)".into(), reason };
    let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| archive(e.to_string()))?;
    if zip.has_duplicate_names() {
        return Err(archive("two members have the same name".into()));
    }
    let mut left = MAX_BYTES;
    let mut tensors = Vec::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).map_err(|e| archive(e.to_string()))?;
        let member = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let refuse = |reason: String| BundleError::Npz { member: member.clone(), reason };
        let size = entry.size();
        left = left.checked_sub(size).ok_or(BundleError::TooLarge { path: member.clone(), size, limit: MAX_BYTES })?;
        let mut npy = Vec::new();
        entry.by_ref().take(size + 1).read_to_end(&mut npy).map_err(|e| refuse(e.to_string()))?;
        let name = member.strip_suffix(".npy").ok_or_else(|| refuse("is not named *.npy".into()))?;
        tensors.push((name.to_string(), read_npy(&npy).map_err(refuse)?));
    }
    Ok(tensors)
}

/// A stored `.npz` of `tensors`, byte-identical for equal tensors, readable by `numpy.load`.
///
/// # Errors
/// [`BundleError::Npz`] for a doubled or empty name.
pub fn write_npz<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Vec<u8>, BundleError> {
    let mut members: Vec<(String, Vec<u8>)> = vec![];
    for (name, tensor) in tensors {
        let refuse = |reason: String| BundleError::Npz { member: name.to_string(), reason };
        let member = format!("{name}.npy");
        if name.is_empty() || members.iter().any(|(m, _)| *m == member) {
            return Err(refuse("the name is empty or used twice".into()));
        }
        members.push((member, write_npy(tensor).map_err(|e| refuse(e.to_string()))?));
    }
    stored::write(members.iter().map(|(m, b)| (m.as_str(), b.as_slice())))
        .map_err(|e| BundleError::Npz { member: "(archive)".into(), reason: e.to_string() })
}

fn read_npy(bytes: &[u8]) -> Result<Tensor, String> {
    // The header is parsed from its own bytes alone, and its figures are compared with what follows before anything is allocated.
    let mut rest = bytes;
    let header = npyz::NpyHeader::from_reader(&mut rest).map_err(|e| e.to_string())?;
    let npyz::DType::Plain(kind) = header.dtype() else {
        return Err("is a structured array".into());
    };
    let dtype = dtype_of(&kind).ok_or_else(|| format!("has elements of '{kind}', which hone has no tensor for"))?;
    let shape: Vec<usize> =
        header.shape().iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>().ok_or("has a huge shape")?;
    let expected = checked_len(&shape).and_then(|n| n.checked_mul(dtype.size_bytes()));
    if expected != Some(rest.len()) {
        return Err(format!("says shape {shape:?} of {dtype}, but {} bytes follow", rest.len()));
    }
    let order = header.order();
    let file = NpyFile::with_header(header, rest);
    let data = match dtype {
        DType::F32 => Data::F32(elements(file, &shape, order)?),
        DType::F16 => Data::F16(elements(file, &shape, order)?),
        DType::F64 => Data::F64(elements(file, &shape, order)?),
        DType::I8 => Data::I8(elements(file, &shape, order)?),
        DType::U8 => Data::U8(elements(file, &shape, order)?),
        DType::I32 => Data::I32(elements(file, &shape, order)?),
        DType::I64 => Data::I64(elements(file, &shape, order)?),
        DType::I16 => Data::I16(elements(file, &shape, order)?),
        DType::U16 => Data::U16(elements(file, &shape, order)?),
        DType::U32 => Data::U32(elements(file, &shape, order)?),
        DType::U64 => Data::U64(elements(file, &shape, order)?),
        DType::Bool => Data::Bool(elements(file, &shape, order)?),
        other => return Err(format!("holds {other}, which NumPy has no type for")),
    };
    Tensor::new(&shape, data).map_err(|e| e.to_string())
}

fn elements<T: Deserialize + Copy>(file: NpyFile<&[u8]>, shape: &[usize], order: Order) -> Result<Vec<T>, String> {
    let flat: Vec<T> = file.into_vec().map_err(|e| e.to_string())?;
    if order == Order::C || shape.len() < 2 {
        return Ok(flat);
    }
    // Fortran order: the first index runs fastest.
    let mut index = vec![0usize; shape.len()];
    let mut strides = vec![1usize; shape.len()];
    for axis in 1..shape.len() {
        strides[axis] = strides[axis - 1] * shape[axis - 1];
    }
    let mut row_major = Vec::with_capacity(flat.len());
    for _ in 0..flat.len() {
        row_major.push(flat[index.iter().zip(&strides).map(|(i, s)| i * s).sum::<usize>()]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            if index[axis] < shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    Ok(row_major)
}

fn dtype_of(kind: &TypeStr) -> Option<DType> {
    Some(match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 4) => DType::F32,
        (TypeChar::Float, 2) => DType::F16,
        (TypeChar::Float, 8) => DType::F64,
        (TypeChar::Int, 1) => DType::I8,
        (TypeChar::Uint, 1) => DType::U8,
        (TypeChar::Int, 4) => DType::I32,
        (TypeChar::Int, 8) => DType::I64,
        (TypeChar::Int, 2) => DType::I16,
        (TypeChar::Uint, 2) => DType::U16,
        (TypeChar::Uint, 4) => DType::U32,
        (TypeChar::Uint, 8) => DType::U64,
        (TypeChar::Bool, 1) => DType::Bool,
        _ => return None,
    })
}

fn write_npy(tensor: &Tensor) -> std::io::Result<Vec<u8>> {
    match tensor.data() {
        Data::F32(v) => npy(tensor.shape(), v),
        Data::F16(v) => npy(tensor.shape(), v),
        Data::F64(v) => npy(tensor.shape(), v),
        Data::I8(v) => npy(tensor.shape(), v),
        Data::U8(v) => npy(tensor.shape(), v),
        Data::I32(v) => npy(tensor.shape(), v),
        Data::I64(v) => npy(tensor.shape(), v),
        Data::I16(v) => npy(tensor.shape(), v),
        Data::U16(v) => npy(tensor.shape(), v),
        Data::U32(v) => npy(tensor.shape(), v),
        Data::U64(v) => npy(tensor.shape(), v),
        // NumPy has no type for these: their codes are written.
        Data::BF16(v) => npy(tensor.shape(), bytemuck::cast_slice::<_, u16>(v)),
        Data::Small(_, v) => npy(tensor.shape(), v),
        Data::Bool(v) => npy(tensor.shape(), v),
    }
}

fn npy<T: npyz::Serialize + npyz::AutoSerialize + Copy>(shape: &[usize], data: &[T]) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(&mut bytes).begin_nd()?;
    writer.extend(data.iter().copied())?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn tensors_of_every_element_type_come_back_as_they_were() {
        let all = [
            ("f32", Tensor::f32(&[2, 3], vec![0.0, -1.5, f32::MAX, 4.0, 5.0, -0.0]).unwrap()),
            ("f16", Tensor::new(&[2], Data::F16(vec![f16::from_f32(1.5), f16::MIN])).unwrap()),
            ("f64", Tensor::new(&[1, 1, 2], Data::F64(vec![1e300, -2.0])).unwrap()),
            ("i8", Tensor::new(&[2], Data::I8(vec![-128, 127])).unwrap()),
            ("u8", Tensor::new(&[0], Data::U8(vec![])).unwrap()),
            ("i32", Tensor::new(&[], Data::I32(vec![-7])).unwrap()),
            ("i64", Tensor::i64(&[2], vec![i64::MIN, i64::MAX]).unwrap()),
            ("bool", Tensor::new(&[3], Data::Bool(vec![true, false, true])).unwrap()),
        ];
        let bytes = write_npz(all.iter().map(|(n, t)| (*n, t))).unwrap();
        let read = read_npz(&bytes).unwrap();
        assert_eq!(read.len(), all.len());
        for ((name, tensor), (read_name, read_tensor)) in all.iter().zip(&read) {
            assert_eq!((*name, tensor), (read_name.as_str(), read_tensor));
        }
    }

    #[test]
    fn an_archive_numpy_wrote_reads_with_fortran_order_and_big_endian_put_right() {
        let read = read_npz(include_bytes!("testdata/numpy.npz")).unwrap();
        let names: Vec<&str> = read.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["c", "fortran", "big_endian", "scalar"]);
        assert_eq!(read[0].1, Tensor::f32(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap());
        assert_eq!(read[1].1, read[0].1);
        assert_eq!(read[2].1, Tensor::new(&[3], Data::I32(vec![1, -2, 300])).unwrap());
        assert_eq!(read[3].1, Tensor::i64(&[], vec![42]).unwrap());
    }

    #[test]
    fn every_truncation_and_every_byte_flip_of_an_archive_is_an_error_or_the_same_tensors_and_never_a_panic() {
        let tensor = Tensor::f32(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let bytes = write_npz([("x", &tensor)]).unwrap();
        for length in 0..bytes.len() {
            read_npz(&bytes[..length]).unwrap_err();
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            if let Ok(read) = read_npz(&bad) {
                assert_eq!(read[0].1, tensor, "byte {at}");
            }
        }
    }

    #[test]
    fn a_header_that_promises_more_than_follows_is_refused_without_allocating() {
        let tensor = Tensor::f32(&[2, 2], vec![1.0; 4]).unwrap();
        let npy = write_npy(&tensor).unwrap();
        let at = npy.windows(5).position(|w| w == b"(2, 2").unwrap();
        for shape in [b"(9**9", b"(9, 9", b"(-2,2", b"(2e99", b"(2222"] {
            let mut bad = npy.clone();
            bad[at..at + 5].copy_from_slice(shape);
            let bytes = stored::write([("x.npy", bad.as_slice())]).unwrap();
            assert!(matches!(read_npz(&bytes), Err(BundleError::Npz { .. })));
        }
    }
}
