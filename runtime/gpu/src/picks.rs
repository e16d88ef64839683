//! Elements chosen by an index each, and what comes back to them: a sum that every element takes for itself, so that it has
//! one order.
use std::sync::Arc;

use crate::gather::indices_of;
use crate::kernel::{Allowed, Call, Draws, Kernel, Trial, bindings, bytes_of, filled};

/// Most products of elements and indices of a sum: beyond it every element looking at every index is no way to add.
const MOST_LOOKS: usize = 1 << 28;

/// What is done with x: `[outer, length, inner]` of floats. Results y and the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// `y[o, j, k] = x[o, index[o, j, k], k]`. Operands x, index.
    Pick,
    /// `y[o, l, k] = x[o, l, k] + Σ_j u[o, j, k]` over the j whose index is l. Operands x, index, u.
    Add {
        /// One index for each j and not for every element.
        shared: bool,
    },
}

/// A call.
#[derive(Clone, Copy, Debug)]
pub struct Picks {
    /// What is done.
    pub of: Of,
    /// Whether the indices are `i64` and not `i32`.
    pub wide: bool,
    /// Elements before the axis.
    pub outer: usize,
    /// Elements of the axis.
    pub length: usize,
    /// Elements after it.
    pub inner: usize,
    /// Indices along the axis.
    pub count: usize,
}

impl Picks {
    /// The call; `None` when it is larger than a grid, or a sum of too many.
    pub fn call(&self) -> Option<Call> {
        let x = self.outer.checked_mul(self.length)?.checked_mul(self.inner)?;
        let u = self.outer.checked_mul(self.count)?.checked_mul(self.inner)?;
        let n = if self.of == Of::Pick { u } else { x };
        if x == 0 || u == 0 || self.of != Of::Pick && x.checked_mul(self.count)? > MOST_LOOKS {
            return None;
        }
        i32::try_from(x.max(u)).ok()?;
        let params = vec![n as u32, self.length as u32, self.inner as u32, self.count as u32];
        kernel(self.of, self.wide).line(params, n)
    }
}

const PICK: &str = "    let o = e / (P.inner * P.count);
    let at = position(e);
    if at < 0 {
        fault[0] = 1u;
        Y[e] = 0.0;
        return;
    }
    Y[e] = X[(o * u32(P.length) + u32(at)) * P.inner + k];";

const ADD: &str = "    let l = i32(e / P.inner % u32(P.length));
    let o = e / (P.inner * u32(P.length));
    var sum = X[e];
    for (var j = 0u; j < P.count; j++) {
        let source = (o * P.count + j) * P.inner + k;
        let at = position(NUMBER);
        if at < 0 {
            fault[0] = 1u;
        }
        if at == l {
            sum += U[source];
        }
    }
    Y[e] = sum;";

fn kernel(of: Of, wide: bool) -> Arc<Kernel> {
    let (name, what, names, body, shared) = match of {
        Of::Pick => ("pick", "y[o, j, k] = x[o, index[o, j, k], k]", &[("Y", "f32")][..], PICK.to_string(), false),
        Of::Add { shared } => (
            if shared { "add-rows" } else { "add" },
            "y[o, l, k] = x[o, l, k] + the sum of the u[o, j, k] whose index is l",
            &[("U", "f32"), ("Y", "f32")][..],
            ADD.replace("NUMBER", if shared { "j" } else { "source" }),
            shared,
        ),
    };
    let reads = names.len() + 1;
    let bindings = bindings(3, names.iter().copied().chain([("fault", "u32")]));
    let source = filled(
        include_str!("picks.wgsl"),
        &[
            ("WHAT", what),
            ("INDICES", if shared { "[count]" } else { "[outer, count, inner]" }),
            ("INDICES_OF", &indices_of(wide, "")),
            ("BINDINGS", &bindings),
            ("BODY", &body),
        ],
    );
    let name = format!("picks-{name}-{}", if wide { "i64" } else { "i32" });
    Kernel::new(name, source, reads, 2, move || [false, true].iter().filter_map(|f| trial(of, wide, *f)).collect())
}

fn trial(of: Of, wide: bool, faulty: bool) -> Option<Trial> {
    let (outer, length, inner, count) = (2, 5, 3, 4);
    let picks = Picks { of, wide, outer, length, inner, count };
    let call = picks.call()?;
    let mut draws = Draws::new(7);
    let (x, u) = (draws.floats(outer * length * inner), draws.floats(outer * count * inner));
    let indices = if of == (Of::Add { shared: true }) { count } else { outer * count * inner };
    let mut index: Vec<i64> = (0..indices).map(|_| i64::from(draws.word() % 10) - 5).collect();
    if faulty {
        index[1] = if wide { 1 << 32 } else { 5 };
    }
    let bytes = |i: &i64| if wide { i.to_le_bytes().to_vec() } else { (*i as i32).to_le_bytes().to_vec() };
    let place = |e: usize| {
        let i = if index.len() == count { e / inner % count } else { e };
        let at = if index[i] < 0 { index[i] + 5 } else { index[i] };
        (0..5).contains(&at).then_some(at as usize)
    };
    let at = |e: usize, l: usize| (e / (inner * count) * length + l) * inner + e % inner;
    let mut y = match of {
        Of::Pick => vec![0.0; u.len()],
        Of::Add { .. } => x.clone(),
    };
    for e in 0..u.len() {
        match (of, place(e)) {
            (_, None) => {}
            (Of::Pick, Some(l)) => y[e] = x[at(e, l)],
            (Of::Add { .. }, Some(l)) => y[at(e, l)] += u[e],
        }
    }
    let mut operands = vec![bytes_of(&x), index.iter().flat_map(bytes).collect()];
    operands.extend((of != Of::Pick).then(|| bytes_of(&u)));
    let fault = u32::from(faulty).to_le_bytes().to_vec();
    Some(Trial { call, before: vec![], operands, results: vec![bytes_of(&y), fault], allowed: Allowed::Exact })
}
