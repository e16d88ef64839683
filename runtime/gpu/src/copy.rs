//! Elements moved: axes in another order, parts, repetitions, borders, one tensor into a part of another.
use std::sync::Arc;

use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, filled};

/// Most axes left when neighbouring ones are merged.
const MOST_AXES: usize = 8;

/// What lies outside of the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Border {
    /// An element of these bytes.
    Fill([u8; 8]),
    /// The nearest element.
    Edge,
    /// Reflected, the edge not repeated.
    Reflect,
    /// From the other end.
    Wrap,
}

/// One axis of the walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Places.
    pub len: usize,
    /// Elements of the operand from one source to the next.
    pub from: isize,
    /// Elements of the result from one place to the next.
    pub to: usize,
    /// Places before the first source.
    pub before: isize,
    /// Sources.
    pub kept: usize,
}

impl Axis {
    /// An axis without a border.
    pub fn plain(len: usize, from: isize, to: usize) -> Axis {
        Axis { len, from, to, before: 0, kept: len }
    }

    fn is_plain(&self) -> bool {
        self.before == 0 && self.kept == self.len
    }
}

/// A copy of elements.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Bytes of an element: 1, 4 or 8.
    pub unit: usize,
    /// The first source of the first place.
    pub base: isize,
    /// The first place.
    pub to: usize,
    /// Axes, outermost first.
    pub axes: Vec<Axis>,
    /// What lies outside.
    pub border: Border,
}

impl Copy {
    /// The call; `None` for what the kernel does not do: too many axes, or bytes that do not fill words.
    pub fn call(&self) -> Option<Call> {
        let axes = self.merged();
        let n: usize = axes.iter().map(|a| a.len).product();
        if axes.len() > MOST_AXES || n == 0 {
            return None;
        }
        let mut own = 1;
        let unbroken = axes.iter().rev().all(|a| {
            let same = a.to == own;
            own *= a.len;
            same
        });
        let threads = match self.unit {
            1 if unbroken && self.to.is_multiple_of(4) => n.div_ceil(4),
            4 | 8 => n,
            _ => return None,
        };
        if self.border != Border::Fill([0; 8]) && axes.iter().any(|a| !a.is_plain() && a.kept == 0) {
            return None;
        }
        let (mode, fill) = match self.border {
            Border::Fill(bytes) => (0, u64::from_le_bytes(bytes)),
            Border::Edge => (1, 0),
            Border::Reflect => (2, 0),
            Border::Wrap => (3, 0),
        };
        let int = |v: isize| i32::try_from(v).ok().map(|v| v as u32);
        let word = |v: usize| u32::try_from(v).ok();
        let mut params = vec![0u32; 8 + 5 * 8];
        params[..8].copy_from_slice(&[
            word(threads)?,
            axes.len() as u32,
            int(self.base)?,
            word(self.to)?,
            mode,
            fill as u32,
            (fill >> 32) as u32,
            word(n)?,
        ]);
        for (d, a) in axes.iter().rev().enumerate() {
            params[8 + d] = word(a.len)?;
            params[16 + d] = int(a.from)?;
            params[24 + d] = word(a.to)?;
            params[32 + d] = int(a.before)?;
            params[40 + d] = int(a.kept as isize)?;
        }
        kernel(self.unit)?.line(params, threads)
    }

    /// The axes with neighbours that one step goes along made one.
    fn merged(&self) -> Vec<Axis> {
        let mut out: Vec<Axis> = Vec::new();
        for &a in self.axes.iter().filter(|a| a.len != 1 || !a.is_plain()) {
            match out.last_mut() {
                Some(outer)
                    if outer.is_plain()
                        && a.is_plain()
                        && outer.from == a.from * a.len as isize
                        && outer.to == a.to * a.len =>
                {
                    *outer = Axis::plain(outer.len * a.len, a.from, a.to);
                }
                _ => out.push(a),
            }
        }
        if out.is_empty() && self.axes.iter().all(|a| a.len == 1) {
            out.push(Axis::plain(1, 1, 1));
        }
        out
    }
}

