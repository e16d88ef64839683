//! A pad on a serial port (USB or UART), found by what it *is* and not by the path it had.
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serialport::{SerialPortInfo, SerialPortType, UsbPortInfo};

use super::listener::READ_TIMEOUT;
use super::source::{Duplex, Port, Source, SourceError, Spec};

/// The usual speed of a pad's UART; without meaning on USB.
pub const BAUD: u32 = 115_200;
/// What the USB product name of a hone pad has in it, in any case.
const PRODUCT: &str = "hone pad";

const BY_ID: &str = "/dev/serial/by-id";
const SYS_TTYS: &str = "/sys/class/tty";

/// Which port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSpec {
    /// The first that says it is a hone pad; from then on that one.
    Auto,
    /// A device file or a link to one. Should it turn out to be a USB device with a serial number, that is what is looked
    /// for once it is lost.
    Path(PathBuf),
    /// A name in `/dev/serial/by-id`.
    ById(String),
    /// A USB device by its numbers and, if given, its serial number.
    Usb {
        /// Vendor.
        vid: u16,
        /// Product.
        pid: u16,
        /// Serial number.
        serial: Option<String>,
    },
}

impl PortSpec {
    /// `auto`, `usb:VID:PID` or `usb:VID:PID:SERIAL` (hexadecimal), `by-id:NAME`, else a path.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(name) = text.strip_prefix("by-id:") {
            let plain = !name.is_empty() && !name.contains('/');
            return plain.then(|| Self::ById(name.into())).ok_or("a name in /dev/serial/by-id has no slash".into());
        }
        if let Some(usb) = text.strip_prefix("usb:") {
            let mut parts = usb.splitn(3, ':');
            let mut number = || {
                let number = parts.next().and_then(|part| u16::from_str_radix(part, 16).ok());
                number.ok_or("vendor and product are hexadecimal numbers")
            };
            let (vid, pid) = (number()?, number()?);
            let serial = parts.next().map(str::to_owned);
            return Ok(Self::Usb { vid, pid, serial });
        }
        if text.is_empty() { Err("the path is empty".into()) } else { Ok(Self::Path(text.into())) }
    }
}

impl fmt::Display for PortSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::ById(name) => write!(f, "by-id:{name}"),
            Self::Usb { vid, pid, serial: None } => write!(f, "usb:{vid:04x}:{pid:04x}"),
            Self::Usb { vid, pid, serial: Some(serial) } => write!(f, "usb:{vid:04x}:{pid:04x}:{serial}"),
        }
    }
}

/// A pad on a serial port.
#[derive(Debug)]
pub struct SerialPad {
    place: Place,
}

impl SerialPad {
    /// The pad on this port, at [`BAUD`].
    #[must_use]
    pub fn new(spec: PortSpec) -> SerialPad {
        SerialPad { place: Place { spec, baud: BAUD, identity: None } }
    }

    /// The pad on the port of that path.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> SerialPad {
        SerialPad::new(PortSpec::Path(path.into()))
    }

    pub(super) fn parse(spec: &Spec<'_>) -> Result<SerialPad, String> {
        Ok(SerialPad { place: Place::parse(spec)? })
    }
}

impl Source for SerialPad {
    fn spec(&self) -> String {
        self.place.to_string()
    }

    fn open(&mut self) -> Result<Port, SourceError> {
        let (device, tty) = self.place.open()?;
        Ok(Port { device, io: Box::new(tty) })
    }
}

/// An open serial port.
pub(super) struct Tty(Box<dyn serialport::SerialPort>);

impl Tty {
    /// Reads, waiting at most so long for the first byte.
    pub(super) fn read_within(&mut self, bytes: &mut [u8], wait: Duration) -> io::Result<usize> {
        self.0.set_timeout(wait)?;
        self.0.read(bytes)
    }
}

impl Read for Tty {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Tty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Duplex for Tty {}

/// Where a serial port is found.
#[derive(Debug)]
pub(super) struct Place {
    spec: PortSpec,
    baud: u32,
    /// What was found to be there; from then on looked for instead.
    identity: Option<UsbPortInfo>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.baud != BAUD {
            write!(f, "baud={},", self.baud)?;
        }
        write!(f, "{}", self.spec)
    }
}

