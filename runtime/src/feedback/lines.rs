//! Buttons of any device that can write a line of text: a microcontroller on a serial port, a program on a pipe.
//!
//! ```text
//! BTN 3 DOWN 12345        button 3 went down when the device's clock stood at 12345 ms; the time may be left out
//! BTN 3 UP 12410*78       a checksum may follow, as in NMEA 0183: the exclusive or of all bytes before the `*`
//! BTN 3 CLICK             for a device that knows no more
//! BADGE 7                 whose presses those are that follow, from a reader of badges
//! ```
//! The device debounces; gestures are made of its levels and its times by the pad's own core, so a line that comes late
//! still says how long a press was. Unlike a pad, such a device keeps nothing: what it writes while nobody reads is lost, and
//! without a checksum noise may turn one button into another.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use hone_pad::MAX_BUTTONS;
use hone_wire::message::{Config, Kind};
use nom::branch::alt;
use nom::bytes::complete::{tag_no_case, take_while_m_n, take_while1};
use nom::character::complete::{space0, space1};
use nom::combinator::{all_consuming, map_res, opt, value};
use nom::sequence::{preceded, terminated};
use nom::{IResult, Parser};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::local::{Core, LocalPort, Sampler, SharedCore, uid};
use super::serial::{Place, PortSpec, Tty};
use super::source::{Port, Source, SourceError, Spec};

/// Longest line that is looked at, bytes.
const MAX_LINE: usize = 128;
/// Between two changes no more than this passes: a press so long is stuck anyway.
const MAX_GAP_MS: u32 = 12_000;
/// When the device's times have carried the core this far ahead of the clock, reading waits.
const MAX_LEAD_MS: u32 = 30_000;
/// How long a button is down that only says `CLICK`.
const CLICK_MS: u32 = 50;

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The button, from 0.
    pub button: u8,
    /// What it did.
    pub change: Change,
    /// The device's clock, ms, modulo 2³².
    pub at_ms: Option<u32>,
}

/// What a button did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It went down.
    Down,
    /// It came up.
    Up,
    /// Both.
    Click,
    /// No button: a badge of that number was shown.
    Badge(u16),
}

/// Reads one line, without its end.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse_line(text: &str) -> Result<Line, String> {
    let (text, sum) = match text.rsplit_once('*') {
        None => (text, None),
        Some((body, sum)) => (body, Some(sum.trim_end())),
    };
    if let Some(sum) = sum {
        let (_, said) = all_consuming(hex_byte).parse(sum).map_err(|_| format!("`*{sum}` is no checksum"))?;
        let actual = text.bytes().fold(0, |sum, byte| sum ^ byte);
        if said != actual {
            return Err(format!("its checksum is {actual:02X}, not {said:02X}"));
        }
    }
    let line = all_consuming(terminated(line, space0)).parse(text);
    line.map(|(_, line)| line)
        .map_err(|_| "it is not `BTN number DOWN|UP|CLICK [milliseconds]` or `BADGE number`".into())
}

fn line(i: &str) -> IResult<&str, Line> {
    let change = alt((
        value(Change::Down, tag_no_case("DOWN")),
        value(Change::Up, tag_no_case("UP")),
        value(Change::Click, tag_no_case("CLICK")),
    ));
    let button = (preceded((tag_no_case("BTN"), space1), map_res(digits, str::parse)), preceded(space1, change));
    let badge = preceded((tag_no_case("BADGE"), space1), map_res(digits, str::parse)).map(|n| (0, Change::Badge(n)));
    (
        preceded(space0, alt((button, badge))),
        // A clock that counts further than 32 bits is as good.
        opt(preceded(space1, map_res(digits, |text| text.parse::<u64>().map(|ms| ms as u32)))),
    )
        .map(|((button, change), at_ms)| Line { button, change, at_ms })
        .parse(i)
}

fn digits(i: &str) -> IResult<&str, &str> {
    take_while1(|c: char| c.is_ascii_digit()).parse(i)
}

fn hex_byte(i: &str) -> IResult<&str, u8> {
    map_res(take_while_m_n(2, 2, |c: char| c.is_ascii_hexdigit()), |text| u8::from_str_radix(text, 16)).parse(i)
}

/// A device that writes lines.
pub struct LineDevice {
    place: Place,
    what: What,
    buttons: u8,
    core: Option<SharedCore>,
    /// Set when a stream that cannot be read twice has ended.
    ended: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Stdin,
    /// A port, pipe or file: seen when it is opened.
    Path,
}

