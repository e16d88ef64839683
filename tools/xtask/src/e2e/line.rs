//! A serial line that damages what it carries.
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use anyhow::Context;

/// A serial line that damages what it carries: of every 256 bytes either way one is flipped or lost. Its near end is a
/// pseudo-terminal of its own. Dropping it ends it.
pub(super) struct BadLine {
    /// What to open.
    pub(super) pty: String,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    threads: Vec<thread::JoinHandle<u32>>,
    _far: serialport::TTYPort,
}

impl BadLine {
    /// In front of the serial port at `pty`.
    pub(super) fn before(pty: &str) -> anyhow::Result<BadLine> {
        use serialport::SerialPort;
        let (near, far) = serialport::TTYPort::pair().context("cannot make a pseudo-terminal")?;
        let board = serialport::new(pty, 115_200).timeout(Duration::from_millis(10)).open_native()?;
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let mut near = near;
        near.set_timeout(Duration::from_millis(10))?;
        let name = far.name().context("the pseudo-terminal has no name")?;
        let ends = [(board.try_clone_native()?, near.try_clone_native()?, 1u64), (near, board, 2)];
        let threads = ends
            .into_iter()
            .map(|(mut from, mut to, seed)| {
                let stop = std::sync::Arc::clone(&stop);
                thread::spawn(move || {
                    let (mut chance, mut damaged) = (seed, 0);
                    let mut bytes = [0; 256];
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        // Nothing has come, or nobody is there yet.
                        let Ok(n) = from.read(&mut bytes) else { continue };
                        let mut out = Vec::with_capacity(n);
                        for &byte in &bytes[..n] {
                            chance =
                                chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                            match (chance >> 33) % 512 {
                                0 => out.push(byte ^ 0x04),
                                1 => {}
                                _ => {
                                    out.push(byte);
                                    continue;
                                }
                            }
                            damaged += 1;
                        }
                        // What nobody reads is lost, as on a real line.
                        let _ = to.write_all(&out);
                    }
                    damaged
                })
            })
            .collect();
        Ok(BadLine { pty: name, stop, threads, _far: far })
    }

    /// Ends it; how many bytes it damaged.
    pub(super) fn end(mut self) -> u32 {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.threads.drain(..).filter_map(|thread| thread.join().ok()).sum()
    }
}

impl Drop for BadLine {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
