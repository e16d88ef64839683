//! What a kernel is before any device sees it: a text, a call of it, and the trials it must pass.
use std::fmt;
use std::sync::Arc;

use hone_kernels::conv::Window;

use crate::map::{Chain, Element};

/// Threads of a group in kernels whose threads are numbered along one line.
pub(crate) const LINE: usize = 64;

/// Most groups along one side of a grid, on every device.
const MOST_GROUPS: usize = 65_535;

/// Words of parameters a call may have: one aligned slot of uniform memory.
pub const PARAMS: usize = 64;

/// Matrices of f16 that the subgroups of a device multiply at once, with sums in `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrices {
    /// Rows and columns of each: 8 or 16.
    pub side: usize,
    /// Threads of a subgroup.
    pub subgroup: usize,
}

impl Matrices {
    /// How many of those that make up a square of `side` each subgroup of a group of `threads` has, side by side; `None` when they
    /// cannot be shared out so.
    pub(crate) fn per_subgroup(self, side: usize, threads: usize) -> Option<usize> {
        let (line, subgroups) = (side / self.side, threads / self.subgroup);
        let each = (line * line).checked_div(subgroups)?;
        (each > 0 && each * subgroups == line * line && line % each == 0).then_some(each)
    }
}

/// What a kernel asks of a device beyond what every one has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    #[default]
    Nothing,
    /// Subgroups of so many threads, which are those that follow one another.
    Subgroups(usize),
    /// Matrices.
    Matrices(Matrices),
}

/// One shader. Its entry point is `main`; `@binding(0)` holds the parameters, `@binding(1)` and on are the operands and then
/// the results, all of them `read_write` storage.
pub struct Kernel {
    /// Names the text: two kernels of one name are the same.
    pub name: String,
    /// The text, in WGSL.
    pub source: String,
    /// Operands it reads.
    pub reads: usize,
    /// Results it writes, bound behind the operands.
    pub writes: usize,
    /// What it asks of a device.
    pub needs: Needs,
    /// Whether it multiplies f16, or has weights in it.
    pub halves: bool,
    trials: Box<dyn Fn() -> Vec<Trial> + Send + Sync>,
    parts: Box<dyn Fn() -> Vec<Part> + Send + Sync>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} in, {} out)", self.name, self.reads, self.writes)
    }
}

impl Kernel {
    pub(crate) fn new(
        name: String,
        source: String,
        reads: usize,
        writes: usize,
        trials: impl Fn() -> Vec<Trial> + Send + Sync + 'static,
    ) -> Arc<Kernel> {
        Kernel::asking(Needs::Nothing, false, name, source, [reads, writes], trials)
    }

    /// One that asks that of a device; `halves` says whether it multiplies f16, or has weights in it.
    pub(crate) fn asking(
        needs: Needs,
        halves: bool,
        name: String,
        source: String,
        [reads, writes]: [usize; 2],
        trials: impl Fn() -> Vec<Trial> + Send + Sync + 'static,
    ) -> Arc<Kernel> {
        let (trials, parts) = (Box::new(trials), Box::new(Vec::new));
        Arc::new(Kernel { name, source, reads, writes, needs, halves, trials, parts })
    }

    /// One with a single result, which on the operands of each trial is, to the bit, what the last of `parts` makes.
    pub(crate) fn made_of(
        name: String,
        source: String,
        reads: usize,
        trials: impl Fn() -> Vec<Trial> + Send + Sync + 'static,
        parts: impl Fn() -> Vec<Part> + Send + Sync + 'static,
    ) -> Arc<Kernel> {
        let (trials, parts) = (Box::new(trials), Box::new(parts));
        let (needs, halves) = Default::default();
        Arc::new(Kernel { name, source, reads, writes: 1, needs, halves, trials, parts })
    }

    /// Runs on small, awkward shapes with the results a plain loop gives.
    pub fn trials(&self) -> Vec<Trial> {
        (self.trials)()
    }

    /// The calls that make, one after the other, what it makes at once, on the operands of a trial; none where it is itself one
    /// of those that others are made of.
    pub fn parts(&self) -> Vec<Part> {
        (self.parts)()
    }

