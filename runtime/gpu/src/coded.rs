//! Slices chosen by index of a tensor of codes of 2, 4 or 8 bits in blocks, dequantised as they are read.
//!
//! `gather` moves elements as they are and knows one scale a row; here blocks lie along any axis.
use std::sync::Arc;

use hone_kernels::coded::{Blocks, Coded};

use crate::gather::indices_of;
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bindings, bytes_of, filled};

/// `y[o, i, k] = dequantised(x)[o, index[i], k]`. Operands codes, indices, scales and perhaps zero points; results y and the
/// fault.
#[derive(Clone, Copy, Debug)]
pub struct LookedUp {
    /// How the codes are divided.
    pub blocks: Blocks,
    /// Zero points are given.
    pub zeros: bool,
    /// Whether the indices are `i64` and not `i32`.
    pub wide: bool,
    /// Elements before the axis of the indices.
    pub outer: usize,
    /// Elements of that axis.
    pub length: usize,
    /// Elements after it.
    pub inner: usize,
    /// Indices.
    pub count: usize,
}

impl LookedUp {
    /// The call; `None` when it is larger than a grid.
    pub fn call(&self) -> Option<Call> {
        let n = self.outer.checked_mul(self.count)?.checked_mul(self.inner)?;
        let word = |v: usize| u32::try_from(v).ok();
        word(self.outer.checked_mul(self.length)?.checked_mul(self.inner)?)?;
        let Blocks { along, inner: after, block, bits, signed, middle } = self.blocks;
        let length = i32::try_from(self.length).ok()?;
        if n == 0 || along == 0 || after == 0 {
            return None;
        }
        let count = self.blocks.count();
        let zero_line = if after == 1 { (count * bits).div_ceil(8) * 8 / bits } else { count };
        let middle = if signed { f32::from(middle as i8) } else { f32::from(middle) };
        let params = vec![
            word(n)?,
            length as u32,
            word(self.inner)?,
            word(self.count)?,
            word(along)?,
            word(after)?,
            word(block)?,
            word(count)?,
            word(zero_line)?,
            middle.to_bits(),
        ];
        kernel(Form { bits, signed, zeros: self.zeros, wide: self.wide }).line(params, n)
    }
}

/// What the text depends on.
#[derive(Clone, Copy)]
struct Form {
    bits: usize,
    signed: bool,
    zeros: bool,
    wide: bool,
}

const MORE: &str = "    along: u32,
    after: u32,
    block: u32,
    blocks: u32,
    zero_line: u32,
    middle: f32,
";

fn kernel(form: Form) -> Arc<Kernel> {
    let Form { bits, signed, zeros, wide } = form;
    let per = (32 / bits).to_string();
    let zero = if zeros {
        format!(
            "    let z = (line * P.zero_line + block) * P.after + beside;\n    let zero = number(Z[z / {per}u], z);"
        )
    } else {
        "    let zero = P.middle;".into()
    };
    let bindings = bindings(
        3,
        [("S", "f32")].into_iter().chain(zeros.then_some(("Z", "u32"))).chain([("Y", "f32"), ("fault", "u32")]),
    );
    let source = filled(
        include_str!("coded.wgsl"),
        &[
            ("BITS", &bits.to_string()),
            ("PER", &per),
            ("TYPE", if signed { "bitcast<i32>" } else { "u32" }),
            ("INDICES_OF", &indices_of(wide, MORE)),
            ("BINDINGS", &bindings),
            ("ZERO", &zero),
        ],
    );
    let name = format!(
        "coded-{}{bits}{}-{}",
        if signed { "i" } else { "u" },
        if zeros { "-zeros" } else { "" },
        if wide { "i64" } else { "i32" }
    );
    Kernel::new(name, source, if zeros { 4 } else { 3 }, 2, move || {
        let mut out = Vec::new();
        for (after, axis) in [(1, 0), (1, 1), (8, 0), (8, 1), (8, 2)] {
            out.extend(trial(form, after, axis, false));
        }
        out.extend(trial(form, 1, 0, true));
        out
    })
}

/// Of codes `[4, 20, after]` in blocks of 16, by an index along that axis.
fn trial(form: Form, after: usize, axis: usize, faulty: bool) -> Option<Trial> {
    let Form { bits, signed, zeros, wide } = form;
    let shape = [4, 20, after];
    let blocks =
        Blocks { along: 20, inner: after, block: 16, bits, signed, middle: if signed { 0 } else { 1 << (bits - 1) } };
    let mut draws = Draws::new((bits * 10 + after + axis) as u64);
    let codes = draws.bytes(4 * 20 * after * bits / 8);
    let scale = draws.floats(4 * 2 * after);
    let zero = if zeros {
        draws.bytes(if after == 1 { 4 * (2 * bits).div_ceil(8) } else { 4 * 2 * after * bits / 8 })
    } else {
        Vec::new()
    };
    let (outer, length, inner) =
        (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product::<usize>());
    let last = length as i64 - 1;
    let index = if faulty { vec![0, last + 1, -1, 1 << 30] } else { vec![last, 0, -last - 1, 1] };
    let looked = LookedUp { blocks, zeros, wide, outer, length, inner, count: index.len() };
    let call = looked.call()?;
    let table = Coded { blocks, codes: &codes, scale: &scale, zero: &zero };
    let mut y = Vec::new();
    for o in 0..outer {
        for i in &index {
            let at = if *i < 0 { i + length as i64 } else { *i };
            let there = (0..length as i64).contains(&at);
            y.extend((0..inner).map(|k| if there { table.at((o * length + at as usize) * inner + k) } else { 0.0 }));
        }
    }
    let bytes = |i: &i64| if wide { i.to_le_bytes().to_vec() } else { (*i as i32).to_le_bytes().to_vec() };
    let indices = index.iter().flat_map(bytes).collect();
    let whole = |mut v: Vec<u8>| {
        v.resize(v.len().next_multiple_of(4), 0);
        v
    };
    let mut operands = vec![whole(codes), indices, bytes_of(&scale)];
    operands.extend(zeros.then(|| whole(zero)));
    let fault = u32::from(faulty).to_le_bytes().to_vec();
    Some(Trial { call, before: vec![], operands, results: vec![bytes_of(&y), fault], allowed: Allowed::Exact })
}
