//! Words of the command line on their way to the daemon.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::answer::Stop;

/// The longest text that the daemon takes at a time, in bytes.
const LONGEST: u64 = 16 << 20;

/// All of a file, or of standard input; wiped after use.
pub(super) fn whole(file: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, Stop> {
    let name = file.map_or("standard input".into(), Path::to_string_lossy);
    let named = |error: io::Error| {
        let text = format!("{name}: {error}");
        Stop::System(io::Error::new(error.kind(), text))
    };
    let source: Box<dyn Read> = match file {
        Some(file) => Box::new(File::open(file).map_err(named)?),
        None => Box::new(io::stdin().lock()),
    };
    let mut text = Zeroizing::new(Vec::new());
    source
        .take(LONGEST + 1)
        .read_to_end(&mut text)
        .map_err(named)?;
    match text.len() as u64 > LONGEST {
        false => Ok(text),
        true => Err(Stop::Usage(format!(
            "{name}: longer than {} MiB; import a part at a time",
            LONGEST >> 20
        ))),
    }
}

/// The words as one line that the daemon splits into the same words.
pub(super) fn line(words: &[String]) -> String {
    let quoted = |word: &String| {
        let is_plain = |letter: char| !letter.is_whitespace() && !"'\"\\#".contains(letter);
        if !word.is_empty() && word.chars().all(is_plain) {
            word.clone()
        } else {
            format!("'{}'", word.replace('\'', "'\\''"))
        }
    };
    words.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

/// The body of a request that carries words.
pub(super) fn body(words: &[String]) -> Vec<u8> {
    serde_json::json!({ "words": line(words) })
        .to_string()
        .into_bytes()
}

/// Words that come in pairs, as a query: `vm web1 spi 0x1000` is `?vm=web1&spi=0x1000`.
pub(super) fn query(words: &[String], more: &[(&str, &str)]) -> Result<String, Stop> {
    let mut query = String::new();
    let mut push = |word: &str, value: &str| {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(&escaped(word));
        query.push('=');
        query.push_str(&escaped(value));
    };
    for pair in words.chunks(2) {
        match pair {
            [word, value] => push(word, value),
            [word] => return Err(Stop::Usage(format!("{word}: give its value"))),
            _ => {}
        }
    }
    for (word, value) in more {
        push(word, value);
    }
    Ok(query)
}

/// A part of a path or query, with everything escaped that means something there.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn words_arrive_as_they_were_given() {
        assert_eq!(
            line(&words(&[
                "aead",
                "rfc4106(gcm(aes))",
                "a b",
                "",
                "it's",
                "#"
            ])),
            r"aead rfc4106(gcm(aes)) 'a b' '' 'it'\''s' '#'"
        );
    }

    #[test]
    fn pairs_become_a_query() {
        let query = |text: &[&str]| query(&words(text), &[("all", "true")]);
        assert_eq!(
            query(&["vm", "a/web1", "dst", "fd00::1"]).unwrap(),
            "?vm=a%2Fweb1&dst=fd00%3A%3A1&all=true"
        );
        assert_eq!(query(&[]).unwrap(), "?all=true");
        assert!(matches!(query(&["vm"]), Err(Stop::Usage(_))));
    }
}
