//! The journal as the ledger of pads: presses and mark in one transaction, acknowledged after it.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hone_wire::auth::Key;
use hone_wire::host::{Ledger, LedgerError, Received};
use hone_wire::message::{Event, Kind, PadHello};

use super::keys::PadKeys;
use super::limit::Meter;
use super::meaning::{Judged, Meaning, uid_text};
use super::policy::Policy;
use super::source::{Keeper, Terms};
use crate::journal::{Journal, PadEvent, PadPress, StoreError};

/// The journal, shared between the loop and the threads that serve pads.
pub type SharedJournal = Arc<Mutex<Journal>>;

/// Locks the journal. A thread that panicked while holding it leaves a journal whose transactions are whole all the same.
pub fn lock(journal: &SharedJournal) -> MutexGuard<'_, Journal> {
    journal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A [`Keeper`] over the shared journal; what presses mean and who is heard comes from a [`Policy`].
pub struct JournalLedger {
    journal: SharedJournal,
    policy: Arc<Policy>,
    keys: PadKeys,
    labels: Vec<String>,
    pads: HashMap<[u8; 8], Known>,
}

/// What is known of a pad while this ledger lives.
#[derive(Clone, Debug, Default)]
struct Known {
    buttons: u8,
    meter: Meter,
    /// Whose badge was shown last, and when in the pad's time.
    badge: Option<Badge>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Badge {
    number: u16,
    boot: u16,
    t_ms: u32,
}

impl JournalLedger {
    /// A ledger for one source's link. `labels` are the model's, in order.
    pub fn new(journal: SharedJournal, policy: Arc<Policy>, labels: &[String]) -> JournalLedger {
        let keys = PadKeys::of(lock(&journal).state());
        JournalLedger { journal, policy, keys, labels: labels.to_vec(), pads: HashMap::new() }
    }

    /// What an event comes to, given what is known; `known` moves on as if it were committed.
    fn judge(&self, uid: &[u8; 8], known: &mut Known, received: &Received) -> Result<PadPress, LedgerError> {
        let event = &received.event;
        let rules = self.policy.rules(uid);
        known.badge = known.badge.filter(|badge| badge.counts(event, rules.badge_ms));
        let person = known.badge.map(|badge| badge.number);
        let layout = self.policy.layout(uid, known.buttons, person, &self.labels).map_err(|why| {
            tracing::warn!("the pad {} is not understood: {why}", uid_text(uid));
            LedgerError::Failed
        })?;
        let mut meaning = layout.meaning(event);
        if event.kind == Kind::Badge {
            known.badge = Some(Badge { number: event.value, boot: event.boot, t_ms: event.t_ms });
            let name = self.policy.people.get(&event.value).map_or("nobody known here", |person| person.name.as_str());
            meaning = Meaning::Nothing { name: "badge", detail: format!("badge {} ({name})", event.value) };
        }
        let speaks = !matches!(meaning, Meaning::Nothing { .. });
        let over = speaks && known.meter.is_over(&rules.limit, event.boot, event.t_ms);
        let trains = match person.map(|badge| self.policy.people.get(&badge)) {
            Some(Some(person)) => person.trains,
            Some(None) | None => !rules.needs_badge,
        };
        let judged = if over || !trains { Judged::Suspect } else { Judged::Trusted };
        let mut press = meaning.pad_press(&uid_text(uid), event, received.age_ms, judged);
        if let PadEvent::Press(press) = &mut press.event {
            press.badge = person;
        }
        Ok(press)
    }
}

impl Badge {
    fn counts(&self, event: &Event, badge_ms: u32) -> bool {
        event.boot == self.boot
            && (event.t_ms.wrapping_sub(self.t_ms) as i32) < i32::try_from(badge_ms).unwrap_or(i32::MAX)
    }
}

fn refusal(error: StoreError) -> LedgerError {
    tracing::warn!("the journal refused: {error}");
    match error {
        StoreError::Full { .. } => LedgerError::Full,
        _ => LedgerError::Failed,
    }
}

impl Ledger for JournalLedger {
    fn mark(&mut self, uid: &[u8; 8], epoch: u32) -> Result<u32, LedgerError> {
        lock(&self.journal).reader().mark(&uid_text(uid), epoch).map_err(refusal)
    }

    fn commit(&mut self, uid: &[u8; 8], epoch: u32, events: &[Received]) -> Result<(), LedgerError> {
        // What is known moves on with the journal or not at all: a commit that failed comes again.
        let mut known = self.pads.get(uid).cloned().unwrap_or_default();
        let presses =
            events.iter().map(|r| self.judge(uid, &mut known, r)).collect::<Result<Vec<PadPress>, LedgerError>>()?;
        let uid_name = uid_text(uid);
        let mut journal = lock(&self.journal);
        if journal.reader().epoch(&uid_name).map_err(refusal)? != Some(epoch) {
            // A numbering another host began.
            let first = events.first().map_or(1, |r| r.event.seq);
            journal.adopt_epoch(&uid_name, epoch, first).map_err(refusal)?;
        }
        let done = journal.pad_commit(&uid_name, epoch, &presses).map_err(refusal)?;
        // The link hands in runs without gaps from the mark on; a shorter commit would acknowledge what is not there.
        let last = events.last().map_or(0, |r| r.event.seq);
        if done.next <= last {
            return Err(LedgerError::Failed);
        }
        self.pads.insert(*uid, known);
        Ok(())
    }

