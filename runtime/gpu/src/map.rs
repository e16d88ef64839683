//! Functions of elements over operands that broadcast to one shape: one, or several of which each reads what others make.
use std::sync::Arc;

use crate::functions::Function;
use crate::kernel::{Call, Draws};

mod text;
mod trials;

pub(crate) use text::BYTES;

/// Most axes left when neighbouring ones are merged.
const MOST_AXES: usize = 8;
/// Most operands: with the result as many as a kernel may bind.
const MOST_OPERANDS: usize = 7;
/// Most functions of one kernel: the compiler of the Raspberry Pi fails on long texts.
const MOST_LINKS: usize = 16;

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
    fn letter(self) -> char {
        match self {
            Element::F32 => 'f',
            Element::I32 => 'i',
            Element::I64 => 'l',
            Element::U8 => 'u',
            Element::I8 => 's',
        }
    }

    fn size(self) -> usize {
        match self {
            Element::F32 | Element::I32 => 4,
            Element::I64 => 8,
            Element::U8 | Element::I8 => 1,
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

    /// The numbers that lie there.
    pub(crate) fn numbers(self, bytes: &[u8]) -> Vec<f64> {
        let words = |f: fn([u8; 4]) -> f64| bytes.as_chunks::<4>().0.iter().map(|b| f(*b)).collect();
        match self {
            Element::F32 => words(|b| f64::from(f32::from_le_bytes(b))),
            Element::I32 => words(|b| f64::from(i32::from_le_bytes(b))),
            Element::I64 => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
            Element::U8 => bytes.iter().map(|b| f64::from(*b)).collect(),
            Element::I8 => bytes.iter().map(|b| f64::from(*b as i8)).collect(),
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
#[derive(Clone, Debug, PartialEq, Eq)]
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

impl Map {
    /// The call; `None` when it has too many axes, operands or elements.
    pub fn call(&self) -> Option<Call> {
        let sources = (0..self.operands.len()).map(Source::Operand).collect();
        let link = Link { function: self.function, constants: self.constants.clone(), sources, result: self.result };
        Chain { shape: self.shape.clone(), operands: self.operands.clone(), links: vec![link] }.call()
    }
}

/// What a function reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// That operand.
    Operand(usize),
    /// What that function, an earlier one, makes of the same element.
    Link(usize),
}

/// One function of a chain.
#[derive(Clone, Debug)]
struct Link {
    function: &'static Function,
    constants: Vec<f32>,
    sources: Vec<Source>,
    result: Element,
}

/// Functions of elements, of which the last makes the result and the others what it reads, all at once: what lies between them is
/// in no memory. The result is the same to the bit as that of a call for each of them.
#[derive(Clone, Debug)]
pub struct Chain {
    shape: Vec<usize>,
    operands: Vec<Operand>,
    links: Vec<Link>,
}

/// Where an operand is read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Access {
    /// At the element of the same number.
    Same,
    /// At element 0.
    First,
    /// Where its strides say.
    Strided,
}

impl Access {
    fn letter(self) -> char {
        match self {
            Access::Same => 'e',
            Access::First => '0',
            Access::Strided => 't',
        }
    }
}

/// All that a text depends on.
#[derive(Clone, Debug)]
struct Form {
    operands: Vec<(Element, Access)>,
    /// Vectors of four that the lengths of the axes take.
    axes: usize,
    links: Vec<Link>,
}

impl Chain {
    /// How many operands it has.
    pub fn operands(&self) -> usize {
        self.operands.len()
    }

    /// How many functions.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Whether operand `i` is read as operand `j` is, so that they can be one where they are the same tensor.
    pub fn alike(&self, i: usize, j: usize) -> bool {
        self.operands[i] == self.operands[j]
    }

    /// With operand `i` in the place of `j`, which is left out; `None` unless they are [`Chain::alike`] and `i` is the earlier.
    pub fn united(&self, i: usize, j: usize) -> Option<Chain> {
        if i >= j || !self.alike(i, j) {
            return None;
        }
        let mut out = self.clone();
        out.operands.remove(j);
        out.redirect(|source| match source {
            Source::Operand(k) if k == j => Source::Operand(i),
            Source::Operand(k) => Source::Operand(k - usize::from(k > j)),
            link => link,
        });
        Some(out)
    }

    /// With what `first` makes in the place of operand `k`, which is left out; the operands of `first` are the last ones then. `None`
    /// when it does not make what that operand is, element for element.
    pub fn after(&self, k: usize, first: &Chain) -> Option<Chain> {
        let made = first.links.last()?.result;
        let operand = self.operands.get(k)?;
        if operand.element != made || !is_whole(&self.shape, &operand.strides) {
            return None;
        }
        let moved = first.shaped(&self.shape)?;
        let (rest, earlier) = (self.operands.len() - 1, moved.links.len());
        let mut out = self.clone();
        out.operands.remove(k);
        out.operands.extend(moved.operands.iter().cloned());
        out.redirect(|source| match source {
            Source::Operand(i) if i == k => Source::Link(earlier - 1),
            Source::Operand(i) => Source::Operand(i - usize::from(i > k)),
            Source::Link(i) => Source::Link(i + earlier),
        });
        let mut moved = moved;
        moved.redirect(|source| match source {
            Source::Operand(i) => Source::Operand(i + rest),
            link => link,
        });
        moved.links.append(&mut out.links);
        out.links = moved.links;
        Some(out)
    }

    /// The same elements as of another shape; `None` where an operand is neither one number nor read element for element, or the
    /// shapes have not as many elements.
    fn shaped(&self, shape: &[usize]) -> Option<Chain> {
        if self.shape == shape {
            return Some(self.clone());
        }
        if elements(&self.shape) != elements(shape) {
            return None;
        }
        let one = |o: &Operand| {
            let strides = match () {
                () if is_whole(&self.shape, &o.strides) => own_strides(shape),
                () if self.shape.iter().zip(&o.strides).all(|(d, s)| *d == 1 || *s == 0) => vec![0; shape.len()],
                () => return None,
            };
            Some(Operand { element: o.element, strides })
        };
        let operands = self.operands.iter().map(one).collect::<Option<_>>()?;
        Some(Chain { shape: shape.to_vec(), operands, links: self.links.clone() })
    }

    fn redirect(&mut self, to: impl Fn(Source) -> Source) {
        self.links.iter_mut().flat_map(|l| &mut l.sources).for_each(|s| *s = to(*s));
    }

    /// The call; `None` when it has too many axes, operands, elements or functions.
    pub fn call(&self) -> Option<Call> {
        let n = elements(&self.shape);
        let axes = self.merged();
        let wide = self.links.iter().any(|l| l.constants.len() > 4 || l.sources.len() > 4);
        let many = self.operands.len() > MOST_OPERANDS || self.links.len() > MOST_LINKS;
        if axes.len() > MOST_AXES || wide || many {
            return None;
        }
        u32::try_from(n).ok()?;
        let result = self.links.last()?.result;
        let form = self.form(&axes, n);
        let words = match result {
            Element::F32 | Element::I32 | Element::I64 => n,
            Element::U8 | Element::I8 => n.div_ceil(4),
        };
        let mut params = vec![words as u32, n as u32, axes.len() as u32, 0];
        for link in self.links.iter().filter(|l| l.has_constants()) {
            params.extend((0..4).map(|i| link.constants.get(i).map_or(0, |c| c.to_bits())));
        }
        if form.strided().next().is_some() {
            let mut lengths = vec![0u32; 4 * form.axes];
            lengths.iter_mut().zip(&axes).for_each(|(to, (length, _))| *to = *length as u32);
            params.extend(lengths);
            for k in form.strided() {
                let mut strides = vec![0u32; 4 * form.axes];
                for (to, (_, from)) in strides.iter_mut().zip(&axes) {
                    *to = u32::try_from(from[k]).ok()?;
                }
                params.extend(strides);
            }
        }
        let mut call = text::kernel(form).line(params, words)?;
        call.chain = Some(Arc::new(self.clone()));
        Some(call)
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

    fn form(&self, axes: &[(usize, Vec<usize>)], n: usize) -> Form {
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
        let operands: Vec<_> = self.operands.iter().enumerate().map(|(k, o)| (o.element, one(k))).collect();
        let strided = operands.iter().any(|(_, a)| *a == Access::Strided);
        Form { operands, axes: if strided { axes.len().div_ceil(4) } else { 0 }, links: self.links.clone() }
    }
}

impl Form {
    /// The operands that are read where their strides say.
    fn strided(&self) -> impl Iterator<Item = usize> {
        self.operands.iter().enumerate().filter(|(_, (_, a))| *a == Access::Strided).map(|(k, _)| k)
    }

    /// Elements of the result.
    fn result(&self) -> Element {
        self.links.last().map_or(Element::F32, |l| l.result)
    }
}

impl Link {
    fn has_constants(&self) -> bool {
        self.function.text.contains("P.c")
    }
}

fn elements(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn own_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// Whether those strides meet each element of that shape once, in its own order.
fn is_whole(shape: &[usize], strides: &[usize]) -> bool {
    shape.iter().zip(strides).zip(own_strides(shape)).all(|((d, s), own)| *d == 1 || *s == own)
}
