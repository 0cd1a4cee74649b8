//! The grammar of `ip xfrm state add`.

use core::time::Duration;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vesper_sa::{
    Df, Direction, Dscp, Ecn, Lifetime, Limits, Mode, ReplayProtection, SaParams, Selector, Spi,
    UdpEncapsulation, WindowSize,
};

use super::algorithm::Algorithms;
use super::flags::Flags;
use super::lexeme::{address, number};
use super::words::{Fault, Words};
use super::{Keys, Reason, selector};

/// What an `ip xfrm state add` line says.
#[derive(Clone, Debug)]
pub struct State {
    /// The line of the file that it begins on, counted from 1.
    pub line: usize,
    /// `host`: the host that has the association; not a word of `ip`.
    pub host: Option<String>,
    /// `vm`: the virtual machine that owns the association; not a word of `ip`.
    pub vm: Option<String>,
    /// `spi`.
    pub spi: Spi,
    /// `src`; the unspecified address if the line has none.
    pub source: IpAddr,
    /// `dst`.
    pub destination: IpAddr,
    /// `mode`; transport if the line has none.
    pub mode: Mode,
    /// `reqid`; 0 if the line has none.
    pub reqid: u32,
    /// `dir in|out`, also as a part of `offload`. Few lines have it: the kernel takes an
    /// association for both.
    pub direction: Option<Direction>,
    /// `offload`.
    pub offload: Option<Offload>,
    /// `encap espinudp`.
    pub encapsulation: Option<UdpEncapsulation>,
    /// `replay-window`; off if the line has none or 0.
    pub replay: ReplayProtection,
    /// `replay-seq` and `replay-seq-hi`: the highest number that the receiver has seen.
    pub replay_seq: u64,
    /// `replay-oseq` and `replay-oseq-hi`: the last number that the sender has used.
    pub replay_oseq: u64,
    /// `sel`.
    pub selector: Option<Selector>,
    /// `limit`.
    pub lifetime: Lifetime,
    /// `tfcpad` in bytes; 0 is none.
    pub tfc_pad: u16,
    /// `flag` and `extra-flag`.
    pub flags: Flags,
    /// `aead`, or `enc` and `auth-trunc`.
    pub keys: Keys,
}

/// Who does what for an association that is offloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// The adapter encrypts and authenticates; software goes on where it can not. What the
    /// kernel takes for `offload` without a mode.
    Crypto,
    /// The adapter does all of it; without it there is no association.
    Packet,
}

impl State {
    /// The parameters of the association in this direction.
    pub fn params(&self, direction: Direction) -> SaParams {
        let mut params = SaParams::new(
            self.spi,
            direction,
            self.mode,
            self.source,
            self.destination,
        );
        params.reqid = self.reqid;
        params.encapsulation = self.encapsulation;
        params.esn = self.flags.esn;
        params.replay = self.replay;
        params.sequence = match direction {
            Direction::Inbound => self.replay_seq,
            Direction::Outbound => self.replay_oseq,
        };
        params.lifetime = self.lifetime;
        params.selectors = self.selector.iter().cloned().collect();
        params.tfc_pad = self.tfc_pad;
        if self.flags.noecn {
            params.tunnel.ecn = Ecn::Off;
        }
        if self.flags.nopmtudisc {
            params.tunnel.df = Df::Clear;
        }
        if self.flags.dont_encap_dscp {
            params.tunnel.dscp = Dscp::Set(0);
        }
        params
    }
}

/// Parses what follows `ip xfrm state add`.
pub(super) fn parse(line: usize, words: &mut Words<'_>) -> Result<State, Fault> {
    let mut draft = Draft::default();
    while words.peek().is_some() {
        words.step();
        draft.word(words)?;
    }
    draft.finish(line, words)
}

/// A line that is being read.
#[derive(Default)]
struct Draft {
    host: Option<String>,
    vm: Option<String>,
    offload: Option<Offload>,
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    proto: Option<()>,
    spi: Option<Spi>,
    mode: Option<Mode>,
    reqid: Option<u32>,
    direction: Option<Direction>,
    encapsulation: Option<UdpEncapsulation>,
    window: Option<u32>,
    /// `replay-seq`, `replay-seq-hi`, `replay-oseq`, `replay-oseq-hi`.
    sequence: [Option<u32>; 4],
    selector: Option<Selector>,
    lifetime: Lifetime,
    tfc_pad: Option<u16>,
    flags: Flags,
    algorithms: Algorithms,
}