    /// A call with these parameters on a grid of `groups`.
    pub(crate) fn call(self: &Arc<Kernel>, params: Vec<u32>, groups: [usize; 3]) -> Option<Call> {
        let fits = groups.iter().all(|&g| g <= MOST_GROUPS) && params.len() <= PARAMS;
        let (others, otherwise, chain) = Default::default();
        fits.then(|| Call { kernel: self.clone(), params, groups: groups.map(|g| g as u32), others, otherwise, chain })
    }

    /// A call on `n` threads in a line; `None` when they are more than a grid has.
    pub(crate) fn line(self: &Arc<Kernel>, params: Vec<u32>, n: usize) -> Option<Call> {
        self.call(params, plane(n.div_ceil(LINE))?)
    }
}

/// A grid of at least `groups` groups, whose number is `y · width + x`.
pub(crate) fn plane(groups: usize) -> Option<[usize; 3]> {
    let rows = groups.div_ceil(MOST_GROUPS).max(1);
    (u32::try_from(groups.saturating_mul(LINE)).is_ok()).then(|| [groups.div_ceil(rows), rows, 1])
}

/// One dispatch: a kernel, its parameters and its grid.
#[derive(Clone, Debug)]
pub struct Call {
    /// The kernel.
    pub kernel: Arc<Kernel>,
    /// Its parameters, as words.
    pub params: Vec<u32>,
    /// Groups along each side.
    pub groups: [u32; 3],
    /// Calls that make of the same operands the same results, to the bit: the device takes one of them where it is faster.
    pub others: Vec<Call>,
    /// A call on the same operands that computes the same, rounded otherwise: for a device that refuses this one's kernel.
    pub otherwise: Option<Box<Call>>,
    /// What it computes, where that is functions of elements: it can be one call with those that make its operands.
    pub chain: Option<Arc<Chain>>,
}

impl Call {
    /// With that one among the others, where there is one.
    pub(crate) fn or(mut self, other: Option<Call>) -> Call {
        self.others.extend(other);
        self
    }

    /// With that one for devices that refuse this one's kernel.
    pub(crate) fn otherwise(mut self, other: Call) -> Call {
        self.otherwise = Some(Box::new(other));
        self
    }
}

/// One of the calls that make what a kernel makes at once.
#[derive(Debug)]
pub struct Part {
    /// The call.
    pub call: Call,
    /// What it reads.
    pub at: Vec<Given>,
    /// Bytes of its result.
    pub bytes: usize,
}

/// What a part reads.
#[derive(Clone, Copy, Debug)]
pub enum Given {
    /// An operand of the trial.
    Operand(usize),
    /// The result of that part, an earlier one.
    Part(usize),
}

/// How far a result may be from the expected one.
#[derive(Clone, Debug)]
pub enum Allowed {
    /// Not at all.
    Exact,
    /// Floats, by that much absolutely, and as much times their size.
    Floats(f32),
    /// Each element of the only result by so much absolutely.
    Each {
        /// The elements.
        element: Element,
        /// By how much.
        within: Vec<f64>,
    },
}

/// A call on known operands with a known result.
#[derive(Debug)]
pub struct Trial {
    /// The call.
    pub call: Call,
    /// Bytes of the operands.
    pub operands: Vec<Vec<u8>>,
    /// Bytes of the first results before the call, for those that are updated.
    pub before: Vec<Vec<u8>>,
    /// Bytes of the results.
    pub results: Vec<Vec<u8>>,
    /// How near they must come.
    pub allowed: Allowed,
}

impl Trial {
    /// What differs between the expected and the found bytes of result `i`, if anything does.
    pub fn differs(&self, i: usize, found: &[u8]) -> Option<String> {
        let want = &self.results[i];
        let name = &self.call.kernel.name;
        match &self.allowed {
            Allowed::Exact => {
                let at = want.iter().zip(found).position(|(a, b)| a != b)?;
                Some(format!("{name}: byte {at} of result {i} is {}, not {}", found[at], want[at]))
            }
            Allowed::Floats(t) => {
                let t = *t;
                let (want, found) = (floats_of(want), floats_of(found));
                let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= t + t * a.abs();
                let at = want.iter().zip(&found).position(|(&a, &b)| !same(a, b))?;
                Some(format!("{name}: element {at} of result {i} is {}, not {}", found[at], want[at]))
            }
            Allowed::Each { element, within } => {
                let (want, found) = (element.numbers(want), element.numbers(found));
                let same = |a: f64, b: f64, t: f64| {
                    a == b || a.is_nan() && b.is_nan() || t == f64::INFINITY || (a - b).abs() <= t
                };
                let at = (0..want.len()).position(|k| !same(want[k], found[k], within[k]))?;
                Some(format!("{name}: element {at} of result {i} is {}, not {}", found[at], want[at]))
            }
        }
    }

