//! A function of elements over operands that broadcast to one shape.
use std::sync::Arc;

use crate::functions::Function;
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bindings, filled};

/// Most axes left when neighbouring ones are merged.
const MOST_AXES: usize = 8;
/// Most operands.
const MOST_OPERANDS: usize = 4;

/// Elements as they lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32-bit floats.
    F32,
    /// 32-bit integers.
    I32,
    /// 64-bit integers. Where the result is none of them the low half is read: the caller knows that they fit.
    I64,
    /// Unsigned bytes, booleans among them.
    U8,
    /// Signed bytes.
    I8,
}

impl Element {
    fn word(self) -> &'static str {
        match self {
            Element::F32 => "f32",
            Element::I32 => "i32",
            Element::I64 => "vec2<i32>",
            Element::U8 | Element::I8 => "u32",
        }
    }

    fn letter(self) -> char {
        match self {
            Element::F32 => 'f',
            Element::I32 => 'i',
            Element::I64 => 'l',
            Element::U8 => 'u',
            Element::I8 => 's',
        }
    }

    fn load(self, operand: usize, at: &str) -> String {
        match self {
            Element::F32 | Element::I32 => format!("x{operand}[{at}]"),
            Element::I64 => format!("x{operand}[{at}].x"),
            Element::U8 => format!("i32(extractBits(x{operand}[({at}) >> 2u], (({at}) & 3u) * 8u, 8u))"),
            Element::I8 => format!("extractBits(i32(x{operand}[({at}) >> 2u]), (({at}) & 3u) * 8u, 8u)"),
        }
    }

    fn bytes(self, v: f64) -> Vec<u8> {
        match self {
            Element::F32 => (v as f32).to_le_bytes().to_vec(),
            Element::I32 => (v as i32).to_le_bytes().to_vec(),
            Element::I64 => (v as i64).to_le_bytes().to_vec(),
            Element::U8 => vec![v as u8],
            Element::I8 => vec![v as i8 as u8],
        }
    }

    fn drawn(self, draws: &mut Draws, positive: bool) -> f64 {
        match self {
            Element::F32 if positive => f64::from(draws.float().abs() * 3.0 + 0.05),
            Element::F32 => f64::from(draws.float() * 6.0),
            Element::U8 => f64::from(draws.word() % 256),
            Element::I8 | Element::I32 | Element::I64 => f64::from(draws.word() % 200) - 100.0,
        }
    }
}

/// An operand: its elements, and its stride along each axis of the result (0 where it is repeated).
#[derive(Clone, Debug)]
pub struct Operand {
    /// Its elements.
    pub element: Element,
    /// Elements from one to the next along each axis of the result, outermost first.
    pub strides: Vec<usize>,
}

/// `result[i] = function(operands…)`.
#[derive(Clone, Debug)]
pub struct Map {
    /// What is computed.
    pub function: &'static Function,
    /// Constants of the function.
    pub constants: Vec<f32>,
    /// Shape of the result.
    pub shape: Vec<usize>,
    /// The operands.
    pub operands: Vec<Operand>,
    /// Elements of the result. Of `I64` the operands are pairs of words, and so is what the function gives.
    pub result: Element,
}

#[derive(Clone, Copy, PartialEq)]
enum Access {
    Same,
    First,
    Strided,
}

impl Map {
    /// The call; `None` when it has too many axes, operands or elements.
    pub fn call(&self) -> Option<Call> {
        let n: usize = self.shape.iter().product();
        let axes = self.merged();
        if axes.len() > MOST_AXES || self.operands.len() > MOST_OPERANDS || self.constants.len() > 4 {
            return None;
        }
        u32::try_from(n).ok()?;
        let access = self.access(&axes, n);
        let kernel = kernel(self.function, &self.operands, &access, self.result);
        let words = match self.result {
            Element::F32 | Element::I32 | Element::I64 => n,
            Element::U8 | Element::I8 => n.div_ceil(4),
        };
        let mut params = vec![0u32; 8 + 8 + 32];
        params[..4].copy_from_slice(&[words as u32, n as u32, axes.len() as u32, 0]);
        for (p, c) in params[4..8].iter_mut().zip(&self.constants) {
            *p = c.to_bits();
        }
        for (d, (length, strides)) in axes.iter().enumerate() {
            params[8 + d] = *length as u32;
            for (k, s) in strides.iter().enumerate() {
                params[16 + 8 * k + d] = u32::try_from(*s).ok()?;
            }
        }
        kernel.line(params, words)
    }

    /// Axes, innermost first, with the strides of the operands; neighbours along which all advance alike are one.
    fn merged(&self) -> Vec<(usize, Vec<usize>)> {
        let mut axes: Vec<(usize, Vec<usize>)> = Vec::new();
        for (axis, &d) in self.shape.iter().enumerate().rev().filter(|(_, d)| **d != 1) {
            let step: Vec<usize> = self.operands.iter().map(|o| o.strides[axis]).collect();
            match axes.last_mut() {
                Some((len, inner)) if step.iter().zip(&*inner).all(|(s, i)| *s == i * *len) => *len *= d,
                _ => axes.push((d, step)),
            }
        }
        axes
    }