impl LineDevice {
    pub(super) fn parse(spec: &Spec<'_>) -> Result<LineDevice, String> {
        let [baud, buttons] = spec.only(["baud", "buttons"])?;
        let buttons = match buttons {
            None => DEFAULT_BUTTONS,
            Some(text) => (text.parse().ok())
                .filter(|n| (1..=MAX_BUTTONS as u8).contains(n))
                .ok_or(format!("`{text}` is no number of buttons from 1 to {MAX_BUTTONS}"))?,
        };
        let what = if spec.rest == "-" { What::Stdin } else { What::Path };
        let place = Place::at(PortSpec::parse(spec.rest)?, baud)?;
        Ok(LineDevice { place, what, buttons, core: None, ended: Arc::default() })
    }

    fn stream(&mut self) -> Result<(String, Stream), SourceError> {
        let PortSpec::Path(path) = self.place.spec().clone() else {
            let (device, tty) = self.place.open()?;
            return Ok((device, Stream::Tty(tty)));
        };
        if self.what == What::Stdin {
            return Ok(("standard input".into(), Stream::Stdin));
        }
        let refuse =
            |error: io::Error| SourceError::Open { port: path.display().to_string(), detail: error.to_string() };
        let kind = fs::metadata(&path).map_err(refuse)?.file_type();
        if kind.is_char_device() {
            let (device, tty) = self.place.open()?;
            return Ok((device, Stream::Tty(tty)));
        }
        // Held open for writing as well, a named pipe outlives those who write into it, and opening it waits for nobody.
        let file = OpenOptions::new().read(true).write(kind.is_fifo()).open(&path).map_err(refuse)?;
        Ok((path.display().to_string(), Stream::File(file)))
    }
}

/// Buttons of a device that does not say how many it has.
const DEFAULT_BUTTONS: u8 = 2;

impl Source for LineDevice {
    fn spec(&self) -> String {
        let buttons =
            if self.buttons == DEFAULT_BUTTONS { String::new() } else { format!("buttons={},", self.buttons) };
        let place = self.place.to_string();
        match place.split_once(',').filter(|(key, _)| key.starts_with("baud=")) {
            Some((baud, rest)) => format!("{baud},{buttons}lines:{rest}"),
            None => format!("{buttons}lines:{place}"),
        }
    }

    fn open(&mut self) -> Result<Port, SourceError> {
        if self.ended.load(Ordering::Relaxed) {
            return Err(SourceError::Ended { spec: self.spec() });
        }
        let (device, stream) = self.stream()?;
        let core = match &self.core {
            Some(core) => Arc::clone(core),
            None => {
                // The device has debounced.
                let timing = Config { debounce_ms: 1, ..Config::default() };
                let core = Core::new(uid(*b"line", &self.spec()), self.buttons, timing)?;
                Arc::clone(self.core.insert(Arc::new(Mutex::new(core))))
            }
        };
        // Whatever was held when the last port was lost, nobody will say that it was let go.
        let mut released = core.lock().unwrap_or_else(PoisonError::into_inner);
        released.set(0);
        // Seen, so that the first line's press counts.
        released.pass(1);
        drop(released);
        let reader = LineReader {
            stream,
            ended: Arc::clone(&self.ended),
            buttons: self.buttons,
            cutter: Cutter::default(),
            last: None,
            remarks: Vec::new(),
            complained: false,
            done_ms: None,
        };
        Ok(Port { device, io: Box::new(LocalPort::new(core, reader)) })
    }

    fn is_local(&self) -> bool {
        true
    }
}

enum Stream {
    Tty(Tty),
    Stdin,
    File(File),
}

impl Stream {
    /// As [`super::source::Duplex`] has it, and `Ok(0)` at the end.
    fn read(&mut self, bytes: &mut [u8], wait: Duration) -> io::Result<usize> {
        match self {
            Stream::Tty(tty) => tty.read_within(bytes, wait),
            Stream::File(file) => {
                ready(file.as_fd(), wait)?;
                file.read(bytes)
            }
            Stream::Stdin => {
                let stdin = io::stdin();
                ready(stdin.as_fd(), wait)?;
                // Past the buffer of the standard library, which would hide from `poll` what it holds.
                rustix::io::read(stdin, bytes).map_err(Into::into)
            }
        }
    }

