//! A real `hone listen`.
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::{PATIENCE, Stage};

/// A running `hone listen`. Dropping it kills it.
pub(super) struct Host {
    child: Child,
    pub(super) events: Receiver<Value>,
}

impl Host {
    /// Starts it and waits until it hears the pad.
    pub(super) fn start(stage: &Stage<'_>, pty: &str) -> anyhow::Result<Host> {
        let model = stage.root.join("models/which-digit");
        let mut command = stage.command(&["listen"]);
        command.arg(model.join("which-digit.hone")).arg("--state").arg(stage.state()).args(["--pad", pty]);
        command.args(["--hold", "0", "--stdin", "--jsonl", "--camera"]);
        command.arg(format!("fps=5,repeat=yes,file:{}", model.join("golden/gray-28x28.png").display()));
        if !stage.scene.tagged {
            command.arg("--allow-unpaired");
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(stage.dir.join("listen.log"))?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let (told, events) = channel();
        thread::spawn(move || {
            for event in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()) {
                if told.send(event).is_err() {
                    return;
                }
            }
        });
        let host = Host { child, events };
        host.until("pad-up")
            .with_context(|| std::fs::read_to_string(stage.dir.join("listen.log")).unwrap_or_default())?;
        Ok(host)
    }

    pub(super) fn until(&self, event: &str) -> anyhow::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let told: Value = self.events.recv_timeout(left).with_context(|| format!("no {event} in {PATIENCE:?}"))?;
            if told["event"] == event {
                return Ok(());
            }
        }
    }

    /// SIGKILL.
    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    pub(super) fn quit(mut self) -> anyhow::Result<()> {
        let mut stdin = self.child.stdin.take().context("piped")?;
        writeln!(stdin, "quit")?;
        drop(stdin);
        let status = self.child.wait()?;
        ensure!(status.success(), "`hone listen` ended with {status}");
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}
