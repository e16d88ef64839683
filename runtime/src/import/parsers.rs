//! Our operators as tract sees them: parsed from the file by domain, typed by our shape rules, opaque to its passes.
use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use tract_onnx::model::ParsingContext;
use tract_onnx::pb;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_hir::internal as hir;
use tract_onnx::tract_hir::internal::{Expansion, InferenceResult, Solver, TensorProxy};

use super::convert::{self, Symbols};
use super::{ImportError, preflight};
use crate::graph::Dim;
use crate::ops::{self, Attr, Attrs, Fact, OpDef, Origin};

/// tract's own parsers, for operators that are not ours or not in the standard domain.
static STOCK: LazyLock<tract_onnx::Onnx> = LazyLock::new(tract_onnx::onnx);

/// tract-onnx with our parsers in place of its own.
pub(super) fn framework() -> tract_onnx::Onnx {
    let mut onnx = tract_onnx::onnx().with_ignore_value_info(true);
    onnx.use_output_shapes = false;
    onnx.ignore_output_types = true;
    for def in ops::OPS.iter().filter(|d| d.origin == Origin::Onnx) {
        onnx.op_register.insert(def.name, build);
    }
    onnx
}

/// Refuses a model with operators nobody here can run, naming all of them.
pub(super) fn unsupported(proto: &pb::ModelProto) -> Result<(), ImportError> {
    fn walk(g: &pb::GraphProto, into: &mut BTreeSet<String>) {
        for n in &g.node {
            let standard = n.domain.is_empty() || n.domain == "ai.onnx";
            let ours = standard && ops::find(&n.op_type).is_some_and(|d| d.origin == Origin::Onnx);
            // tract's registry ignores domains; a name of the standard set in another domain is another operator.
            let stock = STOCK.op_register.0.contains_key(&n.op_type)
                && (standard || n.domain == "com.microsoft" && n.op_type != "Attention");
            if !ours && !stock {
                into.insert(preflight::spelled(&n.domain, &n.op_type));
            }
            n.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|g| walk(g, into));
        }
    }
    let mut missing = BTreeSet::new();
    if let Some(g) = &proto.graph {
        walk(g, &mut missing);
    }
    if !proto.functions.is_empty() {
        missing.extend(proto.functions.iter().map(|f| format!("function {}", f.name.as_deref().unwrap_or("?"))));
    }
    if missing.is_empty() { Ok(()) } else { Err(ImportError::Unsupported { ops: missing.into_iter().collect() }) }
}

fn build(ctx: &ParsingContext, node: &pb::NodeProto) -> TractResult<(Box<dyn hir::InferenceOp>, Vec<String>)> {
    let standard = node.domain.is_empty() || node.domain == "ai.onnx";
    let def = ops::find(&node.op_type).filter(|d| standard && d.origin == Origin::Onnx);
    let Some(def) = def else {
        return match STOCK.op_register.0.get(&node.op_type) {
            Some(stock) => stock(ctx, node),
            None => bail!("no parser for {}", preflight::spelled(&node.domain, &node.op_type)),
        };
    };
    let mut attrs = Attrs { opset: ctx.onnx_operator_set_version, ..Attrs::default() };
    for a in &node.attribute {
        let text = |s: &[u8]| String::from_utf8_lossy(s).into_owned();
        let value = match AttributeType::try_from(a.r#type) {
            Ok(AttributeType::Int) => Attr::Int(a.i),
            Ok(AttributeType::Ints) => Attr::Ints(a.ints.clone()),
            Ok(AttributeType::Float) => Attr::Float(a.f),
            Ok(AttributeType::Floats) => Attr::Floats(a.floats.clone()),
            Ok(AttributeType::String) => Attr::Str(text(&a.s)),
            Ok(AttributeType::Strings) => Attr::Strs(a.strings.iter().map(|s| text(s)).collect()),
            other => bail!("attribute `{}` of kind {:?}", a.name, other),
        };
        attrs.map.insert(a.name.clone(), value);
    }
    let mut given = 0;
    let slots = node
        .input
        .iter()
        .map(|name| {
            (!name.is_empty()).then(|| {
                given += 1;
                given - 1
            })
        })
        .collect();
    let outputs = node.output.iter().map(|name| !name.is_empty()).collect();
    let own = Own { def, attrs: Arc::new(attrs), slots, outputs };
    Ok((hir::expand(own), vec![]))
}

