//! Lines of text: windows of CSV readings, and triggers.
use std::collections::VecDeque;

use super::stream::{Decoder, Out};
use super::{Kind, Trigger};

/// A longer line is refused.
const MAX_LINE_BYTES: usize = 64 << 10;

/// What is done with a line, and where that puts what comes of it.
type OnLine<'a> = &'a mut dyn FnMut(&str, &mut dyn FnMut(Out));

/// Cuts bytes into lines without their ends. A line that is too long or not UTF-8 is refused, one of zero length kept.
#[derive(Default)]
struct Splitter {
    partial: Vec<u8>,
    /// The line in progress is refused already; its rest is thrown away.
    overlong: bool,
}

impl Splitter {
    fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out), line: OnLine<'_>) {
        let mut rest = bytes;
        while let Some(n) = rest.iter().position(|&b| b == b'\n') {
            self.extend(&rest[..n], out);
            self.end(out, line);
            rest = &rest[n + 1..];
        }
        self.extend(rest, out);
    }

    fn extend(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out)) {
        if self.overlong || self.partial.len() + bytes.len() > MAX_LINE_BYTES {
            if !self.overlong {
                out(Out::Refused(format!("a line of more than {MAX_LINE_BYTES} bytes")));
            }
            out(Out::Skipped((std::mem::take(&mut self.partial).len() + bytes.len()) as u64));
            self.overlong = true;
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn end(&mut self, out: &mut dyn FnMut(Out), line: OnLine<'_>) {
        let bytes = std::mem::take(&mut self.partial);
        if std::mem::take(&mut self.overlong) {
            return;
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => line(text.strip_suffix('\r').unwrap_or(text), out),
            Err(_) => {
                out(Out::Refused("a line that is not UTF-8".into()));
                out(Out::Skipped(bytes.len() as u64));
            }
        }
    }

    /// The last line, if nothing ended it.
    fn finish(&mut self, out: &mut dyn FnMut(Out), line: OnLine<'_>) {
        if !self.partial.is_empty() || self.overlong {
            self.end(out, line);
        }
    }
}

/// How lines become windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinesFormat {
    /// Lines of a window, at least 1.
    pub(super) length: usize,
    /// Lines from the beginning of a window to that of the next, at least 1.
    pub(super) hop: usize,
    /// Whether the first line is a header.
    pub(super) header: bool,
    /// The header, if no line is.
    pub(super) columns: Option<String>,
    /// Most bytes of a window.
    pub(super) max_bytes: usize,
}

/// Windows of CSV readings. Empty lines and those that begin with `#` are passed over; one whose fields are not as many as
/// the header's (a serial line joined in the middle) is refused.
pub(super) struct Windows {
    format: LinesFormat,
    splitter: Splitter,
    window: Window,
}

struct Window {
    header: Option<String>,
    lines: VecDeque<String>,
    bytes: usize,
    /// Lines still to pass over, when windows do not touch.
    gap: usize,
}

impl Windows {
    pub(super) fn new(format: LinesFormat) -> Windows {
        let window = Window { header: format.columns.clone(), lines: VecDeque::new(), bytes: 0, gap: 0 };
        Windows { format, splitter: Splitter::default(), window }
    }
}

impl Window {
    fn line(&mut self, format: &LinesFormat, text: &str, out: &mut dyn FnMut(Out)) {
        if text.trim().is_empty() || text.starts_with('#') {
            return;
        }
        let fields = |text: &str| text.split(',').count();
        match &self.header {
            None if format.header => {
                self.header = Some(text.to_owned());
                out(Out::Progress);
                return;
            }
            Some(header) if fields(header) != fields(text) => {
                out(Out::Refused("a line that has not as many fields as the header".into()));
                out(Out::Skipped(text.len() as u64));
                return;
            }
            _ => {}
        }
        out(Out::Progress);
        if self.gap > 0 {
            self.gap -= 1;
            return;
        }
        self.bytes += text.len() + 1;
        self.lines.push_back(text.to_owned());
        if self.bytes > format.max_bytes {
            out(Out::Refused(format!("a window of more than {} bytes (max_bytes)", format.max_bytes)));
            self.lines.clear();
            self.bytes = 0;
        } else if self.lines.len() == format.length {
            let mut csv = String::with_capacity(self.bytes + self.header.as_ref().map_or(0, |h| h.len() + 1));
            for line in self.header.iter().chain(&self.lines) {
                csv += line;
                csv.push('\n');
            }
            out(Out::Frame(Kind::Sensor(csv), vec![]));
            for line in self.lines.drain(..format.hop.min(format.length)) {
                self.bytes -= line.len() + 1;
            }
            self.gap = format.hop.saturating_sub(format.length);
        }
    }
}

