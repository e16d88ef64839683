//! PNG and JPEG bytes → `f32 [1, C, H, W]`, as a Hugging Face image processor makes it with Pillow.
use std::io::Cursor;

use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader, Limits};
use serde_json::Value;

use super::config::Members;
use super::{ModalityError, Pixels, Resample, resize};
use crate::{Note, Tensor};

/// Longest side that is decoded.
const MAX_SIDE: u32 = 16_384;
/// Most pixels that are decoded.
const MAX_PIXELS: u64 = 64 << 20;
/// Most memory a decoder may take besides the picture.
const MAX_DECODER_BYTES: u64 = 512 << 20;

/// Decodes a PNG or JPEG to 8-bit gray or RGB.
///
/// As Pillow does: palettes are looked up, alpha is dropped (not blended; note `alpha-dropped`), of 16-bit samples the
/// high byte is kept (note `depth-reduced`; Pillow clips 16-bit *gray* instead), and a rotation in the EXIF data is not
/// applied (note `orientation-ignored`).
///
/// # Errors
/// [`ModalityError::ImageTooLarge`] by the header alone, before anything is allocated; [`ModalityError::Image`].
pub fn decode(bytes: &[u8]) -> Result<(Pixels, Vec<Note>), ModalityError> {
    let unreadable = |e: image::ImageError| ModalityError::Image { reason: e.to_string() };
    if bytes.is_empty() {
        return Err(ModalityError::Image { reason: "there are no bytes".into() });
    }
    let format = image::guess_format(bytes).map_err(unreadable)?;
    if !matches!(format, ImageFormat::Png | ImageFormat::Jpeg) {
        return Err(ModalityError::Image { reason: format!("it is {format:?}") });
    }
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE || height > MAX_SIDE || u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(ModalityError::ImageTooLarge { width, height, limit: MAX_SIDE, pixels: MAX_PIXELS });
    }
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    decoder.set_limits(limits).map_err(unreadable)?;
    let mut notes = vec![];
    if decoder.orientation().is_ok_and(|o| o != Orientation::NoTransforms) {
        notes.push(Note::new("orientation-ignored", "a rotation in the EXIF data", "pixels as stored"));
    }
    let color = decoder.color_type();
    let total = usize::try_from(decoder.total_bytes())
        .map_err(|_| ModalityError::Image { reason: "it is larger than this machine can address".into() })?;
    let mut raw = vec![0; total];
    decoder.read_image(&mut raw).map_err(unreadable)?;

    let (channels, wide) = match color {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        other => return Err(ModalityError::Image { reason: format!("it has pixels of kind {other:?}") }),
    };
    if wide {
        notes.push(Note::new("depth-reduced", "16 bit", "8 bit"));
        raw = raw.chunks_exact(2).map(|b| (u16::from_ne_bytes([b[0], b[1]]) >> 8) as u8).collect();
    }
    let kept = if channels >= 3 { 3 } else { 1 };
    if kept != channels {
        notes.push(Note::new("alpha-dropped", format!("{channels} channels"), format!("{kept} channels")));
        raw = raw.chunks_exact(channels).flat_map(|p| p[..kept].iter().copied()).collect();
    }
    let (width, height) = (width as usize, height as usize);
    let pixels = if kept == 3 { Pixels::rgb(width, height, raw)? } else { Pixels::gray(width, height, raw)? };
    Ok((pixels, notes))
}

/// How large a picture becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Exactly { height: usize, width: usize },
    ShortestEdge(usize),
}

/// The steps of a Hugging Face image processor, in its order: convert, resize, crop, rescale, normalise.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    channels: usize,
    size: Option<(Size, Resample)>,
    crop: Option<(usize, usize)>,
    factor: Option<f64>,
    /// Mean and standard deviation of each channel.
    normalize: Option<Vec<(f32, f32)>>,
}

