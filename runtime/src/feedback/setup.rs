//! A pad for setting it up: greeted, paired, watched, restarted — without taking a press from it.
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use hone_wire::auth::Key;
use hone_wire::host::{CommandError, Ledger, LedgerError, Received, Refusal};
pub use hone_wire::message::PadHello;
use hone_wire::message::{NakReason, Reboot, RebootTarget, number};

use super::keys::{PadKeys, new_key};
use super::listener::{Listener, Notice, Opening};
use super::source::{Keeper, Source, SourceError, Terms};
use crate::journal::fresh_epoch;

/// How often a pairing key is offered.
const OFFER_EVERY: Duration = Duration::from_millis(500);

/// A pad that is greeted and keeps its presses.
pub struct Guest {
    listener: Listener,
    told: Receiver<Notice>,
    met: Receiver<PadHello>,
    keys: Option<PadKeys>,
}

/// What a pad was asked in vain.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It does not answer.
    #[error("{spec} did not greet within {} s{}", waited.as_secs(), why.as_ref().map(|w| format!(": {w}")).unwrap_or_default())]
    Silent {
        /// The source.
        spec: String,
        /// How long it was waited for.
        waited: Duration,
        /// What happened meanwhile.
        why: Option<String>,
        /// Something is there that this program may not hear: another one has the port, or the pad has another host.
        withheld: bool,
    },
    /// Nobody held two buttons.
    #[error("the pad did not take the key within {} s; lift its buttons, then hold two of them together for more than 5 s and until it does", waited.as_secs())]
    NotPaired {
        /// How long.
        waited: Duration,
    },
    /// There is no place for the key here.
    #[error("the key could not be kept here: {why}; see to that and pair the pad again")]
    NotKept {
        /// Why.
        why: String,
    },
}

/// Keeps nothing but keys: presses stay on the pad.
struct Porter {
    keys: Option<PadKeys>,
    met: Sender<PadHello>,
}

impl Ledger for Porter {
    fn mark(&mut self, _: &[u8; 8], _: u32) -> Result<u32, LedgerError> {
        Ok(1)
    }

    fn commit(&mut self, _: &[u8; 8], _: u32, _: &[Received]) -> Result<(), LedgerError> {
        Err(LedgerError::Full)
    }

    fn new_epoch(&mut self, _: &[u8; 8]) -> Result<u32, LedgerError> {
        // A journal that meets it takes it over.
        fresh_epoch().map_err(|_| LedgerError::Failed)
    }

    fn keep_offered_key(&mut self, uid: &[u8; 8], key: &Key) -> Result<(), LedgerError> {
        self.keys.as_ref().and_then(|keys| keys.offer(uid, key).ok()).ok_or(LedgerError::Failed)
    }
}

impl Keeper for Porter {
    fn terms(&mut self, hello: &PadHello) -> Terms {
        // Nobody need want to know.
        let _ = self.met.send(hello.clone());
        let pairing_key = self.keys.as_ref().and_then(|keys| keys.get(&hello.uid).ok().flatten());
        Terms { pairing_key, allow_unpaired: true, timing: None }
    }

    fn offered_key(&mut self, uid: &[u8; 8]) -> Option<Key> {
        self.keys.as_ref().and_then(|keys| keys.offered(uid).ok().flatten())
    }

    fn paired(&mut self, uid: &[u8; 8], key: &Key) -> Result<(), String> {
        let keys = self.keys.as_ref().ok_or("there is no state directory")?;
        keys.put(uid, key).map_err(|error| error.to_string())
    }
}

impl Guest {
    /// Opens the source, when it is there, and waits for the greeting.
    ///
    /// # Errors
    /// [`SetupError::Silent`] after `patience`.
    pub fn greet(
        source: Box<dyn Source>,
        keys: Option<PadKeys>,
        patience: Duration,
    ) -> Result<(Guest, PadHello), SetupError> {
        Self::meet(source, keys, patience, false)
    }

