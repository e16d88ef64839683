//! Symbolic dimensions: integer expressions over named symbols such as `N` or `seq`.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// Values given to symbols when a plan is made.
pub type Bindings = BTreeMap<String, usize>;

/// One dimension of a shape: a number, or an expression that becomes one when its symbols are bound.
///
/// The constructors simplify: sums and products are flat, sorted and carry at most one constant, so that equal
/// expressions built in another order compare equal. Division rounds towards negative infinity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dim {
    /// A known value.
    Val(i64),
    /// A free symbol.
    Sym(Arc<str>),
    /// Sum of the terms.
    Add(Vec<Dim>),
    /// Product of the factors.
    Mul(Vec<Dim>),
    /// Floor division by a positive constant.
    Div(Box<Dim>, i64),
    /// Smallest of the terms.
    Min(Vec<Dim>),
    /// Largest of the terms.
    Max(Vec<Dim>),
    /// NumPy broadcasting of the terms: the one that is not 1.
    Broadcast(Vec<Dim>),
}

/// Why a dimension has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DimError {
    /// A symbol was given no value.
    #[error("dimension `{symbol}` has no value: the inputs given do not determine it")]
    Unbound {
        /// The symbol.
        symbol: String,
    },
    /// The value is negative or does not fit.
    #[error("dimension `{expression}` evaluates to {value}, which is not a length")]
    NotALength {
        /// The expression.
        expression: String,
        /// What it evaluates to.
        value: i64,
    },
    /// Two different lengths other than 1 were to be broadcast.
    #[error("lengths {a} and {b} cannot be broadcast together")]
    Broadcast {
        /// One length.
        a: i64,
        /// The other.
        b: i64,
    },
}

impl Dim {
    /// A symbol.
    pub fn sym(name: &str) -> Dim {
        Dim::Sym(Arc::from(name))
    }

    /// The value when it needs no symbol.
    pub fn known(&self) -> Option<usize> {
        match self {
            Dim::Val(v) => usize::try_from(*v).ok(),
            _ => None,
        }
    }

    /// `self + other`.
    pub fn plus(&self, other: &Dim) -> Dim {
        let mut constant = 0;
        let mut terms = Vec::new();
        for d in [self, other] {
            match d {
                Dim::Val(v) => constant += v,
                Dim::Add(list) => {
                    for t in list {
                        if let Dim::Val(v) = t { constant += v } else { terms.push(t.clone()) }
                    }
                }
                d => terms.push(d.clone()),
            }
        }
        if terms.is_empty() {
            return Dim::Val(constant);
        }
        if constant != 0 {
            terms.push(Dim::Val(constant));
        }
        if terms.len() == 1 {
            return terms.remove(0);
        }
        terms.sort();
        Dim::Add(terms)
    }

    /// `self · other`.
    pub fn times(&self, other: &Dim) -> Dim {
        let mut constant = 1;
        let mut factors = Vec::new();
        for d in [self, other] {
            match d {
                Dim::Val(v) => constant *= v,
                Dim::Mul(list) => {
                    for t in list {
                        if let Dim::Val(v) = t { constant *= v } else { factors.push(t.clone()) }
                    }
                }
                d => factors.push(d.clone()),
            }
        }
        if constant == 0 || factors.is_empty() {
            return Dim::Val(constant);
        }
        if constant != 1 {
            factors.push(Dim::Val(constant));
        }
        if factors.len() == 1 {
            return factors.remove(0);
        }
        factors.sort();
        Dim::Mul(factors)
    }

    /// `⌊self / by⌋`.
    ///
    /// # Panics
    /// When `by` is not positive: a caller's mistake, strides are checked where they are read.
    pub fn div_floor(&self, by: i64) -> Dim {
        assert!(by > 0, "a dimension is divided by a positive constant only");
        match self {
            d if by == 1 => d.clone(),
            Dim::Val(v) => Dim::Val(v.div_euclid(by)),
            d => Dim::Div(Box::new(d.clone()), by),
        }
    }

    /// The value under `bindings`.
    ///
    /// # Errors
    /// [`DimError`] when a symbol is free, the value is not a length, or lengths cannot be broadcast.
    pub fn eval(&self, bindings: &Bindings) -> Result<usize, DimError> {
        let value = self.eval_i64(bindings)?;
        usize::try_from(value).map_err(|_| DimError::NotALength { expression: self.to_string(), value })
    }

