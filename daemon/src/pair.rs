//! Keys for machines of one process that talk to each other: made afresh at each start, never
//! written anywhere.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;

use vesper_esp::{Suite, Xfrm};
use vesper_verify::xfrm::{PolicyLine, SaFileError, parse_policies};
use zeroize::Zeroizing;

use crate::config::{Config, HostConfig, PairConfig, Secret};

/// The SPI of the first association.
const FIRST_SPI: u32 = 0x1000;

/// What one machine of a pair gets.
#[derive(Debug)]
pub struct PairedVm {
    /// The host.
    pub host: String,
    /// The machine.
    pub vm: String,
    /// Its associations, outbound and inbound, in the words of `ip xfrm state add`.
    pub sas: [Secret; 2],
    /// What its policies refer to.
    pub reqid: u32,
    /// Where the tunnel ends.
    pub peer: IpAddr,
    /// Where it begins.
    pub here: IpAddr,
}

impl PairedVm {
    /// Everything through the tunnel, and nothing in that did not come through it.
    ///
    /// # Errors
    /// None for a machine that the configuration knows.
    pub fn policies(&self) -> Result<Vec<PolicyLine>, SaFileError> {
        let Self {
            host,
            vm,
            here,
            peer,
            reqid,
            ..
        } = self;
        let line = |direction, from, to| {
            format!(
                "host {host} vm {vm} dir {direction} tmpl src {from} dst {to} proto esp reqid \
                 {reqid} mode tunnel"
            )
        };
        let lines = [line("out", here, peer), line("in", peer, here)];
        parse_policies(&lines.join("\n"), "pair")
    }
}

/// Makes the keys of every pair.
///
/// # Errors
/// The system has no random numbers.
pub fn keys(config: &Config) -> io::Result<Vec<PairedVm>> {
    let mut paired = Vec::new();
    for (number, pair) in (0..).zip(&config.pairs) {
        // The configuration was checked: hosts, machines and suite exist.
        let ends = pair.vms.each_ref().map(|name| end(config, name));
        let [Some(a), Some(b)] = ends else {
            continue;
        };
        let reqid = number + 1;
        let spi = FIRST_SPI + 2 * number;
        let there = words(pair, reqid, spi, a.0.tunnel.address, b.0.tunnel.address)?;
        let back = words(pair, reqid, spi + 1, b.0.tunnel.address, a.0.tunnel.address)?;
        for (here, peer, out, inward) in [(a, b, &there, &back), (b, a, &back, &there)] {
            paired.push(PairedVm {
                host: here.0.name.to_string(),
                vm: here.1.to_owned(),
                sas: [directed(out, "out"), directed(inward, "in")],
                reqid,
                peer: peer.0.tunnel.address,
                here: here.0.tunnel.address,
            });
        }
    }
    Ok(paired)
}

fn end<'a>(config: &'a Config, name: &'a str) -> Option<(&'a HostConfig, &'a str)> {
    let (host, vm) = name.split_once('/')?;
    let host = config.hosts.iter().find(|other| **other.name == *host)?;
    Some((host, vm))
}

fn words(
    pair: &PairConfig,
    reqid: u32,
    spi: u32,
    from: IpAddr,
    to: IpAddr,
) -> io::Result<Zeroizing<String>> {
    let suite = Suite::by_name(&pair.suite);
    let Some((suite, xfrm)) = suite.and_then(|suite| Some((suite, suite.xfrm()?))) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    // Long enough that it never moves and leaves a copy behind.
    let mut line = Zeroizing::new(String::with_capacity(1024));
    let esn = if pair.esn { "flag esn " } else { "" };
    // Writing to a String does not fail.
    let _ = write!(
        line,
        "ip xfrm state add src {from} dst {to} proto esp spi {spi:#x} reqid {reqid} mode tunnel \
         replay-window {} {esn}",
        pair.replay_window
    );
    match xfrm {
        Xfrm::Aead { name, icv_bits } => {
            let _ = write!(line, "aead '{name}' ");
            key(&mut line, suite.key_len + suite.salt_len)?;
            let _ = write!(line, " {icv_bits}");
        }
        Xfrm::EncAuth {
            encryption,
            integrity,
            icv_bits,
        } => {
            let _ = write!(line, "enc '{encryption}' ");
            key(&mut line, suite.key_len + suite.salt_len)?;
            let _ = write!(line, " auth-trunc '{integrity}' ");
            key(&mut line, suite.auth_key_len)?;
            let _ = write!(line, " {icv_bits}");
        }
    }
    Ok(line)
}

fn key(line: &mut String, len: usize) -> io::Result<()> {
    if len == 0 {
        line.push_str("''");
        return Ok(());
    }
    let mut key = Zeroizing::new([0; 128]);
    let key = &mut key[..len];
    getrandom::fill(key).map_err(io::Error::other)?;
    line.push_str("0x");
    for byte in key.iter() {
        let _ = write!(line, "{byte:02x}");
    }
    Ok(())
}

fn directed(words: &str, direction: &str) -> Secret {
    let mut line = String::with_capacity(words.len() + 8);
    line.push_str(words);
    line.push_str(" dir ");
    line.push_str(direction);
    Secret::new(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vesper_verify::xfrm::{Entry, parse};

    #[test]
    fn both_ends_get_the_same_keys_and_every_start_others() {
        let config = Config::embedded();
        let paired = keys(&config).unwrap();
        assert_eq!(paired.len(), 6);
        let undirected =
            |secret: &Secret| secret.expose().rsplit_once(" dir ").unwrap().0.to_owned();
        for both in paired.chunks(2) {
            assert_eq!(undirected(&both[0].sas[0]), undirected(&both[1].sas[1]));
            assert_eq!(undirected(&both[0].sas[1]), undirected(&both[1].sas[0]));
        }
        let again = keys(&config).unwrap();
        for (first, second) in paired.iter().zip(&again) {
            assert_ne!(first.sas[0].expose(), second.sas[0].expose());
        }
    }

    #[test]
    fn every_suite_with_a_name_makes_words_that_parse() {
        let mut config = Config::embedded();
        config.pairs.truncate(1);
        for suite in Suite::ALL.iter().filter(|suite| suite.xfrm().is_some()) {
            config.pairs[0].suite = crate::config::Located::new(suite.name.to_owned(), 0);
            for end in keys(&config).unwrap() {
                for words in &end.sas {
                    let entries = parse(words.expose(), "pair").unwrap();
                    let [Entry::State(state)] = &entries[..] else {
                        panic!("{}", suite.name);
                    };
                    assert_eq!(state.keys.suite().name, suite.name);
                }
            }
        }
    }
}