    /// What differs between the bits of the result and those that the [parts](Kernel::parts) of its kernel make, if anything does.
    /// Which bits a number has that is none is the compiler's.
    pub fn differs_from_parts(&self, parts: &[u8], found: &[u8]) -> Option<String> {
        let none =
            |b: &[u8]| matches!(self.allowed, Allowed::Each { element: Element::F32, .. }) && floats_of(b)[0].is_nan();
        let same = |(a, b): (&[u8], &[u8])| a == b || a.len() == 4 && none(a) && none(b);
        let at = parts.chunks(4).zip(found.chunks(4)).position(|pair| !same(pair))?;
        Some(format!("{}: the bits of word {at} are not those of one call after the other", self.call.kernel.name))
    }
}

/// Puts what shaders know of a window into its place among parameters: input, output, window, stride, dilation and padding, a
/// vector each; `None` when something is too large.
pub(crate) fn put_window(w: &Window, params: &mut [u32]) -> Option<()> {
    let vectors = params.as_chunks_mut::<4>().0.iter_mut();
    for (to, from) in vectors.zip([w.input, w.output, w.kernel, w.stride, w.dilation]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = u32::try_from(from).ok()?;
        }
    }
    for (to, from) in params[20..].iter_mut().zip(w.pad) {
        *to = i32::try_from(from).ok()? as u32;
    }
    Some(())
}

/// The fields of a shader's parameters that [`put_window`] fills; of each vector depth, height and width.
const WINDOW: &str = "input: vec4<u32>,
    output: vec4<u32>,
    window: vec4<u32>,
    stride: vec4<u32>,
    dilation: vec4<u32>,
    pad: vec4<i32>,";

/// The pixel of an image under tap `t` of position `o`, by the definition of a window; `None` outside.
pub(crate) fn under(w: &Window, o: usize, t: usize) -> Option<usize> {
    let split = |n: usize, l: [usize; 3]| [n / (l[1] * l[2]), n / l[2] % l[1], n % l[2]];
    let (at, tap) = (split(o, w.output), split(t, w.kernel));
    let mut s = 0;
    for axis in 0..3 {
        let p = (at[axis] * w.stride[axis] + tap[axis] * w.dilation[axis]) as isize - w.pad[axis];
        if !(0..w.input[axis] as isize).contains(&p) {
            return None;
        }
        s = s * w.input[axis] + p as usize;
    }
    Some(s)
}

/// `text` with `{{NAME}}` replaced, for every pair, `{{WINDOW}}` by the fields of a window, and `{{LINE}}` by the entry point of
/// kernels that have a function `one`.
pub(crate) fn filled(text: &str, values: &[(&str, &str)]) -> String {
    let mut out = text.replace("{{LINE}}", include_str!("line.wgsl")).replace("{{WINDOW}}", WINDOW);
    for (name, value) in values {
        out = out.replace(&format!("{{{{{name}}}}}"), value);
    }
    debug_assert!(!out.contains("{{"), "a name without a value in {out}");
    out
}

/// Declarations of storage arrays of those names and elements, the first at binding `first`.
pub(crate) fn bindings<'a>(first: usize, arrays: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let one = |(k, (name, word))| {
        format!("@group(0) @binding({}) var<storage, read_write> {name}: array<{word}>;\n", first + k)
    };
    arrays.into_iter().enumerate().map(one).collect()
}

/// [`bindings`] of floats.
pub(crate) fn floats<'a>(first: usize, names: impl IntoIterator<Item = &'a &'a str>) -> String {
    bindings(first, names.into_iter().map(|&name| (name, "f32")))
}

/// The bytes of floats.
pub fn bytes_of(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The bytes of words.
pub fn bytes_of_words(v: &[u32]) -> Vec<u8> {
    v.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub(crate) fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Numbers for trials: the same every time, between -1 and 1.
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new(seed: u64) -> Draws {
        Draws(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    pub(crate) fn float(&mut self) -> f32 {
        self.word() as f32 / (1u32 << 30) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.word() >> 8) as u8).collect()
    }
}
