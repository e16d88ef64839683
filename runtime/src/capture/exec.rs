//! A child process on a pipe, in a process group of its own: started, listened to, and ended with all its descendants.
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::CaptureError;

/// How long a child whose output has ended may take to end by itself.
const EXIT_GRACE: Duration = Duration::from_millis(200);
/// How long it may take after being asked.
const TERM_GRACE: Duration = Duration::from_millis(500);
/// How long after being killed; a process hung in a driver may take for ever, and is then left behind.
const KILL_GRACE: Duration = Duration::from_secs(2);
/// What is kept of standard error.
const WORDS_BYTES: usize = 2048;

/// What bytes are read from.
pub(super) struct Producer {
    out: OwnedFd,
    child: Option<Running>,
}

struct Running {
    child: Child,
    err: Option<OwnedFd>,
    words: Vec<u8>,
}

/// What a look for bytes found.
pub(super) enum Read {
    /// So many.
    Bytes(usize),
    /// None yet.
    Nothing,
    /// There will be no more.
    End,
}

impl Producer {
    /// Starts `command`; its standard input is empty.
    pub(super) fn start(command: &[String]) -> Result<Producer, CaptureError> {
        let refuse = |detail: String| CaptureError::Spawn { command: command.join(" "), detail };
        let (program, arguments) = command.split_first().ok_or_else(|| refuse("there is no program".into()))?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Its own group, so that all that it starts can be ended with it.
            .process_group(0)
            .spawn()
            .map_err(|error| refuse(error.to_string()))?;
        let out = child.stdout.take().map(OwnedFd::from).ok_or_else(|| refuse("it has no output".into()))?;
        let err = child.stderr.take().map(OwnedFd::from);
        Ok(Producer { out, child: Some(Running { child, err, words: vec![] }) })
    }

    /// Reads what is open already.
    pub(super) fn of(out: OwnedFd) -> Producer {
        Producer { out, child: None }
    }

    /// Waits at most `timeout` for bytes; what a child says on standard error is listened to meanwhile.
    pub(super) fn read(&mut self, buffer: &mut [u8], timeout: Duration) -> io::Result<Read> {
        let err = self.child.as_ref().and_then(|running| running.err.as_ref());
        let (out_ready, err_ready) = ready(self.out.as_fd(), err.map(|fd| fd.as_fd()), timeout)?;
        if err_ready && let Some(running) = &mut self.child {
            running.listen();
        }
        if !out_ready {
            return Ok(Read::Nothing);
        }
        match rustix::io::read(&self.out, buffer) {
            Ok(0) => Ok(Read::End),
            Ok(n) => Ok(Read::Bytes(n)),
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                Ok(Read::Nothing)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the child and all in its group, and takes its leave of it; how it ended, and the last it said.
    pub(super) fn end(self, output_ended: bool) -> (String, Option<String>) {
        let Producer { out, child } = self;
        // A child that is blocked writing is to see that nobody reads any more.
        drop(out);
        match child {
            Some(running) => running.end(output_ended),
            None => ("it ended".into(), None),
        }
    }
}

impl Running {
    /// Reads once from standard error, which is ready; keeps the end of what was said.
    fn listen(&mut self) -> bool {
        let Some(err) = &self.err else { return false };
        let mut bytes = [0; 1024];
        match rustix::io::read(err, &mut bytes) {
            Ok(n) if n > 0 => {
                self.words.extend_from_slice(&bytes[..n]);
                let surplus = self.words.len().saturating_sub(WORDS_BYTES);
                self.words.drain(..surplus);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            _ => {
                self.err = None;
                false
            }
        }
    }

    fn end(mut self, output_ended: bool) -> (String, Option<String>) {
        let group = Pid::from_child(&self.child);
        let by_itself = self.exits(if output_ended { EXIT_GRACE } else { Duration::ZERO });
        if !by_itself {
            // It may end this instant; that it is gone already is no error.
            let _ = kill_process_group(group, Signal::TERM);
            self.exits(TERM_GRACE);
        }
        // Before the leader is waited for: until then its number, and so the group's, can be nobody else's.
        let _ = kill_process_group(group, Signal::KILL);
        let gone = self.exits(KILL_GRACE);
        // A few reads: what a descendant that escaped goes on saying is not waited for.
        for _ in 0..8 {
            let Some(err) = self.err.as_ref() else { break };
            let silent = !ready(err.as_fd(), None, Duration::ZERO).is_ok_and(|(ready, _)| ready);
            if silent || !self.listen() {
                break;
            }
        }
        let words = String::from_utf8_lossy(&self.words).trim().to_owned();
        let words = (!words.is_empty()).then_some(words);
        let how = match gone.then(|| self.child.wait()) {
            None => format!("process {} cannot be ended, and is left behind", self.child.id()),
            Some(Ok(status)) if by_itself => format!("it ended by itself ({status})"),
            Some(Ok(status)) => format!("it was ended ({status})"),
            Some(Err(error)) => format!("it ended ({error})"),
        };
        (how, words)
    }

    /// Whether the leader has exited, or does within `grace`; it stays to be waited for.
    fn exits(&self, grace: Duration) -> bool {
        let until = Instant::now() + grace;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        loop {
            match waitid(WaitId::Pid(Pid::from_child(&self.child)), options) {
                Ok(None) => {}
                // Exited, or nobody's child any more.
                Ok(Some(_)) | Err(_) => return true,
            }
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Which of the two has something to read, or has ended.
fn ready(out: BorrowedFd<'_>, err: Option<BorrowedFd<'_>>, timeout: Duration) -> io::Result<(bool, bool)> {
    let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos() as _ };
    let mut fds = vec![PollFd::from_borrowed_fd(out, PollFlags::IN)];
    fds.extend(err.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok((false, false)),
        Err(error) => return Err(error.into()),
    }
    let ready = |n: usize| fds.get(n).is_some_and(|fd| !fd.revents().is_empty());
    Ok((ready(0), ready(1)))
}
