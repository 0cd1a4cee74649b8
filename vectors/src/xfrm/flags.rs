//! `flag` and `extra-flag`.

use super::Reason;
use super::words::{Fault, Words};

/// `flag` and `extra-flag` words that have an effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `esn`: extended sequence numbers.
    pub esn: bool,
    /// `noecn`: the outer ECN field is neither copied from nor merged into the inner one.
    pub noecn: bool,
    /// `decap-dscp`: the receiver copies the outer DSCP to the inner packet.
    pub decap_dscp: bool,
    /// `nopmtudisc`: the outer don't-fragment bit is clear.
    pub nopmtudisc: bool,
    /// `dont-encap-dscp`: the outer DSCP is 0.
    pub dont_encap_dscp: bool,
    /// `af-unspec`: the tunnel carries IPv4 and IPv6 alike.
    pub af_unspec: bool,
    /// `icmp`: ICMP errors about the selected flows are let through.
    pub(super) icmp: bool,
}

impl Flags {
    /// The words after `flag`.
    pub(super) fn flag(&mut self, words: &mut Words<'_>) -> Result<(), Fault> {
        let mut bits = 0;
        let mut any = false;
        while let Some(word) = words.peek() {
            bits |= match word {
                "noecn" => 1,
                "decap-dscp" => 2,
                "nopmtudisc" => 4,
                "wildrecv" => 8,
                "icmp" => 16,
                "af-unspec" => 32,
                "align4" => 64,
                "esn" => 128,
                _ if !any && word.starts_with("0x") => {
                    words.number(0xff, "flag names, or their bits up to 0xff")? as u32
                }
                _ => break,
            };
            if !word.starts_with("0x") {
                words.value()?;
            }
            any = true;
        }
        if !any {
            return Err(words.fault_here(Reason::Expected(
                "noecn, decap-dscp, nopmtudisc, wildrecv, icmp, af-unspec, align4 or esn",
            )));
        }
        self.noecn |= bits & 1 != 0;
        self.decap_dscp |= bits & 2 != 0;
        self.nopmtudisc |= bits & 4 != 0;
        // 8 (wildrecv) is for Mobile IPv6 and 64 (align4) for AH: no effect on ESP.
        self.icmp |= bits & 16 != 0;
        self.af_unspec |= bits & 32 != 0;
        self.esn |= bits & 128 != 0;
        Ok(())
    }

    /// The words after `extra-flag`.
    pub(super) fn extra_flag(&mut self, words: &mut Words<'_>) -> Result<(), Fault> {
        let mut any = false;
        while let Some(word) = words.peek() {
            let bits = match word {
                "dont-encap-dscp" => 1,
                "oseq-may-wrap" => 2,
                _ if !any && word.starts_with("0x") => {
                    words.number(3, "extra-flag names, or their bits up to 0x3")?
                }
                _ => break,
            };
            if bits & 2 != 0 {
                // RFC 4303 section 2.2: with anti-replay the number must never cycle; with a
                // counter-mode cipher it must not in any case (RFC 4106 section 2).
                return Err(words.fault(Reason::Unsupported(
                    "oseq-may-wrap would use sequence numbers, and with them nonces, again",
                )));
            }
            self.dont_encap_dscp |= bits & 1 != 0;
            if !word.starts_with("0x") {
                words.value()?;
            }
            any = true;
        }
        if any {
            Ok(())
        } else {
            Err(words.fault_here(Reason::Expected("dont-encap-dscp")))
        }
    }
}
