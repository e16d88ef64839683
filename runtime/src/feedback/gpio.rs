//! Buttons on GPIO lines of this machine, read by the pad's own core.
//!
//! The lines are held as long as the source lives: on some Jetson kernels a line that is let go is disconnected until the
//! next boot. At rest the thread sleeps until the kernel reports an edge; from there on it samples each millisecond, as a
//! board does, until all is quiet again. While it waited for the disk it did not sample: what the kernel saw meanwhile is
//! replayed to the core at the time when it happened. That a pull resistor was asked for does not mean there is one: a line that reads
//! pressed when it is opened is remarked on, and is not a press until it was seen released.
use super::local::SharedCore;
use super::source::{Port, Source, SourceError, Spec};
use crate::gpio::GpioPlace;
use hone_pad::MAX_BUTTONS;
use hone_pad::pins::Wiring;

/// Pull resistor to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// To the supply.
    Up,
    /// To ground.
    Down,
    /// None.
    Off,
}

/// Buttons on lines of one chip, in the order of their numbers.
pub struct GpioButtons {
    chip: Option<String>,
    lines: Vec<GpioPlace>,
    wiring: Wiring,
    bias: Option<Bias>,
    core: Option<SharedCore>,
}

impl GpioButtons {
    pub(super) fn parse(spec: &Spec<'_>) -> Result<GpioButtons, String> {
        let [active, bias] = spec.only(["active", "bias"])?;
        let wiring = match active {
            None | Some("low") => Wiring::ActiveLow,
            Some("high") => Wiring::ActiveHigh,
            Some(other) => return Err(format!("`{other}` is neither `low` nor `high`")),
        };
        let bias = match bias {
            None => None,
            Some("up") => Some(Bias::Up),
            Some("down") => Some(Bias::Down),
            Some("off") => Some(Bias::Off),
            Some(other) => return Err(format!("`{other}` is none of `up`, `down`, `off`")),
        };
        let (chip, names) = match spec.rest.rsplit_once('/') {
            Some((chip, names)) => (Some(chip), names),
            None => (None, spec.rest),
        };
        let place = |name: &str| {
            let text = chip.map_or(name.to_owned(), |chip| format!("{chip}/{name}"));
            GpioPlace::parse(&text).ok_or(format!("`{text}` names no line: a number needs its chip, `CHIP/LINE`"))
        };
        if names.is_empty() {
            return Err("there is no line in it".into());
        }
        let lines = names.split(',').map(place).collect::<Result<Vec<_>, _>>()?;
        if lines.len() > MAX_BUTTONS {
            return Err(format!("a pad has at most {MAX_BUTTONS} buttons"));
        }
        Ok(GpioButtons { chip: chip.map(str::to_owned), lines, wiring, bias, core: None })
    }

    /// The lines, in the order of the buttons.
    pub fn lines(&self) -> &[GpioPlace] {
        &self.lines
    }

    /// Whether a pressed button reads high.
    pub fn is_active_high(&self) -> bool {
        self.wiring == Wiring::ActiveHigh
    }
}

impl Source for GpioButtons {
    fn spec(&self) -> String {
        let active = if self.wiring == Wiring::ActiveHigh { "active=high," } else { "" };
        let bias = match self.bias {
            None => "",
            Some(Bias::Up) => "bias=up,",
            Some(Bias::Down) => "bias=down,",
            Some(Bias::Off) => "bias=off,",
        };
        let chip = self.chip.as_ref().map_or(String::new(), |chip| format!("{chip}/"));
        let names: Vec<&str> = self.lines.iter().map(|place| place.line.as_str()).collect();
        format!("{active}{bias}gpio:{chip}{}", names.join(","))
    }

    #[cfg(not(all(feature = "gpio", target_os = "linux")))]
    fn open(&mut self) -> Result<Port, SourceError> {
        let _ = &self.core;
        Err(SourceError::NotBuilt)
    }

    #[cfg(all(feature = "gpio", target_os = "linux"))]
    fn open(&mut self) -> Result<Port, SourceError> {
        linux::open(self)
    }

    fn is_local(&self) -> bool {
        true
    }
}

#[cfg(all(feature = "gpio", target_os = "linux"))]
mod linux {
    use std::io;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use embedded_hal::digital::{Error, ErrorKind, ErrorType, InputPin};
    use gpiocdev::Request;
    use gpiocdev::line::{self, EdgeDetection, EdgeEvent, EdgeKind, EventClock, Value};
    use hone_pad::Buttons;
    use hone_pad::pins::Wiring;
    use hone_wire::message::Config;
    use rustix::time::{ClockId, clock_gettime};

    use super::super::local::{Change, Core, LocalPort, Sampler, uid};
    use super::super::source::{Port, Source, SourceError};
    use super::{Bias, GpioButtons};
    use crate::gpio::{CONSUMER, GpioError};

    /// Edges that the kernel keeps while the disk is waited for; it allows no more.
    const EDGES: u32 = 1024;

