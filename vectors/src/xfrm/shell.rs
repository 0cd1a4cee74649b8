//! Splits text into commands and words as a POSIX shell does: quotes, backslashes, comments.

use zeroize::Zeroizing;

use super::{Reason, SaFileError};

/// One command of the text: its words, or the whole line if it is a record in quotes.
#[derive(Debug)]
pub(super) struct Command {
    /// The line that it begins on, counted from 1.
    pub(super) line: usize,
    pub(super) text: Text,
}

#[derive(Debug)]
pub(super) enum Text {
    /// A shell command.
    Words(Vec<Word>),
    /// A line that begins with a double quote followed by a comma-separated list: a row of a
    /// Wireshark table, which has no use for the shell's rules.
    Row(Zeroizing<String>),
}

/// A word with quotes and backslashes resolved; it may be a key, so it is wiped after use.
#[derive(Clone, Debug)]
pub(super) struct Word {
    /// The line that it begins on, counted from 1.
    pub(super) line: usize,
    pub(super) text: Zeroizing<String>,
}

/// Splits `text` into commands, one a line; a backslash at the end of a line continues it.
///
/// What would make a shell do more than split words (`;`, `|`, `$`, globs) has no special
/// meaning here and ends up in a word, where it will be refused.
pub(super) fn commands(text: &str, file: &str) -> Result<Vec<Command>, SaFileError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut splitter = Splitter {
        rest: text,
        line: 1,
    };
    let mut commands = Vec::new();
    while !splitter.rest.is_empty() {
        let line = splitter.line;
        if splitter.at_row() {
            let row = Zeroizing::new(splitter.take_line().to_owned());
            commands.push(Command {
                line,
                text: Text::Row(row),
            });
            continue;
        }
        let words = splitter.words().map_err(|(line, reason)| SaFileError {
            file: file.to_owned(),
            line,
            word: "quote".to_owned(),
            value: None,
            reason,
        })?;
        if let Some(first) = words.first() {
            commands.push(Command {
                line: first.line,
                text: Text::Words(words),
            });
        }
    }
    Ok(commands)
}

struct Splitter<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Splitter<'a> {
    /// Whether the line is a row of a table: `"IPv4","192.0.2.1",...`.
    fn at_row(&self) -> bool {
        let line = self.rest.lines().next().unwrap_or_default();
        line.trim_start()
            .strip_prefix('"')
            .and_then(|rest| rest.split_once('"'))
            .is_some_and(|(_, after)| after.trim_start().starts_with(','))
    }

    fn take_line(&mut self) -> &'a str {
        let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
        self.rest = rest;
        self.line += 1;
        line.trim()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.rest = &self.rest[next.len_utf8()..];
        if next == '\n' {
            self.line += 1;
        }
        Some(next)
    }

    /// The words up to the end of the line.
    fn words(&mut self) -> Result<Vec<Word>, (usize, Reason)> {
        let mut words = Vec::new();
        let mut word: Option<Word> = None;
        loop {
            let line = self.line;
            let Some(next) = self.next() else {
                break;
            };
            match next {
                '\n' => break,
                _ if next.is_whitespace() => words.extend(word.take()),
                '#' if word.is_none() => {
                    self.take_line();
                    break;
                }
                '\\' => match self.escaped() {
                    // A backslash and a line end vanish together.
                    Some('\n') => {}
                    Some(escaped) => push(&mut word, line, escaped),
                    None => break,
                },
                '\'' | '"' => {
                    word.get_or_insert_with(|| Word::empty(line));
                    self.quoted(next, &mut word)
                        .map_err(|reason| (line, reason))?;
                }
                _ => push(&mut word, line, next),
            }
        }
        words.extend(word);
        Ok(words)
    }

    /// The character after a backslash; a carriage return before a line end is skipped.
    fn escaped(&mut self) -> Option<char> {
        if let Some(rest) = self.rest.strip_prefix("\r\n") {
            self.rest = rest;
            self.line += 1;
            return Some('\n');
        }
        self.next()
    }

    fn quoted(&mut self, quote: char, word: &mut Option<Word>) -> Result<(), Reason> {
        let line = self.line;
        loop {
            match self.next() {
                None | Some('\n') => return Err(Reason::UnclosedQuote),
                Some(next) if next == quote => return Ok(()),
                Some('\\') if quote == '"' => match self.next() {
                    Some(escaped @ ('"' | '\\' | '$' | '`')) => push(word, line, escaped),
                    Some('\n') => {}
                    Some(other) => {
                        push(word, line, '\\');
                        push(word, line, other);
                    }
                    None => return Err(Reason::UnclosedQuote),
                },
                Some(next) => push(word, line, next),
            }
        }
    }
}

impl Word {
    fn empty(line: usize) -> Self {
        Self {
            line,
            // Room for the longest key in hexadecimal, so that growth leaves no copies behind.
            text: Zeroizing::new(String::with_capacity(160)),
        }
    }
}

fn push(word: &mut Option<Word>, line: usize, next: char) {
    word.get_or_insert_with(|| Word::empty(line))
        .text
        .push(next);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<(usize, Vec<String>)> {
        commands(text, "f")
            .unwrap()
            .into_iter()
            .map(|command| match command.text {
                Text::Words(words) => (
                    command.line,
                    words.iter().map(|word| word.text.to_string()).collect(),
                ),
                Text::Row(row) => (command.line, vec![format!("row:{}", *row)]),
            })
            .collect()
    }

    fn line(number: usize, words: &[&str]) -> (usize, Vec<String>) {
        (number, words.iter().map(|&word| word.to_owned()).collect())
    }

    #[test]
    fn words_as_the_shell_splits_them() {
        assert_eq!(
            split("a  b\tc # rest\n\n#x\n'd e' \"\" f\\ g h#i\r\n"),
            [
                line(1, &["a", "b", "c"]),
                line(4, &["d e", "", "f g", "h#i"])
            ]
        );
        assert_eq!(
            split("'a'\"b\"c \"q\\\"\\\\\\x\" '\\'"),
            [line(1, &["abc", "q\"\\\\x", "\\"])]
        );
    }

    #[test]
    fn lines_continue_after_a_backslash() {
        assert_eq!(
            split("a \\\n  b\\\r\nc\nd"),
            [line(1, &["a", "bc"]), line(4, &["d"])]
        );
        assert_eq!(split("a \\"), [line(1, &["a"])]);
    }

    #[test]
    fn rows_are_left_alone() {
        assert_eq!(
            split("# t\n\"IPv4\",\"a\\b\",\"x # y\"\r\nz"),
            [
                line(2, &["row:\"IPv4\",\"a\\b\",\"x # y\""]),
                line(3, &["z"])
            ]
        );
        assert_eq!(split("\"ip\" xfrm"), [line(1, &["ip", "xfrm"])]);
    }

    #[test]
    fn an_open_quote_is_refused_where_it_opens() {
        for text in ["a\nb 'c\n", "a\nb \"c", "a\nb \"c\\"] {
            let error = commands(text, "f").unwrap_err();
            assert_eq!((error.line, error.reason), (2, Reason::UnclosedQuote));
        }
    }
}
