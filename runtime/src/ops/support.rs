//! The support table `SUPPORT.md`, made from the registry, and the two tables of exceptions it shares with the
//! conformance test.
use std::fmt::Write as _;

use super::{Kind, OpDef, all};

const RANDOM: &str = "draws random numbers, of another generator than ONNX Runtime's";
const GPU_ONLY: &str = "ONNX Runtime has it on GPUs only";

/// Operators no case was recorded of, and why.
pub(crate) const NOT_RECORDED: &[(&str, &str)] = &[
    ("Bernoulli", RANDOM),
    ("Multinomial", RANDOM),
    ("RandomNormal", RANDOM),
    ("RandomNormalLike", RANDOM),
    ("RandomUniform", RANDOM),
    ("RandomUniformLike", RANDOM),
    ("SwiGLU", "ONNX Runtime 1.32 does not have it; the standard's node tests do"),
    ("com.microsoft.BiasAdd", GPU_ONLY),
    ("com.microsoft.BiasSoftmax", GPU_ONLY),
    ("com.microsoft.BiasSplitGelu", GPU_ONLY),
    ("com.microsoft.ComplexMul", GPU_ONLY),
    ("com.microsoft.ComplexMulConj", GPU_ONLY),
    ("com.microsoft.GemmFastGelu", GPU_ONLY),
    ("com.microsoft.GroupNorm", GPU_ONLY),
    ("com.microsoft.LayerNormalization", "files have it, ONNX Runtime only in the standard's domain"),
    ("com.microsoft.QLinearReduceMean", "ONNX Runtime declares it and runs it nowhere"),
    ("com.microsoft.ReduceSumInteger", "ONNX Runtime declares it and runs it nowhere"),
    ("com.microsoft.SimplifiedLayerNormalization", "files have it, ONNX Runtime only in the standard's domain"),
    ("com.microsoft.SkipGroupNorm", GPU_ONLY),
];

/// Operators that ran by no kernel of their own in any case: they run by their reference function.
pub(crate) const WITHOUT_KERNEL: &[&str] = &[
    "AffineGrid",
    "BitCast",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "BlackmanWindow",
    "Col2Im",
    "Compress",
    "Constant",
    "ConstantOfShape",
    "DeformConv",
    "Det",
    "EyeLike",
    "GlobalLpPool",
    "HammingWindow",
    "HannWindow",
    "Hardmax",
    "ImageScaler",
    "IsInf",
    "LinearAttention",
    "LpNormalization",
    "LpPool",
    "MaxRoiPool",
    "MaxUnpool",
    "MeanVarianceNormalization",
    "MelWeightMatrix",
    "NegativeLogLikelihoodLoss",
    "NonMaxSuppression",
    "NonZero",
    "Range",
    "ReverseSequence",
    "RoiAlign",
    "Shape",
    "Shrink",
    "Size",
    "SoftmaxCrossEntropyLoss",
    "TfIdfVectorizer",
    "Unique",
    "com.microsoft.CropAndResize",
    "com.microsoft.EmbedLayerNormalization",
    "com.microsoft.Inverse",
    "com.microsoft.NhwcMaxPool",
    "com.microsoft.QEmbedLayerNormalization",
    "com.microsoft.QLinearAveragePool",
    "com.microsoft.QLinearConv",
    "com.microsoft.QLinearSoftmax",
    "com.microsoft.QLinearWhere",
    "com.microsoft.Range",
    "com.microsoft.Unique",
];

