//! Edges of a GPIO line as triggers, through the kernel's character device.
//!
//! The chip is found by its label and the line by its name: numbers move between kernels (the header of a Pi 5 went from
//! `gpiochip4` to `gpiochip0`). The line is held as long as the source lives, and should live as long as the program: on
//! some Jetson kernels a line that is let go is disconnected until the next boot. That a pull resistor was asked for does
//! not mean there is one: the level at rest is told when the source starts, and by [`idle_level`].
use std::path::PathBuf;
use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::chip::Chip;
use gpiocdev::line::{self, EdgeDetection, EdgeKind, Value};

use super::mailbox::{Full, Mailbox, Threaded};
use super::options::{Bias, Edge};
use super::{CaptureError, Kind, Medium, Source, Spec, Trigger, What};
use crate::Note;

const CONSUMER: &str = "hone";
const DEBOUNCE: Duration = Duration::from_millis(5);
/// How soon a dropped source is noticed.
const TICK: Duration = Duration::from_millis(100);

/// Where a line is: `[CHIP/]LINE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpioPlace {
    /// Label of the chip (`pinctrl-rp1`), its name (`gpiochip0`) or its device file; none: whichever has the line.
    pub chip: Option<String>,
    /// Name of the line (`GPIO17`, `PQ.05`), or its offset on the chip.
    pub line: String,
}

impl GpioPlace {
    /// Parses `[CHIP/]LINE`; `None` when a part is empty, or the line is a number without a chip.
    pub fn parse(text: &str) -> Option<GpioPlace> {
        let (chip, line) = match text.rsplit_once('/') {
            Some((chip, line)) => (Some(chip.to_owned()), line),
            None => (None, text),
        };
        let numbered = chip.is_none() && line.parse::<u32>().is_ok();
        let empty = line.is_empty() || chip.as_deref() == Some("");
        (!numbered && !empty).then(|| GpioPlace { chip, line: line.to_owned() })
    }

    /// The chip's device file and the line's offset.
    fn find(&self) -> Result<(PathBuf, u32), CaptureError> {
        let none = |detail: String| CaptureError::NoGpio { detail };
        let paths = gpiocdev::chip::chips().map_err(|error| none(error.to_string()))?;
        if paths.is_empty() {
            return Err(none("there is none".into()));
        }
        let mut seen = vec![];
        for path in paths {
            // A chip this user may not open is not one to be chosen; the message shows which could be.
            let Ok(chip) = Chip::from_path(&path) else { continue };
            let Ok(info) = chip.info() else { continue };
            seen.push(format!("{} ({}, {} lines)", info.label, info.name, info.num_lines));
            let wanted = self
                .chip
                .as_ref()
                .is_none_or(|name| *name == info.label || *name == info.name || *name == path.to_string_lossy());
            if !wanted {
                continue;
            }
            if let Some(found) = chip.find_line_info(&self.line) {
                return Ok((path, found.offset));
            }
            if let Ok(offset) = self.line.parse::<u32>()
                && self.chip.is_some()
                && offset < info.num_lines
            {
                return Ok((path, offset));
            }
        }
        if seen.is_empty() {
            return Err(none("there are some, but none can be opened".into()));
        }
        let line = self.chip.iter().map(String::as_str).chain([self.line.as_str()]).collect::<Vec<_>>().join("/");
        Err(CaptureError::NoLine { line, chips: seen.join(", ") })
    }
}

/// Whether the line is high now: with nothing pressed, true for a button to ground whose pull-up works.
///
/// # Errors
/// [`CaptureError::NoGpio`], [`CaptureError::NoLine`], [`CaptureError::Gpio`]; by class a device.
pub fn idle_level(place: &GpioPlace) -> Result<bool, CaptureError> {
    let (chip, offset) = place.find()?;
    let refuse = |error: gpiocdev::Error| CaptureError::Gpio { line: place.line.clone(), detail: error.to_string() };
    let mut builder = Request::builder();
    let request =
        builder.on_chip(chip).with_consumer(CONSUMER).with_line(offset).as_input().request().map_err(refuse)?;
    Ok(request.value(offset).map_err(refuse)? == Value::Active)
}