    fn new_epoch(&mut self, uid: &[u8; 8]) -> Result<u32, LedgerError> {
        lock(&self.journal).new_epoch(&uid_text(uid)).map_err(refusal)
    }
}

impl Keeper for JournalLedger {
    fn terms(&mut self, hello: &PadHello) -> Terms {
        let rules = self.policy.rules(&hello.uid);
        let pairing_key = self.keys.get(&hello.uid).unwrap_or_else(|error| {
            tracing::warn!("the key of pad {} cannot be had: {error}", uid_text(&hello.uid));
            None
        });
        // A pad that was paired here is never again heard without its key.
        let allow_unpaired = rules.allow_unpaired && pairing_key.is_none();
        Terms { pairing_key, allow_unpaired, timing: rules.timing }
    }

    fn connected(&mut self, hello: &PadHello) {
        self.pads.entry(hello.uid).or_default().buttons = hello.buttons;
    }

    fn offered_key(&mut self, uid: &[u8; 8]) -> Option<Key> {
        self.keys.offered(uid).unwrap_or_else(|error| {
            tracing::warn!("the key offered to pad {} cannot be had: {error}", uid_text(uid));
            None
        })
    }

    fn paired(&mut self, uid: &[u8; 8], key: &Key) -> Result<(), String> {
        self.keys.put(uid, key).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feedback::policy::{Person, Rules};
    use crate::journal::{Example, Shown, Signal};
    use crate::state::StateDir;

    const UID: [u8; 8] = *b"emulated";

    struct Desk {
        _dir: tempfile::TempDir,
        journal: SharedJournal,
        ledger: JournalLedger,
        epoch: u32,
        next: u32,
        prompt: u32,
    }

    /// A pad with two buttons, and one answer that was shown.
    fn desk(policy: Policy) -> Desk {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(Mutex::new(Journal::open(StateDir::at(dir.path()).lock().unwrap()).unwrap()));
        let example = Example {
            model_digest: "00".repeat(32),
            adapter_id: None,
            feature: vec![1.0, 2.0],
            logits: vec![0.5, -0.5],
            inputs: vec![],
        };
        let prompt = lock(&journal).shown(&Shown { example, class: 0, label: "cat".into(), mu: 1.0, p: 0.7 }).unwrap();
        let mut ledger = JournalLedger::new(journal.clone(), policy.into(), &["cat".into(), "dog".into()]);
        ledger.connected(&PadHello { uid: UID, buttons: 2, ..PadHello::default() });
        let epoch = ledger.new_epoch(&UID).unwrap();
        Desk { _dir: dir, journal, ledger, epoch, next: 1, prompt }
    }

    impl Desk {
        fn commit(&mut self, kind: Kind, value: u16, t_ms: u32) {
            let event = Event { seq: self.next, boot: 1, kind, value, t_ms, prompt: self.prompt, ..Event::default() };
            self.ledger.commit(&UID, self.epoch, &[Received { event, age_ms: Some(5) }]).unwrap();
            self.next += 1;
        }

        /// Of the presses that count: whether each is suspect, and whether it is confirmed.
        fn presses(&self) -> Vec<(Signal, bool, bool)> {
            let presses = lock(&self.journal).reader().presses().unwrap();
            presses.into_iter().map(|p| (p.signal, p.suspect, p.confirmed)).collect()
        }
    }

    #[test]
    fn a_flood_of_presses_is_recorded_whole_and_all_but_the_first_is_suspect() {
        let mut desk = desk(Policy::default());
        for i in 0..400 {
            desk.commit(Kind::Click, 0, 20 * i);
        }
        let presses = desk.presses();
        assert_eq!(presses.len(), 400, "nothing is lost");
        assert_eq!(presses.iter().filter(|(_, suspect, _)| !suspect).count(), 1);
        // Taking back at that speed takes nothing back.
        for i in 0..50 {
            desk.commit(Kind::Chord, 3, 8_000 + 20 * i);
        }
        assert_eq!(desk.presses().len(), 400);
        assert_eq!(lock(&desk.journal).reader().mark(&uid_text(&UID), desk.epoch).unwrap(), 451);
    }

    #[test]
    fn a_stuck_button_says_one_thing_with_emphasis_which_never_trains_and_a_flapping_one_thirty_a_minute() {
        let mut desk = desk(Policy::default());
        desk.commit(Kind::Long, 0, 1_000);
        desk.commit(Kind::Diagnostic, 1, 1_000);
        assert_eq!(desk.presses(), [(Signal::Thumb { up: true }, false, true)]);
        for i in 0..1_000 {
            desk.commit(Kind::Click, 0, 100_000 + 300 * i);
        }
        assert_eq!(desk.presses().iter().filter(|(_, suspect, _)| !suspect).count(), 1 + 30);
    }

    #[test]
    fn a_badge_gives_its_meanings_and_its_trust_until_it_lapses_or_the_pad_restarts() {
        let phrase = crate::feedback::words::parse("correct dog").unwrap().unwrap();
        let given = crate::feedback::meaning::Given { phrase, origin: "test".into() };
        let mapping = [(crate::feedback::meaning::Act::Click(0), given)].into();
        let policy = Policy {
            common: Rules { needs_badge: true, badge_ms: 60_000, ..Rules::default() },
            people: [
                (7, Person { name: "Ada".into(), mapping, trains: true }),
                (8, Person { name: "Bob".into(), mapping: Default::default(), trains: false }),
            ]
            .into(),
            ..Policy::default()
        };
        let mut desk = desk(policy);
        let (up, dog) = (Signal::Thumb { up: true }, Signal::Correction { class: 1 });
        desk.commit(Kind::Click, 0, 1_000);
        desk.commit(Kind::Badge, 7, 2_000);
        desk.commit(Kind::Click, 0, 3_000);
        desk.commit(Kind::Badge, 8, 4_000);
        desk.commit(Kind::Click, 0, 5_000);
        desk.commit(Kind::Badge, 9, 6_000);
        desk.commit(Kind::Click, 0, 7_000);
        desk.commit(Kind::Badge, 7, 8_000);
        desk.commit(Kind::Click, 0, 67_999);
        desk.commit(Kind::Click, 0, 68_500);
        let expected = [
            (up, true, false),
            (dog, false, false),
            (up, true, false),
            (up, true, false),
            (dog, false, false),
            (up, true, false),
        ];
        assert_eq!(desk.presses(), expected);
    }

    #[test]
    fn people_who_share_a_pad_are_raters_of_their_own_and_each_takes_back_what_they_said() {
        let mut desk = desk(Policy::default());
        let counting = |desk: &Desk| -> Vec<String> {
            let presses = lock(&desk.journal).reader().effective_presses().unwrap();
            presses.iter().map(|p| format!("{} {:?}", p.rater(), p.signal)).collect()
        };
        let pad = format!("pad:{}", uid_text(&UID));
        let (up, down) = ("Thumb { up: true }", "Thumb { up: false }");
        desk.commit(Kind::Badge, 7, 1_000);
        desk.commit(Kind::Click, 0, 2_000);
        desk.commit(Kind::Badge, 8, 3_000);
        desk.commit(Kind::Long, 0, 4_000);
        assert_eq!(counting(&desk), [format!("{pad} badge 7 {up}"), format!("{pad} badge 8 {up}")]);
        desk.commit(Kind::Badge, 7, 5_000);
        desk.commit(Kind::Chord, 3, 6_000);
        assert_eq!(counting(&desk), [format!("{pad} badge 8 {up}")]);
        let click = Event { seq: desk.next, boot: 1, kind: Kind::Click, src: 1, t_ms: 7_000, ..Event::default() };
        let event = Event { prompt: desk.prompt, ..click };
        desk.ledger.commit(&UID, desk.epoch, &[Received { event, age_ms: Some(5) }]).unwrap();
        desk.next += 1;
        assert_eq!(counting(&desk), [format!("{pad} badge 8 {up}"), format!("{pad} badge 7 {down}")]);
        // What one of them said can be made unreadable alone, with every time that badge was shown.
        let redacted = lock(&desk.journal).redact(&crate::journal::Redact::Badge(7)).unwrap();
        assert_eq!(redacted.records, 5, "two presses, an undo and two badges");
        assert_eq!(counting(&desk), [format!("{pad} badge 8 {up}")]);
        let mut export = Vec::new();
        lock(&desk.journal).reader().export(&mut export).unwrap();
        assert!(!String::from_utf8(export).unwrap().contains("badge 7"));
    }

    #[test]
    fn a_pad_that_was_paired_here_is_not_heard_without_its_key_whatever_is_allowed() {
        let policy = Policy { common: Rules { allow_unpaired: true, ..Rules::default() }, ..Policy::default() };
        let mut desk = desk(policy);
        let hello = PadHello { uid: UID, ..PadHello::default() };
        let open = Terms { pairing_key: None, allow_unpaired: true, timing: None };
        assert_eq!(desk.ledger.terms(&hello), open);
        desk.ledger.paired(&UID, &[7; 16]).unwrap();
        let closed = Terms { pairing_key: Some([7; 16]), allow_unpaired: false, timing: None };
        assert_eq!(desk.ledger.terms(&hello), closed);
    }
}