    fn access(&self, axes: &[(usize, Vec<usize>)], n: usize) -> Vec<Access> {
        let one = |k: usize| {
            let mut own = 1;
            let same = axes.iter().all(|(len, strides)| {
                let same = strides[k] == own;
                own *= len;
                same
            });
            match () {
                () if axes.iter().all(|(_, s)| s[k] == 0) => Access::First,
                () if same && own == n.max(1) => Access::Same,
                () => Access::Strided,
            }
        };
        (0..self.operands.len()).map(one).collect()
    }
}

fn kernel(f: &'static Function, operands: &[Operand], access: &[Access], result: Element) -> Arc<Kernel> {
    let letter = |a: &Access| match a {
        Access::Same => 'e',
        Access::First => '0',
        Access::Strided => 't',
    };
    let elements: Vec<Element> = operands.iter().map(|o| o.element).collect();
    let modes: String = elements.iter().zip(access).flat_map(|(e, a)| [e.letter(), letter(a)]).collect();
    let name = format!("map-{}-{modes}-{}", f.name, result.letter());
    let names: Vec<String> = (0..elements.len()).map(|k| format!("x{k}")).collect();
    let read = names.iter().zip(&elements).map(|(name, e)| (&name[..], e.word()));
    let bindings = bindings(1, read.chain([("y", result.word())]));
    let load = |k: usize| {
        let at = match access[k] {
            Access::Same => "i".to_string(),
            Access::First => "0u".to_string(),
            Access::Strided => format!("strided({k}u, i)"),
        };
        let whole = result == Element::I64;
        let load = if whole { format!("x{k}[at{k}]") } else { elements[k].load(k, &format!("at{k}")) };
        let letter = ["a", "b", "c", "d"][k];
        format!("    let at{k} = {at};\n    let {letter} = {load};\n")
    };
    let loads: String = (0..elements.len()).map(load).collect();
    let (kind, text, store) = match (result, f.decides) {
        (Element::F32, _) => ("f32", f.text.to_string(), "    y[i] = f(i);"),
        (Element::I32, _) => ("i32", f.text.to_string(), "    y[i] = f(i);"),
        (Element::I64, _) => ("vec2<i32>", f.text.to_string(), "    y[i] = f(i);"),
        (_, true) => ("u32", format!("select(0u, 1u, {})", f.text), BYTES),
        (_, false) => ("u32", format!("u32({}) & 255u", f.text), BYTES),
    };
    let source = filled(
        include_str!("map.wgsl"),
        &[
            ("COMMON", include_str!("common.wgsl")),
            ("QUOTIENT", if f.text.contains("quotient(") { include_str!("quotient.wgsl") } else { "" }),
            ("BINDINGS", &bindings),
            ("TYPE", kind),
            ("LOADS", &loads),
            ("TEXT", &text),
            ("STORE", store),
        ],
    );
    let access = access.to_vec();
    Kernel::new(name, source, elements.len(), 1, move || trials(f, &elements, &access, result))
}

pub(crate) const BYTES: &str = "    var word = 0u;
    for (var k = 0u; k < 4u; k++) {
        if i * 4u + k < P.elements {
            word |= f(i * 4u + k) << (k * 8u);
        }
    }
    y[i] = word;";

fn trials(f: &'static Function, elements: &[Element], access: &[Access], result: Element) -> Vec<Trial> {
    // Three axes, so that strides can be anything; the operand that is strided is turned around.
    let shape = vec![3, 5, 7];
    let n: usize = shape.iter().product();
    let strides = |a: &Access| match a {
        Access::Same => vec![35, 7, 1],
        Access::First => vec![0, 0, 0],
        Access::Strided => vec![1, 0, 3],
    };
    let operands: Vec<Operand> =
        elements.iter().zip(access).map(|(e, a)| Operand { element: *e, strides: strides(a) }).collect();
    let constants = vec![0.75, 1.5, 0.0, 0.0];
    let map = Map { function: f, constants: constants.clone(), shape, operands, result };
    // The same kernel as the one tried: its name says all that its text depends on.
    let Some(call) = map.call() else { return Vec::new() };
    let mut draws = Draws::new(n as u64);
    let values: Vec<Vec<f64>> =
        (elements.iter()).map(|e| (0..n).map(|_| e.drawn(&mut draws, f.positive)).collect()).collect();
    let constants: Vec<f64> = constants.iter().map(|c| f64::from(*c)).collect();
    let mut y = Vec::new();
    for i in 0..n {
        let at = [i / 35, i / 7 % 5, i % 7];
        let read = |k: usize| values[k][map.operands[k].strides.iter().zip(at).map(|(s, a)| s * a).sum::<usize>()];
        let x: Vec<f64> = (0..values.len()).map(read).collect();
        let v = (f.formula)(&x, &constants);
        y.extend(result.bytes(v));
    }
    let bytes = |k: usize| values[k].iter().flat_map(|v| elements[k].bytes(*v)).collect();
    // Several functions are compositions of ones that a device may compute to 3 or 4 units in the last place.
    let allowed = if result == Element::F32 { Allowed::Floats(1e-5) } else { Allowed::Exact };
    vec![Trial { call, before: vec![], operands: (0..values.len()).map(bytes).collect(), results: vec![y], allowed }]
}
