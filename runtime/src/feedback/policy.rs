//! Whom to hear, how often, and what their buttons mean: for every pad, for one pad, for one person.
use std::collections::BTreeMap;

use hone_wire::message::{Config, Event, Kind};

use super::limit::Limit;
use super::meaning::{Act, Layout, Mapping};
use super::words::Said;

/// How long a badge counts, unless configured otherwise.
pub const BADGE_MINUTES: u32 = 10;

/// All rules of one host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// For a pad that has none of its own.
    pub common: Rules,
    /// By a pad's identity; each complete.
    pub pads: BTreeMap<[u8; 8], Rules>,
    /// By the number of their badge.
    pub people: BTreeMap<u16, Person>,
    /// How many of the model's last names are remarks on what was shown rather than classes.
    pub remarks: usize,
}

/// The rules of one pad.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Its name, for people.
    pub name: Option<String>,
    /// How many buttons it has, if it is not to be asked.
    pub buttons: Option<u8>,
    /// What they mean, over the default for that many.
    pub mapping: Mapping,
    /// How often one may press.
    pub limit: Limit,
    /// Timings to set on it; none leaves its own.
    pub timing: Option<Config>,
    /// Whether it is heard without having been paired.
    pub allow_unpaired: bool,
    /// Whether presses train only while somebody's badge counts.
    pub needs_badge: bool,
    /// How long a badge counts, ms of the pad's time.
    pub badge_ms: u32,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            name: None,
            buttons: None,
            mapping: Mapping::new(),
            limit: Limit::default(),
            timing: None,
            allow_unpaired: false,
            needs_badge: false,
            badge_ms: BADGE_MINUTES * 60_000,
        }
    }
}

/// Somebody with a badge.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// For people.
    pub name: String,
    /// What buttons mean in these hands, over the pad's.
    pub mapping: Mapping,
    /// Whether what they say trains.
    pub trains: bool,
}

impl Policy {
    /// The rules of a pad.
    pub fn rules(&self, uid: &[u8; 8]) -> &Rules {
        self.pads.get(uid).unwrap_or(&self.common)
    }

    /// Hears every pad that was never paired, whatever its rules say.
    pub fn allow_unpaired(&mut self) {
        self.pads.values_mut().chain([&mut self.common]).for_each(|rules| rules.allow_unpaired = true);
    }

    /// What acts mean on a pad that says it has `buttons`, in the hands of `person`. `labels` are the model's.
    ///
    /// # Errors
    /// A meaning that does not fit the model, with its origin.
    pub fn layout(&self, uid: &[u8; 8], buttons: u8, person: Option<u16>, labels: &[String]) -> Result<Layout, String> {
        let rules = self.rules(uid);
        let buttons = usize::from(rules.buttons.unwrap_or(buttons));
        let mut layout = match self.remarks {
            0 => Layout::for_buttons(buttons),
            n => Layout::for_remarks(buttons, labels.len().saturating_sub(n)..labels.len()),
        };
        layout.overlay(&rules.mapping, labels)?;
        if let Some(person) = person.and_then(|badge| self.people.get(&badge)) {
            layout.overlay(&person.mapping, labels)?;
        }
        Ok(layout)
    }

    /// Whether an event of this kind may mean a rollback, by default or because somebody said so.
    pub fn may_roll_back(&self, event: &Event) -> bool {
        let pads = self.pads.values().chain([&self.common]).map(|rules| &rules.mapping);
        let given = pads.chain(self.people.values().map(|person| &person.mapping));
        let means = |mapping: &Mapping| {
            let given = Act::of(event).and_then(|act| mapping.get(&act));
            given.is_some_and(|given| given.phrase.said == Said::Rollback)
        };
        event.kind == Kind::ChordHeld || given.into_iter().any(means)
    }

    /// Whether every given meaning fits a model with these labels.
    ///
    /// # Errors
    /// All that do not, each with its origin.
    pub fn check(&self, labels: &[String]) -> Result<(), Vec<String>> {
        let pads = self.pads.values().chain([&self.common]).map(|rules| &rules.mapping);
        let mut wrong: Vec<String> = pads
            .chain(self.people.values().map(|person| &person.mapping))
            .flat_map(|mapping| mapping.iter().map(|(act, given)| Mapping::from([(*act, given.clone())])))
            .filter_map(|one| Layout::new(&[]).overlay(&one, labels).err())
            .collect();
        wrong.sort();
        wrong.dedup();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}
