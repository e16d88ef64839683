//! A serial port on USB (CDC-ACM), polled.
//!
//! There is no executor: the USB stack's futures are polled in each step of the shell, which comes at least every
//! millisecond.

use core::convert::Infallible;
use core::future::Future;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use embassy_usb::class::cdc_acm::{CdcAcmClass, Receiver, Sender, State};
use embassy_usb::driver::Driver;
use embassy_usb::{Builder, Config};

/// Bytes of a packet.
const PACKET: usize = 64;

/// What the USB stack needs for as long as it runs: a static of the board's.
pub struct Memory {
    descriptors: [[u8; 256]; 2],
    control: [u8; 64],
    digits: [u8; 16],
    state: MaybeUninit<State<'static>>,
}

impl Memory {
    /// Unused. Of zeros only, so that no copy of it is kept in flash.
    #[must_use]
    pub const fn new() -> Self {
        Self { descriptors: [[0; 256]; 2], control: [0; 64], digits: [0; 16], state: MaybeUninit::uninit() }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

/// The port.
pub struct Port<'u, D: Driver<'static>> {
    device: Pin<&'u mut dyn Future<Output = ()>>,
    sender: Sender<'static, D>,
    receiver: Receiver<'static, D>,
    packet: [u8; PACKET],
    /// What of `packet` is still to be read.
    unread: Range<usize>,
}

/// Runs the board with a port on USB. A host sees `title`, and `uid` as the serial number.
pub fn with<D: Driver<'static>>(
    driver: D,
    memory: &'static mut Memory,
    title: &'static str,
    uid: [u8; 8],
    run: impl FnOnce(Port<'_, D>) -> Infallible,
) -> ! {
    let mut config = Config::new(0x1209, 0x0001);
    config.manufacturer = Some("hone");
    config.product = Some(title);
    config.serial_number = Some(hex(uid, &mut memory.digits));
    let [configuration, bos] = &mut memory.descriptors;
    let mut builder = Builder::new(driver, config, configuration, bos, &mut [], &mut memory.control);
    let (sender, receiver) = CdcAcmClass::new(&mut builder, memory.state.write(State::new()), PACKET as u16).split();
    let mut device = builder.build();
    let device = pin!(async move {
        device.run().await;
    });
    match run(Port { device, sender, receiver, packet: [0; PACKET], unread: 0..0 }) {}
}

impl<D: Driver<'static>> Port<'_, D> {
    /// Takes what has arrived. Returns how many bytes that was.
    pub fn read(&mut self, bytes: &mut [u8]) -> usize {
        self.poll();
        let mut n = 0;
        while n < bytes.len() {
            let Some(byte) = self.byte() else { break };
            bytes[n] = byte;
            n += 1;
        }
        n
    }

    /// Lets the stack do what is due.
    pub fn poll(&mut self) {
        let _ = once(self.device.as_mut());
    }

    /// Takes one byte of what has arrived.
    pub fn byte(&mut self) -> Option<u8> {
        while self.unread.is_empty() {
            match once(pin!(self.receiver.read_packet(&mut self.packet))) {
                Some(Ok(len)) => self.unread = 0..len,
                _ => return None,
            }
        }
        let byte = self.packet[self.unread.start];
        self.unread.start += 1;
        Some(byte)
    }

    /// Gives the port what it takes now. Returns how many bytes that was. What nobody has the port open for is lost, as
    /// on a cable.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        if !self.sender.dtr() {
            return bytes.len();
        }
        // One byte short of a full packet, so that none needs an empty one after it.
        let part = &bytes[..bytes.len().min(PACKET - 1)];
        match once(pin!(self.sender.write_packet(part))) {
            Some(Ok(())) => part.len(),
            Some(Err(_)) => bytes.len(),
            None => 0,
        }
    }
}

fn hex(bytes: [u8; 8], digits: &mut [u8; 16]) -> &str {
    for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
        for (digit, half) in pair.iter_mut().zip([byte >> 4, byte & 0xf]) {
            *digit = b"0123456789abcdef"[usize::from(half)];
        }
    }
    core::str::from_utf8(digits).unwrap_or_default()
}

/// Polls a future once; whoever would be woken is polled again within a millisecond anyway.
fn once<F: Future + ?Sized>(future: Pin<&mut F>) -> Option<F::Output> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    }
}
