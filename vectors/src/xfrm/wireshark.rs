//! Rows of Wireshark's `esp_sa` table (Preferences, Protocols, ESP, ESP SAs), as its file
//! stores them: values in double quotes with commas between.

use core::fmt;
use std::net::IpAddr;

use vesper_esp::Suite;
use vesper_sa::Spi;
use zeroize::Zeroizing;

use super::lexeme::{key, number, prefix};
use super::{Keys, Reason};

/// A row of the `esp_sa` table.
///
/// It says neither the mode nor where the sequence numbers stand, and it has no replay
/// window: what opens packets with it completes it from the first packet.
#[derive(Clone, Debug)]
pub struct Row {
    /// The line of the file, counted from 1.
    pub line: usize,
    /// Outer source addresses.
    pub source: AddressPattern,
    /// Outer destination addresses.
    pub destination: AddressPattern,
    /// SPIs.
    pub spi: SpiPattern,
    /// The high half of the sequence number that the capture begins with, if the association
    /// has extended sequence numbers.
    pub sequence_high: Option<u32>,
    /// The suite and its keys.
    pub keys: Keys,
}

impl Row {
    /// Whether the row is for packets with these outer addresses and this SPI.
    pub fn matches(&self, source: IpAddr, destination: IpAddr, spi: u32) -> bool {
        self.source.matches(source)
            && self.destination.matches(destination)
            && self.spi.matches(spi)
    }
}

/// Which addresses a row is for: all of one IP version, or a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressPattern {
    /// `*`: any address, of IPv4 if `ipv4`, else of IPv6.
    Any {
        /// The first column of the row: `IPv4` or `IPv6`.
        ipv4: bool,
    },
    /// `ADDRESS` or `ADDRESS/LENGTH`.
    Prefix(vesper_sa::AddressRange),
}

impl AddressPattern {
    /// Whether the address is one of them.
    pub fn matches(&self, address: IpAddr) -> bool {
        match self {
            Self::Any { ipv4 } => address.is_ipv4() == *ipv4,
            Self::Prefix(range) => range.contains(address),
        }
    }
}

/// Which SPIs a row is for: `*` in place of hexadecimal digits matches any digit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SpiPattern {
    /// Bits that count.
    mask: u32,
    /// Their values.
    value: u32,
}

impl SpiPattern {
    /// Whether the SPI is one of them.
    pub const fn matches(self, spi: u32) -> bool {
        spi & self.mask == self.value
    }

    /// `None` if the text is no SPI pattern, or can only match reserved SPIs.
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self { mask: 0, value: 0 });
        }
        let hex = text.strip_prefix("0x").or(text.strip_prefix("0X"));
        let Some(digits) = hex.filter(|digits| digits.contains('*')) else {
            let spi = Spi::new(u32::try_from(number(text)?).ok()?)?;
            return Some(Self {
                mask: u32::MAX,
                value: spi.get(),
            });
        };
        if digits.len() != 8 {
            return None;
        }
        let (mut mask, mut value) = (0, 0);
        for digit in digits.chars() {
            let (digit_mask, digit) = match digit {
                '*' => (0, 0),
                _ => (0xf, digit.to_digit(16)?),
            };
            mask = mask << 4 | digit_mask;
            value = value << 4 | digit;
        }
        Some(Self { mask, value })
    }
}

impl fmt::Display for SpiPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mask == 0 {
            return f.write_str("*");
        }
        f.write_str("0x")?;
        for shift in (0..8).rev().map(|digit| 4 * digit) {
            match (self.mask >> shift) & 0xf {
                0 => f.write_str("*")?,
                _ => write!(f, "{:x}", (self.value >> shift) & 0xf)?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SpiPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for AddressPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any { .. } => f.write_str("*"),
            Self::Prefix(range) if range.first() == range.last() => range.first().fmt(f),
            Self::Prefix(range) => write!(f, "{}-{}", range.first(), range.last()),
        }
    }
}

