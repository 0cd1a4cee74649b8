//! Which associations or policies are meant.

use std::fmt;
use std::net::IpAddr;

use vesper_sa::{Direction, Mode, Spi};

use super::record::{PolicyRecord, SaRecord};
use super::{Refusal, Scope};

/// Which associations are meant: those that have everything that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaFilter {
    /// `host`.
    pub host: Option<String>,
    /// `vm`.
    pub vm: Option<String>,
    /// `src`: outer source address.
    pub source: Option<IpAddr>,
    /// `dst`: outer destination address.
    pub destination: Option<IpAddr>,
    /// `spi`.
    pub spi: Option<Spi>,
    /// `reqid`.
    pub reqid: Option<u32>,
    /// `mode`.
    pub mode: Option<Mode>,
    /// `dir`.
    pub direction: Option<Direction>,
}

/// Which policies are meant: those that have everything that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFilter {
    /// `host`.
    pub host: Option<String>,
    /// `vm`.
    pub vm: Option<String>,
    /// `dir`.
    pub direction: Option<Direction>,
    /// `index`: the number in the control interface.
    pub index: Option<u64>,
    /// The words of the selector as they are printed, if there are any.
    pub selector: Option<String>,
}

impl SaFilter {
    /// Honours one word with its value.
    ///
    /// # Errors
    /// An unknown word, a word that is there twice, or a value that it does not take.
    pub fn set(&mut self, word: &str, value: &str) -> Result<(), Refusal> {
        let expected = |what: &str| Refusal::words(word, value, format!("expected {what}"), "");
        match word {
            "host" => once(&mut self.host, value.to_owned(), word, value),
            "vm" => once(&mut self.vm, value.to_owned(), word, value),
            "src" | "dst" => {
                let address = value.parse().map_err(|_| expected("an IP address"))?;
                let slot = match word {
                    "src" => &mut self.source,
                    _ => &mut self.destination,
                };
                once(slot, address, word, value)
            }
            "proto" if matches!(value, "esp" | "50") => Ok(()),
            "proto" => Err(expected("esp")),
            "spi" => {
                let spi = number(value)
                    .and_then(|number| u32::try_from(number).ok())
                    .and_then(Spi::new)
                    .ok_or_else(|| expected("an SPI of at least 256, such as 0x1000"))?;
                once(&mut self.spi, spi, word, value)
            }
            "reqid" => {
                let reqid = number(value)
                    .and_then(|number| u32::try_from(number).ok())
                    .ok_or_else(|| expected("a number up to 4294967295"))?;
                once(&mut self.reqid, reqid, word, value)
            }
            "mode" => {
                let mode = match value {
                    "transport" => Mode::Transport,
                    "tunnel" => Mode::Tunnel,
                    _ => return Err(expected("transport or tunnel")),
                };
                once(&mut self.mode, mode, word, value)
            }
            "dir" => {
                let direction = direction(value).ok_or_else(|| expected("in or out"))?;
                once(&mut self.direction, direction, word, value)
            }
            _ => Err(Refusal::words(
                word,
                value,
                "not a word that names associations",
                "use host, vm, src, dst, proto, spi, reqid, mode, dir",
            )),
        }
    }

    /// Whether it says nothing: everything is meant.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn matches(&self, scope: Scope, record: &SaRecord) -> bool {
        let params = record.sa.params();
        let vm = |name: &String| names_vm(name, &record.host, record.vm.as_deref());
        in_scope(scope, record)
            && self.host.as_ref().is_none_or(|host| **host == *record.host)
            && self.vm.as_ref().is_none_or(vm)
            && self.source.is_none_or(|source| source == params.source)
            && self
                .destination
                .is_none_or(|destination| destination == params.destination)
            && self.spi.is_none_or(|spi| spi == params.spi)
            && self.reqid.is_none_or(|reqid| reqid == params.reqid)
            && self.mode.is_none_or(|mode| mode == params.mode)
            && self
                .direction
                .is_none_or(|direction| direction == params.direction)
    }
}

