//! JPEG pictures, one after the other, out of a stream of bytes.
//!
//! The markers of each picture are walked through, rather than the stream searched for `FF D9`: an Exif thumbnail is a
//! picture within a picture. Whatever is no picture (text between parts, the rest of one whose beginning was missed) is
//! skipped and counted; a picture that stops making sense is refused, and the next looked for from its last segment on.
//!
//! Source: ITU-T T.81, annex B.
use super::stream::{Decoder, Out};
use super::{Kind, Picture};

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;

/// Where the walk is, at offset `at` of the buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    /// Outside a picture.
    Hunting,
    /// A marker is to begin here.
    Marker,
    /// Among entropy-coded bytes.
    Scan,
}

pub(super) struct Mjpeg {
    /// From the beginning of the picture on, once there is one.
    buffer: Vec<u8>,
    at: usize,
    /// Where the last segment begins: what lies before it made sense.
    segment: usize,
    walk: Walk,
    max_bytes: usize,
}

impl Mjpeg {
    pub(super) fn new(max_bytes: usize) -> Mjpeg {
        Mjpeg { buffer: vec![], at: 0, segment: 0, walk: Walk::Hunting, max_bytes }
    }

    /// Forgets the first `n` bytes and hunts on.
    fn cut(&mut self, n: usize) {
        self.buffer.drain(..n);
        self.at = 0;
        self.walk = Walk::Hunting;
    }

    /// Finds the next `FF D8`, and forgets what is before it; false when there is none yet.
    fn hunt(&mut self, out: &mut dyn FnMut(Out)) -> bool {
        let found = self.buffer.windows(2).position(|pair| pair == [0xFF, SOI]);
        let skipped = found.unwrap_or_else(|| self.buffer.len() - usize::from(self.buffer.last() == Some(&0xFF)));
        if skipped > 0 {
            out(Out::Skipped(skipped as u64));
            self.cut(skipped);
        }
        if found.is_some() {
            self.at = 2;
            self.segment = 2;
            self.walk = Walk::Marker;
        }
        found.is_some()
    }

    /// Refuses the picture in progress, and hunts on from its last segment: the length that misled is that one's, and a
    /// thumbnail in an earlier one is not to pass for a picture.
    fn tear(&mut self, out: &mut dyn FnMut(Out)) {
        out(Out::Refused("a JPEG picture that is torn".into()));
        let torn = self.segment.clamp(2, self.buffer.len());
        out(Out::Skipped(torn as u64));
        self.cut(torn);
    }

    /// Walks as far as there are bytes.
    fn walk_on(&mut self, out: &mut dyn FnMut(Out)) {
        loop {
            if self.walk == Walk::Hunting && !self.hunt(out) {
                return;
            }
            match self.step() {
                Some(Step::On) => {}
                Some(Step::Whole(end)) if end <= self.max_bytes => {
                    let picture = self.buffer[..end].to_vec();
                    self.cut(end);
                    out(Out::Frame(Kind::Image(Picture::Encoded(picture)), vec![]));
                }
                Some(Step::Torn) => self.tear(out),
                None if self.buffer.len() <= self.max_bytes => return,
                Some(Step::Whole(_)) | None => {
                    out(Out::Refused(format!("a picture of more than {} bytes (max_bytes)", self.max_bytes)));
                    let refused = self.at.clamp(2, self.buffer.len());
                    out(Out::Skipped(refused as u64));
                    self.cut(refused);
                }
            }
        }
    }

    /// One step inside a picture; `None` when more bytes are needed.
    fn step(&mut self) -> Option<Step> {
        let ahead = self.buffer.get(self.at..).unwrap_or_default();
        if self.walk == Walk::Scan {
            match ahead.iter().position(|&b| b == 0xFF) {
                None => {
                    self.at = self.buffer.len();
                    return None;
                }
                Some(n) => self.at += n,
            }
            match *self.buffer.get(self.at + 1)? {
                // A stuffed zero, a restart marker, a fill byte: the scan goes on.
                0x00 | 0xD0..=0xD7 => self.at += 2,
                0xFF => self.at += 1,
                _ => {
                    self.segment = self.at;
                    self.walk = Walk::Marker;
                }
            }
            return Some(Step::On);
        }
        if *ahead.first()? != 0xFF {
            return Some(Step::Torn);
        }
        match *ahead.get(1)? {
            0xFF => self.at += 1,
            EOI => return Some(Step::Whole(self.at + 2)),
            0x00 | SOI | 0xD0..=0xD7 => return Some(Step::Torn),
            // TEM, the only other marker without a segment.
            0x01 => self.at += 2,
            marker => {
                let length = usize::from(u16::from_be_bytes([*ahead.get(2)?, *ahead.get(3)?]));
                if length < 2 {
                    return Some(Step::Torn);
                }
                self.segment = self.at;
                self.at += 2 + length;
                self.walk = if marker == SOS { Walk::Scan } else { Walk::Marker };
            }
        }
        Some(Step::On)
    }
}

enum Step {
    On,
    /// The picture ends before this offset.
    Whole(usize),
    /// This cannot be a picture.
    Torn,
}