    pub(super) fn open(buttons: &mut GpioButtons) -> Result<Port, SourceError> {
        let mut found = None;
        let mut offsets = Vec::new();
        for place in &buttons.lines {
            let (chip, offset) = place.find()?;
            if found.as_ref().is_some_and(|first| *first != chip) {
                let detail = "it is on another chip than the first; make two pads of them".into();
                return Err(GpioError::Line { line: place.line.clone(), detail }.into());
            }
            found = Some(chip);
            offsets.push(offset);
        }
        let all = buttons.lines.iter().map(|place| place.line.as_str()).collect::<Vec<_>>().join(",");
        let chip = found.ok_or_else(|| GpioError::NoGpio { detail: "no line was named".into() })?;
        let refuse = |error: gpiocdev::Error| GpioError::Line { line: all.clone(), detail: error.to_string() };
        let mut builder = Request::builder();
        builder.on_chip(&chip).with_consumer(CONSUMER).with_lines(&offsets).as_input();
        builder.with_edge_detection(EdgeDetection::BothEdges).with_event_clock(EventClock::Monotonic);
        builder.with_kernel_event_buffer_size(EDGES);
        if let Some(bias) = buttons.bias {
            builder.with_bias(match bias {
                Bias::Up => line::Bias::PullUp,
                Bias::Down => line::Bias::PullDown,
                Bias::Off => line::Bias::Disabled,
            });
        }
        let request = Arc::new(builder.request().map_err(refuse)?);
        let pin = |&offset: &u32| Buttons::new([Pin { request: Arc::clone(&request), offset }], buttons.wiring);
        let mut pins: Vec<Buttons<Pin, 1>> = offsets.iter().map(pin).collect();
        let at_rest = sample(&mut pins).map_err(|Broken(error)| refuse(error))?;
        let remarks = buttons
            .lines
            .iter()
            .enumerate()
            .filter(|(button, _)| at_rest & 1 << button != 0)
            .map(|(button, place)| {
                let (level, resistor) =
                    if buttons.wiring == Wiring::ActiveLow { ("low", "up") } else { ("high", "down") };
                format!(
                    "button {button} ({}) reads {level} at rest, as if it were pressed: is it held, or is there no \
                     pull-{resistor} resistor? It is not heard before it was seen released",
                    place.line
                )
            })
            .collect();
        let core = match &buttons.core {
            Some(core) => Arc::clone(core),
            None => {
                let uid = uid(*b"gpio", &buttons.spec());
                let core = Core::new(uid, buttons.lines.len() as u8, Config::default())?;
                Arc::clone(buttons.core.insert(Arc::new(Mutex::new(core))))
            }
        };
        let pins = Pins { request, pins, offsets, wiring: buttons.wiring, seen: 0, remarks };
        Ok(Port { device: chip.display().to_string(), io: Box::new(LocalPort::new(core, pins)) })
    }

    fn sample(pins: &mut [Buttons<Pin, 1>]) -> Result<u16, Broken> {
        let mut mask = 0;
        for (button, pin) in pins.iter_mut().enumerate() {
            mask |= pin.sample()? << button;
        }
        Ok(mask)
    }

    struct Pins {
        request: Arc<Request>,
        pins: Vec<Buttons<Pin, 1>>,
        /// Of the buttons, in their order.
        offsets: Vec<u32>,
        wiring: Wiring,
        /// Number of the latest edge, of all lines.
        seen: u32,
        remarks: Vec<String>,
    }

    impl Pins {
        fn change(&mut self, edge: &EdgeEvent, now: Duration) -> Option<Change> {
            let lost = edge.seqno.wrapping_sub(self.seen).wrapping_sub(1);
            if lost != 0 {
                self.remarks.push(format!("the kernel dropped {lost} edges of the lines: presses may be missing"));
            }
            self.seen = edge.seqno;
            let button = self.offsets.iter().position(|offset| *offset == edge.offset)?;
            Some(Change {
                age: now.saturating_sub(Duration::from_nanos(edge.timestamp_ns)),
                button: button as u8,
                down: (edge.kind == EdgeKind::Rising) == (self.wiring == Wiring::ActiveHigh),
            })
        }
    }

    /// The clock of the kernel's edges.
    fn now() -> Duration {
        let now = clock_gettime(ClockId::Monotonic);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
    }

    impl Sampler for Pins {
        fn fill(&mut self, core: &mut Core, wait: Duration) -> io::Result<()> {
            let lost = |error: gpiocdev::Error| io::Error::other(error.to_string());
            let wait = if core.is_busy() { wait.min(Duration::from_millis(1)) } else { wait };
            let mut changes = Vec::new();
            if self.request.wait_edge_event(wait).map_err(lost)? {
                while self.request.has_edge_event().map_err(lost)? {
                    let edge = self.request.read_edge_event().map_err(lost)?;
                    changes.extend(self.change(&edge, now()));
                }
            }
            core.replay(&changes);
            // The level has the last word.
            let mask = sample(&mut self.pins).map_err(|Broken(error)| lost(error))?;
            core.sample(mask);
            Ok(())
        }

        fn remark(&mut self) -> Option<String> {
            self.remarks.pop()
        }
    }

    /// One line as a pin of `embedded-hal`.
    struct Pin {
        request: Arc<Request>,
        offset: u32,
    }

    #[derive(Debug)]
    struct Broken(gpiocdev::Error);

    impl Error for Broken {
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    impl ErrorType for Pin {
        type Error = Broken;
    }

    impl InputPin for Pin {
        fn is_high(&mut self) -> Result<bool, Broken> {
            self.request.value(self.offset).map(|value| value == Value::Active).map_err(Broken)
        }

        fn is_low(&mut self) -> Result<bool, Broken> {
            self.is_high().map(|high| !high)
        }
    }
}