impl Draft {
    /// Honours the word that was just taken, with its values.
    fn word(&mut self, words: &mut Words<'_>) -> Result<(), Fault> {
        match words.current() {
            "host" => {
                let host = words.value()?.to_owned();
                once(&mut self.host, host, words)
            }
            "vm" => {
                let vm = words.value()?.to_owned();
                once(&mut self.vm, vm, words)
            }
            "src" => {
                let source = ip_address(words)?;
                once(&mut self.source, source, words)
            }
            "dst" => {
                let destination = ip_address(words)?;
                once(&mut self.destination, destination, words)
            }
            "proto" => self.protocol(words),
            "spi" => {
                let number = words.number_u32()?;
                let spi = Spi::new(number).ok_or_else(|| {
                    words.fault(Reason::Expected(
                        "an SPI of at least 256; RFC 4303 section 2.1 reserves those below",
                    ))
                })?;
                once(&mut self.spi, spi, words)
            }
            "mode" => {
                let mode = mode(words)?;
                once(&mut self.mode, mode, words)
            }
            "reqid" => {
                let reqid = words.number_u32()?;
                once(&mut self.reqid, reqid, words)
            }
            "replay-window" => {
                let window = words.number_u32()?;
                once(&mut self.window, window, words)
            }
            "replay-seq" => self.sequence(0, words),
            "replay-seq-hi" => self.sequence(1, words),
            "replay-oseq" => self.sequence(2, words),
            "replay-oseq-hi" => self.sequence(3, words),
            "flag" => self.flags.flag(words),
            "extra-flag" => self.flags.extra_flag(words),
            "sel" => {
                let selector = selector::parse(words)?;
                once(&mut self.selector, selector, words)
            }
            "limit" => limit(&mut self.lifetime, words),
            "encap" => {
                let encapsulation = encapsulation(words)?;
                once(&mut self.encapsulation, encapsulation, words)
            }
            "tfcpad" => {
                let pad = words.number(65_535, "a length up to 65535")? as u16;
                once(&mut self.tfc_pad, pad, words)
            }
            "dir" => self.direction(words),
            "offload" => {
                let offload = match words.peek() {
                    Some("packet") => Offload::Packet,
                    _ => Offload::Crypto,
                };
                if let Some("packet" | "crypto") = words.peek() {
                    words.value()?;
                }
                once(&mut self.offload, offload, words)?;
                if words.peek() == Some("dev") {
                    words.value()?;
                    words.value()?;
                }
                if words.value()? != "dir" {
                    return Err(words.fault(Reason::Expected("[ dev NAME ] dir in|out")));
                }
                self.direction(words)
            }
            // What has no effect on ESP processing: the kernel's route lookup, its key
            // manager, and the processor that does the work.
            "seq" | "if_id" | "nat-keepalive-interval" | "pcpu-num" => words.number_u32().map(drop),
            "output-mark" | "set-mark" => {
                words.number_u32()?;
                if words.peek() == Some("mask") {
                    words.value()?;
                    words.number_u32()?;
                }
                Ok(())
            }
            "mark" => Err(words.fault(Reason::Unsupported(
                "firewall marks are of the local system; leave `mark` out",
            ))),
            "coa" => Err(words.fault(Reason::Unsupported(
                "a care-of address belongs to Mobile IPv6 route optimisation, which is not ESP",
            ))),
            "ctx" => Err(words.fault(Reason::Unsupported(
                "security contexts are labels of the local system; leave `ctx` out",
            ))),
            "comp" => Err(words.fault(Reason::Unsupported(
                "IPComp is not supported; describe the ESP association alone",
            ))),
            "aead" | "enc" | "auth" | "auth-trunc" => self.algorithm(words),
            _ => Err(words.unknown()),
        }
    }