    /// As [`Guest::greet`], but a pad that is another host's will do, too: it can be paired.
    ///
    /// # Errors
    /// [`SetupError::Silent`] after `patience`.
    pub fn greet_for_pairing(
        source: Box<dyn Source>,
        keys: PadKeys,
        patience: Duration,
    ) -> Result<(Guest, PadHello), SetupError> {
        Self::meet(source, Some(keys), patience, true)
    }

    fn meet(
        source: Box<dyn Source>,
        keys: Option<PadKeys>,
        patience: Duration,
        strangers: bool,
    ) -> Result<(Guest, PadHello), SetupError> {
        let spec = source.spec();
        let (notices, told) = channel();
        let (meets, met) = channel();
        let porter = Porter { keys: keys.clone(), met: meets };
        let listener = Listener::start(source, Opening::WhenThere, Box::new(porter), notices)?;
        let guest = Guest { listener, told, met, keys };
        let mut why = None;
        let mut withheld = false;
        let end = Instant::now() + patience;
        loop {
            match guest.next(end.saturating_duration_since(Instant::now())) {
                Some(Notice::Up { hello, .. }) => return Ok((guest, hello)),
                Some(Notice::Refused { why: Refusal::NoKey | Refusal::WrongKey, .. }) if strangers => {
                    // It was met before it was refused.
                    if let Some(hello) = guest.met.try_iter().last() {
                        return Ok((guest, hello));
                    }
                }
                Some(notice @ (Notice::Refused { .. } | Notice::Searching { .. } | Notice::Remark { .. })) => {
                    withheld = match &notice {
                        Notice::Refused { .. } => true,
                        Notice::Searching { absent, .. } => !absent,
                        _ => withheld,
                    };
                    why = Some(notice.to_string());
                }
                Some(_) => {}
                None => return Err(SetupError::Silent { spec, waited: patience, why, withheld }),
            }
        }
    }

    /// What happens next; none within `patience`.
    pub fn next(&self, patience: Duration) -> Option<Notice> {
        self.told.recv_timeout(patience).ok()
    }

    /// The key to offer to this pad: a new one, or the one that it was offered before and may have taken.
    ///
    /// # Errors
    /// [`SetupError::NotKept`] when there is nowhere to keep one or no source of chance.
    pub fn key_for(&self, uid: &[u8; 8]) -> Result<Key, SetupError> {
        let not_kept = |why: String| SetupError::NotKept { why };
        let keys = self.keys.as_ref().ok_or_else(|| not_kept("there is no state directory".into()))?;
        match keys.offered(uid).map_err(|error| not_kept(error.to_string()))? {
            Some(key) => Ok(key),
            None => new_key().map_err(not_kept),
        }
    }

    /// Offers `key` until somebody has held two buttons for five seconds.
    ///
    /// # Errors
    /// [`SetupError::NotPaired`] after `patience`, [`SetupError::NotKept`].
    pub fn pair(&self, key: Key, patience: Duration) -> Result<(), SetupError> {
        let end = Instant::now() + patience;
        let mut offer_at = Instant::now();
        while Instant::now() < end {
            if Instant::now() >= offer_at {
                // While it greets anew there is nobody to offer it to.
                if let Err(SourceError::Refused(CommandError::NotKept(_))) = self.listener.pair(key) {
                    return Err(SetupError::NotKept { why: "the state directory cannot be written".into() });
                }
                offer_at = Instant::now() + OFFER_EVERY;
            }
            match self.next(offer_at.saturating_duration_since(Instant::now())) {
                Some(Notice::Paired { kept: Ok(()), .. }) => return Ok(()),
                Some(Notice::Paired { kept: Err(why), .. }) => return Err(SetupError::NotKept { why }),
                _ => {}
            }
        }
        Err(SetupError::NotPaired { waited: patience })
    }

