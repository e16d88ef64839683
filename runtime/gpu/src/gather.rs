//! Slices chosen by index.
use std::sync::Arc;

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bindings, bytes_of, filled};

/// What is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Elements of 4 bytes.
    Words,
    /// Elements of 8 bytes.
    Pairs,
    /// Signed bytes, made floats by a scale and a zero point a row: operands behind the indices.
    I8,
}

/// `y[o, i, k] = x[o, index[i], k]`. Operands x, index and, of bytes, scales and zero points; results y and the fault.
#[derive(Clone, Copy, Debug)]
pub struct Gather {
    /// What is gathered.
    pub table: Table,
    /// Whether the indices are `i64` and not `i32`.
    pub wide: bool,
    /// Elements before the axis.
    pub outer: usize,
    /// Elements of the axis.
    pub length: usize,
    /// Elements after it.
    pub inner: usize,
    /// Indices.
    pub count: usize,
}

impl Gather {
    /// The call; `None` when it is larger than a grid.
    pub fn call(&self) -> Option<Call> {
        let n = self.outer.checked_mul(self.count)?.checked_mul(self.inner)?;
        u32::try_from(self.outer.checked_mul(self.length)?.checked_mul(self.inner)?).ok()?;
        let length = i32::try_from(self.length).ok()?;
        if n == 0 || self.table == Table::I8 && self.outer != 1 {
            return None;
        }
        let params = vec![u32::try_from(n).ok()?, length as u32, self.inner as u32, self.count as u32];
        kernel(self.table, self.wide).line(params, n)
    }
}

/// The parameters of a kernel that chooses by index, with those in `more` behind, its indices (of 64 bits when they are wide) and
/// the function `position`.
pub(crate) fn indices_of(wide: bool, more: &str) -> String {
    let (index, position) = if wide {
        // Beyond 32 bits it is out of range, whatever its low half says.
        let checked = "    if pair.y != (pair.x >> 31u) {\n        return -1;\n    }";
        ("vec2<i32>", format!("    let pair = I[i];\n    var at = pair.x;\n{checked}"))
    } else {
        ("i32", "    var at = I[i];".to_string())
    };
    filled(include_str!("index.wgsl"), &[("INDEX", index), ("POSITION", &position), ("MORE", more)])
}

fn kernel(table: Table, wide: bool) -> Arc<Kernel> {
    let (unit, word, zero, value) = match table {
        Table::Words => ("32 bits", "u32", "0u", "X[source]"),
        Table::Pairs => ("64 bits", "vec2<u32>", "vec2<u32>()", "X[source]"),
        Table::I8 => (
            "8 bits, less the zero point of the row, times its scale",
            "u32",
            "0.0",
            "(f32(extractBits(i32(X[source >> 2u]), (source & 3u) * 8u, 8u)) - O[row]) * S[row]",
        ),
    };
    let result = [("Y", if table == Table::I8 { "f32" } else { word }), ("fault", "u32")];
    let more = if table == Table::I8 { &[("S", "f32"), ("O", "f32")][..] } else { &[] };
    let bindings = bindings(3, more.iter().copied().chain(result));
    let source = filled(
        include_str!("gather.wgsl"),
        &[
            ("UNIT", unit),
            ("WORD", word),
            ("INDICES_OF", &indices_of(wide, "")),
            ("BINDINGS", &bindings),
            ("ZERO", zero),
            ("VALUE", value),
        ],
    );
    let reads = if table == Table::I8 { 4 } else { 2 };
    let name = format!("gather-{}-{}", ["words", "pairs", "i8"][table as usize], if wide { "i64" } else { "i32" });
    Kernel::new(name, source, reads, 2, move || {
        vec![trial(table, wide, false), trial(table, wide, true)].into_iter().flatten().collect()
    })
}

fn trial(table: Table, wide: bool, faulty: bool) -> Option<Trial> {
    let outer = if table == Table::I8 { 1 } else { 2 };
    let g = Gather { table, wide, outer, length: 5, inner: 3, count: 4 };
    let call = g.call()?;
    let mut draws = Draws::new(5);
    let unit = match table {
        Table::Words => 4,
        Table::Pairs => 8,
        Table::I8 => 1,
    };
    let mut x = draws.bytes(outer * 15 * unit);
    x.resize(x.len().next_multiple_of(4), 0);
    let scale = draws.floats(5);
    let zero = [0.0, -3.0, 7.0, 128.0, -128.0];
    let index = if faulty { vec![0, -6, 4, 1] } else { vec![4i64, -5, 2, -1] };
    let bytes = |i: &i64| if wide { i.to_le_bytes().to_vec() } else { (*i as i32).to_le_bytes().to_vec() };
    let mut y = Vec::new();
    for o in 0..outer {
        for i in &index {
            let at = if *i < 0 { i + 5 } else { *i };
            for k in 0..3 {
                let from = (o * 5 + at.max(0) as usize) * 3 + k;
                match table {
                    _ if at < 0 => y.extend(vec![0; if unit == 8 { 8 } else { 4 }]),
                    Table::I8 => {
                        y.extend(((f32::from(x[from] as i8) - zero[at as usize]) * scale[at as usize]).to_le_bytes())
                    }
                    _ => y.extend_from_slice(&x[from * unit..][..unit]),
                }
            }
        }
    }
    let mut operands = vec![x, index.iter().flat_map(bytes).collect()];
    if table == Table::I8 {
        operands.extend([bytes_of(&scale), bytes_of(&zero)]);
    }
    let fault = u32::from(faulty).to_le_bytes().to_vec();
    Some(Trial { call, before: vec![], operands, results: vec![y, fault], allowed: Allowed::Exact })
}