/// Operators without a gradient, and why.
pub(crate) const NOT_DIFFERENTIABLE: &[(&str, &str)] = &[
    ("AffineGrid", "not written yet"),
    ("And", "its result is no number with a slope"),
    ("ArgMax", "its results are integers"),
    ("ArgMin", "its results are integers"),
    ("Bernoulli", "it draws random numbers"),
    ("BitCast", "bits have no slope"),
    ("BitShift", "its results are integers"),
    ("BitwiseAnd", "its results are integers"),
    ("BitwiseNot", "its results are integers"),
    ("BitwiseOr", "its results are integers"),
    ("BitwiseXor", "its results are integers"),
    ("BlackmanWindow", "it makes constants"),
    ("CausalConvWithState", "with a cache: for generating, not for training"),
    ("Col2Im", "not written yet"),
    ("Compress", "its shapes depend on the data"),
    ("ConstantOfShape", "it makes constants"),
    ("CumProd", "not written yet"),
    ("DFT", "feature extraction at the beginning of a model: nothing to train lies before it"),
    ("DeformConv", "not written yet"),
    ("Det", "not written yet"),
    ("Equal", "its result is no number with a slope"),
    ("EyeLike", "it makes constants"),
    ("Greater", "its result is no number with a slope"),
    ("GreaterOrEqual", "its result is no number with a slope"),
    ("GridSample", "not written yet"),
    ("HammingWindow", "it makes constants"),
    ("HannWindow", "it makes constants"),
    ("If", "a graph inside a node is not differentiated; an `If` that is decided by shapes is no node"),
    ("IsInf", "its result is no number with a slope"),
    ("IsNaN", "its result is no number with a slope"),
    ("Less", "its result is no number with a slope"),
    ("LessOrEqual", "its result is no number with a slope"),
    ("LinearAttention", "with a cache: for generating, not for training"),
    ("Loop", "a graph inside a node is not differentiated; an `If` that is decided by shapes is no node"),
    ("LpPool", "not written yet"),
    ("MaxRoiPool", "not written yet"),
    ("MelWeightMatrix", "it makes constants"),
    ("Multinomial", "it draws random numbers"),
    ("NegativeLogLikelihoodLoss", "an objective of the trainer computes the same"),
    ("NonMaxSuppression", "its results are integers"),
    ("NonZero", "its results are integers"),
    ("Not", "its result is no number with a slope"),
    ("OneHot", "not written yet"),
    ("Or", "its result is no number with a slope"),
    ("RandomNormal", "it draws random numbers"),
    ("RandomNormalLike", "it draws random numbers"),
    ("RandomUniform", "it draws random numbers"),
    ("RandomUniformLike", "it draws random numbers"),
    ("Range", "its shapes depend on the data"),
    ("RoiAlign", "not written yet"),
    ("STFT", "feature extraction at the beginning of a model: nothing to train lies before it"),
    ("Scan", "a graph inside a node is not differentiated; an `If` that is decided by shapes is no node"),
    ("Shape", "its results are integers"),
    ("Size", "its results are integers"),
    ("SoftmaxCrossEntropyLoss", "an objective of the trainer computes the same"),
    ("TensorScatter", "with a cache: for generating, not for training"),
    ("TfIdfVectorizer", "its results are integers"),
    ("Unique", "its shapes depend on the data"),
    ("Xor", "its result is no number with a slope"),
    ("com.microsoft.ComplexMul", "not written yet"),
    ("com.microsoft.ComplexMulConj", "not written yet"),
    ("com.microsoft.CropAndResize", "not written yet"),
    (
        "com.microsoft.GatherBlockQuantized",
        "a table of codes, at the beginning of a model: nothing to train lies before it",
    ),
    ("com.microsoft.GridSample", "not written yet"),
    ("com.microsoft.GroupNorm", "not written yet"),
    ("com.microsoft.GroupQueryAttention", "with a cache: for generating, not for training"),
    ("com.microsoft.Inverse", "not written yet"),
    (
        "com.microsoft.QEmbedLayerNormalization",
        "tables of codes, at the beginning of a model: nothing to train lies before it",
    ),
    ("com.microsoft.Range", "its shapes depend on the data"),
    ("com.microsoft.ReduceSumInteger", "its results are integers"),
    ("com.microsoft.SkipGroupNorm", "not written yet"),
    ("com.microsoft.Unique", "its shapes depend on the data"),
];

const HEAD: &str = "\
# Operators

<!-- made by `HONE_UPDATE=1 cargo test -p hone-runtime --lib support`: edit the registry -->

What hone runs by code of its own, at every opset version of ONNX and for every element type the operator takes.
*Kernel*: some recorded case runs by a fast form; the other cases, and operators without one, run by the reference
function, which is the formula. *GPU*: it has a form there, for some of its types and shapes; the rest runs on the CPU in
between. *Differentiable*: its gradients are checked with finite differences, rounding taken for
the identity. *Compared with*: where the results the tests compare with come from. An operator that is
not here runs by tract when tract has it, and is refused by name otherwise; `hone inspect` says which it is.

| operator | domain | what it computes | kernel | GPU | differentiable | compared with |
|---|---|---|---|---|---|---|
";

fn table() -> String {
    let mut rows: Vec<&OpDef> = all().collect();
    rows.sort_by_key(|d| (d.domain, d.name));
    let mut text = HEAD.to_string();
    for d in rows {
        let domain = if d.domain.is_empty() { "ai.onnx" } else { d.domain };
        let spelled = d.spelled();
        let reason = NOT_RECORDED.iter().find(|(n, _)| *n == spelled).map(|(_, why)| *why);
        let kernel = match d.kind {
            _ if reason.is_some() => "not measured",
            Kind::Control => "runs its graphs",
            _ if WITHOUT_KERNEL.contains(&&*spelled) => "no",
            _ => "yes",
        };
        let gpu = if d.gpu.is_some() { "yes" } else { "" };
        let doc = d.doc.replace('|', "\\|");
        let compared = reason.map_or("ONNX Runtime".to_string(), |why| format!("not recorded: {why}"));
        let gradient = NOT_DIFFERENTIABLE.iter().find(|(n, _)| *n == spelled);
        let gradient = gradient.map_or("yes".to_string(), |(_, why)| format!("no: {why}"));
        let _ = writeln!(text, "| {} | {domain} | {doc} | {kernel} | {gpu} | {gradient} | {compared} |", d.name);
    }
    text
}

#[test]
fn the_committed_support_table_is_what_the_registry_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ops/SUPPORT.md");
    let made = table();
    if std::env::var_os("HONE_UPDATE").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let stale = made.lines().zip(committed.lines()).find(|(a, b)| a != b);
    if let Some((made, committed)) = stale {
        panic!("SUPPORT.md says\n{committed}\nand the registry\n{made}\nHONE_UPDATE=1 writes it anew");
    }
    assert_eq!(made.len(), committed.len(), "SUPPORT.md has more or fewer rows; HONE_UPDATE=1 writes it anew");
}