impl ImageProcessor {
    /// Reads the JSON of an image processor.
    ///
    /// Keys: `do_grayscale` (Pillow's `convert("L")`, before anything else) or `do_convert_rgb`; without either, as many
    /// channels as `image_mean` has, else 3. `do_resize` (true when `size` is there), `size` `{height, width}` or
    /// `{shortest_edge}` or a number (a square), `resample` (Pillow's number, absent: 2, bilinear); `do_center_crop`,
    /// `crop_size`; `do_rescale` (true), `rescale_factor` (1/255); `do_normalize` (true when `image_mean` is there),
    /// `image_mean`, `image_std` (a number or one for each channel). Names of classes and hints to Python are ignored, and
    /// so is a switch that is off; any other key is an error, since hone cannot know that it changes nothing.
    ///
    /// # Errors
    /// [`ModalityError::Config`] naming the key.
    pub fn from_json(text: &str) -> Result<ImageProcessor, ModalityError> {
        let mut m = Members::parse("preprocessor_config.json (image_processor)", text)?;
        let gray = m.flag("do_grayscale")?.unwrap_or(false);
        let convert = m.flag("do_convert_rgb")?.unwrap_or(false);
        let (mean, std) = (m.numbers("image_mean")?, m.numbers("image_std")?);
        let channels = match (&mean, gray, convert) {
            (_, true, true) => return Err(m.refuse("do_grayscale", "cannot be on together with do_convert_rgb")),
            (_, true, false) => 1,
            (Some(v), false, false) if v.len() == 1 => 1,
            _ => 3,
        };
        let size = m.take("size");
        let resample = m.whole("resample")?;
        let size = if m.flag("do_resize")?.unwrap_or(size.is_some()) {
            let size = size.ok_or_else(|| m.refuse("size", "is missing"))?;
            let code = resample.unwrap_or(2);
            let filter =
                Resample::from_code(code).ok_or_else(|| m.refuse("resample", format!("{code} is not 0 to 5")))?;
            Some((size_of(&m, "size", &size)?, filter))
        } else {
            None
        };
        let crop_size = m.take("crop_size");
        let crop = if m.flag("do_center_crop")?.unwrap_or(false) {
            let crop_size = crop_size.ok_or_else(|| m.refuse("crop_size", "is missing"))?;
            match size_of(&m, "crop_size", &crop_size)? {
                Size::Exactly { height, width } => Some((height, width)),
                Size::ShortestEdge(_) => return Err(m.refuse("crop_size", "needs height and width")),
            }
        } else {
            None
        };
        let factor = m.number("rescale_factor")?.unwrap_or(1.0 / 255.0);
        let factor = m.flag("do_rescale")?.unwrap_or(true).then_some(factor);
        let normalize = if m.flag("do_normalize")?.unwrap_or(mean.is_some()) {
            let mean = per_channel(&m, "image_mean", mean, channels)?;
            let std = per_channel(&m, "image_std", std, channels)?;
            if std.contains(&0.0) {
                return Err(m.refuse("image_std", "has a 0"));
            }
            Some(mean.into_iter().zip(std).collect())
        } else {
            None
        };
        m.finish(&[
            "image_processor_type",
            "feature_extractor_type",
            "processor_class",
            "auto_map",
            "data_format",
            "input_data_format",
            "return_tensors",
            "device",
            "disable_grouping",
            "default_to_square",
            "pad_size",
            "image_seq_length",
            "size_divisor",
        ])?;
        Ok(ImageProcessor { channels, size, crop, factor, normalize })
    }

