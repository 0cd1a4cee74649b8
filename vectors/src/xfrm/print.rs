//! Associations and policies as the words that make them, in the order of `ip xfrm`.

use core::fmt::{self, Write};
use core::time::Duration;
use std::net::IpAddr;

use vesper_esp::Xfrm;
use vesper_sa::{AddressRange, Direction, Lifetime, Limits, Mode, ReplayProtection, Selector};
use zeroize::Zeroizing;

use super::policy::{PolicyAction, PolicyLine};
use super::state::{Offload, State};

/// What stands for a key that is not shown, as in `ip xfrm state list nokeys`.
pub const HIDDEN: &str = "<<Keys hidden>>";

impl State {
    /// The words after `ip xfrm state add`, without keys, but with the sequence numbers that
    /// the line began with.
    pub fn words(&self) -> String {
        let mut out = String::new();
        // Writing into a string never fails.
        let _ = self.write(&mut out, false);
        out
    }

    /// The words after `ip xfrm state add` with the keys: what [`parse`](super::parse) takes.
    pub fn words_with_keys(&self) -> Zeroizing<String> {
        // Room for all of it, so that no part of a key is left behind when the text grows.
        let mut out = Zeroizing::new(String::with_capacity(2048));
        let _ = self.write(&mut out, true);
        out
    }

    fn write(&self, out: &mut String, with_keys: bool) -> fmt::Result {
        owner(out, self.host.as_deref(), self.vm.as_deref())?;
        write!(
            out,
            "src {} dst {} proto esp spi 0x{:08x} reqid {} mode {}",
            self.source,
            self.destination,
            self.spi.get(),
            self.reqid,
            mode(self.mode)
        )?;
        if let ReplayProtection::Window(window) = self.replay {
            write!(out, " replay-window {}", window.get())?;
        }
        self.write_sequences(out)?;
        self.write_flags(out)?;
        self.write_keys(out, with_keys)?;
        if let Some(encapsulation) = self.encapsulation {
            write!(
                out,
                " encap espinudp {} {} {}",
                encapsulation.source_port,
                encapsulation.destination_port,
                if self.destination.is_ipv4() {
                    "0.0.0.0"
                } else {
                    "::"
                }
            )?;
        }
        if self.tfc_pad > 0 {
            write!(out, " tfcpad {}", self.tfc_pad)?;
        }
        if let Some(selector) = &self.selector {
            out.push_str(" sel");
            write_selector(out, selector)?;
        }
        write_lifetime(out, &self.lifetime)?;
        match (self.offload, self.direction) {
            (Some(offload), Some(direction)) => {
                let offload = match offload {
                    Offload::Crypto => "crypto",
                    Offload::Packet => "packet",
                };
                write!(out, " offload {offload} dir {}", dir(direction))
            }
            (None, Some(direction)) => write!(out, " dir {}", dir(direction)),
            (_, None) => Ok(()),
        }
    }

    fn write_sequences(&self, out: &mut String) -> fmt::Result {
        for (name, number) in [("seq", self.replay_seq), ("oseq", self.replay_oseq)] {
            let (high, low) = (number >> 32, number as u32);
            if low != 0 {
                write!(out, " replay-{name} 0x{low:x}")?;
            }
            if high != 0 {
                write!(out, " replay-{name}-hi 0x{high:x}")?;
            }
        }
        Ok(())
    }

    fn write_flags(&self, out: &mut String) -> fmt::Result {
        let flags = &self.flags;
        let set = [
            ("noecn", flags.noecn),
            ("decap-dscp", flags.decap_dscp),
            ("nopmtudisc", flags.nopmtudisc),
            ("icmp", flags.icmp),
            ("af-unspec", flags.af_unspec),
            ("esn", flags.esn),
        ];
        if set.iter().any(|(_, set)| *set) {
            out.push_str(" flag");
        }
        for (name, _) in set.iter().filter(|(_, set)| *set) {
            write!(out, " {name}")?;
        }
        if flags.dont_encap_dscp {
            out.push_str(" extra-flag dont-encap-dscp");
        }
        Ok(())
    }

