//! Hostile operands and attributes, one operator a row.
use crate::onnx::*;

use super::Case;

/// One operand of the node under test, or something it is made from.
#[derive(Clone, Copy)]
enum Operand<'a> {
    /// Zeros of that shape, given when the model runs.
    Floats(&'a [i64]),
    /// The same of another type.
    Zeros(i64, &'a [i64]),
    /// Those integers, known when the model is planned.
    Fixed(&'a [i64]),
    /// Those integers, known only while it runs.
    Late(&'a [i64]),
    /// A float without dimensions that is fixed.
    Scalar(f32),
    /// An integer without dimensions that is fixed, or known only while the model runs.
    Fixed0(i64),
    Late0(i64),
    /// Zeros of that shape in the file.
    Weights(&'a [i64]),
    /// Those floats in the file.
    Given(&'a [f32]),
    /// Left out.
    Nothing,
}
use Operand::{Fixed, Fixed0, Floats, Given, Late, Late0, Nothing, Scalar, Weights, Zeros};

/// A model of one node `culprit` with those operands and `outputs` results.
fn node_of(
    domain: &str,
    op: &str,
    opset: i64,
    outputs: usize,
    operands: &[Operand<'_>],
    attributes: &[Message],
) -> Vec<u8> {
    let mut parts: Vec<Part> = Vec::new();
    let mut names = Vec::new();
    for (i, operand) in operands.iter().enumerate() {
        let name = format!("o{i}");
        let late = |parts: &mut Vec<Part>, dims: &[i64], v: &[i64]| {
            let (zero, known) = (format!("z{i}"), format!("k{i}"));
            parts.push(input_of(&zero, INT64, dims));
            parts.push((5, integers_tensor(&known, dims, v)));
            parts.push(node("Add", &format!("late{i}"), &[&zero, &known], &[&name], &[]));
        };
        match operand {
            Floats(dims) => parts.push(input(&name, dims)),
            Zeros(dtype, dims) => parts.push(input_of(&name, *dtype, dims)),
            Fixed(v) => parts.push(integers(&name, v)),
            Fixed0(v) => parts.push((5, integers_tensor(&name, &[], &[*v]))),
            Scalar(v) => parts.push(floats(&name, &[], &[*v])),
            Late(v) => late(&mut parts, &[v.len() as i64], v),
            Late0(v) => late(&mut parts, &[], &[*v]),
            Weights(dims) => parts.push(weights(&name, dims)),
            Given(v) => parts.push(floats(&name, &[v.len() as i64], v)),
            Nothing => {}
        }
        names.push(if matches!(operand, Nothing) { String::new() } else { name });
    }
    let made: Vec<String> = (0..outputs).map(|i| format!("y{i}")).collect();
    let (inputs, outs): (Vec<&str>, Vec<&str>) =
        (names.iter().map(String::as_str).collect(), made.iter().map(String::as_str).collect());
    parts.push(node_in(domain, op, "culprit", &inputs, &outs, attributes));
    parts.extend(outs.iter().map(|o| output(o)));
    let mut opsets = vec![("", opset)];
    if !domain.is_empty() {
        opsets.push((domain, 1));
    }
    model_of(&opsets, &[], &graph(&parts))
}

/// Rows of the standard domain at opset 19 with one result.
fn row(name: &'static str, op: &str, operands: &[Operand<'_>], attributes: &[Message]) -> Case {
    (name, node_of("", op, 19, 1, operands, attributes), "culprit")
}

/// The same in words the refusal uses in place of the node's name: a value of a graph that is too large is named
/// itself.
fn large(name: &'static str, op: &str, operands: &[Operand<'_>], attributes: &[Message]) -> Case {
    (name, node_of("", op, 19, 1, operands, attributes), "")
}

const HUGE: i64 = 1 << 40;

pub(super) fn operators() -> Vec<Case> {
    let ints = attribute_ints;
    let int = attribute_int;
    let text = attribute_text;
    let w = Weights(&[1, 1, 3, 3]);
    let image = Floats(&[1, 1, 4, 4]);
    let mut all = sizes();
    all.extend([
        row("an addition of one thing", "Add", &[Floats(&[4])], &[]),
        row("an addition of unequal lengths", "Add", &[Floats(&[4]), Floats(&[3])], &[]),
        row("an addition of floats and integers", "Add", &[Floats(&[4]), Zeros(INT64, &[4])], &[]),
        row("a permutation that is none", "Transpose", &[Floats(&[2, 3])], &[ints("perm", &[0, 0])]),
        row("a permutation out of range", "Transpose", &[Floats(&[2, 3])], &[ints("perm", &[0, i64::MAX])]),
        row("a permutation that is a number", "Transpose", &[Floats(&[2, 3])], &[int("perm", 1)]),
        row("a join of unequal ranks", "Concat", &[Floats(&[2]), Floats(&[2, 2])], &[int("axis", 0)]),
        row("a join along an axis that is not there", "Concat", &[Floats(&[2])], &[int("axis", i64::MIN)]),
        row("two dimensions to be found", "Reshape", &[Floats(&[2, 3]), Fixed(&[-1, -1])], &[]),
        row("a dimension of minus seven", "Reshape", &[Floats(&[2, 3]), Fixed(&[-7])], &[]),
        row("a dimension copied from nowhere", "Reshape", &[Floats(&[6]), Fixed(&[6, 0])], &[]),
        row("an axis to squeeze that is not one", "Squeeze", &[Floats(&[2, 3]), Fixed(&[0])], &[]),
        row("an axis to unsqueeze twice", "Unsqueeze", &[Floats(&[2]), Fixed(&[0, 0])], &[]),
        row("an axis to flatten at that is not there", "Flatten", &[Floats(&[2])], &[int("axis", 9)]),
        row("parts that are not the whole", "Split", &[Floats(&[4]), Fixed(&[1, 1])], &[]),
        row("parts below zero", "Split", &[Floats(&[4]), Fixed(&[-1])], &[]),
        row("parts below zero, told late", "Split", &[Floats(&[4]), Late(&[i64::MIN])], &[]),
        row(
            "slices by steps of nothing",
            "Slice",
            &[Floats(&[4]), Fixed(&[0]), Fixed(&[4]), Fixed(&[0]), Fixed(&[0])],
            &[],
        ),
        row(
            "slices of an axis that is not there",
            "Slice",
            &[Floats(&[4]), Fixed(&[0]), Fixed(&[4]), Fixed(&[7])],
            &[],
        ),
        row("slices with more begins than ends", "Slice", &[Floats(&[4]), Fixed(&[0, 0]), Fixed(&[4])], &[]),
        row("an index out of range, told late", "Gather", &[Floats(&[4]), Late(&[4])], &[]),
        row("an index far below zero, told late", "Gather", &[Floats(&[4]), Late(&[i64::MIN])], &[]),
        row("an index into a scalar", "Gather", &[Floats(&[]), Fixed(&[0])], &[]),
        row("indices that are floats", "Gather", &[Floats(&[4]), Floats(&[2])], &[]),
        row("an element out of range", "GatherElements", &[Floats(&[4]), Late(&[9])], &[]),
        row("a tuple of indices that is too long", "GatherND", &[Floats(&[2]), Zeros(INT64, &[1, 3])], &[]),
        row("a tuple of indices out of range", "GatherND", &[Floats(&[2]), Late(&[5])], &[]),
        row("an element put out of range", "ScatterElements", &[Floats(&[4]), Late(&[-9]), Given(&[1.0])], &[]),
        row("more indices than updates", "ScatterElements", &[Floats(&[4]), Fixed(&[0, 1, 2]), Given(&[1.0])], &[]),
        row("a slice put out of range", "ScatterND", &[Floats(&[4]), Late(&[7]), Scalar(1.0)], &[]),
        row("the largest of more than there are", "TopK", &[Floats(&[4]), Fixed(&[9])], &[]),
        row("the largest of fewer than none", "TopK", &[Floats(&[4]), Late(&[-1])], &[]),
        row("a sum along an axis that is not there", "CumSum", &[Floats(&[4]), Fixed0(i64::MAX)], &[]),
        row("a mean along an axis that is not there", "ReduceMean", &[Floats(&[4]), Fixed(&[4])], &[]),
        row("a maximum whose axis is text", "ArgMax", &[Floats(&[4])], &[text("axis", "last")]),
        row("a cast to nothing", "Cast", &[Floats(&[4])], &[]),
        row("a cast to an unknown type", "Cast", &[Floats(&[4])], &[int("to", 99)]),
        row("lengths beyond the sequence", "ReverseSequence", &[Floats(&[4, 1]), Late(&[9])], &[]),
        row("blocks of nothing", "DepthToSpace", &[Floats(&[1, 4, 1, 1])], &[int("blocksize", 0)]),
        row("blocks as large as numbers go", "SpaceToDepth", &[image], &[int("blocksize", i64::MAX)]),
        row("padding as large as numbers go", "Conv", &[image, w], &[ints("pads", &[i64::MAX, 0, i64::MAX, 0])]),
        row("a kernel as large as numbers go", "MaxPool", &[image], &[ints("kernel_shape", &[i64::MAX, i64::MAX])]),
        row("a kernel without rank", "MaxPool", &[image], &[ints("kernel_shape", &[])]),
        row("a kernel of nothing", "AveragePool", &[image], &[ints("kernel_shape", &[0, 0])]),
        row("a stride below zero", "LpPool", &[image], &[ints("kernel_shape", &[2, 2]), ints("strides", &[-1, -1])]),
        row("a pool of a scalar", "GlobalAveragePool", &[Floats(&[])], &[]),
        row(
            "a transposed stride as large as numbers go",
            "ConvTranspose",
            &[image, w],
            &[ints("strides", &[i64::MAX, 1])],
        ),
        row("a transposed output below zero", "ConvTranspose", &[image, w], &[ints("output_shape", &[-5, -5])]),
        row("output padding below zero", "ConvTranspose", &[image, w], &[ints("output_padding", &[i64::MIN, 0])]),
        row("padding by a word that is none", "Conv", &[image, w], &[text("auto_pad", "LIKE_NOBODY")]),
        row("a norm over no channels", "LRN", &[image], &[int("size", 0)]),
        row(
            "a norm of other channels",
            "BatchNormalization",
            &[image, Weights(&[3]), Weights(&[3]), Weights(&[3]), Weights(&[3])],
            &[],
        ),
        row(
            "a norm along an axis that is not there",
            "LayerNormalization",
            &[Floats(&[2, 3]), Weights(&[3])],
            &[int("axis", 9)],
        ),
        row(
            "groups that do not divide",
            "GroupNormalization",
            &[image, Weights(&[1]), Weights(&[1])],
            &[int("num_groups", 0)],
        ),
        row(
            "a direction that is none",
            "LSTM",
            &[Floats(&[2, 1, 4]), Weights(&[1, 8, 4]), Weights(&[1, 8, 2])],
            &[int("hidden_size", 2), text("direction", "sideways")],
        ),
        row(
            "a sequence longer than itself",
            "LSTM",
            &[Floats(&[2, 1, 4]), Weights(&[1, 8, 4]), Weights(&[1, 8, 2]), Nothing, Zeros(6, &[3])],
            &[int("hidden_size", 2)],
        ),
        row("an equation of nothing", "Einsum", &[Floats(&[2])], &[text("equation", "")]),
        row("an equation of more operands", "Einsum", &[Floats(&[2])], &[text("equation", "i,j->ij")]),
        row("an equation with an output from nowhere", "Einsum", &[Floats(&[2])], &[text("equation", "i->z")]),
        row("an equation with an output twice", "Einsum", &[Floats(&[2])], &[text("equation", "i->ii")]),
        row("an equation of signs", "Einsum", &[Floats(&[2])], &[text("equation", "->->,,...")]),
        row("an equation of ten thousand letters", "Einsum", &[Floats(&[2])], &[text("equation", &"ab".repeat(5000))]),
        row("an equation that is a number", "Einsum", &[Floats(&[2])], &[int("equation", 7)]),
        row("unequal lengths of one letter", "Einsum", &[Floats(&[2]), Floats(&[3])], &[text("equation", "i,i->")]),
        row("sizes of another rank", "Resize", &[image, Nothing, Nothing, Fixed(&[4, 4])], &[]),
        row("neither sizes nor scales", "Resize", &[image], &[]),
        row("a scale that is no number", "Resize", &[image, Nothing, Given(&[1.0, 1.0, f32::NAN, 1.0])], &[]),
        row("a scale below zero", "Resize", &[image, Nothing, Given(&[1.0, 1.0, -2.0, 1.0])], &[]),
        row(
            "a mode of resizing that is none",
            "Resize",
            &[image, Nothing, Given(&[1.0, 1.0, 2.0, 2.0])],
            &[text("mode", "guess")],
        ),
        row("padding of another rank", "Pad", &[Floats(&[2, 2]), Fixed(&[1, 1])], &[]),
        row("padding that takes more than there is", "Pad", &[Floats(&[2]), Fixed(&[-9, 0])], &[]),
        row("reflections longer than the mirror", "Pad", &[Floats(&[2]), Late(&[HUGE, 0])], &[text("mode", "reflect")]),
        row("a depth below zero", "OneHot", &[Zeros(INT64, &[2]), Fixed0(-5), Given(&[0.0, 1.0])], &[]),
        row("values that are not two", "OneHot", &[Zeros(INT64, &[2]), Fixed0(5), Given(&[0.0])], &[]),
        row("a range by steps of nothing", "Range", &[Fixed0(0), Fixed0(9), Fixed0(0)], &[]),
        row("a range to what is no number", "Range", &[Scalar(0.0), Scalar(f32::NAN), Scalar(1.0)], &[]),
        row("a shape below zero", "ConstantOfShape", &[Late(&[-3])], &[]),
        row("repeats below zero", "Tile", &[Floats(&[2]), Late(&[-3])], &[]),
        row("a step of a transform that is zero", "STFT", &[Floats(&[1, 16, 1]), Fixed0(0), Nothing, Fixed0(4)], &[]),
        row("a frame longer than the signal", "STFT", &[Floats(&[1, 16, 1]), Fixed0(4), Nothing, Fixed0(HUGE)], &[]),
        row("a transform of less than nothing", "DFT", &[Floats(&[1, 16, 1]), Fixed0(-4)], &[]),
        row("an axis of a transform that is not there", "DFT", &[Floats(&[1, 16, 1])], &[int("axis", 77)]),
        row("columns of another image", "Col2Im", &[Floats(&[1, 5, 4]), Fixed(&[5, 5]), Fixed(&[1, 5])], &[]),
        row(
            "regions of no size",
            "RoiAlign",
            &[image, Floats(&[1, 4]), Late(&[9])],
            &[int("output_height", 2), int("output_width", 2)],
        ),
        row("a grid of another rank", "GridSample", &[image, Floats(&[1, 2, 3])], &[]),
        row(
            "a scale along an axis that is not there",
            "DequantizeLinear",
            &[Zeros(INT8, &[2, 3]), Weights(&[3])],
            &[int("axis", 5)],
        ),
        row("a product of scalars", "MatMul", &[Floats(&[]), Floats(&[])], &[]),
        row("a mean of a type nobody has", "RandomNormal", &[], &[ints("shape", &[2]), int("dtype", 8)]),
        (
            "an attention of no heads",
            node_of(
                "com.microsoft",
                "MultiHeadAttention",
                17,
                1,
                &[Floats(&[1, 2, 4]), Floats(&[1, 2, 4]), Floats(&[1, 2, 4])],
                &[int("num_heads", 0)],
            ),
            "MultiHeadAttention",
        ),
        (
            "weights of three bits and a half",
            node_of(
                "com.microsoft",
                "MatMulNBits",
                17,
                1,
                &[Floats(&[1, 16]), Zeros(2, &[4, 1, 8]), Floats(&[4])],
                &[int("K", i64::MAX), int("N", 4), int("bits", 3), int("block_size", 0)],
            ),
            "MatMulNBits",
        ),
        ("more results than there are", node_of("", "Relu", 19, 3, &[Floats(&[4])], &[]), "culprit"),
    ]);
    all
}

/// Tensors nobody can hold, asked for in the file and while it runs.
fn sizes() -> Vec<Case> {
    let ints = attribute_ints;
    let int = attribute_int;
    let image = Floats(&[1, 1, 4, 4]);
    let mebi = [1.0, 1.0, 1e6, 1e6];
    vec![
        large("2^40 constants", "ConstantOfShape", &[Fixed(&[HUGE])], &[]),
        large("2^40 constants, told late", "ConstantOfShape", &[Late(&[HUGE])], &[]),
        large("2^60 constants, told late", "ConstantOfShape", &[Late(&[1 << 30, 1 << 30])], &[]),
        large("2^80 constants of which none", "ConstantOfShape", &[Late(&[0, HUGE, HUGE])], &[]),
        large("2^40 copies, told late", "Expand", &[Floats(&[1]), Late(&[HUGE])], &[]),
        large("2^40 tiles", "Tile", &[Floats(&[2]), Fixed(&[HUGE])], &[]),
        large("2^40 tiles, told late", "Tile", &[Floats(&[2]), Late(&[HUGE])], &[]),
        large("tiles as many as numbers go", "Tile", &[Floats(&[2]), Late(&[i64::MAX])], &[]),
        large("2^40 numbers in a row", "Range", &[Fixed0(0), Fixed0(HUGE), Fixed0(1)], &[]),
        large("2^40 numbers in a row, told late", "Range", &[Fixed0(0), Late0(HUGE), Fixed0(1)], &[]),
        large("as many numbers as there are", "Range", &[Fixed0(i64::MIN), Fixed0(i64::MAX), Fixed0(1)], &[]),
        large("numbers up to infinity", "Range", &[Scalar(0.0), Scalar(f32::INFINITY), Scalar(1.0)], &[]),
        large("numbers in infinitely small steps", "Range", &[Scalar(0.0), Scalar(1.0), Scalar(1e-38)], &[]),
        large("2^40 classes", "OneHot", &[Zeros(INT64, &[2]), Fixed0(HUGE), Given(&[0.0, 1.0])], &[]),
        large("2^40 classes, told late", "OneHot", &[Zeros(INT64, &[2]), Late0(HUGE), Given(&[0.0, 1.0])], &[]),
        large("2^40 zeros around", "Pad", &[Floats(&[2]), Fixed(&[0, HUGE])], &[]),
        large("2^40 zeros around, told late", "Pad", &[Floats(&[2]), Late(&[0, HUGE])], &[]),
        large("zeros around as many as numbers go", "Pad", &[Floats(&[2]), Late(&[i64::MAX, i64::MAX])], &[]),
        large("an image of 2^80 pixels", "Resize", &[image, Nothing, Nothing, Fixed(&[1, 1, HUGE, HUGE])], &[]),
        large(
            "an image of 2^80 pixels, told late",
            "Resize",
            &[image, Nothing, Nothing, Late(&[1, 1, HUGE, HUGE])],
            &[],
        ),
        large("an image a million times as large", "Resize", &[image, Nothing, Given(&mebi)], &[]),
        large("an image infinitely large", "Resize", &[image, Nothing, Given(&[1.0, 1.0, f32::INFINITY, 1.0])], &[]),
        large("2^40 random numbers", "RandomNormal", &[], &[ints("shape", &[HUGE])]),
        large("random numbers of less than no shape", "RandomUniform", &[], &[ints("shape", &[-4])]),
        large("a window of 2^40", "HannWindow", &[Fixed0(HUGE)], &[]),
        large("a window of 2^40, told late", "HannWindow", &[Late0(HUGE)], &[]),
        large(
            "2^40 filters",
            "MelWeightMatrix",
            &[Fixed0(HUGE), Fixed0(1024), Fixed0(16000), Scalar(0.0), Scalar(8000.0)],
            &[],
        ),
        large("a transform of 2^40", "DFT", &[Floats(&[1, 16, 1]), Fixed0(HUGE)], &[int("axis", 1)]),
        large(
            "a transposed output of 2^40",
            "ConvTranspose",
            &[image, Weights(&[1, 1, 3, 3])],
            &[ints("output_shape", &[HUGE, 1])],
        ),
        large("a crop of 2^40", "CenterCropPad", &[Floats(&[2]), Fixed(&[HUGE])], &[]),
        large("an image of 2^40 columns", "Col2Im", &[Floats(&[1, 4, 4]), Fixed(&[HUGE, HUGE]), Fixed(&[2, 2])], &[]),
        large(
            "pixels put back into 2^40",
            "MaxUnpool",
            &[image, Zeros(INT64, &[1, 1, 4, 4]), Fixed(&[1, 1, HUGE, 4])],
            &[ints("kernel_shape", &[2, 2])],
        ),
        large("a row of a thousand dimensions", "Reshape", &[Floats(&[1]), Fixed(&[1; 1000])], &[]),
        large("a row of a thousand dimensions, told late", "Reshape", &[Floats(&[1]), Late(&[1; 1000])], &[]),
        large("a thousand new dimensions", "Unsqueeze", &[Floats(&[1]), Fixed(&ALL)], &[]),
        large("an outer product of 2^40", "MatMul", &[Floats(&[1 << 20, 1]), Floats(&[1, 1 << 20])], &[]),
        large(
            "regions of 2^40 pixels",
            "RoiAlign",
            &[image, Floats(&[1, 4]), Zeros(INT64, &[1])],
            &[int("output_height", HUGE), int("output_width", HUGE)],
        ),
    ]
}

const ALL: [i64; 1000] = {
    let mut all = [0; 1000];
    let mut i = 0;
    while i < 1000 {
        all[i] = i as i64;
        i += 1;
    }
    all
};