fn kernel(unit: usize) -> Option<Arc<Kernel>> {
    let (word, fill, bits) = match unit {
        1 => ("u32", "", "8 bits"),
        4 => ("u32", "P.fill", "32 bits"),
        8 => ("vec2<u32>", "vec2<u32>(P.fill, P.fill_high)", "64 bits"),
        _ => return None,
    };
    let body = if unit == 1 {
        "    var word = 0u;
    for (var k = 0u; k < 4u; k++) {
        if i * 4u + k < P.elements {
            let p = place(i * 4u + k);
            var byte = P.fill & 255u;
            if p.inside {
                byte = extractBits(x[u32(p.source) >> 2u], (u32(p.source) & 3u) * 8u, 8u);
            }
            word |= byte << (k * 8u);
        }
    }
    y[P.obase / 4u + i] = word;"
            .to_string()
    } else {
        format!(
            "    let p = place(i);\n    if p.inside {{\n        y[p.to] = x[u32(p.source)];\n    }} else {{\n        y[p.to] = {fill};\n    }}"
        )
    };
    let source = filled(include_str!("copy.wgsl"), &[("WORD", word), ("UNIT", bits), ("BODY", &body)]);
    Some(Kernel::new(format!("copy-{unit}"), source, 1, 1, move || trials(unit)))
}

/// The copy by its formula.
fn formula(c: &Copy, x: &[u8], y: &mut [u8]) {
    let total: usize = c.axes.iter().map(|a| a.len).product();
    let fill = if let Border::Fill(b) = c.border { b } else { [0; 8] };
    for i in 0..total {
        let (mut rest, mut from, mut to, mut inside) = (i, c.base, c.to, true);
        for a in c.axes.iter().rev() {
            let at = rest % a.len;
            rest /= a.len;
            to += at * a.to;
            let (mut s, kept) = (at as isize - a.before, a.kept as isize);
            if !(0..kept).contains(&s) {
                match c.border {
                    Border::Fill(_) => inside = false,
                    Border::Edge => s = s.clamp(0, kept - 1),
                    Border::Wrap => s = s.rem_euclid(kept),
                    Border::Reflect => {
                        let turn = (2 * kept - 2).max(1);
                        s = s.rem_euclid(turn);
                        s = if s < kept { s } else { turn - s };
                    }
                }
            }
            from += s * a.from;
        }
        let source = if inside { &x[from as usize * c.unit..][..c.unit] } else { &fill[..c.unit] };
        y[to * c.unit..][..c.unit].copy_from_slice(source);
    }
}

fn trials(unit: usize) -> Vec<Trial> {
    let mut draws = Draws::new(unit as u64);
    let mut out = Vec::new();
    let plain = Axis::plain;
    let turned = vec![plain(5, 1, 21), plain(3, 5, 7), plain(7, 15, 1)];
    let reversed = vec![plain(9, -11, 7), plain(7, 1, 1)];
    let bordered = vec![
        Axis { len: 8, from: 7, to: 11, before: 2, kept: 4 },
        Axis { len: 11, from: 1, to: 1, before: 3, kept: 7 },
    ];
    let mut cases = vec![
        Copy { unit, base: 0, to: 0, axes: turned, border: Border::Fill([0; 8]) },
        Copy { unit, base: 90, to: 4, axes: reversed, border: Border::Fill([0; 8]) },
    ];
    for border in [Border::Fill([7, 6, 5, 4, 3, 2, 1, 0]), Border::Edge, Border::Reflect, Border::Wrap] {
        cases.push(Copy { unit, base: 0, to: 0, axes: bordered.clone(), border });
    }
    for c in cases {
        let x = draws.bytes(128 * unit);
        let mut y = vec![0; 128 * unit];
        formula(&c, &x, &mut y);
        if let Some(call) = c.call() {
            out.push(Trial { call, before: vec![], operands: vec![x], results: vec![y], allowed: Allowed::Exact });
        }
    }
    out
}