impl Decoder for Mjpeg {
    fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out)) {
        self.buffer.extend_from_slice(bytes);
        self.walk_on(out);
    }

    fn finish(&mut self, out: &mut dyn FnMut(Out)) {
        // A damaged length may have swallowed whole pictures, so they are looked for there.
        while self.walk != Walk::Hunting {
            self.tear(out);
            self.walk_on(out);
        }
        if !self.buffer.is_empty() {
            out(Out::Skipped(self.buffer.len() as u64));
        }
        self.cut(self.buffer.len());
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::stream::tests::{Decoded, decode};
    use super::*;
    use proptest::prelude::*;

    /// A picture by its markers: an Exif segment with a thumbnail in it, tables, a scan with stuffing and restarts.
    pub(in super::super) fn picture(seed: u8, scan: usize) -> Vec<u8> {
        let thumbnail = [0xFF, SOI, 0xFF, SOS, 0, 2, 7, 7, 0xFF, EOI];
        let mut bytes = vec![0xFF, SOI, 0xFF, 0xE1, 0, 2 + thumbnail.len() as u8];
        bytes.extend(thumbnail);
        bytes.extend([0xFF, 0xFF, 0xC0, 0, 4, 1, seed, 0xFF, SOS, 0, 3, 1]);
        bytes.extend((0..scan).map(|n| (n % 251) as u8));
        bytes.extend([0xFF, 0x00, seed & 0x7F, 0xFF, 0xD3, 0x12, 0xFF, EOI]);
        bytes
    }

    fn pictures(decoded: &Decoded) -> Vec<Vec<u8>> {
        let encoded = |kind: &Kind| match kind {
            Kind::Image(Picture::Encoded(bytes)) => bytes.clone(),
            other => panic!("{other:?}"),
        };
        decoded.frames.iter().map(encoded).collect()
    }

    #[test]
    fn pictures_come_out_byte_for_byte_with_thumbnails_inside_and_garbage_around_whatever_the_chunks() {
        let wanted = [picture(1, 10), picture(2, 5000), picture(3, 0)];
        let mut stream = b"--boundary\r\nContent-Type: image/jpeg\xFF\r\n".to_vec();
        let garbage = stream.len() as u64 + 4;
        stream.extend(&wanted[0]);
        stream.extend(&wanted[1]);
        stream.extend(b"\r\n--");
        stream.extend(&wanted[2]);
        for chunk in [1, 2, 3, 7, 64, 4096, stream.len()] {
            let decoded = decode(&mut Mjpeg::new(1 << 20), &stream, chunk);
            assert_eq!(pictures(&decoded), wanted, "chunks of {chunk}");
            assert_eq!((decoded.skipped, decoded.refused.len()), (garbage, 0), "chunks of {chunk}");
        }
    }

    #[test]
    fn a_torn_picture_is_refused_and_the_one_after_it_comes_whole() {
        let (first, second) = (picture(1, 500), picture(2, 500));
        for torn_at in 3..first.len() - 2 {
            let stream = [&first[..torn_at], &second, &second].concat();
            let decoded = decode(&mut Mjpeg::new(1 << 20), &stream, 100);
            let got = pictures(&decoded);
            assert_eq!(got.last(), Some(&second), "torn at {torn_at}");
            assert!(!decoded.refused.is_empty() || got[0] != second, "torn at {torn_at} and nothing said");
        }
    }

    #[test]
    fn a_picture_larger_than_allowed_is_refused_without_being_kept_and_the_next_comes() {
        let small = picture(2, 100);
        let stream = [&picture(1, 100_000)[..], &small].concat();
        let mut decoder = Mjpeg::new(1000);
        let decoded = decode(&mut decoder, &stream, 512);
        assert_eq!(pictures(&decoded), [small]);
        assert!(decoded.refused[0].contains("more than 1000 bytes"), "{:?}", decoded.refused);
        assert!(decoder.buffer.capacity() < 8192, "{} bytes were kept", decoder.buffer.capacity());
    }

    #[test]
    fn a_picture_cut_off_by_the_end_of_the_stream_is_refused() {
        let whole = picture(1, 100);
        let decoded = decode(&mut Mjpeg::new(1 << 20), &whole[..whole.len() - 1], 64);
        assert_eq!((decoded.frames.len(), decoded.refused.len()), (0, 1));
        assert_eq!(decoded.skipped, whole.len() as u64 - 1);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_every_byte_is_in_a_picture_or_counted(
            parts in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                prop::collection::vec(prop_oneof![Just(0xFFu8), Just(0xD8), Just(0xD9), Just(0xDA), Just(0), Just(2)], 0..40),
                (any::<u8>(), 0usize..60).prop_map(|(seed, scan)| picture(seed, scan)),
            ], 0..12),
            chunk in 1usize..50,
        ) {
            let stream = parts.concat();
            let decoded = decode(&mut Mjpeg::new(90), &stream, chunk);
            let delivered: usize = pictures(&decoded).iter().map(Vec::len).sum();
            prop_assert_eq!(delivered as u64 + decoded.skipped, stream.len() as u64);
        }
    }
}