/// One of our operators inside tract's models.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) def: &'static OpDef,
    pub(super) attrs: Arc<Attrs>,
    /// For each ONNX input, which wired input it is.
    pub(super) slots: Vec<Option<usize>>,
    /// For each ONNX output, whether the file asks for it.
    outputs: Vec<bool>,
}

impl PartialEq for Own {
    fn eq(&self, other: &Own) -> bool {
        self.def.name == other.def.name
            && self.attrs == other.attrs
            && self.slots == other.slots
            && self.outputs == other.outputs
    }
}

impl Eq for Own {}

impl Own {
    /// For each ONNX output, which wired output it is.
    pub(super) fn output_slots(&self) -> Vec<Option<usize>> {
        let mut n = 0;
        self.outputs
            .iter()
            .map(|&wanted| {
                wanted.then(|| {
                    n += 1;
                    n - 1
                })
            })
            .collect()
    }

    /// Our shape rule on wired facts; the facts of the outputs the file asks for.
    fn typed(&self, wired: &[Fact]) -> TractResult<Vec<Fact>> {
        let inputs: Vec<Option<&Fact>> = self.slots.iter().map(|s| s.and_then(|i| wired.get(i))).collect();
        let all = (self.def.shape)(&self.attrs, &inputs).map_err(|e| format_err!("{}: {e}", self.def.name))?;
        if all.len() < self.outputs.len() {
            bail!("{} has {} outputs, the file asks for {}", self.def.name, all.len(), self.outputs.len());
        }
        if let Some(d) = all.iter().flat_map(|f| &f.shape).find(|d| matches!(d, Dim::Val(v) if *v < 0)) {
            bail!("{} would have an output of length {d}", self.def.name);
        }
        Ok(all.into_iter().zip(&self.outputs).filter(|(_, wanted)| **wanted).map(|(f, _)| f).collect())
    }
}

fn to_tdims(shape: &[Dim], symbols: &Symbols) -> TractResult<TVec<TDim>> {
    shape.iter().map(|d| convert::tdim(d, symbols)).collect()
}

impl Expansion for Own {
    fn name(&self) -> StaticName {
        self.def.name.into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs.iter().filter(|o| **o).count())
    }

    fn runs_out_of_plan(&self) -> bool {
        false
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        s.given_all(inputs.iter().map(|i| &i.shape), move |s, shapes| {
            s.given_all(inputs.iter().map(|i| &i.datum_type), move |s, types| {
                let mut symbols = Symbols::new();
                let mut wired = Vec::with_capacity(shapes.len());
                for (shape, dt) in shapes.iter().zip(&types) {
                    shape.iter().for_each(|d| convert::collect_symbols(d, &mut symbols));
                    let dtype = convert::dtype(*dt).ok_or_else(|| format_err!("{}: input of {dt:?}", self.def.name))?;
                    let dims =
                        shape.iter().map(convert::dim).collect::<Result<_, _>>().map_err(|e| format_err!("{e}"))?;
                    wired.push(Fact::new(dtype, dims));
                }
                for (fact, out) in self.typed(&wired)?.into_iter().zip(outputs) {
                    s.equals(&out.datum_type, convert::datum_type(fact.dtype))?;
                    s.equals(&out.shape, to_tdims(&fact.shape, &symbols)?)?;
                }
                Ok(())
            })
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Own {
    fn name(&self) -> StaticName {
        self.def.name.into()
    }

    op_as_typed_op!();
}

impl EvalOp for Own {
    // Nothing of ours is folded by tract: a dequantised weight must stay where it is.
    not_out_of_plan!();
}

impl TypedOp for Own {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let mut symbols = Symbols::new();
        let mut wired = Vec::with_capacity(inputs.len());
        for f in inputs {
            f.shape.iter().for_each(|d| convert::collect_symbols(d, &mut symbols));
            let (dtype, shape) = convert::fact(f).map_err(|e| format_err!("an input of {} {e}", self.def.name))?;
            wired.push(Fact::new(dtype, shape));
        }
        self.typed(&wired)?
            .into_iter()
            .map(|f| Ok(convert::datum_type(f.dtype).fact(to_tdims(&f.shape, &symbols)?)))
            .collect()
    }

    as_op!();
}
