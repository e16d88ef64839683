//! The seam between the planner and the kernels for GPUs: the calls an operator is made of, and what they work on.
use std::ops::Range;
use std::sync::Arc;

use hone_gpu::kernel::Call;

#[cfg(feature = "gpu")]
use super::chains::Joined;
use super::packs::Name;
use crate::graph::ValueId;

/// What a call works on.
#[derive(Clone, Debug)]
pub enum At {
    /// Input of the node.
    In(usize),
    /// Result of the node.
    Out(usize),
    /// An input and the result that takes its place: one area, which the call reads and writes. Where the plan keeps them
    /// apart the step runs on the CPU.
    Update(usize, usize),
    /// Weights in a form of their own.
    Weights(Image),
    /// Bytes of the step's scratch, from a multiple of 256 on.
    Scratch(Range<usize>),
    /// A value of the plan, whoever's operand it is: what the planner makes of several nodes works on these.
    #[cfg(feature = "gpu")]
    Value(ValueId),
    /// A word that is 0 unless an operand has no result; the run is then made again on the CPU, which says why.
    Fault,
}

/// Weights as a device has them: known by name, and made only where the device does not have them yet.
#[derive(Clone)]
#[cfg_attr(not(feature = "gpu"), expect(dead_code, reason = "only a device asks for what is made"))]
pub struct Image {
    pub(super) name: Name,
    pub(super) len: usize,
    pub(super) make: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({} bytes)", self.len)
    }
}

impl At {
    /// These bytes as weights: few, since they are made for every plan.
    pub fn bytes(v: Vec<u8>) -> At {
        let (name, len) = (Name::of_bytes(&v), v.len());
        At::Weights(Image { name, len, make: Arc::new(move || v.clone()) })
    }

    /// Floats as weights: few, as [`At::bytes`].
    pub fn floats(v: &[f32]) -> At {
        At::bytes(hone_gpu::kernel::bytes_of(v))
    }
}

/// An operator as calls of kernels for GPUs, in order.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    pub(super) calls: Vec<(Call, Vec<At>)>,
    pub(super) scratch: usize,
    /// What is done in place of these calls, and of those of steps before it, where the device takes it.
    #[cfg(feature = "gpu")]
    pub(super) joined: Option<Joined>,
}

impl Recorded {
    /// One call on those operands, then results; `None` when there is no call.
    pub fn one(call: Option<Call>, at: Vec<At>) -> Option<Recorded> {
        Recorded::default().and(call, at)
    }

    /// The same with another call behind; `None` when there is no call.
    pub fn and(mut self, call: Option<Call>, at: Vec<At>) -> Option<Recorded> {
        self.calls.push((call?, at));
        Some(self)
    }

    /// Scratch of so many bytes behind what was asked for before, as what a call works on.
    pub fn scratch(&mut self, bytes: usize) -> At {
        let at = self.scratch;
        self.scratch = (at + bytes).next_multiple_of(256);
        At::Scratch(at..at + bytes)
    }

    /// The values that calls of a node with those inputs read.
    pub(super) fn reads(calls: &[(Call, Vec<At>)], inputs: &[Option<ValueId>]) -> impl Iterator<Item = ValueId> {
        calls.iter().flat_map(|(_, at)| at).filter_map(|at| match at {
            At::In(i) | At::Update(i, _) => *inputs.get(*i)?,
            #[cfg(feature = "gpu")]
            At::Value(v) => Some(*v),
            _ => None,
        })
    }

    /// Whether it updates in place.
    pub(super) fn updates(&self) -> bool {
        self.calls.iter().flat_map(|(_, at)| at).any(|at| matches!(at, At::Update(..)))
    }
}