/// Parses one row; on failure says the column and the reason.
pub(super) fn parse(line: usize, row: &str) -> Result<Row, (String, Reason)> {
    let columns = columns(row)?;
    let fault = |column: &str, reason| (column.to_owned(), reason);
    let mut next = columns.iter().map(|value| value.as_str());
    let mut column = |name: &'static str| next.next().ok_or_else(|| fault(name, Reason::Missing));

    let ipv4 = match column("protocol")? {
        "IPv4" => true,
        "IPv6" => false,
        _ => return Err(fault("protocol", Reason::Expected("\"IPv4\" or \"IPv6\""))),
    };
    let source = address_pattern(column("source")?, ipv4).map_err(|r| fault("source", r))?;
    let destination =
        address_pattern(column("destination")?, ipv4).map_err(|r| fault("destination", r))?;
    let spi = SpiPattern::parse(column("spi")?).ok_or_else(|| {
        fault(
            "spi",
            Reason::Expected("*, or an SPI of at least 256, or 0x and 8 digits or *"),
        )
    })?;
    let encryption = column("encryption")?;
    let encryption_key =
        key_column(column("encryption key")?).map_err(|reason| fault("encryption key", reason))?;
    let authentication = column("authentication")?;
    let authentication_key = key_column(column("authentication key")?)
        .map_err(|reason| fault("authentication key", reason))?;
    // The two columns that version 4.4 has added.
    let extended = match column("sequence number length") {
        Err(_) | Ok("32-bit" | "") => false,
        Ok("64-bit") => true,
        Ok(_) => {
            return Err(fault(
                "sequence number length",
                Reason::Expected("\"32-bit\" or \"64-bit\""),
            ));
        }
    };
    let high = match column("sequence number high half") {
        Err(_) | Ok("") => 0,
        Ok(text) => number(text)
            .and_then(|high| u32::try_from(high).ok())
            .ok_or_else(|| {
                fault(
                    "sequence number high half",
                    Reason::Expected("a number up to 4294967295"),
                )
            })?,
    };
    if next.next().is_some() {
        return Err(fault("row", Reason::Expected("8 to 10 columns")));
    }
    let suite = Suite::from_wireshark(encryption, encryption_key.len(), authentication)
        .map_err(|error| fault("encryption", Reason::Algorithm(error)))?;
    let authentication_key = if suite.auth_key_len == 0 {
        Zeroizing::new(Vec::new())
    } else {
        authentication_key
    };
    let keys = Keys::new(suite, encryption_key, authentication_key)
        .map_err(|reason| fault("authentication key", reason))?;
    Ok(Row {
        line,
        source,
        destination,
        spi,
        sequence_high: extended.then_some(high),
        keys,
    })
}

/// The values between the quotes; `\xHH` stands for a byte, as Wireshark writes quotes.
fn columns(row: &str) -> Result<Vec<Zeroizing<String>>, (String, Reason)> {
    let fault = || {
        (
            "row".to_owned(),
            Reason::Expected("values in double quotes with commas between"),
        )
    };
    let mut columns = Vec::new();
    let mut rest = row.trim();
    loop {
        let (value, after) = rest
            .strip_prefix('"')
            .and_then(|rest| rest.split_once('"'))
            .ok_or_else(fault)?;
        columns.push(unescape(value).ok_or_else(fault)?);
        rest = match after.trim_start().strip_prefix(',') {
            Some(rest) => rest.trim_start(),
            None if after.trim().is_empty() || after.trim_start().starts_with('#') => break,
            None => return Err(fault()),
        };
    }
    Ok(columns)
}

fn unescape(value: &str) -> Option<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(value.len()));
    let mut parts = value.split("\\x");
    text.push_str(parts.next()?);
    for part in parts {
        let byte = u8::from_str_radix(part.get(..2)?, 16).ok()?;
        text.push(byte.is_ascii().then_some(char::from(byte))?);
        text.push_str(part.get(2..)?);
    }
    Some(text)
}

fn address_pattern(text: &str, ipv4: bool) -> Result<AddressPattern, Reason> {
    if text == "*" {
        return Ok(AddressPattern::Any { ipv4 });
    }
    if text.contains('*') {
        return Err(Reason::Unsupported(
            "`*` stands for a whole address; write ADDRESS/LENGTH for a part of one",
        ));
    }
    prefix(text)
        .filter(|(address, _)| address.is_ipv4() == ipv4)
        .and_then(|(address, length)| vesper_sa::AddressRange::prefix(address, length))
        .map(AddressPattern::Prefix)
        .ok_or(Reason::Expected(
            "*, or an address of the version in the first column",
        ))
}

fn key_column(text: &str) -> Result<Zeroizing<Vec<u8>>, Reason> {
    key(text).ok_or(Reason::Expected(
        "a key of hexadecimal digits after 0x, or characters",
    ))
}
