//! A cursor over the words of a line, and the words that every line begins with.

use super::Reason;
use super::lexeme::{number, shown};
use super::shell::Word;

/// A word that can not be honoured.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) word: String,
    /// The value that was given to the word, if one was; never a key.
    pub(super) value: Option<String>,
    pub(super) reason: Reason,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    State,
    Policy,
}

/// A cursor over the words of a line.
pub(super) struct Words<'a> {
    words: &'a [Word],
    /// The word that is being honoured, for messages.
    name: &'a str,
    /// The value of it that was taken last.
    value: Option<&'a Word>,
    next: usize,
}

impl<'a> Words<'a> {
    /// A cursor before the first of `words`, which is not empty.
    pub(super) const fn new(words: &'a [Word]) -> Self {
        Self {
            words,
            name: "",
            value: None,
            next: 0,
        }
    }

    /// The next word, which stays.
    pub(super) fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).map(|word| word.text.as_str())
    }

    /// Takes the next word as the one that is being honoured.
    pub(super) fn step(&mut self) {
        if let Some(word) = self.words.get(self.next) {
            self.name = word.text.as_str();
            self.value = None;
            self.next += 1;
        }
    }

    /// Blames the word that is being honoured, for which there is no meaning.
    pub(super) fn unknown(&mut self) -> Fault {
        self.next = self.next.saturating_sub(1);
        self.fault_here(Reason::Unknown)
    }

    /// The word that is being honoured.
    pub(super) const fn current(&self) -> &'a str {
        self.name
    }

    /// Takes a value of the word that is being honoured.
    pub(super) fn value(&mut self) -> Result<&'a str, Fault> {
        let Some(word) = self.words.get(self.next) else {
            return Err(self.fault(Reason::NoValue));
        };
        self.next += 1;
        self.value = Some(word);
        Ok(word.text.as_str())
    }

    /// Blames the word that is being honoured, and the value of it that was taken last.
    pub(super) fn fault(&self, reason: Reason) -> Fault {
        // What follows these may be a key.
        let is_secret = matches!(self.name, "aead" | "enc" | "auth" | "auth-trunc");
        let value = self.value.filter(|_| !is_secret).map(shown);
        Fault {
            value,
            ..self.fault_at(self.name, reason)
        }
    }

    /// Blames the next word.
    pub(super) fn fault_here(&self, reason: Reason) -> Fault {
        match self.words.get(self.next) {
            Some(word) => Fault {
                line: word.line,
                word: shown(word),
                value: None,
                reason,
            },
            None => self.fault(reason),
        }
    }

    /// Blames a word by its name, on the line of the last word taken.
    pub(super) fn fault_at(&self, name: &str, reason: Reason) -> Fault {
        let last = self.next.saturating_sub(1).min(self.words.len() - 1);
        Fault {
            line: self.words[last].line,
            word: name.to_owned(),
            value: None,
            reason,
        }
    }

    /// Takes a number up to `most`.
    pub(super) fn number(&mut self, most: u64, expected: &'static str) -> Result<u64, Fault> {
        number(self.value()?)
            .filter(|&value| value <= most)
            .ok_or_else(|| self.fault(Reason::Expected(expected)))
    }

    /// Takes a number of 32 bits.
    pub(super) fn number_u32(&mut self) -> Result<u32, Fault> {
        let value = self.number(u32::MAX.into(), "a number up to 4294967295")?;
        Ok(value as u32)
    }
}

/// The words in front of an association or a policy, all of which may be left out: `sudo`, `ip`
/// with its options or `vesper`, `xfrm state add`. Returns what the line is about, which is an
/// association unless it says otherwise.
pub(super) fn command(words: &mut Words<'_>) -> Result<Object, Fault> {
    // What `ip` accepts for a word by its first letters.
    let abbreviates = |word: &str, full: &str| !word.is_empty() && full.starts_with(word);
    if words.peek() == Some("sudo") {
        words.step();
    }
    let Some(first) = words.peek() else {
        return Err(words.fault(Reason::NoValue));
    };
    let program = first.rsplit('/').next().unwrap_or_default();
    if program == "ip" {
        words.step();
        while let Some(option) = words.peek().filter(|word| word.starts_with('-')) {
            match option {
                "-4" | "-6" | "-d" | "-details" | "-s" | "-statistics" => words.step(),
                "-f" | "-family" | "-n" | "-netns" => {
                    words.step();
                    words.value()?;
                }
                _ => return Err(words.fault_here(Reason::Unknown)),
            }
        }
        match words.peek() {
            Some(object) if abbreviates(object, "xfrm") => words.step(),
            _ => {
                return Err(
                    words.fault_here(Reason::Expected("`xfrm state add` or `xfrm policy add`"))
                );
            }
        }
    } else if program == "xfrm" || program == "vesper" {
        words.step();
    }
    let after_object = words.next > 0 && words.current() != "sudo";
    let object = match words.peek() {
        Some(object)
            if abbreviates(object, "state") && (after_object || object == "state")
                || object == "sa" =>
        {
            words.step();
            Object::State
        }
        Some(object) if abbreviates(object, "policy") && (after_object || object == "policy") => {
            words.step();
            Object::Policy
        }
        _ if after_object => {
            return Err(words.fault_here(Reason::Expected("`state add` or `policy add`")));
        }
        _ => Object::State,
    };
    match words.peek() {
        Some(verb) if abbreviates(verb, "add") || abbreviates(verb, "update") => words.step(),
        Some("src" | "dst" | "proto" | "spi" | "host" | "vm" | "dir") => {}
        _ => return Err(words.fault_here(Reason::Expected("`ip xfrm state add`"))),
    }
    Ok(object)
}

/// The words in front of a policy, all of which may be left out.
pub(super) fn policy_command(words: &mut Words<'_>) -> Result<(), Fault> {
    // Selectors begin like associations, so what `command` would take for one is a policy here.
    if matches!(words.peek(), Some("add" | "update")) {
        words.step();
        return Ok(());
    }
    if matches!(
        words.peek(),
        Some("src" | "dst" | "proto" | "sport" | "dport" | "host" | "vm" | "dir")
    ) {
        return Ok(());
    }
    match command(words)? {
        Object::Policy => Ok(()),
        Object::State => Err(words.fault(Reason::Expected("`ip xfrm policy add`"))),
    }
}