    fn write_keys(&self, out: &mut String, with_keys: bool) -> fmt::Result {
        let keys = &self.keys;
        let key = |out: &mut String, key: &[u8]| {
            if !with_keys {
                out.push_str(HIDDEN);
                return Ok(());
            }
            out.push_str("0x");
            key.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
        };
        match keys.suite().xfrm() {
            Some(Xfrm::Aead { name, icv_bits }) => {
                write!(out, " aead {name} ")?;
                key(out, &keys.key)?;
                write!(out, " {icv_bits}")
            }
            Some(Xfrm::EncAuth {
                encryption,
                integrity,
                icv_bits,
            }) => {
                write!(out, " auth-trunc {integrity} ")?;
                key(out, &keys.auth_key)?;
                write!(out, " {icv_bits} enc {encryption} ")?;
                if keys.key.is_empty() && with_keys {
                    out.push_str("''");
                    return Ok(());
                }
                key(out, &keys.key)
            }
            // The grammar has no words for it, so no line can have named it.
            None => Ok(()),
        }
    }
}

impl fmt::Display for PolicyLine {
    /// The words after `ip xfrm policy add`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        owner(&mut out, self.host.as_deref(), self.vm.as_deref())?;
        let mut selector = String::new();
        write_selector(&mut selector, &self.selector)?;
        if !selector.is_empty() {
            out.push_str(selector.trim_start());
            out.push(' ');
        }
        write!(
            out,
            "dir {} priority {}",
            dir(self.direction),
            self.priority
        )?;
        match &self.action {
            PolicyAction::Block => out.push_str(" action block"),
            PolicyAction::Pass => {}
            PolicyAction::Protect(template) => {
                out.push_str(" tmpl");
                if let Some(source) = template.source {
                    write!(out, " src {source}")?;
                }
                if let Some(destination) = template.destination {
                    write!(out, " dst {destination}")?;
                }
                write!(
                    out,
                    " proto esp reqid {} mode {}",
                    template.reqid,
                    mode(template.mode)
                )?;
            }
        }
        f.write_str(&out)
    }
}

/// The words of a selector, each with a space before it.
pub fn selector_words(selector: &Selector) -> String {
    let mut out = String::new();
    // Writing into a string never fails.
    let _ = write_selector(&mut out, selector);
    out
}

fn owner(out: &mut String, host: Option<&str>, vm: Option<&str>) -> fmt::Result {
    if let Some(host) = host {
        write!(out, "host {host} ")?;
    }
    if let Some(vm) = vm {
        write!(out, "vm {vm} ")?;
    }
    Ok(())
}

fn write_selector(out: &mut String, selector: &Selector) -> fmt::Result {
    for (name, range) in [("src", selector.source), ("dst", selector.destination)] {
        if let Some(range) = range {
            write!(out, " {name} {}", Prefix(range))?;
        }
    }
    let is_icmp = matches!(selector.protocol, Some(1 | 58));
    if let Some(protocol) = selector.protocol {
        write!(out, " proto {protocol}")?;
    }
    let names = if is_icmp {
        ["type", "code"]
    } else {
        ["sport", "dport"]
    };
    for (name, range) in names
        .into_iter()
        .zip([&selector.source_port, &selector.destination_port])
    {
        if let Some(range) = range {
            write!(out, " {name} {}", range.start())?;
        }
    }
    Ok(())
}

/// An address range as ADDRESS/LENGTH, which is how every range of the grammar was made.
struct Prefix(AddressRange);

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.first(), self.0.last());
        let length = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                (first.to_bits() ^ last.to_bits()).leading_zeros()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                (first.to_bits() ^ last.to_bits()).leading_zeros()
            }
            // A range is of one IP version.
            _ => 0,
        };
        write!(f, "{first}/{length}")
    }
}

fn write_lifetime(out: &mut String, lifetime: &Lifetime) -> fmt::Result {
    for (end, limits) in [("soft", &lifetime.soft), ("hard", &lifetime.hard)] {
        let Limits {
            bytes,
            packets,
            time,
            idle: _,
        } = limits;
        for (kind, limit) in [
            ("byte", *bytes),
            ("packet", *packets),
            ("time", time.as_ref().map(Duration::as_secs)),
        ] {
            if let Some(limit) = limit {
                write!(out, " limit {kind}-{end} {limit}")?;
            }
        }
    }
    Ok(())
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Transport => "transport",
        Mode::Tunnel => "tunnel",
    }
}

const fn dir(direction: Direction) -> &'static str {
    match direction {
        Direction::Inbound => "in",
        Direction::Outbound => "out",
    }
}
