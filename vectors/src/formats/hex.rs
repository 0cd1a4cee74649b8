//! Bytes written as hexadecimal digits.

use core::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

/// Bytes that a file writes as a string of hexadecimal digits; white space between is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

impl Hex {
    /// `None` unless `text` is an even number of hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = Vec::with_capacity(text.len() / 2);
        let mut high = None;
        for digit in text.chars().filter(|digit| !digit.is_ascii_whitespace()) {
            let digit = digit.to_digit(16)? as u8;
            match high.take() {
                None => high = Some(digit << 4),
                Some(high) => bytes.push(high | digit),
            }
        }
        high.is_none().then_some(Self(bytes))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits;

        impl Visitor<'_> for Digits {
            type Value = Hex;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an even number of hexadecimal digits")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Hex, E> {
                Hex::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_str(Digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_come_in_pairs() {
        assert_eq!(Hex::parse("00fF a1\n"), Some(Hex(vec![0, 0xff, 0xa1])));
        assert_eq!(Hex::parse(""), Some(Hex(vec![])));
        for bad in ["0", "0g", "0x00", "é0"] {
            assert_eq!(Hex::parse(bad), None, "{bad}");
        }
    }
}
