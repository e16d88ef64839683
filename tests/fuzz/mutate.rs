//! Changes to ONNX models that keep most of them what they are: the file is taken apart by the fields of `onnx.proto`,
//! a few are changed, and it is put together again.
//!
//! It knows the messages, not what they mean, and makes files no library would: fields twice, numbers of the wrong
//! kind, names that lead nowhere.

/// A stream of numbers that is the same for the same seed (xorshift*, Vigna 2016).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        // Never zero, where it would stay.
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`; 0 when there is none.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// The messages that have fields worth changing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Value,
    Type,
    TensorType,
    Shape,
    Dimension,
    Opset,
    Function,
    Entry,
}

fn child(kind: Kind, field: u64) -> Option<Kind> {
    use Kind as K;
    Some(match (kind, field) {
        (K::Model, 7) | (K::Attribute, 6 | 11) => K::Graph,
        (K::Model, 8) | (K::Function, 9) => K::Opset,
        (K::Model, 25) => K::Function,
        (K::Graph, 1) | (K::Function, 7) => K::Node,
        (K::Graph, 5) | (K::Attribute, 5 | 10) | (K::Sparse, 1 | 2) => K::Tensor,
        (K::Graph, 11..=13) => K::Value,
        (K::Graph, 15) | (K::Attribute, 22) => K::Sparse,
        (K::Node, 5) => K::Attribute,
        (K::Tensor, 13) => K::Entry,
        (K::Value, 2) => K::Type,
        (K::Type, 1) => K::TensorType,
        (K::TensorType, 2) => K::Shape,
        (K::Shape, 1) => K::Dimension,
        _ => return None,
    })
}

/// What stands in a field.
#[derive(Clone)]
enum Value {
    Number(u64),
    Eight([u8; 8]),
    Four([u8; 4]),
    Bytes(Vec<u8>),
    Message(Tree),
}

/// A message.
#[derive(Clone)]
struct Tree {
    kind: Kind,
    fields: Vec<(u64, Value)>,
}

/// Deepest message that is taken apart; what is deeper stays bytes.
const DEEPEST: usize = 60;

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut v = 0u64;
    for shift in (0..70).step_by(7) {
        let (&b, rest) = bytes.split_first()?;
        *bytes = rest;
        v |= u64::from(b & 0x7f).checked_shl(shift).unwrap_or(0);
        if b < 0x80 {
            return Some(v);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

impl Tree {
    /// `None` when the bytes are no message.
    fn parse(mut bytes: &[u8], kind: Kind, depth: usize) -> Option<Tree> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let (field, wire) = (key >> 3, key & 7);
            let value = match wire {
                0 => Value::Number(varint(&mut bytes)?),
                1 => {
                    let (v, rest) = bytes.split_first_chunk::<8>()?;
                    bytes = rest;
                    Value::Eight(*v)
                }
                2 => {
                    let n = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (v, rest) = bytes.split_at_checked(n)?;
                    bytes = rest;
                    let inner = child(kind, field).filter(|_| depth < DEEPEST);
                    match inner.and_then(|kind| Tree::parse(v, kind, depth + 1)) {
                        Some(tree) => Value::Message(tree),
                        None => Value::Bytes(v.to_vec()),
                    }
                }
                5 => {
                    let (v, rest) = bytes.split_first_chunk::<4>()?;
                    bytes = rest;
                    Value::Four(*v)
                }
                _ => return None,
            };
            fields.push((field, value));
        }
        Some(Tree { kind, fields })
    }

    fn write(&self, out: &mut Vec<u8>) {
        for (field, value) in &self.fields {
            let wire = match value {
                Value::Number(_) => 0,
                Value::Eight(_) => 1,
                Value::Bytes(_) | Value::Message(_) => 2,
                Value::Four(_) => 5,
            };
            put_varint(out, field << 3 | wire);
            match value {
                Value::Number(v) => put_varint(out, *v),
                Value::Eight(v) => out.extend(v),
                Value::Four(v) => out.extend(v),
                Value::Bytes(v) => {
                    put_varint(out, v.len() as u64);
                    out.extend(v);
                }
                Value::Message(t) => {
                    let mut inner = Vec::new();
                    t.write(&mut inner);
                    put_varint(out, inner.len() as u64);
                    out.extend(inner);
                }
            }
        }
    }

    /// How many messages there are of the kinds wanted.
    fn count(&self, wanted: &dyn Fn(&Tree) -> bool) -> usize {
        usize::from(wanted(self)) + self.messages().map(|t| t.count(wanted)).sum::<usize>()
    }

    fn messages(&self) -> impl Iterator<Item = &Tree> {
        self.fields.iter().filter_map(|(_, v)| match v {
            Value::Message(t) => Some(t),
            _ => None,
        })
    }

    /// The `n`-th of them.
    fn nth(&mut self, wanted: &dyn Fn(&Tree) -> bool, n: &mut usize) -> Option<&mut Tree> {
        if wanted(self) {
            if *n == 0 {
                return Some(self);
            }
            *n -= 1;
        }
        self.fields.iter_mut().find_map(|(_, v)| match v {
            Value::Message(t) => t.nth(wanted, n),
            _ => None,
        })
    }

    fn any(&mut self, random: &mut Random, wanted: impl Fn(&Tree) -> bool) -> Option<&mut Tree> {
        let n = self.count(&wanted);
        self.nth(&wanted, &mut random.below(n))
    }

    fn texts(&self, field: u64) -> impl Iterator<Item = &[u8]> {
        self.fields.iter().filter(move |(f, _)| *f == field).filter_map(|(_, v)| match v {
            Value::Bytes(b) => Some(&b[..]),
            _ => None,
        })
    }

    /// Every name of a value in it.
    fn names(&self, into: &mut Vec<Vec<u8>>) {
        let fields: &[u64] = match self.kind {
            Kind::Node => &[1, 2],
            Kind::Value => &[1],
            Kind::Tensor => &[8],
            Kind::Function => &[4, 5],
            _ => &[],
        };
        fields.iter().for_each(|&f| into.extend(self.texts(f).map(<[u8]>::to_vec)));
        self.messages().for_each(|t| t.names(into));
    }
}

/// Numbers that are sizes, axes, types and ends of ranges.
const NUMBERS: &[i64] = &[
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    10,
    11,
    13,
    16,
    17,
    21,
    22,
    23,
    25,
    31,
    64,
    65,
    127,
    128,
    255,
    256,
    1000,
    1024,
    65535,
    65536,
    -1,
    -2,
    -3,
    -4,
    -9,
    -128,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 62,
    i64::MAX,
    i64::MAX - 1,
    i64::MIN,
    i64::MIN + 1,
    -(1 << 31),
    -(1 << 32),
];

const FLOATS: &[f32] = &[
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.0,
    2.5,
    -2.5,
    1e-38,
    1e-45,
    1e10,
    3e38,
    -3e38,
    1e20,
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    127.5,
    128.0,
    255.0,
    256.0,
];

/// Names of attributes; most operators know some of them.
const ATTRIBUTES: &[&str] = &[
    "axis",
    "axes",
    "perm",
    "to",
    "alpha",
    "beta",
    "pads",
    "strides",
    "dilations",
    "kernel_shape",
    "group",
    "mode",
    "keepdims",
    "value",
    "value_int",
    "value_ints",
    "value_float",
    "epsilon",
    "equation",
    "transA",
    "transB",
    "hidden_size",
    "direction",
    "layout",
    "linear_before_reset",
    "auto_pad",
    "ceil_mode",
    "count_include_pad",
    "output_shape",
    "output_padding",
    "blocksize",
    "num_outputs",
    "split",
    "shape",
    "dtype",
    "seed",
    "largest",
    "sorted",
    "exclusive",
    "reverse",
    "batch_dims",
    "reduction",
    "block_size",
    "saturate",
    "fmod",
    "to_nearest",
    "size",
    "bias",
    "num_groups",
    "stash_type",
    "nearest_mode",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "antialias",
    "detect_negative",
    "upper",
    "k",
    "p",
    "align_corners",
    "padding_mode",
    "output_height",
    "sampling_ratio",
    "spatial_scale",
    "onesided",
    "inverse",
    "periodic",
    "allowzero",
    "select_last_index",
    "noop_with_empty_axes",
    "num_scan_inputs",
    "body",
    "then_branch",
    "else_branch",
    "q_num_heads",
    "kv_num_heads",
    "is_causal",
    "scale",
    "softcap",
    "clip",
    "activations",
    "num_heads",
    "bits",
    "K",
    "N",
    "high",
    "low",
    "mean",
    "sample_size",
];

const WORDS: &[&str] = &[
    "linear",
    "cubic",
    "nearest",
    "reflect",
    "edge",
    "wrap",
    "constant",
    "SAME_UPPER",
    "SAME_LOWER",
    "VALID",
    "NOTSET",
    "bilinear",
    "bicubic",
    "zeros",
    "border",
    "reflection",
    "bidirectional",
    "reverse",
    "forward",
    "add",
    "mul",
    "max",
    "min",
    "none",
    "half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
    "pytorch_half_pixel",
    "floor",
    "ceil",
    "DCR",
    "CRD",
    "Relu",
    "Tanh",
    "ij,jk->ik",
    "...ij->...ji",
    "ii->i",
    "i,i->",
    "tanh",
    "LEFT",
    "RIGHT",
    "avg",
    "sum",
];

/// Every operator of the standard that has tensors, and the usual ones of ONNX Runtime (in their own domain).
const OPERATORS: &str = "Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool \
    BatchNormalization Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BlackmanWindow Cast CastLike Ceil Celu \
    CenterCropPad Clip Col2Im Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DFT \
    DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten \
    Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample \
    GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN \
    LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max \
    MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Multinomial Neg \
    NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN \
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp \
    ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign \
    RotaryEmbedding Round STFT Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax \
    SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh TensorScatter TfIdfVectorizer ThresholdedRelu Tile TopK \
    Transpose Trilu Unique Unsqueeze Upsample Where Xor MatMulNBits FusedMatMul SkipLayerNormalization QAttention QGemm QLinearAdd \
    MultiHeadAttention GroupQueryAttention GatherBlockQuantized BiasGelu FastGelu QuickGelu DynamicQuantizeMatMul DynamicQuantizeLSTM FusedConv";

const DOMAINS: &[&str] = &["", "", "com.microsoft", "ai.onnx", "local", "ai.onnx.ml"];

/// One to four changes to a model; `donor` is another from which parts may come. Bytes that are no protobuf come back
/// with some of them changed.
pub(crate) fn mutate(model: &[u8], donor: Option<&[u8]>, random: &mut Random) -> Vec<u8> {
    let Some(mut tree) = Tree::parse(model, Kind::Model, 0).filter(|t| !t.fields.is_empty()) else {
        return noise(model.to_vec(), random);
    };
    let donor = donor.and_then(|d| Tree::parse(d, Kind::Model, 0));
    for _ in 0..1 + random.below(4) {
        change(&mut tree, donor.as_ref(), random);
    }
    let mut out = Vec::with_capacity(model.len() + 64);
    tree.write(&mut out);
    // A flipped bit on top, seldom: lengths of fields that are not those of what is in them.
    if random.one_in(40) { noise(out, random) } else { out }
}

fn noise(mut bytes: Vec<u8>, random: &mut Random) -> Vec<u8> {
    if bytes.is_empty() {
        bytes.push(0);
    }
    let at = random.below(bytes.len());
    match random.below(3) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes.truncate(at),
        _ => bytes.insert(at, random.next() as u8),
    }
    bytes
}

fn change(tree: &mut Tree, donor: Option<&Tree>, random: &mut Random) {
    match random.below(13) {
        0 | 1 => number(tree, random),
        2 => fields(tree, random),
        3 => rewire(tree, random),
        4 => operator(tree, random),
        5 | 6 => attribute(tree, random),
        7 | 8 => tensor(tree, random),
        9 => shape(tree, random),
        10 => opset(tree, random),
        11 => graft(tree, donor, random),
        _ => text(tree, random),
    }
}

fn any_number(old: u64, random: &mut Random) -> u64 {
    match random.below(4) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        _ => *random.pick(NUMBERS) as u64,
    }
}

/// A number anywhere becomes another.
fn number(tree: &mut Tree, random: &mut Random) {
    let is = |v: &Value| matches!(v, Value::Number(_) | Value::Four(_) | Value::Eight(_));
    let Some(t) = tree.any(random, |t| t.fields.iter().any(|(_, v)| is(v))) else { return };
    let at: Vec<usize> = (0..t.fields.len()).filter(|&i| is(&t.fields[i].1)).collect();
    match &mut t.fields[*random.pick(&at)].1 {
        Value::Number(v) => *v = any_number(*v, random),
        Value::Four(v) => *v = random.pick(FLOATS).to_le_bytes(),
        Value::Eight(v) => *v = f64::from(*random.pick(FLOATS)).to_le_bytes(),
        _ => {}
    }
}

/// A field of any message is left out, repeated, or changes places.
fn fields(tree: &mut Tree, random: &mut Random) {
    let Some(t) = tree.any(random, |t| !t.fields.is_empty()) else { return };
    let (i, j) = (random.below(t.fields.len()), random.below(t.fields.len()));
    match random.below(4) {
        0 => drop(t.fields.remove(i)),
        1 => t.fields.insert(j, t.fields[i].clone()),
        2 => t.fields.swap(i, j),
        _ => t.fields[i].0 = 1 + random.below(25) as u64,
    }
}

/// An operand or result gets the name of another value, or none.
fn rewire(tree: &mut Tree, random: &mut Random) {
    let mut names = Vec::new();
    tree.names(&mut names);
    names.push(Vec::new());
    let name = random.pick(&names).clone();
    let Some(t) = tree.any(random, |t| matches!(t.kind, Kind::Node | Kind::Value)) else { return };
    let field = if t.kind == Kind::Node { 1 + random.below(2) as u64 } else { 1 };
    let at: Vec<usize> = (0..t.fields.len()).filter(|&i| t.fields[i].0 == field).collect();
    if at.is_empty() || random.one_in(6) {
        t.fields.push((field, Value::Bytes(name)));
    } else {
        t.fields[*random.pick(&at)].1 = Value::Bytes(name);
    }
}

/// A node becomes another operator.
fn operator(tree: &mut Tree, random: &mut Random) {
    let all: Vec<&str> = OPERATORS.split_whitespace().collect();
    let (name, domain) = (*random.pick(&all), *random.pick(DOMAINS));
    let Some(t) = tree.any(random, |t| t.kind == Kind::Node) else { return };
    t.fields.retain(|(f, _)| *f != 4);
    t.fields.push((4, Value::Bytes(name.into())));
    if random.one_in(4) {
        t.fields.retain(|(f, _)| *f != 7);
        t.fields.push((7, Value::Bytes(domain.into())));
    }
}

fn numbers(field: u64, random: &mut Random) -> Vec<(u64, Value)> {
    (0..random.below(6)).map(|_| (field, Value::Number(*random.pick(NUMBERS) as u64))).collect()
}

/// A node gets an attribute, or one it has gets another value.
fn attribute(tree: &mut Tree, random: &mut Random) {
    let name = Value::Bytes((*random.pick(ATTRIBUTES)).into());
    let mut value = match random.below(5) {
        0 => vec![(3, Value::Number(*random.pick(NUMBERS) as u64)), (20, Value::Number(2))],
        1 => vec![(2, Value::Four(random.pick(FLOATS).to_le_bytes())), (20, Value::Number(1))],
        2 => vec![(4, Value::Bytes((*random.pick(WORDS)).into())), (20, Value::Number(3))],
        _ => {
            let mut v = numbers(8, random);
            v.push((20, Value::Number(7)));
            v
        }
    };
    if random.one_in(2)
        && let Some(t) = tree.any(random, |t| t.kind == Kind::Attribute)
    {
        // It keeps its name.
        t.fields.retain(|(f, _)| *f == 1);
        t.fields.append(&mut value);
    } else if let Some(t) = tree.any(random, |t| t.kind == Kind::Node) {
        value.insert(0, (1, name));
        t.fields.push((5, Value::Message(Tree { kind: Kind::Attribute, fields: value })));
    }
}

/// A tensor gets other elements, mostly as many as its new shape needs.
fn tensor(tree: &mut Tree, random: &mut Random) {
    let Some(t) = tree.any(random, |t| t.kind == Kind::Tensor) else { return };
    const TYPES: &[(u64, usize)] = &[
        (1, 32),
        (2, 8),
        (3, 8),
        (5, 16),
        (6, 32),
        (7, 64),
        (9, 8),
        (10, 16),
        (11, 64),
        (16, 16),
        (17, 8),
        (22, 4),
        (21, 4),
    ];
    let number = |field: u64| {
        t.fields.iter().filter_map(move |(f, v)| match v {
            Value::Number(v) if *f == field => Some(*v),
            _ => None,
        })
    };
    let mut dims: Vec<u64> = number(1).collect();
    let mut dtype = number(2).next_back().unwrap_or(1);
    match random.below(5) {
        0 => dims.push(random.below(4) as u64),
        1 => drop(dims.pop()),
        2 if !dims.is_empty() => {
            let at = random.below(dims.len());
            dims[at] = random.below(6) as u64;
        }
        3 => dtype = random.pick(TYPES).0,
        _ => {}
    }
    let bits = TYPES.iter().find(|(n, _)| *n == dtype).map_or(32, |t| t.1);
    let n: usize = dims.iter().fold(1usize, |n, &d| n.saturating_mul(d as usize));
    if n > 4096 {
        return;
    }
    let mut raw = Vec::new();
    let scale = random.below(4);
    while raw.len() < (n * bits).div_ceil(8) {
        let integer = if scale == 0 {
            *random.pick(NUMBERS)
        } else {
            random.below(2 << (2 * scale)) as i64 - i64::from(scale == 3)
        };
        match dtype {
            1 => raw.extend(if scale == 0 { *random.pick(FLOATS) } else { integer as f32 }.to_le_bytes()),
            11 => raw.extend(f64::from(*random.pick(FLOATS)).to_le_bytes()),
            9 => raw.push(random.below(2) as u8),
            _ => raw.extend(&integer.to_le_bytes()[..bits.div_ceil(8)]),
        }
    }
    raw.truncate((n * bits).div_ceil(8));
    if random.one_in(20) {
        raw.push(0);
    }
    t.fields.retain(|(f, _)| !matches!(f, 1 | 2 | 4..=7 | 9..=11));
    t.fields.extend(dims.iter().map(|&d| (1, Value::Number(d))));
    t.fields.push((2, Value::Number(dtype)));
    t.fields.push((9, Value::Bytes(raw)));
}

/// A declared shape or type changes.
fn shape(tree: &mut Tree, random: &mut Random) {
    let kind = if random.one_in(4) { Kind::TensorType } else { Kind::Shape };
    let Some(t) = tree.any(random, |t| t.kind == kind) else { return };
    if kind == Kind::TensorType {
        t.fields.retain(|(f, _)| *f != 1);
        t.fields.push((1, Value::Number(1 + random.below(26) as u64)));
        return;
    }
    let value = match random.below(6) {
        0 => (2, Value::Bytes(b"N".to_vec())),
        1 => (1, Value::Number(*random.pick(NUMBERS) as u64)),
        _ => (1, Value::Number(random.below(6) as u64)),
    };
    let dimension = (1, Value::Message(Tree { kind: Kind::Dimension, fields: vec![value] }));
    if t.fields.is_empty() || random.one_in(3) {
        t.fields.push(dimension);
    } else if random.one_in(4) {
        t.fields.pop();
    } else {
        let at = random.below(t.fields.len());
        t.fields[at] = dimension;
    }
}

fn opset(tree: &mut Tree, random: &mut Random) {
    let version = if random.one_in(8) { *random.pick(NUMBERS) as u64 } else { 1 + random.below(26) as u64 };
    let Some(t) = tree.any(random, |t| t.kind == Kind::Opset) else { return };
    t.fields.retain(|(f, _)| *f != 2);
    t.fields.push((2, Value::Number(version)));
}

/// A message becomes another of its kind, from this model or from the donor.
fn graft(tree: &mut Tree, donor: Option<&Tree>, random: &mut Random) {
    let mut from = donor.filter(|_| random.one_in(2)).unwrap_or(tree).clone();
    let Some(scion) = from.any(random, |t| t.kind != Kind::Model).map(|t| t.clone()) else { return };
    let kind = scion.kind;
    let parent_of = |t: &Tree| t.messages().any(|m| m.kind == kind);
    let Some(t) = tree.any(random, parent_of) else { return };
    let at: Vec<usize> =
        (0..t.fields.len()).filter(|&i| matches!(&t.fields[i].1, Value::Message(m) if m.kind == kind)).collect();
    let at = *random.pick(&at);
    if random.one_in(2) {
        let field = t.fields[at].0;
        t.fields.insert(at, (field, Value::Message(scion)));
    } else {
        t.fields[at].1 = Value::Message(scion);
    }
}

/// Text anywhere becomes a word, gets longer or ends sooner.
fn text(tree: &mut Tree, random: &mut Random) {
    let is = |v: &Value| matches!(v, Value::Bytes(_));
    let Some(t) = tree.any(random, |t| t.fields.iter().any(|(_, v)| is(v))) else { return };
    let at: Vec<usize> = (0..t.fields.len()).filter(|&i| is(&t.fields[i].1)).collect();
    let Value::Bytes(v) = &mut t.fields[*random.pick(&at)].1 else { return };
    match random.below(5) {
        0 => *v = (*random.pick(WORDS)).into(),
        1 => *v = (*random.pick(ATTRIBUTES)).into(),
        2 => v.extend_from_within(..),
        3 => v.truncate(v.len() / 2),
        _ => {
            let at = random.below(v.len().max(1));
            if let Some(b) = v.get_mut(at) {
                *b = random.next() as u8;
            }
        }
    }
}