    /// Restarts it into its loader. No pad obeys this unless it is paired.
    ///
    /// # Errors
    /// [`SourceError::Refused`].
    pub fn reboot_to_loader(&self) -> Result<(), SetupError> {
        Ok(self.listener.reboot(Reboot { target: RebootTarget::Bootloader })?)
    }
}

/// Whether a notice only says that presses stay where they are, or that a key was not taken yet.
pub fn is_expected(notice: &Notice) -> bool {
    match notice {
        Notice::Refused { why, .. } => matches!(why, Refusal::Ledger(_)),
        Notice::Nak(nak) => nak.kind == number::Pair && nak.reason == NakReason::Forbidden,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::emulate::{Emulator, EmulatorConfig, Gesture, Step};
    use crate::feedback::serial::SerialPad;
    use crate::state::StateDir;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn a_pad_is_paired_while_two_buttons_are_held_keeps_its_presses_and_is_known_from_then_on() {
        let dir = tempfile::tempdir().unwrap();
        let keys = PadKeys::of(&StateDir::at(dir.path()));
        // In real time: the key is offered each half second of it.
        let pad = Emulator::start(EmulatorConfig::default()).unwrap();
        let source = || Box::new(SerialPad::at(pad.port_name().unwrap()));
        pad.press(0, Gesture::Click).unwrap();
        let (guest, hello) = Guest::greet(source(), Some(keys.clone()), PATIENCE).unwrap();
        assert!(!hello.is_paired());
        let key = *b"a key of its own";
        std::thread::scope(|scope| {
            let paired = scope.spawn(move || guest.pair(key, PATIENCE));
            while !paired.is_finished() {
                pad.step(Step::Chord { mask: 0b11, ms: 7_000 }).unwrap();
            }
            paired.join().unwrap().unwrap();
        });
        assert_eq!(pad.pairing_key(), Some(key));
        assert_eq!(keys.get(&hello.uid).unwrap(), Some(key));
        assert!(pad.pending() >= 1, "the press is still on the pad");

        let (_guest, again) = Guest::greet(source(), Some(keys), PATIENCE).unwrap();
        assert!(again.is_paired() && again.next > again.first);
        let stranger = Guest::greet(source(), None, Duration::from_millis(300));
        assert!(stranger.is_err(), "its port is taken, and without the key it would not be heard");
    }

    #[test]
    fn a_pad_of_another_host_is_paired_by_whoever_holds_its_buttons_and_its_key_is_kept_before_it_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let keys = PadKeys::of(&StateDir::at(dir.path()));
        let pairing_key = Some(*b"of another host!");
        let pad = Emulator::start(EmulatorConfig { pairing_key, ..EmulatorConfig::default() }).unwrap();
        let source = || Box::new(SerialPad::at(pad.port_name().unwrap()));
        assert!(Guest::greet(source(), Some(keys.clone()), Duration::from_secs(2)).is_err());
        let (guest, hello) = Guest::greet_for_pairing(source(), keys.clone(), PATIENCE).unwrap();
        assert!(hello.is_paired());
        let key = guest.key_for(&hello.uid).unwrap();
        assert!(guest.pair(key, Duration::from_secs(1)).is_err(), "nobody holds its buttons");
        assert_eq!((keys.offered(&hello.uid).unwrap(), keys.get(&hello.uid).unwrap()), (Some(key), None));
        assert_eq!((guest.key_for(&hello.uid).unwrap(), pad.pairing_key()), (key, pairing_key));
        std::thread::scope(|scope| {
            let paired = scope.spawn(move || guest.pair(key, PATIENCE));
            while !paired.is_finished() {
                pad.step(Step::Chord { mask: 0b11, ms: 7_000 }).unwrap();
            }
            paired.join().unwrap().unwrap();
        });
        assert_eq!((keys.offered(&hello.uid).unwrap(), keys.get(&hello.uid).unwrap()), (None, Some(key)));
        assert_eq!(pad.pairing_key(), Some(key));
    }
}