    /// Channels of the tensor: 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// A picture → `f32 [1, C, H, W]`, with notes `gray-to-rgb`, `rgb-to-gray`, `resized`, `cropped`, `padded`.
    ///
    /// # Errors
    /// [`ModalityError::Image`] when a side would be 0 or beyond what is decoded.
    pub fn encode(&self, picture: &Pixels) -> Result<(Tensor, Vec<Note>), ModalityError> {
        let mut notes = vec![];
        let extent = |p: &Pixels| format!("{}x{}", p.width(), p.height());
        let mut current = match (self.channels, picture.channels()) {
            (1, 3) => {
                notes.push(Note::new("rgb-to-gray", "3 channels", "1 channel"));
                picture.to_gray()
            }
            (3, 1) => {
                notes.push(Note::new("gray-to-rgb", "1 channel", "3 channels"));
                picture.to_rgb()
            }
            _ => picture.clone(),
        };
        if let Some((size, filter)) = self.size {
            let (width, height) = match size {
                Size::Exactly { height, width } => (width, height),
                Size::ShortestEdge(edge) => shortest_edge(&current, edge),
            };
            if width > MAX_SIDE as usize || height > MAX_SIDE as usize {
                return Err(ModalityError::Image { reason: format!("it would be resized to {width}x{height}") });
            }
            let resized = resize(&current, width, height, filter)?;
            if resized.width() != current.width() || resized.height() != current.height() {
                notes.push(Note::new("resized", extent(&current), extent(&resized)));
            }
            current = resized;
        }
        if let Some((height, width)) = self.crop {
            let padded = height > current.height() || width > current.width();
            let cropped = current.center_crop(width, height);
            if cropped != current {
                notes.push(Note::new(if padded { "padded" } else { "cropped" }, extent(&current), extent(&cropped)));
            }
            current = cropped;
        }
        let (width, height, channels) = (current.width(), current.height(), current.channels());
        let mut values = Vec::with_capacity(width * height * channels);
        for c in 0..channels {
            // 256 possible bytes: each is scaled once, in double precision as NumPy does, then normalised in single.
            let table: Vec<f32> = (0..256)
                .map(|v| {
                    let scaled = self.factor.map_or(v as f32, |f| (f64::from(v) * f) as f32);
                    self.normalize.as_ref().map_or(scaled, |n| (scaled - n[c].0) / n[c].1)
                })
                .collect();
            values.extend(current.data()[c..].iter().step_by(channels).map(|&v| table[usize::from(v)]));
        }
        Ok((Tensor::f32(&[1, channels, height, width], values)?, notes))
    }
}

/// The other side follows, cut to a whole number, as torchvision and transformers do.
fn shortest_edge(picture: &Pixels, edge: usize) -> (usize, usize) {
    let (width, height) = (picture.width(), picture.height());
    let long = |short: usize, long: usize| (edge as f64 * long as f64 / short as f64) as usize;
    if width <= height { (edge, long(width, height)) } else { (long(height, width), edge) }
}

fn size_of(m: &Members, key: &'static str, value: &Value) -> Result<Size, ModalityError> {
    let side = |v: &Value| v.as_u64().filter(|v| (1..=u64::from(MAX_SIDE)).contains(v)).map(|v| v as usize);
    let known = match value {
        Value::Object(o) => {
            let keys: Vec<&str> = o.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str()).collect();
            let get = |k: &str| o.get(k).and_then(side);
            match keys.as_slice() {
                ["height", "width"] | ["width", "height"] => {
                    get("height").zip(get("width")).map(|(height, width)| Size::Exactly { height, width })
                }
                ["shortest_edge"] => get("shortest_edge").map(Size::ShortestEdge),
                _ => None,
            }
        }
        other => side(other).map(|s| Size::Exactly { height: s, width: s }),
    };
    let reason = format!("{value} is not {{height, width}}, {{shortest_edge}} or a number, 1 to {MAX_SIDE}");
    known.ok_or_else(|| m.refuse(key, reason))
}

fn per_channel(
    m: &Members,
    key: &'static str,
    values: Option<Vec<f64>>,
    channels: usize,
) -> Result<Vec<f32>, ModalityError> {
    match values {
        Some(v) if v.len() == channels => Ok(v.into_iter().map(|v| v as f32).collect()),
        Some(v) if v.len() == 1 => Ok(vec![v[0] as f32; channels]),
        Some(v) => Err(m.refuse(key, format!("has {} numbers for {channels} channels", v.len()))),
        None => Err(m.refuse(key, "is missing")),
    }
}
