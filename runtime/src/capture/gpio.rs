//! Edges of a GPIO line as triggers, through the kernel's character device.
//!
//! The line is held as long as the source lives, and should live as long as the program: on
//! some Jetson kernels a line that is let go is disconnected until the next boot. That a pull resistor was asked for does
//! not mean there is one: the level at rest is told when the source starts, and by [`idle_level`](crate::gpio::idle_level).
use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::line::{self, EdgeDetection, EdgeKind, Value};

use super::mailbox::{Full, Mailbox, Threaded};
use super::options::{Bias, Edge};
use super::{CaptureError, Kind, Medium, Source, Spec, Trigger, What};
use crate::Note;
use crate::gpio::{CONSUMER, GpioError, GpioPlace};

const DEBOUNCE: Duration = Duration::from_millis(5);
/// How soon a dropped source is noticed.
const TICK: Duration = Duration::from_millis(100);

/// The row `gpio` of [`super::SOURCES`].
pub(super) fn open(medium: Medium, spec: &Spec) -> Result<Box<dyn Source>, CaptureError> {
    let place = GpioPlace::parse(spec.rest()).ok_or_else(|| {
        spec.refuse("a line is a name (`gpio:GPIO17`) or `CHIP/LINE` with a name or offset (`gpio:pinctrl-rp1/17`)")
    })?;
    let (chip, offset) = place.find()?;
    let refuse = |error: gpiocdev::Error| GpioError::Line { line: place.line.clone(), detail: error.to_string() };
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
        let refuse = |error: gpiocdev::Error| GpioError::Line { line: self.name.clone(), detail: error.to_string() };
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
    fn a_gap_in_the_kernels_numbers_is_that_many_lost_edges_also_over_their_end() {
        let mut last = None;
        assert_eq!([1, 2, 5, 6].map(|n| lost_edges(&mut last, n)), [0, 0, 2, 0]);
        last = Some(u32::MAX);
        assert_eq!(lost_edges(&mut last, 1), 1);
    }
}
