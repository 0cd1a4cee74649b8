//! Values of words: numbers, addresses, prefixes, keys.

use std::net::IpAddr;

use zeroize::Zeroizing;

use super::shell::Word;

/// A number as C's `strtoul` with base 0 reads it: `0x` is hexadecimal, a leading 0 octal.
pub(super) fn number(text: &str) -> Option<u64> {
    let (digits, radix) = if let Some(hex) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        (hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        (&text[1..], 8)
    } else {
        (text, 10)
    };
    // `from_str_radix` would take a sign.
    digits
        .chars()
        .all(|digit| digit.is_digit(radix))
        .then(|| u64::from_str_radix(digits, radix).ok())
        .flatten()
}

/// An address with an optional prefix length; the length of the whole address if there is none.
pub(super) fn prefix(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        Some(length) => u8::try_from(number(length)?).ok()?,
        None => bits,
    };
    (length <= bits).then_some((address, length))
}

/// An address; a full-length prefix is tolerated, as `ip` does.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let (address, length) = prefix(text)?;
    (length == if address.is_ipv4() { 32 } else { 128 }).then_some(address)
}

/// A key: hexadecimal after `0x` (an odd number of digits has an implied leading 0), else the
/// characters themselves.
pub(super) fn key(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let Some(hex) = text.strip_prefix("0x").filter(|hex| !hex.is_empty()) else {
        return Some(Zeroizing::new(text.as_bytes().to_vec()));
    };
    let mut key = Zeroizing::new(Vec::with_capacity(hex.len().div_ceil(2)));
    let mut high = (!hex.len().is_multiple_of(2)).then_some(0);
    for digit in hex.chars() {
        let digit = digit.to_digit(16)? as u8;
        match high.take() {
            Some(high) => key.push(high << 4 | digit),
            None => high = Some(digit),
        }
    }
    Some(key)
}

/// The word for a message. What may be a key is cut short.
pub(super) fn shown(word: &Word) -> String {
    let text = word.text.as_str();
    if text.chars().count() <= 24 && !(text.starts_with("0x") && text.len() > 10) {
        text.to_owned()
    } else {
        let mut start: String = text.chars().take(4).collect();
        start.push_str("...");
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_like_strtoul() {
        for (text, value) in [
            ("0", Some(0)),
            ("10", Some(10)),
            ("010", Some(8)),
            ("0x10", Some(16)),
            ("0XfF", Some(255)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("0x", None),
            ("08", None),
            ("+1", None),
            ("-1", None),
            ("0x+1", None),
            ("1a", None),
            ("1 ", None),
        ] {
            assert_eq!(number(text), value, "{text:?}");
        }
    }

    #[test]
    fn prefixes() {
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        assert_eq!(prefix("192.0.2.1/24"), Some((v4, 24)));
        assert_eq!(prefix("192.0.2.1"), Some((v4, 32)));
        assert_eq!(prefix("2001:db8::1/0"), Some((v6, 0)));
        assert_eq!(prefix("2001:db8::1"), Some((v6, 128)));
        for bad in [
            "192.0.2.1/33",
            "192.0.2",
            "192.0.2.1/",
            "::1/129",
            "host",
            "",
        ] {
            assert_eq!(prefix(bad), None, "{bad:?}");
        }
        assert_eq!(address("192.0.2.1/32"), Some(v4));
        assert_eq!(address("192.0.2.1/31"), None);
    }

    #[test]
    fn keys_are_hexadecimal_or_text() {
        let bytes = |text| key(text).map(|key| key.to_vec());
        assert_eq!(bytes("0x00ffA1"), Some(vec![0, 0xff, 0xa1]));
        assert_eq!(bytes("0xfff"), Some(vec![0x0f, 0xff]));
        assert_eq!(bytes("0x1g"), None);
        assert_eq!(bytes("0x1\u{e9}"), None);
        assert_eq!(bytes("abc"), Some(b"abc".to_vec()));
        assert_eq!(bytes("0x"), Some(b"0x".to_vec()));
        assert_eq!(bytes(""), Some(vec![]));
    }

    #[test]
    fn messages_show_no_key() {
        let word = |text: &str| Word {
            line: 1,
            text: Zeroizing::new(text.to_owned()),
        };
        assert_eq!(shown(&word("0x12345678")), "0x12345678");
        assert_eq!(shown(&word("0x123456789abcdef0")), "0x12...");
        assert_eq!(shown(&word("rfc4106(gcm(aes))")), "rfc4106(gcm(aes))");
        assert_eq!(shown(&word(&"k".repeat(32))), "kkkk...");
    }
}