impl Decoder for Windows {
    fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out)) {
        let Windows { format, splitter, window } = self;
        splitter.feed(bytes, out, &mut |text, out| window.line(format, text, out));
    }

    /// A window that is not full is not given.
    fn finish(&mut self, out: &mut dyn FnMut(Out)) {
        let Windows { format, splitter, window } = self;
        splitter.finish(out, &mut |text, out| window.line(format, text, out));
    }
}

/// Each line a trigger, trimmed; an empty one too: that is what Enter gives.
#[derive(Default)]
pub(super) struct Triggers {
    splitter: Splitter,
}

fn press(text: &str, out: &mut dyn FnMut(Out)) {
    out(Out::Frame(Kind::Trigger(Trigger { line: text.trim().to_owned(), pressed: true }), vec![]));
}

impl Decoder for Triggers {
    fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(Out)) {
        self.splitter.feed(bytes, out, &mut press);
    }

    fn finish(&mut self, out: &mut dyn FnMut(Out)) {
        self.splitter.finish(out, &mut press);
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::tests::decode;
    use super::*;

    fn format(length: usize, hop: usize) -> LinesFormat {
        LinesFormat { length, hop, header: true, columns: None, max_bytes: 1 << 20 }
    }

    fn csv(text: &str) -> Kind {
        Kind::Sensor(text.into())
    }

    #[test]
    fn windows_overlap_touch_or_leave_gaps_as_asked_and_each_has_the_header() {
        let stream = b"a,b\n# remark\n1,1\n\n2,2\r\n3,3\n4,4\n5,5";
        for chunk in [1, 4, 100] {
            let overlap = decode(&mut Windows::new(format(3, 1)), stream, chunk);
            let wanted = ["a,b\n1,1\n2,2\n3,3\n", "a,b\n2,2\n3,3\n4,4\n", "a,b\n3,3\n4,4\n5,5\n"].map(csv);
            assert_eq!(overlap.frames, wanted, "chunks of {chunk}");
            let touch = decode(&mut Windows::new(format(2, 2)), stream, chunk);
            assert_eq!(touch.frames, ["a,b\n1,1\n2,2\n", "a,b\n3,3\n4,4\n"].map(csv));
            let gaps = decode(&mut Windows::new(format(1, 3)), stream, chunk);
            assert_eq!(gaps.frames, ["a,b\n1,1\n", "a,b\n4,4\n"].map(csv));
        }
    }

    #[test]
    fn columns_can_be_named_from_outside_and_torn_lines_are_refused_and_counted() {
        let named = LinesFormat { header: false, columns: Some("x,y".into()), ..format(2, 2) };
        let decoded = decode(&mut Windows::new(named), b"9\n1,2\n\xFF,\xFE\n3,4,5\n3,4\n", 3);
        assert_eq!(decoded.frames, [csv("x,y\n1,2\n3,4\n")]);
        assert_eq!(decoded.refused.len(), 3, "{:?}", decoded.refused);
        let bare = LinesFormat { header: false, ..format(1, 1) };
        assert_eq!(decode(&mut Windows::new(bare), b"7\n", 9).frames, [csv("7\n")]);
    }

    #[test]
    fn a_line_without_end_is_refused_once_without_being_kept_and_the_next_is_read() {
        let mut stream = vec![b'x'; 10 * MAX_LINE_BYTES];
        stream.extend(b"\nv\n5\n");
        let mut windows = Windows::new(format(1, 1));
        let decoded = decode(&mut windows, &stream, 4096);
        assert_eq!((decoded.frames, decoded.refused.len()), (vec![csv("v\n5\n")], 1));
        assert_eq!(decoded.skipped, 10 * MAX_LINE_BYTES as u64);
    }

    #[test]
    fn a_window_larger_than_allowed_is_refused() {
        let small = LinesFormat { max_bytes: 8, ..format(100, 100) };
        let decoded = decode(&mut Windows::new(small), b"v\n1111\n2222\n3\n", 99);
        assert!(decoded.refused[0].contains("max_bytes"), "{:?}", decoded.refused);
    }

    #[test]
    fn every_line_even_an_empty_one_is_a_press() {
        let decoded = decode(&mut Triggers::default(), b"\n yes \nlast", 2);
        let lines: Vec<_> =
            ["", "yes", "last"].map(|l| Kind::Trigger(Trigger { line: l.into(), pressed: true })).into();
        assert_eq!(decoded.frames, lines);
    }
}