impl Place {
    /// A port and, by its key, how fast it is.
    pub(super) fn parse(spec: &Spec<'_>) -> Result<Place, String> {
        let [baud] = spec.only(["baud"])?;
        Place::at(PortSpec::parse(spec.rest)?, baud)
    }

    pub(super) fn spec(&self) -> &PortSpec {
        &self.spec
    }

    /// A port at so many bits per second; [`BAUD`] unless given.
    pub(super) fn at(spec: PortSpec, baud: Option<&str>) -> Result<Place, String> {
        let baud = match baud {
            None => BAUD,
            Some(text) => text.parse().map_err(|_| format!("`{text}` bits per second are no number"))?,
        };
        Ok(Place { spec, baud, identity: None })
    }

    /// The device file and the open port. Nobody else can open it meanwhile (`TIOCEXCL`).
    pub(super) fn open(&mut self) -> Result<(String, Tty), SourceError> {
        let ports = ports();
        let device = find(&self.spec, self.identity.as_ref(), &ports).ok_or_else(|| SourceError::Absent {
            spec: self.spec.to_string(),
            present: ports.iter().map(|port| port.port_name.clone()).collect(),
        })?;
        let name = device.to_string_lossy().into_owned();
        let io = serialport::new(&name, self.baud).timeout(READ_TIMEOUT).open().map_err(|error| {
            // An exclusive port that is taken reports no kind of its own.
            match holder(&device) {
                Some(holder) => SourceError::Busy { port: name.clone(), holder: Some(holder) },
                None => SourceError::Open { port: name.clone(), detail: error.to_string() },
            }
        })?;
        if self.identity.is_none() {
            self.identity = usb_of(&device, &ports).filter(|usb| usb.serial_number.is_some()).cloned();
        }
        Ok((name, Tty(io)))
    }
}

/// The device file that `spec` means now, links resolved.
fn find(spec: &PortSpec, identity: Option<&UsbPortInfo>, ports: &[SerialPortInfo]) -> Option<PathBuf> {
    let usb = |matches: &dyn Fn(&UsbPortInfo) -> bool| {
        ports
            .iter()
            .find(|port| matches!(&port.port_type, SerialPortType::UsbPort(usb) if matches(usb)))
            .map(|port| PathBuf::from(&port.port_name))
    };
    if let Some(known) = identity {
        return usb(&|usb| same_device(usb, known));
    }
    match spec {
        PortSpec::Auto => usb(&is_pad),
        PortSpec::Path(path) => path.canonicalize().ok(),
        PortSpec::ById(name) => Path::new(BY_ID).join(name).canonicalize().ok(),
        PortSpec::Usb { vid, pid, serial } => {
            usb(&|usb| usb.vid == *vid && usb.pid == *pid && (serial.is_none() || usb.serial_number == *serial))
        }
    }
}

/// The start of the name: others have `hone` in the middle of theirs, as every phone has.
fn calls_itself_pad(product: Option<&str>) -> bool {
    product.is_some_and(|product| product.to_lowercase().starts_with(PRODUCT))
}

fn is_pad(usb: &UsbPortInfo) -> bool {
    calls_itself_pad(usb.product.as_deref())
}

fn same_device(a: &UsbPortInfo, b: &UsbPortInfo) -> bool {
    (a.vid, a.pid, &a.serial_number) == (b.vid, b.pid, &b.serial_number)
}

fn usb_of<'a>(device: &Path, ports: &'a [SerialPortInfo]) -> Option<&'a UsbPortInfo> {
    ports.iter().find_map(|port| match &port.port_type {
        SerialPortType::UsbPort(usb) if Path::new(&port.port_name) == device => Some(usb),
        _ => None,
    })
}

/// A serial port of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortInfo {
    /// The device file.
    pub device: String,
    /// What it is, if it is a USB device.
    pub usb: Option<UsbIdentity>,
}

/// What a USB device says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsbIdentity {
    /// Vendor.
    pub vid: u16,
    /// Product.
    pub pid: u16,
    /// Serial number.
    pub serial: Option<String>,
    /// Name of the product.
    pub product: Option<String>,
}

impl PortInfo {
    /// What names this port for good: its USB numbers where it has them, else the device file.
    #[must_use]
    pub fn spec(&self) -> PortSpec {
        match &self.usb {
            None => PortSpec::Path(self.device.clone().into()),
            Some(u) => PortSpec::Usb { vid: u.vid, pid: u.pid, serial: u.serial.clone() },
        }
    }