/// The row `gpio` of [`super::SOURCES`].
pub(super) fn open(medium: Medium, spec: &Spec) -> Result<Box<dyn Source>, CaptureError> {
    let place = GpioPlace::parse(spec.rest()).ok_or_else(|| {
        spec.refuse("a line is a name (`gpio:GPIO17`) or `CHIP/LINE` with a name or offset (`gpio:pinctrl-rp1/17`)")
    })?;
    let (chip, offset) = place.find()?;
    let refuse = |error: gpiocdev::Error| CaptureError::Gpio { line: place.line.clone(), detail: error.to_string() };
    let options = spec.options();
    let edge = options.edge.unwrap_or(Edge::Falling);
    let mut builder = Request::builder();
    builder.on_chip(&chip).with_consumer(CONSUMER).with_line(offset).as_input().with_edge_detection(match edge {
        Edge::Falling => EdgeDetection::FallingEdge,
        Edge::Rising => EdgeDetection::RisingEdge,
        Edge::Both => EdgeDetection::BothEdges,
    });
    builder.with_debounce_period(options.debounce.unwrap_or(DEBOUNCE));
    if let Some(bias) = options.bias {
        builder.with_bias(match bias {
            Bias::Up => line::Bias::PullUp,
            Bias::Down => line::Bias::PullDown,
            Bias::Off => line::Bias::Disabled,
        });
    }
    let request = builder.request().map_err(refuse)?;
    let idle = request.value(offset).map_err(refuse)? == Value::Active;
    let what =
        format!("{} line {offset} ({}), {} at rest", chip.display(), place.line, if idle { "high" } else { "low" });
    let edges = Edges { request, edge, name: place.line, what };
    let mailbox = Mailbox::new(spec.keep(medium), Full::DropOldest);
    Threaded::start(spec.text(), mailbox, move |mailbox| edges.serve(mailbox))
}

struct Edges {
    request: Request,
    edge: Edge,
    name: String,
    what: String,
}

impl Edges {
    fn serve(&self, mailbox: &Mailbox) -> Result<(), CaptureError> {
        let refuse = |error: gpiocdev::Error| CaptureError::Gpio { line: self.name.clone(), detail: error.to_string() };
        mailbox.update(|status| status.starts += 1);
        mailbox.tell(What::Started { what: self.what.clone() });
        let mut last = None;
        while !mailbox.stopped() {
            if !self.request.wait_edge_event(TICK).map_err(refuse)? {
                continue;
            }
            let event = self.request.read_edge_event().map_err(refuse)?;
            let lost = lost_edges(&mut last, event.line_seqno);
            let mut notes = vec![];
            if lost > 0 {
                mailbox.refuse("edges the kernel had no room for".into());
                notes.push(Note::new("edges-lost", format!("{lost} before this"), "0"));
            }
            let pressed = self.edge != Edge::Both || event.kind == EdgeKind::Falling;
            mailbox.push(Kind::Trigger(Trigger { line: self.name.clone(), pressed }), notes, None);
        }
        Ok(())
    }
}

/// Edges missing before the one numbered `seqno`: the kernel drops what it has no room for, and leaves a gap.
fn lost_edges(last: &mut Option<u32>, seqno: u32) -> u32 {
    let expected = last.replace(seqno).map_or(1, |n| n.wrapping_add(1));
    seqno.wrapping_sub(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_named_alone_or_behind_its_chip_and_a_number_alone_names_none() {
        let place = |chip: Option<&str>, line: &str| Some(GpioPlace { chip: chip.map(Into::into), line: line.into() });
        assert_eq!(GpioPlace::parse("GPIO17"), place(None, "GPIO17"));
        assert_eq!(GpioPlace::parse("tegra234-gpio/PQ.05"), place(Some("tegra234-gpio"), "PQ.05"));
        assert_eq!(GpioPlace::parse("/dev/gpiochip0/17"), place(Some("/dev/gpiochip0"), "17"));
        for text in ["", "17", "/17", "chip/"] {
            assert_eq!(GpioPlace::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_gap_in_the_kernels_numbers_is_that_many_lost_edges_also_over_their_end() {
        let mut last = None;
        assert_eq!([1, 2, 5, 6].map(|n| lost_edges(&mut last, n)), [0, 0, 2, 0]);
        last = Some(u32::MAX);
        assert_eq!(lost_edges(&mut last, 1), 1);
    }
}
