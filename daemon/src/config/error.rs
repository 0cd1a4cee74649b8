//! What is wrong in a configuration, where, and what to write instead.

use std::fmt;
use std::io;

/// What is wrong with a configuration file: at least one line `file:line: message`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    /// Lines, counted from 1, and messages.
    messages: Vec<(Option<usize>, String)>,
}

/// Something that does not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The byte of the text where it stands.
    pub at: usize,
    /// What it is, and the way out.
    pub message: String,
}

impl ConfigError {
    pub(super) fn unreadable(file: &str, error: &io::Error) -> Self {
        Self {
            file: file.to_owned(),
            messages: vec![(None, format!("can not be read: {error}"))],
        }
    }

    /// What the parser says, with the nearest of the names that it would have known.
    pub(super) fn syntax(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let line = error.span().map(|span| line_of(text, span.start));
        let mut message = error.message().trim().replace('\n', "; ");
        if let Some(nearest) = suggestion(&message) {
            message = format!("{message}; did you mean `{nearest}`?");
        }
        Self {
            file: file.to_owned(),
            messages: vec![(line, message)],
        }
    }

    pub(super) fn problems(file: &str, text: &str, problems: Vec<Problem>) -> Self {
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        let line = |at| 1 + ends.partition_point(|end| *end < at);
        let located = |problem: Problem| (Some(line(problem.at)), problem.message);
        let mut messages: Vec<_> = problems.into_iter().map(located).collect();
        messages.sort();
        Self {
            file: file.to_owned(),
            messages,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (line, message)) in self.messages.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match line {
                Some(line) => write!(f, "{}:{line}: {message}", self.file)?,
                None => write!(f, "{}: {message}", self.file)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

fn line_of(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// Of "unknown field `vmq_wieght`, expected one of `mac`, `vmq_weight`": the name that is
/// nearest to the unknown one, if one is near.
fn suggestion(message: &str) -> Option<&str> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    nearest(unknown, names)
}

/// The candidate with the fewest differences, if they are few enough to be a slip.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let distances = candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + word.chars().count() / 3).then_some(candidate)
}

/// How many letters have to be put in, left out, changed or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i];
        for j in 1..=b.len() {
            let changed = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}
