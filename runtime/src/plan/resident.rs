//! Inputs that outlive a run: parameters and the state of optimizers, updated where they lie.
use std::collections::BTreeMap;
use std::ops::Range;

use super::{PlanError, Slot, Step, arena};
use crate::device::Device;
use crate::graph::{Node, ValueId};
use crate::tensor::DType;

/// An input that stays in the arena from one run to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its position among the graph's inputs.
    pub input: usize,
    /// The position among the graph's outputs of what takes its place, of the same type and shape; `None` when it stays.
    pub next: Option<usize>,
}

impl Resident {
    /// Where residents of those types and shapes lie in the arena of a plan for `device`, in their order, and the bytes
    /// they take.
    pub fn layout<'a>(
        facts: impl IntoIterator<Item = (DType, &'a [usize])>,
        device: &Device,
    ) -> (Vec<Range<usize>>, usize) {
        let align = arena::align(device);
        let mut at = 0;
        let mut ranges = Vec::new();
        for (dtype, shape) in facts {
            let bytes = shape.iter().product::<usize>() * dtype.size_bytes();
            ranges.push(at..at + bytes);
            at = (at + bytes).next_multiple_of(align);
        }
        (ranges, at)
    }
}

/// The residents of a plan by value.
pub(super) struct Residents {
    /// Where residents, and what replaces them, lie.
    pub(super) places: BTreeMap<ValueId, Range<usize>>,
    /// What each replacement replaces.
    replaces: BTreeMap<ValueId, ValueId>,
    pub(super) bytes: usize,
}

impl Residents {
    pub(super) fn new(
        list: &[Resident],
        inputs: &[ValueId],
        outputs: &[ValueId],
        slots: &[Slot],
        device: &Device,
    ) -> Residents {
        let of = |r: &Resident| &slots[inputs[r.input]];
        let (ranges, bytes) = Resident::layout(list.iter().map(|r| (of(r).dtype, &of(r).shape[..])), device);
        let mut all = Residents { places: BTreeMap::new(), replaces: BTreeMap::new(), bytes };
        for (r, range) in list.iter().zip(ranges) {
            let v = inputs[r.input];
            all.places.insert(v, range.clone());
            if let Some(next) = r.next.map(|n| outputs[n])
                && next != v
            {
                all.places.insert(next, range);
                all.replaces.insert(next, v);
            }
        }
        all
    }

    /// Where the replaced ones lie.
    #[cfg(feature = "gpu")]
    pub(super) fn updated(&self) -> Vec<Range<usize>> {
        self.replaces.keys().map(|v| self.places[v].clone()).collect()
    }

    /// The step that replaces each.
    #[cfg(feature = "gpu")]
    pub(super) fn replaced(&self, steps: &[Step]) -> BTreeMap<ValueId, usize> {
        let by = |(i, s): (usize, &Step)| {
            s.writes.iter().flatten().filter_map(|o| self.replaces.get(o)).map(|&v| (v, i)).collect::<Vec<_>>()
        };
        steps.iter().enumerate().flat_map(by).collect()
    }

    /// Where `v` lies, if it is a resident or replaces one.
    pub(super) fn place(&self, v: ValueId) -> Option<&Range<usize>> {
        self.places.get(&v)
    }

    /// Whether `node` makes what replaces a resident.
    pub(super) fn updates(&self, node: &Node) -> bool {
        node.outputs.iter().flatten().any(|v| self.replaces.contains_key(v))
    }

    /// Whether `node` makes what replaces `v`.
    pub(super) fn replaced_by(&self, v: ValueId, node: &Node) -> bool {
        node.outputs.iter().flatten().any(|o| self.replaces.get(o) == Some(&v))
    }

    /// That nothing reads a resident after it was replaced; `area` gives the value whose bytes a value is.
    ///
    /// # Errors
    /// [`PlanError::ReadAfterUpdate`].
    pub(super) fn check(
        &self,
        steps: &[Step],
        slots: &[Slot],
        area: impl Fn(ValueId) -> ValueId,
    ) -> Result<(), PlanError> {
        let mut gone = Vec::new();
        for step in steps {
            if let Some(&v) = step.reads.iter().flatten().find(|&&v| gone.contains(&area(v))) {
                return Err(PlanError::ReadAfterUpdate { node: step.node.clone(), value: slots[v].name.clone() });
            }
            gone.extend(step.writes.iter().flatten().filter_map(|o| self.replaces.get(o)).copied());
        }
        Ok(())
    }
}