    fn protocol(&mut self, words: &mut Words<'_>) -> Result<(), Fault> {
        match words.value()? {
            "esp" | "50" => once(&mut self.proto, (), words),
            "ah" => Err(words.fault(Reason::Unsupported("AH is not supported, only esp"))),
            "comp" => Err(words.fault(Reason::Unsupported("IPComp is not supported, only esp"))),
            "route2" | "hao" => Err(words.fault(Reason::Unsupported(
                "Mobile IPv6 route optimisation is not supported, only esp",
            ))),
            _ => Err(words.fault(Reason::Expected("esp"))),
        }
    }

    fn sequence(&mut self, index: usize, words: &mut Words<'_>) -> Result<(), Fault> {
        let value = words.number_u32()?;
        once(&mut self.sequence[index], value, words)
    }

    fn direction(&mut self, words: &mut Words<'_>) -> Result<(), Fault> {
        let direction = match words.value()? {
            "in" => Direction::Inbound,
            "out" => Direction::Outbound,
            _ => return Err(words.fault(Reason::Expected("in or out"))),
        };
        // `offload ... dir in dir in` is what current versions of `ip` print.
        if self
            .direction
            .replace(direction)
            .is_some_and(|before| before != direction)
        {
            return Err(words.fault(Reason::Unsupported("both in and out")));
        }
        Ok(())
    }

    fn algorithm(&mut self, words: &mut Words<'_>) -> Result<(), Fault> {
        let kind = words.current();
        let name = words.value()?;
        let key = words.value()?;
        let key = super::lexeme::key(key)
            .ok_or_else(|| words.fault(Reason::Expected("a key of hexadecimal digits after 0x")))?;
        let bits = match kind {
            "aead" | "auth-trunc" => Some(words.number_u32()?),
            _ => None,
        };
        self.algorithms
            .add(kind, name, key, bits)
            .map_err(|reason| words.fault(reason))
    }

    fn finish(self, line: usize, words: &Words<'_>) -> Result<State, Fault> {
        let fault = |word: &str, reason| {
            Err(Fault {
                line,
                word: word.to_owned(),
                value: None,
                reason,
            })
        };
        let Some(destination) = self.destination else {
            return fault("dst", Reason::Missing);
        };
        let Some(spi) = self.spi else {
            return fault("spi", Reason::Missing);
        };
        if self.proto.is_none() {
            return fault("proto", Reason::Missing);
        }
        let source = self.source.unwrap_or(match destination {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        });
        if source.is_ipv4() != destination.is_ipv4() {
            return fault(
                "src",
                Reason::Expected("an address of the same version as dst"),
            );
        }
        let mode = self.mode.unwrap_or(Mode::Transport);
        let tfc_pad = self.tfc_pad.unwrap_or(0);
        if tfc_pad > 0 && mode != Mode::Tunnel {
            return fault(
                "tfcpad",
                Reason::Expected("mode tunnel; the kernel refuses it otherwise"),
            );
        }
        if self.flags.icmp && self.selector.is_some() {
            return fault(
                "icmp",
                Reason::Unsupported("ICMP errors outside of `sel` cannot be let through"),
            );
        }
        let replay = match self.replay() {
            Ok(replay) => replay,
            Err(reason) => {
                return Err(Fault {
                    line,
                    word: "replay-window".to_owned(),
                    value: self.window.map(|window| window.to_string()),
                    reason,
                });
            }
        };
        let [seq, seq_hi, oseq, oseq_hi] = self.sequence.map(Option::unwrap_or_default);
        for (name, high) in [("replay-seq-hi", seq_hi), ("replay-oseq-hi", oseq_hi)] {
            if high != 0 && !self.flags.esn {
                return fault(
                    name,
                    Reason::Expected("flag esn; without it there is no high half"),
                );
            }
        }
        let joined = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        let keys = self
            .algorithms
            .keys()
            .map_err(|(word, reason)| words.fault_at(word, reason))?;
        Ok(State {
            line,
            host: self.host,
            vm: self.vm,
            offload: self.offload,
            spi,
            source,
            destination,
            mode,
            reqid: self.reqid.unwrap_or(0),
            direction: self.direction,
            encapsulation: self.encapsulation,
            replay,
            replay_seq: joined(seq_hi, seq),
            replay_oseq: joined(oseq_hi, oseq),
            selector: self.selector,
            lifetime: self.lifetime,
            tfc_pad,
            flags: self.flags,
            keys,
        })
    }

