//! A function of one tensor of bytes, by its table.
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, filled};

/// `y[i] = table[x[i]]` of `n` bytes: operands x and the table of 256 bytes. `None` when it is larger than a grid.
pub fn lookup(n: usize) -> Option<Call> {
    let words = n.div_ceil(4);
    let source = filled(include_str!("lookup.wgsl"), &[]);
    let kernel = Kernel::new("lookup-u8".into(), source, 2, 1, || [1, 6, 1031].into_iter().filter_map(trial).collect());
    kernel.line(vec![u32::try_from(words).ok()?], words)
}

fn trial(n: usize) -> Option<Trial> {
    let mut draws = Draws::new(n as u64);
    let (x, table) = (draws.bytes(n), draws.bytes(256));
    let y = x.iter().map(|&q| table[usize::from(q)]).collect();
    let operands = vec![x, table];
    Some(Trial { call: lookup(n)?, before: vec![], operands, results: vec![y], allowed: Allowed::Exact })
}
