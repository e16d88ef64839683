//! A host and a pad on one table, joined by a perfect cable, a millisecond a step.

use super::{Disk, Flash};
use hone_pad::link::Identity;
use hone_pad::{Pad, PadConfig};
use hone_wire::auth::Key;
use hone_wire::frame::{Body, Deframed, Deframer, Frame, encode, encode_body};
use hone_wire::host::{HostConfig, HostLink, Notice};
use hone_wire::message::{Event, Message};

pub const UID: [u8; 8] = *b"tablepad";

pub struct Table {
    pub host: HostLink,
    pub pad: Pad<Flash>,
    pub disk: Disk,
    pub flash: Flash,
    pub notices: Vec<Notice>,
    pub now: u64,
    pub buttons: u16,
    /// Every frame that went to the host and to the pad.
    pub to_host: Vec<Vec<u8>>,
    pub to_pad: Vec<Vec<u8>>,
    /// Whether the cable is plugged in.
    pub plugged: bool,
}

impl Table {
    /// `host` and `pad` are the keys each holds.
    pub fn new(host: Option<Key>, pad: Option<Key>) -> Self {
        let flash = Flash::new(64);
        Self {
            host: new_host(host, host.is_none()),
            pad: new_pad(pad, &flash, 1),
            disk: Disk::default(),
            flash,
            notices: Vec::new(),
            now: 0,
            buttons: 0,
            to_host: Vec::new(),
            to_pad: Vec::new(),
            plugged: true,
        }
    }

    /// Unpaired, allowed, connected, buttons armed.
    pub fn up() -> Self {
        let mut table = Self::new(None, None);
        table.run(100);
        assert!(table.host.is_up() && table.pad.is_up());
        table
    }

    pub fn paired(key: Key) -> Self {
        let mut table = Self::new(Some(key), Some(key));
        table.run(100);
        assert!(table.host.is_up() && table.pad.is_up());
        table
    }

    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += 1;
            let now = self.now as u32;
            self.pad.tick(now, self.buttons);
            self.pad.poll(now);
            self.host.poll(self.now, &mut |notice| self.notices.push(notice));
            while let Some(frame) = self.pad.pop_tx() {
                self.to_host.push(frame.to_vec());
                if self.plugged {
                    self.host.rx(&frame, self.now, &mut self.disk, &mut |notice| self.notices.push(notice));
                }
            }
            while let Some(frame) = self.host.pop_tx() {
                self.to_pad.push(frame.to_vec());
                if self.plugged {
                    self.pad.rx(&frame, now);
                }
            }
        }
    }

    /// Holds the buttons of `mask` for `ms`, then lets go for long enough to be seen.
    pub fn hold(&mut self, mask: u16, ms: u64) {
        self.buttons = mask;
        self.run(ms);
        self.buttons = 0;
        self.run(30);
    }

    pub fn reboot_pad(&mut self, key: Option<Key>, boot: u16) {
        self.pad = new_pad(key, &self.flash, boot);
    }

    /// Gives the host bytes that the pad did not send.
    pub fn inject_to_host(&mut self, bytes: &[u8]) {
        self.host.rx(bytes, self.now, &mut self.disk, &mut |notice| self.notices.push(notice));
    }

    pub fn inject_to_pad(&mut self, bytes: &[u8]) {
        self.pad.rx(bytes, self.now as u32);
    }

    pub fn events(&self) -> Vec<Event> {
        self.disk.log.iter().map(|received| received.event).collect()
    }
}

pub fn new_host(pairing_key: Option<Key>, allow_unpaired: bool) -> HostLink {
    HostLink::new(HostConfig { pairing_key, allow_unpaired, nonce: *b"\x01host-nc", ..HostConfig::default() })
}

pub fn new_pad(pairing_key: Option<Key>, flash: &Flash, boot: u16) -> Pad<Flash> {
    let config = PadConfig {
        identity: Identity { uid: UID, boot, buttons: 5, leds: 5, ..Identity::default() },
        pairing_key,
        nonce: [boot as u8; 8],
        ..PadConfig::default()
    };
    Pad::new(config, flash.clone())
}

/// The frame in these bytes: type, session, counter, body.
pub fn opened(encoded: &[u8], key: Option<&Key>) -> (u8, u32, u32, Vec<u8>) {
    let mut deframer = Deframer::new();
    for &byte in encoded {
        if let Deframed::Run(raw) = deframer.push(byte) {
            let frame = Frame::parse(&raw, key).expect("a good frame");
            return (frame.kind, frame.session, frame.ctr, frame.body.to_vec());
        }
    }
    panic!("no frame in {encoded:02x?}");
}

/// A frame of a type from the future.
pub fn unknown(session: u32, ctr: u32) -> Vec<u8> {
    let body: Body = [1, 2, 3].into_iter().collect();
    encode_body(99, &body, session, ctr, None).to_vec()
}

pub fn framed(message: &Message, session: u32, ctr: u32) -> Vec<u8> {
    encode(message, session, ctr, None).to_vec()
}