    fn replay(&self) -> Result<ReplayProtection, Reason> {
        match self.window.unwrap_or(0) {
            0 if self.flags.esn => Err(Reason::Expected(
                "a window above 0, which the kernel wants with flag esn",
            )),
            0 => Ok(ReplayProtection::Off),
            window => WindowSize::new(window).map(ReplayProtection::Window).ok_or(
                Reason::Expected(
                    "0 (off) or 32 to 65536 packets; RFC 4303 section 3.4.3 asks for 32 at least",
                ),
            ),
        }
    }
}

/// Sets what a line may say once only.
pub(super) fn once<T>(slot: &mut Option<T>, value: T, words: &Words<'_>) -> Result<(), Fault> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(words.fault(Reason::Twice)),
    }
}

pub(super) fn ip_address(words: &mut Words<'_>) -> Result<IpAddr, Fault> {
    address(words.value()?).ok_or_else(|| words.fault(Reason::Expected("an IP address")))
}

/// The value of `mode`, which may be abbreviated.
pub(super) fn mode(words: &mut Words<'_>) -> Result<Mode, Fault> {
    let name = words.value()?;
    let is = |full: &str| !name.is_empty() && full.starts_with(name);
    if is("transport") {
        Ok(Mode::Transport)
    } else if is("tunnel") {
        Ok(Mode::Tunnel)
    } else if is("ro") || is("in_trigger") || is("beet") || is("iptfs") {
        Err(words.fault(Reason::Unsupported(
            "only transport and tunnel mode are supported",
        )))
    } else {
        Err(words.fault(Reason::Expected("transport or tunnel")))
    }
}

fn encapsulation(words: &mut Words<'_>) -> Result<UdpEncapsulation, Fault> {
    match words.value()? {
        "espinudp" => {}
        "espinudp-nonike" => {
            return Err(words.fault(Reason::Unsupported(
                "espinudp-nonike is of the drafts before RFC 3948; only espinudp is supported",
            )));
        }
        "espintcp" => {
            return Err(words.fault(Reason::Unsupported(
                "espintcp (RFC 8229) is not supported, only espinudp",
            )));
        }
        _ => return Err(words.fault(Reason::Expected("espinudp SPORT DPORT ADDRESS"))),
    }
    let [source_port, destination_port] = [(); 2].map(|()| {
        words
            .number(65_535, "espinudp SPORT DPORT ADDRESS")
            .map(|port| port as u16)
    });
    let encapsulation = UdpEncapsulation {
        source_port: source_port?,
        destination_port: destination_port?,
    };
    // The original address is for the kernel's records; ESP processing does not use it.
    address(words.value()?)
        .ok_or_else(|| words.fault(Reason::Expected("espinudp SPORT DPORT ADDRESS")))?;
    Ok(encapsulation)
}

fn limit(lifetime: &mut Lifetime, words: &mut Words<'_>) -> Result<(), Fault> {
    let kind = words.value()?;
    let (what, end) = kind.rsplit_once('-').unwrap_or((kind, ""));
    let limits: &mut Limits = match end {
        "soft" => &mut lifetime.soft,
        "hard" => &mut lifetime.hard,
        _ => return Err(words.fault(LIMIT)),
    };
    if !matches!(what, "time" | "time-use" | "byte" | "packet") {
        return Err(words.fault(LIMIT));
    }
    // What the kernel takes for infinity: 0 seconds, or all ones.
    let value = match words.value()? {
        "INF" | "(INF)" => u64::MAX,
        text => number(text).ok_or_else(|| words.fault(LIMIT))?,
    };
    let finite = (value != u64::MAX).then_some(value);
    match what {
        "time" => {
            limits.time = finite
                .filter(|&seconds| seconds > 0)
                .map(Duration::from_secs)
        }
        "time-use" => {
            if finite.is_some_and(|seconds| seconds > 0) {
                return Err(words.fault(Reason::Unsupported(
                    "time since the first use is not supported; use time-soft or time-hard",
                )));
            }
        }
        "byte" => limits.bytes = finite,
        _ => limits.packets = finite,
    }
    Ok(())
}

const LIMIT: Reason =
    Reason::Expected("{ time | time-use | byte | packet }-{ soft | hard } and a number");