    /// Whether its end is the end for good.
    fn ends(&self) -> bool {
        !matches!(self, Stream::Tty(_))
    }
}

fn ready(fd: BorrowedFd<'_>, wait: Duration) -> io::Result<()> {
    let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
    match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

/// Bytes into lines; what is too long to be one is left out.
#[derive(Debug, Default)]
struct Cutter {
    line: Vec<u8>,
    overlong: bool,
}

impl Cutter {
    /// The line that `byte` ends.
    fn push(&mut self, byte: u8) -> Option<Result<String, String>> {
        if byte != b'\n' && byte != b'\r' {
            self.overlong |= self.line.len() == MAX_LINE;
            if !self.overlong {
                self.line.push(byte);
            }
            return None;
        }
        let line = std::mem::take(&mut self.line);
        if std::mem::take(&mut self.overlong) {
            return Some(Err(format!("a line has more than {MAX_LINE} bytes")));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        Some(String::from_utf8(line).map_err(|_| "a line is not text".into()))
    }
}

struct LineReader {
    stream: Stream,
    ended: Arc<AtomicBool>,
    buttons: u8,
    cutter: Cutter,
    /// The device's clock at the latest change, and the core's.
    last: Option<(u32, u32)>,
    remarks: Vec<String>,
    complained: bool,
    /// Since when, on the core's clock, there is nothing more to read.
    done_ms: Option<u32>,
}

impl LineReader {
    /// After the end: keeps the core going until the host has all of it, then ends.
    fn drain(&mut self, since_ms: u32, core: &mut Core, wait: Duration) -> io::Result<()> {
        thread::sleep(wait.min(Duration::from_millis(5)));
        // Nobody will say that a button was let go, and no second press can come.
        core.sample(0);
        let settled = core.sampled_ms().wrapping_sub(since_ms) > core.settles_ms();
        if core.pending() > 0 || !settled {
            return Ok(());
        }
        self.ended.store(true, Ordering::Relaxed);
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn line(&mut self, text: &str, core: &mut Core) -> Result<(), String> {
        let said = parse_line(text).map_err(|why| format!("`{}` is not understood: {why}", text.escape_debug()))?;
        if said.button >= self.buttons {
            return Err(format!("`{text}`: the buttons are 0 to {}; say buttons=N for more", self.buttons - 1));
        }
        if let (Some(at_ms), Some((then_ms, core_ms))) = (said.at_ms, self.last) {
            let should_ms = at_ms.wrapping_sub(then_ms);
            if (should_ms as i32) < 0 {
                // Its clock has begun anew, so it has restarted: what was held then, it will not say was let go.
                core.set(0);
                core.pass(1);
            } else {
                let passed_ms = core.sampled_ms().wrapping_sub(core_ms);
                core.pass(should_ms.min(MAX_GAP_MS).saturating_sub(passed_ms));
            }
        }
        let bit = 1 << said.button;
        match said.change {
            Change::Down => {
                if core.held() & bit != 0 {
                    // That it came up was not heard; it did.
                    core.set(core.held() & !bit);
                    core.pass(1);
                }
                core.set(core.held() | bit);
            }
            Change::Up => core.set(core.held() & !bit),
            Change::Click => {
                core.set(core.held() | bit);
                core.pass(CLICK_MS);
                core.set(core.held() & !bit);
            }
            Change::Badge(number) => {
                if !core.report(Kind::Badge, number) {
                    return Err("the badge does not fit into the queue: the journal cannot be written".into());
                }
            }
        }
        // Each level is seen, however many come at once.
        core.pass(1);
        self.last = said.at_ms.map(|at_ms| (at_ms, core.sampled_ms()));
        Ok(())
    }
}

impl Sampler for LineReader {
    fn fill(&mut self, core: &mut Core, wait: Duration) -> io::Result<()> {
        if let Some(since_ms) = self.done_ms {
            return self.drain(since_ms, core, wait);
        }
        if core.lead_ms() > MAX_LEAD_MS {
            thread::sleep(wait);
            return Ok(());
        }
        let mut bytes = [0; 256];
        let read = self.stream.read(&mut bytes, wait);
        core.sample(core.held());
        match read {
            Ok(0) if self.stream.ends() => self.done_ms = Some(core.sampled_ms()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                for &byte in &bytes[..n] {
                    let done = match self.cutter.push(byte) {
                        None => continue,
                        Some(Ok(text)) => self.line(&text, core),
                        Some(Err(why)) => Err(why),
                    };
                    if let Err(why) = done
                        && !std::mem::replace(&mut self.complained, true)
                    {
                        self.remarks.push(format!("{why}; further ones are not reported"));
                    }
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn remark(&mut self) -> Option<String> {
        self.remarks.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_button_what_it_did_and_perhaps_when() {
        let line = |button, change, at_ms| Ok(Line { button, change, at_ms });
        assert_eq!(parse_line("BTN 3 DOWN 12345"), line(3, Change::Down, Some(12345)));
        assert_eq!(parse_line("  btn 0  up "), line(0, Change::Up, None));
        assert_eq!(parse_line("BTN 15 CLICK"), line(15, Change::Click, None));
        assert_eq!(parse_line("BTN 1 UP 4294967297"), line(1, Change::Up, Some(1)), "modulo 2^32");
        assert_eq!(parse_line("BTN 3 DOWN 12345*7B"), Err("its checksum is 68, not 7B".into()));
        assert_eq!(parse_line("BTN 3 DOWN 12345*68"), line(3, Change::Down, Some(12345)));
        for text in [
            "BTN",
            "BTN 3",
            "BTN -1 DOWN",
            "BTN 300 DOWN",
            "BTN 3 DOWN 1 2",
            "BTN3DOWN",
            "BUTTON 3 DOWN",
            "BTN 3 DOWN*XY",
        ] {
            assert!(parse_line(text).is_err(), "{text}");
        }
    }

    fn after(lines: &[&str]) -> Core {
        let timing = Config { debounce_ms: 1, ..Config::default() };
        let mut core = Core::new([1; 8], 2, timing).unwrap();
        core.pass(10);
        let mut reader = LineReader {
            stream: Stream::File(File::open("/dev/null").unwrap()),
            ended: Arc::default(),
            buttons: 2,
            cutter: Cutter::default(),
            last: None,
            remarks: Vec::new(),
            complained: false,
            done_ms: None,
        };
        lines.iter().for_each(|text| reader.line(text, &mut core).unwrap());
        core.pass(core.settles_ms());
        core
    }

    #[test]
    fn a_release_that_was_not_heard_is_known_by_the_next_press_and_by_a_clock_that_begins_anew() {
        assert_eq!(after(&["BTN 0 DOWN 1000", "BTN 0 UP 1050"]).pending(), 1);
        assert_eq!(after(&["BTN 0 DOWN 1000", "BTN 0 DOWN 1300", "BTN 0 UP 1350"]).pending(), 2);
        let restarted = after(&["BTN 0 DOWN 900000", "BTN 1 CLICK 5"]);
        assert_eq!(restarted.pending(), 2);
        assert!(restarted.sampled_ms() < MAX_GAP_MS, "no time passed that nobody spoke of");
    }

    #[test]
    fn a_badge_is_an_event_of_its_own() {
        assert_eq!(parse_line("badge 7 12"), Ok(Line { button: 0, change: Change::Badge(7), at_ms: Some(12) }));
        assert!(parse_line("BADGE 70000").is_err());
        assert_eq!(after(&["BADGE 7", "BTN 1 CLICK"]).pending(), 2);
    }

    #[test]
    fn bytes_are_cut_into_lines_and_what_is_too_long_or_no_text_is_left_out_alone() {
        let mut cutter = Cutter::default();
        let mut bytes = b"\r\nBTN 1 UP\r\n\n".to_vec();
        bytes.extend([b'x'; 1000]);
        bytes.extend(b"\nBTN \xff UP\nBTN 2 UP\n");
        let lines: Vec<_> = bytes.into_iter().filter_map(|byte| cutter.push(byte)).collect();
        assert_eq!(lines[0], Ok("BTN 1 UP".into()));
        assert!(lines[1].as_ref().is_err_and(|why| why.contains("128")));
        assert!(lines[2].as_ref().is_err_and(|why| why.contains("not text")));
        assert_eq!(lines[3..], [Ok("BTN 2 UP".into())]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_line_reader_panic(bytes: Vec<u8>) {
            let mut cutter = Cutter::default();
            for byte in bytes {
                if let Some(Ok(text)) = cutter.push(byte) {
                    let _ = parse_line(&text);
                }
            }
        }
    }
}
