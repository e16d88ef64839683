//! The path rules: what may be the name of a file inside a bundle.
use std::collections::BTreeMap;

use super::BundleError;

/// Longest path, in bytes.
const MAX_PATH_BYTES: usize = 255;

/// Checks one path: relative, `[A-Za-z0-9._/-]`, no empty, `.` or `..` segment, at most 255 bytes.
///
/// # Errors
/// [`BundleError::Path`] with the rule that is broken.
pub(crate) fn check(path: &str) -> Result<(), BundleError> {
    let refuse = |rule| Err(BundleError::Path { path: path.to_string(), rule });
    if path.is_empty() {
        return refuse("it is empty");
    }
    if path.len() > MAX_PATH_BYTES {
        return refuse("it is longer than 255 bytes");
    }
    if path.starts_with('/') {
        return refuse("it is absolute");
    }
    if !path.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-')) {
        return refuse("only A-Z a-z 0-9 . _ / - may be used");
    }
    for segment in path.split('/') {
        match segment {
            "" => return refuse("it has an empty segment"),
            "." | ".." => return refuse("it has a . or .. segment"),
            _ => {}
        }
    }
    Ok(())
}

/// Checks every path and that no two of them are one file, or file and directory, once case is folded.
///
/// # Errors
/// [`BundleError::Path`] and [`BundleError::Duplicate`].
pub(crate) fn check_set<'a>(paths: impl IntoIterator<Item = &'a str>) -> Result<(), BundleError> {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for path in paths {
        check(path)?;
        if let Some(other) = seen.insert(path.to_ascii_lowercase(), path) {
            return Err(BundleError::Duplicate { path: path.to_string(), other: other.to_string() });
        }
    }
    for (folded, path) in &seen {
        for (at, _) in folded.match_indices('/') {
            if let Some(other) = seen.get(&folded[..at]) {
                return Err(BundleError::Duplicate { path: path.to_string(), other: other.to_string() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass_and_every_way_out_of_the_directory_is_refused() {
        for good in ["manifest.json", "onnx/model.onnx_data", "a-b/c.d/e_f", "..a", "a..", ".keep"] {
            check(good).unwrap();
        }
        for bad in
            ["", "/a", "a//b", "a/", "../a", "a/../b", "./a", "a/.", "a\\b", "a b", "a\0", "ä", "C:a", &"a".repeat(256)]
        {
            assert!(matches!(check(bad), Err(BundleError::Path { .. })), "{bad:?} passed");
        }
    }

    #[test]
    fn names_equal_after_case_folding_and_files_that_are_also_directories_are_refused() {
        check_set(["a", "b/a", "b/c"]).unwrap();
        for bad in [["README.md", "readme.MD"], ["a", "a"], ["a", "a/b"], ["A/b", "a"]] {
            assert!(matches!(check_set(bad), Err(BundleError::Duplicate { .. })), "{bad:?} passed");
        }
    }
}
