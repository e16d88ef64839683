//! The text of a chain.
use std::sync::Arc;

use super::{Access, Element, Form, Link, Source, trials};
use crate::kernel::{Kernel, bindings, filled};

/// What stores the four bytes of a word of `y`.
pub(crate) const BYTES: &str = "    var word = 0u;
    for (var k = 0u; k < 4u; k++) {
        if i * 4u + k < P.elements {
            word |= f(i * 4u + k) << (k * 8u);
        }
    }
    y[i] = word;";

/// How an element lies in memory.
fn word(element: Element) -> &'static str {
    match element {
        Element::F32 => "f32",
        Element::I32 => "i32",
        Element::I64 => "vec2<i32>",
        Element::U8 | Element::I8 => "u32",
    }
}

/// How functions take it.
fn taken(element: Element) -> &'static str {
    match element {
        Element::F32 => "f32",
        Element::I64 => "vec2<i32>",
        Element::I32 | Element::U8 | Element::I8 => "i32",
    }
}

fn load(element: Element, k: usize, at: &str) -> String {
    match element {
        Element::F32 | Element::I32 | Element::I64 => format!("x{k}[{at}]"),
        Element::U8 => format!("i32(extractBits(x{k}[({at}) >> 2u], (({at}) & 3u) * 8u, 8u))"),
        Element::I8 => format!("extractBits(i32(x{k}[({at}) >> 2u]), (({at}) & 3u) * 8u, 8u)"),
    }
}

impl Link {
    fn element(&self, source: Source, form: &Form) -> Element {
        match source {
            Source::Operand(k) => form.operands[k].0,
            Source::Link(l) => form.links[l].result,
        }
    }

    /// What it takes of one: of a pair of words the low one, unless it makes pairs.
    fn argument(&self, source: Source, form: &Form) -> (String, &'static str) {
        let name = match source {
            Source::Operand(k) => format!("o{k}"),
            Source::Link(l) => format!("v{l}"),
        };
        match self.element(source, form) {
            Element::I64 if self.result != Element::I64 => (format!("{name}.x"), "i32"),
            element => (name, taken(element)),
        }
    }

    /// Its name among those of a chain: all that its text depends on.
    fn name(&self) -> String {
        let source = |s: &Source| match s {
            Source::Operand(k) => format!("_{k}"),
            Source::Link(l) => format!("_v{l}"),
        };
        let sources: String = self.sources.iter().map(source).collect();
        format!("{}{sources}_{}", self.function.name, self.result.letter())
    }
}

/// The kernel of that form.
pub(super) fn kernel(form: Form) -> Arc<Kernel> {
    let modes: String = form.operands.iter().flat_map(|(e, a)| [e.letter(), a.letter()]).collect();
    let links: Vec<String> = form.links.iter().map(Link::name).collect();
    let deep = if form.axes > 1 { "-deep" } else { "" };
    let name = format!("map{deep}-{modes}-{}", links.join("-"));
    let result = form.result();

    let names: Vec<String> = (0..form.operands.len()).map(|k| format!("x{k}")).collect();
    let read = names.iter().zip(&form.operands).map(|(name, (e, _))| (&name[..], word(*e)));
    let bindings = bindings(1, read.chain([("y", word(result))]));

    let strided: Vec<usize> = form.strided().collect();
    let constants = form.links.iter().filter(|l| l.has_constants()).count();
    let mut more = String::new();
    if constants > 0 {
        more += &format!("    c: array<vec4<f32>, {constants}>,\n");
    }
    let mut finds = String::new();
    if !strided.is_empty() {
        let axes = form.axes;
        more += &format!("    dims: array<vec4<u32>, {axes}>,\n");
        more += &format!("    strides: array<vec4<u32>, {}>,\n", axes * strided.len());
        finds = STRIDED.replace("{{AXES}}", &axes.to_string());
    }

    let mut functions = String::new();
    let mut body = String::new();
    for (k, (element, access)) in form.operands.iter().enumerate() {
        let at = match access {
            Access::Same => "i".to_string(),
            Access::First => "0u".to_string(),
            Access::Strided => format!("strided({}u, i)", strided.iter().position(|s| *s == k).unwrap_or(0)),
        };
        body += &format!("    let at{k} = {at};\n    let o{k} = {};\n", load(*element, k, &format!("at{k}")));
    }
    let mut slot = 0;
    for (l, link) in form.links.iter().enumerate() {
        let arguments: Vec<(String, &str)> = link.sources.iter().map(|s| link.argument(*s, &form)).collect();
        let given: Vec<&str> = arguments.iter().map(|(name, _)| &name[..]).collect();
        let takes: Vec<String> =
            arguments.iter().zip(["a", "b", "c", "d"]).map(|((_, kind), letter)| format!("{letter}: {kind}")).collect();
        let mut text = link.function.text.to_string();
        if link.has_constants() {
            for (i, field) in ["x", "y", "z", "w"].into_iter().enumerate() {
                text = text.replace(&format!("P.c{i}"), &format!("P.c[{slot}].{field}"));
            }
            slot += 1;
        }
        let bytes = matches!(link.result, Element::U8 | Element::I8);
        let gives = if link.function.decides { "bool" } else { taken(link.result) };
        functions += &format!("fn link{l}({}) -> {gives} {{\n    return {text};\n}}\n\n", takes.join(", "));
        let call = format!("link{l}({})", given.join(", "));
        body += &if l + 1 == form.links.len() {
            match () {
                () if link.function.decides => format!("    return select(0u, 1u, {call});"),
                () if bytes => format!("    return u32({call}) & 255u;"),
                () => format!("    return {call};"),
            }
        } else {
            // As it is read from memory.
            let held = match link.result {
                Element::F32 => format!("kept({call})"),
                _ if link.function.decides => format!("select(0i, 1i, {call})"),
                Element::U8 => format!("({call}) & 255i"),
                Element::I8 => format!("extractBits({call}, 0u, 8u)"),
                Element::I32 | Element::I64 => call,
            };
            format!("    let v{l} = {held};\n")
        };
    }
    let quotient = form.links.iter().any(|l| l.function.text.contains("quotient("));
    let source = filled(
        include_str!("../map.wgsl"),
        &[
            ("COMMON", include_str!("../common.wgsl")),
            ("QUOTIENT", if quotient { include_str!("../quotient.wgsl") } else { "" }),
            ("MORE", &more),
            ("BINDINGS", &bindings),
            ("STRIDED", &finds),
            ("LINKS", &functions),
            ("TYPE", word(result)),
            ("BODY", &body),
            ("STORE", if matches!(result, Element::U8 | Element::I8) { BYTES } else { "    y[i] = f(i);" }),
        ],
    );
    let reads = form.operands.len();
    let parts = form.clone();
    Kernel::made_of(name, source, reads, move || trials::trials(&form), move || trials::parts(&parts))
}

/// Where an operand with strides is read.
const STRIDED: &str = "fn strided(operand: u32, i: u32) -> u32 {
    var rest = i;
    var at = 0u;
    for (var d = 0u; d < P.rank; d++) {
        let length = P.dims[d >> 2u][d & 3u];
        at += (rest % length) * P.strides[operand * {{AXES}}u + (d >> 2u)][d & 3u];
        rest /= length;
    }
    return at;
}
";