    fn eval_i64(&self, bindings: &Bindings) -> Result<i64, DimError> {
        let all = |list: &[Dim]| list.iter().map(|d| d.eval_i64(bindings)).collect::<Result<Vec<i64>, _>>();
        Ok(match self {
            Dim::Val(v) => *v,
            Dim::Sym(s) => *bindings.get(&**s).ok_or_else(|| DimError::Unbound { symbol: s.to_string() })? as i64,
            Dim::Add(list) => all(list)?.into_iter().fold(0i64, i64::saturating_add),
            Dim::Mul(list) => all(list)?.into_iter().fold(1i64, i64::saturating_mul),
            Dim::Div(d, by) => d.eval_i64(bindings)?.div_euclid(*by),
            Dim::Min(list) => all(list)?.into_iter().min().unwrap_or(0),
            Dim::Max(list) => all(list)?.into_iter().max().unwrap_or(0),
            Dim::Broadcast(list) => {
                let mut out = 1;
                for v in all(list)? {
                    if v != 1 && out != 1 && v != out {
                        return Err(DimError::Broadcast { a: out, b: v });
                    }
                    if v != 1 {
                        out = v;
                    }
                }
                out
            }
        })
    }

    /// The names of the symbols in it, each once.
    pub fn symbols(&self) -> Vec<String> {
        fn walk(d: &Dim, out: &mut Vec<String>) {
            match d {
                Dim::Val(_) => {}
                Dim::Sym(s) => {
                    if !out.iter().any(|o| **o == **s) {
                        out.push(s.to_string());
                    }
                }
                Dim::Div(d, _) => walk(d, out),
                Dim::Add(l) | Dim::Mul(l) | Dim::Min(l) | Dim::Max(l) | Dim::Broadcast(l) => {
                    l.iter().for_each(|d| walk(d, out));
                }
            }
        }
        let mut out = Vec::new();
        walk(self, &mut out);
        out
    }
}

impl From<usize> for Dim {
    fn from(v: usize) -> Dim {
        Dim::Val(v as i64)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |f: &mut fmt::Formatter<'_>, list: &[Dim], by: &str| -> fmt::Result {
            for (i, d) in list.iter().enumerate() {
                if i > 0 {
                    f.write_str(by)?;
                }
                match d {
                    Dim::Add(_) => write!(f, "({d})")?,
                    d => write!(f, "{d}")?,
                }
            }
            Ok(())
        };
        match self {
            Dim::Val(v) => write!(f, "{v}"),
            Dim::Sym(s) => f.write_str(s),
            Dim::Add(l) => join(f, l, "+"),
            Dim::Mul(l) => join(f, l, "*"),
            Dim::Div(d, by) => write!(f, "({d})/{by}"),
            Dim::Min(l) => {
                f.write_str("min(")?;
                join(f, l, ",")?;
                f.write_str(")")
            }
            Dim::Max(l) => {
                f.write_str("max(")?;
                join(f, l, ",")?;
                f.write_str(")")
            }
            Dim::Broadcast(l) => join(f, l, "#"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_built_in_another_order_are_equal() {
        let (n, m) = (Dim::sym("N"), Dim::sym("M"));
        let a = n.plus(&Dim::Val(2)).plus(&m);
        let b = m.plus(&n).plus(&Dim::Val(2));
        assert_eq!(a, b);
        assert_eq!(a.plus(&Dim::Val(-2)), n.plus(&m));
    }

    #[test]
    fn a_convolution_output_evaluates_under_its_bindings() {
        // (W + 2 - 3) / 2 + 1
        let w = Dim::sym("W").plus(&Dim::Val(-1)).div_floor(2).plus(&Dim::Val(1));
        let b = Bindings::from([("W".to_string(), 28)]);
        assert_eq!(w.eval(&b), Ok(14));
        assert_eq!(w.eval(&Bindings::new()), Err(DimError::Unbound { symbol: "W".into() }));
    }

    #[test]
    fn a_negative_length_is_an_error() {
        let d = Dim::sym("N").plus(&Dim::Val(-5));
        assert!(matches!(d.eval(&Bindings::from([("N".into(), 1)])), Err(DimError::NotALength { value: -4, .. })));
    }
}
