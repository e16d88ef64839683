//! The support table `SUPPORT.md`, made from the registry, and the two tables of exceptions it shares with the
//! conformance test.
use std::fmt::Write as _;

use super::{FAMILIES, Kind, OpDef};

/// Operators no case was recorded of, and why.
pub(super) const NOT_RECORDED: &[(&str, &str)] = &[];

/// Operators that ran by no kernel of their own in any case: they run by their reference function.
pub(super) const WITHOUT_KERNEL: &[&str] = &[];
