//! An 8-bit picture, gray or RGB, as every image step of this module takes it.
use super::ModalityError;

/// An 8-bit picture: `channels` 1 (gray) or 3 (RGB), rows from the top, channels interleaved. Neither side is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    width: usize,
    height: usize,
    channels: usize,
    data: Vec<u8>,
}

impl Pixels {
    /// A gray picture; `data: u8 [height, width]`.
    ///
    /// # Errors
    /// [`ModalityError::Image`] when the length does not fit, or a side is 0.
    pub fn gray(width: usize, height: usize, data: Vec<u8>) -> Result<Pixels, ModalityError> {
        Pixels::new(width, height, 1, data)
    }

    /// A colour picture; `data: u8 [height, width, 3]`.
    ///
    /// # Errors
    /// As [`Pixels::gray`].
    pub fn rgb(width: usize, height: usize, data: Vec<u8>) -> Result<Pixels, ModalityError> {
        Pixels::new(width, height, 3, data)
    }

    fn new(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Result<Pixels, ModalityError> {
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
        if expected != Some(data.len()) || data.is_empty() {
            let reason = format!("{width}x{height} with {channels} channels was given {} bytes", data.len());
            return Err(ModalityError::Image { reason });
        }
        Ok(Pixels { width, height, channels, data })
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 or 3.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// `u8 [height, width, channels]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// In gray, by the ITU-R 601-2 luma formula as Pillow rounds it.
    pub fn to_gray(&self) -> Pixels {
        if self.channels == 1 {
            return self.clone();
        }
        let luma = |p: &[u8]| {
            let sum = u32::from(p[0]) * 19595 + u32::from(p[1]) * 38470 + u32::from(p[2]) * 7471 + 0x8000;
            // The weights sum to 65536, so this fits a byte.
            (sum >> 16) as u8
        };
        let data = self.data.chunks_exact(3).map(luma).collect();
        Pixels { channels: 1, data, ..*self }
    }

    /// In colour; gray becomes three equal channels.
    pub fn to_rgb(&self) -> Pixels {
        if self.channels == 3 {
            return self.clone();
        }
        Pixels { channels: 3, data: self.data.iter().flat_map(|&v| [v; 3]).collect(), ..*self }
    }

    /// The middle `width` × `height`. Where the picture is smaller, black is put around it, the odd row or column first,
    /// as `transformers.image_transforms.center_crop` does. Both sides at least 1.
    #[cfg(feature = "image")]
    pub(crate) fn center_crop(&self, width: usize, height: usize) -> Pixels {
        // Offset of the crop in the picture, negative when black is put before it.
        let offset = |have: usize, want: usize| {
            if want <= have { ((have - want) / 2) as isize } else { -((want - have).div_ceil(2) as isize) }
        };
        // HF pads both sides to the larger of picture and crop before it cuts, which moves a mixed case by nothing: each
        // axis is on its own.
        let (left, top) = (offset(self.width, width), offset(self.height, height));
        let mut data = vec![0; width * height * self.channels];
        for y in 0..height {
            let Some(from_y) = y.checked_add_signed(top).filter(|&v| v < self.height) else { continue };
            for x in 0..width {
                let Some(from_x) = x.checked_add_signed(left).filter(|&v| v < self.width) else { continue };
                let to = (y * width + x) * self.channels;
                let from = (from_y * self.width + from_x) * self.channels;
                data[to..to + self.channels].copy_from_slice(&self.data[from..from + self.channels]);
            }
        }
        Pixels { width, height, channels: self.channels, data }
    }

    pub(crate) fn from_parts(width: usize, height: usize, channels: usize, data: Vec<u8>) -> Pixels {
        assert_eq!(data.len(), width * height * channels, "the data of a picture is [height, width, channels]");
        Pixels { width, height, channels, data }
    }
}
