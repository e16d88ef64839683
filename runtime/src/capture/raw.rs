//! Pictures of a declared size, one after the other, without anything in between.
use super::stream::{Decoder, Out};
use super::{Kind, Picture};

/// The size of every picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawFormat {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) channels: usize,
}

impl RawFormat {
    /// `gray:WxH` or `rgb:WxH`; `None` for anything else and for sizes of 0.
    pub(super) fn parse(text: &str) -> Option<RawFormat> {
        let (order, size) = text.split_once(':')?;
        let channels = match order {
            "gray" => 1,
            "rgb" => 3,
            _ => return None,
        };
        let (width, height) = size.split_once('x')?;
        let format = RawFormat { width: width.parse().ok()?, height: height.parse().ok()?, channels };
        format.bytes().filter(|&n| n > 0).map(|_| format)
    }

    /// Bytes of one picture, `None` if no machine could hold it.
    pub(super) fn bytes(self) -> Option<usize> {
        self.width.checked_mul(self.height)?.checked_mul(self.channels)
    }
}

pub(super) struct Raw {
    format: RawFormat,
    bytes: usize,
    buffer: Vec<u8>,
}

impl Raw {
    /// `format` must have a size ([`RawFormat::parse`] sees to it).
    pub(super) fn new(format: RawFormat) -> Raw {
        Raw { format, bytes: format.bytes().unwrap_or(usize::MAX).max(1), buffer: vec![] }
    }
}

impl Decoder for Raw {
    fn feed(&mut self, mut bytes: &[u8], out: &mut dyn FnMut(Out)) {
        while !bytes.is_empty() {
            let taken = bytes.len().min(self.bytes - self.buffer.len());
            self.buffer.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.buffer.len() == self.bytes {
                let RawFormat { width, height, channels } = self.format;
                let data = std::mem::take(&mut self.buffer);
                out(Out::Frame(Kind::Image(Picture::Raw { width, height, channels, data }), vec![]));
            }
        }
    }

    fn finish(&mut self, out: &mut dyn FnMut(Out)) {
        if !self.buffer.is_empty() {
            out(Out::Refused("a picture that is torn".into()));
            out(Out::Skipped(self.buffer.len() as u64));
            self.buffer.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::tests::decode;
    use super::*;

    #[test]
    fn pictures_of_the_declared_size_come_out_whatever_the_chunks_and_a_torn_last_one_is_counted() {
        let format = RawFormat::parse("rgb:4x3").unwrap();
        let stream: Vec<u8> = (0..36 * 3 + 5).map(|n| n as u8).collect();
        for chunk in [1, 5, 36, 40, 1000] {
            let decoded = decode(&mut Raw::new(format), &stream, chunk);
            let wanted = |n: usize| {
                let data = stream[36 * n..36 * (n + 1)].to_vec();
                Kind::Image(Picture::Raw { width: 4, height: 3, channels: 3, data })
            };
            assert_eq!(decoded.frames, [wanted(0), wanted(1), wanted(2)], "chunks of {chunk}");
            assert_eq!((decoded.skipped, decoded.refused.len()), (5, 1));
        }
    }

    #[test]
    fn a_size_that_is_none_is_no_format() {
        for text in ["gray:0x9", "gray:9", "bgr:2x2", "gray:18446744073709551615x2", "rgb:-1x2", "rgb"] {
            assert_eq!(RawFormat::parse(text), None, "{text}");
        }
    }
}
