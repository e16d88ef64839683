//! Functions of the model, expanded where they are called, before anything else looks at the nodes.
use std::collections::HashMap;

use tract_onnx::pb;

use super::build::canonical;
use super::{ImportError, Limits};

/// How deep functions may call each other.
const DEEPEST: usize = 32;
/// Most bytes of the nodes an expansion makes: names get longer at each level, and constants are copied.
const MOST_BYTES: usize = 32 << 20;

type Functions<'a> = HashMap<(&'a str, &'a str), &'a pb::FunctionProto>;

/// The model with every call of its own functions replaced by the function's nodes.
///
/// # Errors
/// [`ImportError::Refused`] for functions that call themselves or grow beyond what a model may be.
pub(super) fn expand(mut model: pb::ModelProto, limits: &Limits) -> Result<pb::ModelProto, ImportError> {
    let functions = std::mem::take(&mut model.functions);
    let mut by_name: Functions<'_> = HashMap::new();
    for f in &functions {
        let name = f.name.as_deref().unwrap_or("");
        if by_name.insert((canonical(f.domain.as_deref().unwrap_or("")), name), f).is_some() {
            let why = "is defined twice (functions of one name for several types are not told apart)".into();
            return Err(ImportError::Refused { what: "function", name: name.into(), why });
        }
    }
    // A function may use domains the model does not state.
    for f in &functions {
        for o in &f.opset_import {
            if !model.opset_import.iter().any(|m| canonical(&m.domain) == canonical(&o.domain)) {
                model.opset_import.push(o.clone());
            }
        }
    }
    let mut made = Made { nodes: 0, bytes: 0, limits };
    if let Some(g) = &mut model.graph {
        expand_graph(g, &by_name, 0, &mut made)?;
    }
    Ok(model)
}

/// What the expansion has come to.
struct Made<'a> {
    nodes: usize,
    bytes: usize,
    limits: &'a Limits,
}

/// Bytes a node takes in memory, nested graphs and constants included.
fn bytes_of(n: &pb::NodeProto) -> usize {
    fn tensor(t: &pb::TensorProto) -> usize {
        let numbers = t.float_data.len() + t.int32_data.len() + t.int64_data.len() + t.double_data.len();
        size_of_val(t) + t.raw_data.len() + 8 * (numbers + t.uint64_data.len() + t.dims.len())
    }
    fn sparse(s: &pb::SparseTensorProto) -> usize {
        s.values.iter().chain(&s.indices).map(tensor).sum()
    }
    fn graph(g: &pb::GraphProto) -> usize {
        let values = g.input.iter().chain(&g.output).chain(&g.value_info).map(size_of_val).sum::<usize>();
        let tensors = g.initializer.iter().map(tensor).chain(g.sparse_initializer.iter().map(sparse)).sum::<usize>();
        size_of_val(g) + values + tensors + g.node.iter().map(bytes_of).sum::<usize>()
    }
    let attributes = n.attribute.iter().map(|a| {
        let tensors = a.t.iter().chain(&a.tensors).map(tensor).sum::<usize>();
        let graphs = a.g.iter().chain(&a.graphs).map(graph).sum::<usize>();
        let texts = a.s.len() + a.strings.iter().map(|s| size_of_val(s) + s.len()).sum::<usize>();
        let lists = 4 * a.floats.len() + 8 * a.ints.len() + texts;
        size_of_val(a) + a.name.len() + tensors + graphs + lists + a.sparse_tensor.iter().map(sparse).sum::<usize>()
    });
    let names = n.input.iter().chain(&n.output).map(|s| size_of_val(s) + s.len()).sum::<usize>();
    size_of_val(n) + n.name.len() + n.op_type.len() + n.domain.len() + names + attributes.sum::<usize>()
}

fn expand_graph(
    g: &mut pb::GraphProto,
    functions: &Functions<'_>,
    depth: usize,
    made: &mut Made<'_>,
) -> Result<(), ImportError> {
    g.node = expand_nodes(std::mem::take(&mut g.node), functions, depth, made)?;
    Ok(())
}