impl PolicyFilter {
    /// Whether it says nothing: everything is meant.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn matches(&self, record: &PolicyRecord) -> bool {
        let vm = |name: &String| names_vm(name, &record.host, Some(&record.vm));
        let selector =
            |words: &String| *words == vesper_verify::xfrm::selector_words(&record.line.selector);
        self.host.as_ref().is_none_or(|host| **host == *record.host)
            && self.vm.as_ref().is_none_or(vm)
            && self
                .direction
                .is_none_or(|direction| direction == record.line.direction)
            && self.index.is_none_or(|index| index == record.id)
            && self.selector.as_ref().is_none_or(selector)
    }
}

/// The words that it was made of.
impl fmt::Display for PolicyFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            self.host.as_ref().map(|host| format!("host {host}")),
            self.vm.as_ref().map(|vm| format!("vm {vm}")),
            self.direction.map(|direction| format!("dir {direction}")),
            self.index.map(|index| format!("index {index}")),
            (self.selector.as_ref()).map(|selector| selector.trim().to_owned()),
        ];
        let words: Vec<_> = words.into_iter().flatten().collect();
        f.write_str(&words.join(" "))
    }
}

pub(crate) fn in_scope(scope: Scope, record: &SaRecord) -> bool {
    match scope {
        Scope::All => true,
        Scope::Vm(vm) => record.sa.owner() == vm,
    }
}

/// Whether `name`, which may be `HOST/NAME`, is this machine.
fn names_vm(name: &str, host: &str, vm: Option<&str>) -> bool {
    let name = match name.split_once('/') {
        Some((before, name)) if before == host => name,
        Some(_) => return false,
        None => name,
    };
    vm == Some(name)
}

fn once<T>(slot: &mut Option<T>, set: T, word: &str, value: &str) -> Result<(), Refusal> {
    match slot.replace(set) {
        None => Ok(()),
        Some(_) => Err(Refusal::words(word, value, "given twice", "give it once")),
    }
}

pub(crate) fn direction(value: &str) -> Option<Direction> {
    match value {
        "in" => Some(Direction::Inbound),
        "out" => Some(Direction::Outbound),
        _ => None,
    }
}

/// A number as C's `strtoul` with base 0 reads it, but for the leading 0 of octal numbers.
pub(crate) fn number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    let is_number = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_number
        .then(|| u64::from_str_radix(digits, radix).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_make_no_sense_are_named() {
        for (word, value, expected) in [
            ("spi", "255", "spi 255: expected an SPI of at least 256"),
            ("spi", "0x100000000", "spi 0x100000000: expected"),
            ("src", "10.0.0.0/8", "src 10.0.0.0/8: expected an IP"),
            ("dir", "fwd", "dir fwd: expected in or out"),
            ("proto", "ah", "proto ah: expected esp"),
            ("reqid", "-1", "reqid -1: expected a number"),
            ("mark", "7", "mark 7: not a word that names"),
        ] {
            let refusal = SaFilter::default().set(word, value).unwrap_err();
            assert!(refusal.to_string().starts_with(expected), "{refusal}");
        }
        let mut filter = SaFilter::default();
        filter.set("spi", "0x1000").unwrap();
        assert_eq!(filter.spi, Spi::new(4096));
        let twice = filter.set("spi", "0x1001").unwrap_err();
        assert_eq!(twice.to_string(), "spi 0x1001: given twice; give it once");
    }

    #[test]
    fn a_machine_has_a_short_and_a_long_name() {
        assert!(names_vm("web1", "a", Some("web1")));
        assert!(names_vm("a/web1", "a", Some("web1")));
        assert!(!names_vm("b/web1", "a", Some("web1")));
        assert!(!names_vm("web1", "a", None));
    }
}
