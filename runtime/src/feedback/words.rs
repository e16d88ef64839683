//! What a person can say, in words: one grammar for lines typed in and for what a configuration gives a button.
//!
//! ```text
//! [!] up | down | unsure | correct LABEL | class N | stars N | rather than LABEL | this is LABEL
//!     | undo | rollback | nothing | add NAME | show | quit
//! ```
//! `!` in front says it with emphasis, as a long press does. What is said is about the answer shown last; `this is
//! LABEL` is about what is seen now, whatever was shown.
use nom::branch::alt;
use nom::bytes::complete::tag;
use nom::character::complete::{char, space0, space1, u8, u32};
use nom::combinator::{all_consuming, opt, rest, value, verify};
use nom::sequence::{preceded, terminated};
use nom::{IResult, Parser};

/// The words, for messages.
pub const WORDS: &str = "up, down, unsure, correct LABEL, class N, stars N, rather than LABEL, this is LABEL, \
     undo, rollback, nothing, add NAME, show, quit";

/// Something said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phrase {
    /// What.
    pub said: Said,
    /// With emphasis.
    pub confirmed: bool,
}

/// What can be said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// 👍.
    Up,
    /// 👎.
    Down,
    /// "I do not know."
    Unsure,
    /// "It is what this label says."
    Correct(String),
    /// "It is this class."
    Class(u32),
    /// 1 to 5.
    Stars(u8),
    /// "The answer shown rather than this one."
    RatherThan(String),
    /// "What is seen now is this", whatever was shown.
    ThisIs(String),
    /// Take back.
    Undo,
    /// Go back to the adapter before.
    Rollback,
    /// To be recorded and no more.
    Nothing,
    /// A class more.
    Add(String),
    /// Show the next answer.
    Show,
    /// End the loop.
    Quit,
}

impl Said {
    /// What is wrong with it on a button, where it only makes sense typed in.
    pub fn only_typed(&self) -> Option<&'static str> {
        let typed = matches!(self, Said::ThisIs(_) | Said::Add(_) | Said::Show | Said::Quit);
        typed.then_some("`this is`, `add`, `show` and `quit` are for lines typed in, not for buttons")
    }
}

/// Reads one phrase; `None` for an empty line.
///
/// # Errors
/// What is wrong with it, in words.
pub fn parse(text: &str) -> Result<Option<Phrase>, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let (said, emphasis) = (opt(terminated(char('!'), space0)), phrase)
        .map(|(emphasis, said)| (said, emphasis.is_some()))
        .parse(text)
        .map(|(_, found)| found)
        .map_err(|_| format!("`{text}` is not understood; say {WORDS}; `!` in front confirms"))?;
    Ok(Some(Phrase { said, confirmed: emphasis }))
}

fn phrase(i: &str) -> IResult<&str, Said> {
    all_consuming(alt((
        value(Said::Up, alt((tag("up"), tag("y"), tag("+")))),
        preceded((tag("correct"), space1), rest).map(|label: &str| Said::Correct(label.trim().into())),
        preceded((tag("rather than"), space1), rest).map(|label: &str| Said::RatherThan(label.trim().into())),
        preceded((tag("this is"), space1), rest).map(|label: &str| Said::ThisIs(label.trim().into())),
        preceded((tag("add"), space1), rest).map(|name: &str| Said::Add(name.trim().into())),
        preceded((tag("class"), space1), u32).map(Said::Class),
        preceded((tag("stars"), space1), verify(u8, |n| (1..=5).contains(n))).map(Said::Stars),
        value(Said::Unsure, tag("unsure")),
        value(Said::Undo, tag("undo")),
        value(Said::Rollback, tag("rollback")),
        value(Said::Nothing, tag("nothing")),
        value(Said::Show, tag("show")),
        value(Said::Quit, tag("quit")),
        value(Said::Down, alt((tag("down"), tag("n"), tag("-")))),
    )))
    .parse(i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_understood_and_anything_else_is_told_the_words() {
        let said = |said, confirmed| Ok(Some(Phrase { said, confirmed }));
        for (text, expected) in [
            ("up", said(Said::Up, false)),
            ("y", said(Said::Up, false)),
            (" ! down ", said(Said::Down, true)),
            ("!n", said(Said::Down, true)),
            ("unsure", said(Said::Unsure, false)),
            ("correct polar bear", said(Said::Correct("polar bear".into()), false)),
            ("rather than grizzly bear", said(Said::RatherThan("grizzly bear".into()), false)),
            ("! this is 3", said(Said::ThisIs("3".into()), true)),
            ("class 12", said(Said::Class(12), false)),
            ("!stars 5", said(Said::Stars(5), true)),
            ("undo", said(Said::Undo, false)),
            ("rollback", said(Said::Rollback, false)),
            ("nothing", said(Said::Nothing, false)),
            ("add polar bear", said(Said::Add("polar bear".into()), false)),
            ("show", said(Said::Show, false)),
            ("quit", said(Said::Quit, false)),
            ("", Ok(None)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        for text in [
            "dance",
            "stars 6",
            "stars",
            "class",
            "add",
            "upside",
            "correct",
            "rather",
            "rather than",
            "this is",
            "no",
            "up up",
        ] {
            assert!(parse(text).unwrap_err().contains("correct LABEL"), "{text}");
        }
    }
}