    /// Whether it says that it is a hone pad.
    #[must_use]
    pub fn is_pad(&self) -> bool {
        calls_itself_pad(self.usb.as_ref().and_then(|usb| usb.product.as_deref()))
    }
}

/// The serial ports of this machine by device file; none where the system does not say.
#[must_use]
pub fn list_ports() -> Vec<PortInfo> {
    let usb = |kind: SerialPortType| match kind {
        SerialPortType::UsbPort(u) => {
            Some(UsbIdentity { vid: u.vid, pid: u.pid, serial: u.serial_number, product: u.product })
        }
        _ => None,
    };
    let mut list: Vec<PortInfo> =
        ports().into_iter().map(|p| PortInfo { device: p.port_name, usb: usb(p.port_type) }).collect();
    list.sort_by(|a, b| a.device.cmp(&b.device));
    list
}

/// The machine's ports; none where the system does not say.
fn ports() -> Vec<SerialPortInfo> {
    // The crate takes the directory for granted, and containers often lack it.
    if cfg!(target_os = "linux") && !Path::new(SYS_TTYS).is_dir() {
        return Vec::new();
    }
    serialport::available_ports().unwrap_or_default()
}

/// Who else has this device open, as far as this user may know.
fn holder(device: &Path) -> Option<String> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").ok()?;
    for process in processes.flatten() {
        let pid = process.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == device)) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usb_port(name: &str, serial: Option<&str>) -> SerialPortInfo {
        SerialPortInfo {
            port_name: name.into(),
            port_type: SerialPortType::UsbPort(UsbPortInfo {
                vid: 0x2e8a,
                pid: 0x000a,
                serial_number: serial.map(Into::into),
                manufacturer: None,
                product: None,
            }),
        }
    }

    #[test]
    fn a_lost_usb_pad_is_found_by_serial_number_under_whatever_name_it_came_back() {
        let before = [usb_port("/dev/ttyACM0", Some("A")), usb_port("/dev/ttyACM1", Some("B"))];
        let identity = usb_of(Path::new("/dev/ttyACM0"), &before).unwrap();
        let spec = PortSpec::Path("/dev/ttyACM0".into());
        // Another pad now has the old name.
        let after = [usb_port("/dev/ttyACM0", Some("B")), usb_port("/dev/ttyACM7", Some("A"))];
        assert_eq!(find(&spec, Some(identity), &after), Some("/dev/ttyACM7".into()));
        assert_eq!(find(&spec, Some(identity), &after[..1]), None, "the old name is not good enough");
    }

    #[test]
    fn usb_numbers_without_a_serial_number_find_the_first_and_with_one_the_right_one() {
        let ports = [usb_port("/dev/ttyACM0", Some("A")), usb_port("/dev/ttyACM1", Some("B"))];
        let find = |text: &str| find(&PortSpec::parse(text).unwrap(), None, &ports);
        assert_eq!(find("usb:2e8a:000a"), Some("/dev/ttyACM0".into()));
        assert_eq!(find("usb:2e8a:000a:B"), Some("/dev/ttyACM1".into()));
        assert_eq!(find("usb:2e8a:000a:C"), None);
        assert_eq!(find("usb:2e8a:000b"), None);
    }

    #[test]
    fn auto_finds_the_first_that_calls_itself_a_hone_pad_and_afterwards_that_one() {
        let mut ports = [usb_port("/dev/ttyACM0", Some("modem")), usb_port("/dev/ttyACM1", Some("B"))];
        assert_eq!(find(&PortSpec::Auto, None, &ports), None);
        let SerialPortType::UsbPort(usb) = &mut ports[1].port_type else { panic!("made so") };
        usb.product = Some("Hone pad".into());
        let usb = usb.clone();
        let SerialPortType::UsbPort(phone) = &mut ports[0].port_type else { panic!("made so") };
        phone.product = Some("Fairphone pad".into());
        assert_eq!(find(&PortSpec::Auto, None, &ports), Some("/dev/ttyACM1".into()));
        assert_eq!(find(&PortSpec::Auto, Some(&usb), &ports[..1]), None);
    }
}