fn expand_nodes(
    nodes: Vec<pb::NodeProto>,
    functions: &Functions<'_>,
    depth: usize,
    made: &mut Made<'_>,
) -> Result<Vec<pb::NodeProto>, ImportError> {
    let mut out = Vec::with_capacity(nodes.len());
    for mut n in nodes {
        for a in &mut n.attribute {
            for g in a.g.iter_mut().chain(&mut a.graphs) {
                expand_graph(g, functions, depth, made)?;
            }
        }
        let Some(f) = functions.get(&(canonical(&n.domain), n.op_type.as_str())) else {
            made.nodes += 1;
            out.push(n);
            continue;
        };
        let refuse = |why: String| ImportError::Refused { what: "function", name: n.op_type.clone(), why };
        if depth == DEEPEST {
            return Err(refuse(format!("functions call each other more than {DEEPEST} deep")));
        }
        let body = call(f, &n, made.nodes);
        made.nodes += body.len();
        made.bytes = body.iter().map(bytes_of).fold(made.bytes, usize::saturating_add);
        if made.nodes > made.limits.nodes {
            return Err(refuse(format!("expands to more than {} nodes", made.limits.nodes)));
        }
        if made.bytes > MOST_BYTES {
            return Err(refuse(format!("expands to more than {MOST_BYTES} bytes")));
        }
        out.extend(expand_nodes(body, functions, depth + 1, made)?);
    }
    Ok(out)
}

/// The nodes of one call, with names of their own; `unique` tells calls apart.
fn call(f: &pb::FunctionProto, n: &pb::NodeProto, unique: usize) -> Vec<pb::NodeProto> {
    let mut names: HashMap<&str, String> = HashMap::new();
    for (formal, i) in f.input.iter().zip(0..) {
        names.insert(formal, n.input.get(i).cloned().unwrap_or_default());
    }
    for (formal, actual) in f.output.iter().zip(&n.output) {
        // An output the caller does not want still needs a name inside.
        if !actual.is_empty() {
            names.insert(formal, actual.clone());
        }
    }
    let prefix = format!("{}.{unique}/", if n.name.is_empty() { &n.op_type } else { &n.name });
    let attributes: HashMap<&str, &pb::AttributeProto> = n.attribute.iter().map(|a| (a.name.as_str(), a)).collect();
    let mut body: Vec<pb::NodeProto> =
        f.node.iter().map(|inner| instance(inner, &names, &prefix, &attributes)).collect();
    // An output that is one of the function's inputs needs a node that makes it.
    for (formal, actual) in f.output.iter().zip(&n.output) {
        if !actual.is_empty() && f.input.contains(formal) {
            let input = n.input.get(f.input.iter().position(|i| i == formal).unwrap_or(0)).cloned().unwrap_or_default();
            body.push(pb::NodeProto {
                op_type: "Identity".into(),
                input: vec![input],
                output: vec![actual.clone()],
                ..Default::default()
            });
        }
    }
    body
}

fn instance(
    inner: &pb::NodeProto,
    names: &HashMap<&str, String>,
    prefix: &str,
    attributes: &HashMap<&str, &pb::AttributeProto>,
) -> pb::NodeProto {
    let rename = |name: &String| match names.get(name.as_str()) {
        _ if name.is_empty() => String::new(),
        Some(actual) => actual.clone(),
        None => format!("{prefix}{name}"),
    };
    let mut n = inner.clone();
    n.name = format!("{prefix}{}", inner.name);
    n.input = inner.input.iter().map(rename).collect();
    n.output = inner.output.iter().map(rename).collect();
    n.attribute = inner
        .attribute
        .iter()
        .filter_map(|a| {
            if a.ref_attr_name.is_empty() {
                let mut a = a.clone();
                for g in a.g.iter_mut().chain(&mut a.graphs) {
                    rename_graph(g, names, prefix, attributes);
                }
                return Some(a);
            }
            // A reference to an attribute the caller leaves out leaves this one out.
            attributes.get(a.ref_attr_name.as_str()).map(|given| {
                let mut given = (*given).clone();
                given.name.clone_from(&a.name);
                given
            })
        })
        .collect();
    n
}

/// A graph inside a function: its own names get the prefix as well, so that the names it takes from around it fit.
fn rename_graph(
    g: &mut pb::GraphProto,
    names: &HashMap<&str, String>,
    prefix: &str,
    attributes: &HashMap<&str, &pb::AttributeProto>,
) {
    let own: Vec<String> =
        g.input.iter().map(|i| i.name.clone()).chain(g.initializer.iter().map(|t| t.name.clone())).collect();
    let mut visible = names.clone();
    own.iter().for_each(|name| {
        visible.remove(name.as_str());
    });
    let rename = |name: &mut String| {
        if !name.is_empty() {
            *name = visible.get(name.as_str()).cloned().unwrap_or_else(|| format!("{prefix}{name}"));
        }
    };
    g.input.iter_mut().for_each(|i| rename(&mut i.name));
    g.output.iter_mut().for_each(|o| rename(&mut o.name));
    g.initializer.iter_mut().for_each(|t| rename(&mut t.name));
    let nodes = std::mem::take(&mut g.node);
    g.node = nodes.iter().map(|n| instance(n, &visible, prefix, attributes)).collect();
}
