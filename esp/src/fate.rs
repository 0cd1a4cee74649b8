//! What became of a packet.

use core::fmt;

use vesper_sa::Mode;

use crate::wire::NotEsp;

/// The fate of one packet of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not processed yet: what a batch is filled with.
    Pending,
    /// Encapsulated; the buffer holds what the wire carries.
    Sealed {
        /// The 64-bit sequence number that the packet used up.
        sequence: u64,
    },
    /// Decapsulated; the buffer holds the inner IP packet.
    Opened(Opened),
    /// Not protected by ESP; the buffer is untouched. Policy decides.
    NotEsp(NotEsp),
    /// Larger than the path to the peer allows; the buffer is untouched. Fragment it
    /// ([`fragments`](crate::fragments)) or answer it ([`too_big`](crate::too_big)).
    TooBig {
        /// The largest packet in bytes, IP header included, that the association can carry.
        mtu: u32,
    },
    /// To be thrown away; what was decrypted of it is wiped.
    Drop(DropReason),
}

/// What is known of a decapsulated packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The 64-bit sequence number.
    pub sequence: u64,
    /// Whether the packet was in a tunnel.
    pub mode: Mode,
    /// Next header of the ESP trailer.
    pub next_header: u8,
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident, $key:literal, $xfrm:literal, $text:literal;)*) => {
        /// Why a packet was dropped: the one list that yields enum, counter and text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(Self::$name,)*];

            /// The name in metrics and JSON, in snake case.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $key,)* }
            }

            /// The line of `/proc/net/xfrm_stat` that Linux counts such a packet in.
            pub const fn xfrm(self) -> &'static str {
                match self { $(Self::$name => $xfrm,)* }
            }
        }

        impl fmt::Display for DropReason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

drop_reasons! {
    /// Lengths or headers of the outer packet contradict each other, or the ESP packet is too
    /// short or misaligned for its suite.
    Malformed, "malformed", "XfrmInHdrError", "malformed outer packet";
    /// A fragment was offered to ESP; it has to be reassembled first.
    Fragment, "fragment", "XfrmInHdrError", "fragment not reassembled";
    /// No inbound association with this SPI and destination.
    NoSa, "no_sa", "XfrmInNoStates", "no association for this SPI and destination";
    /// The association serves the other direction.
    Direction, "direction", "XfrmInStateDirError", "association of the other direction";
    /// The association was deleted.
    Deleted, "deleted", "XfrmInStateInvalid", "association was deleted";
    /// The sequence number was seen before, is left of the window, or is 0.
    Replay, "replay", "XfrmInStateSeqError", "replayed or too old";
    /// Authentic, but its sequence number is above the durable mark of the association.
    Mark, "mark", "XfrmInStateSeqError", "sequence number not marked durably";
    /// The integrity check value is wrong.
    Icv, "icv", "XfrmInStateProtoError", "integrity check failed";
    /// Authentic, but the padding is longer than the packet or not 1, 2, 3...
    Padding, "padding", "XfrmInStateProtoError", "wrong padding";
    /// Authentic, next header 59: made to be discarded.
    Dummy, "dummy", "XfrmInStateProtoError", "dummy packet";
    /// Authentic, but not the inner packet that its next header promises.
    InnerMalformed, "inner_malformed", "XfrmInStateModeError", "malformed inner packet";
    /// Authentic, but the inner packet lies outside the association's selectors.
    Selector, "selector", "XfrmInStateMismatch", "inner packet outside the selectors";
    /// Congestion was experienced by a packet whose sender cannot know of it (RFC 6040).
    Congestion, "congestion", "XfrmInError", "congestion mark on a transport that has none";
    /// A hard lifetime of the inbound association is over.
    Expired, "expired", "XfrmInStateExpired", "inbound association expired";
    /// No association for a packet that policy protects.
    OutNoSa, "out_no_sa", "XfrmOutNoStates", "no association for a packet to protect";
    /// Policy discards the packet.
    OutPolicy, "out_policy", "XfrmOutPolBlock", "discarded by policy";
    /// Not an IP packet, or a fragment in transport mode.
    OutMalformed, "out_malformed", "XfrmOutStateModeError", "not a packet this association can carry";
    /// Longer than an IP packet can be once encapsulated.
    OutTooLong, "out_too_long", "XfrmOutError", "longer than an IP packet can be";
    /// The hop limit ran out.
    OutHopLimit, "out_hop_limit", "XfrmOutError", "hop limit exceeded";
    /// The buffer has too little room before or after the packet.
    OutNoRoom, "out_no_room", "XfrmOutError", "no headroom or tailroom in the buffer";
    /// All sequence numbers are used up.
    OutSequence, "out_sequence", "XfrmOutStateSeqError", "sequence numbers exhausted";
    /// No durable lease covers the next sequence number.
    OutLease, "out_lease", "XfrmOutStateSeqError", "no lease of sequence numbers";
    /// A hard lifetime of the outbound association is over.
    OutExpired, "out_expired", "XfrmOutStateExpired", "outbound association expired";
    /// The outbound association was deleted, or serves the other direction.
    OutInvalid, "out_invalid", "XfrmOutStateInvalid", "outbound association not usable";
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();
}

impl Verdict {
    /// The reason, if the packet was dropped.
    pub const fn drop_reason(self) -> Option<DropReason> {
        match self {
            Self::Drop(reason) => Some(reason),
            _ => None,
        }
    }
}

/// What one engine has done since it was made; sum them over the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets sealed.
    pub sealed_packets: u64,
    /// Bytes of sealed packets as handed in, inner IP header included.
    pub sealed_bytes: u64,
    /// Packets opened.
    pub opened_packets: u64,
    /// Bytes of opened packets as handed out, inner IP header included.
    pub opened_bytes: u64,
    /// Packets that were not ESP.
    pub not_esp: u64,
    /// Packets that were too big for the path.
    pub too_big: u64,
    /// Events lost because nobody collected them.
    pub lost_events: u64,
    drops: [u64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            sealed_packets: 0,
            sealed_bytes: 0,
            opened_packets: 0,
            opened_bytes: 0,
            not_esp: 0,
            too_big: 0,
            lost_events: 0,
            drops: [0; DropReason::COUNT],
        }
    }
}

impl Counters {
    /// Packets dropped for `reason`.
    pub const fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Packets dropped for any reason.
    pub fn dropped(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Adds the counters of another engine.
    pub fn merge(&mut self, other: &Self) {
        self.sealed_packets += other.sealed_packets;
        self.sealed_bytes += other.sealed_bytes;
        self.opened_packets += other.opened_packets;
        self.opened_bytes += other.opened_bytes;
        self.not_esp += other.not_esp;
        self.too_big += other.too_big;
        self.lost_events += other.lost_events;
        for (sum, drops) in self.drops.iter_mut().zip(other.drops) {
            *sum += drops;
        }
    }

    /// Counts one packet by its verdict; `bytes` is its length outside of ESP.
    // A call keeps the counters out of the registers of the loops that seldom get here.
    #[inline(never)]
    pub(crate) fn count(&mut self, verdict: Verdict, bytes: usize) {
        match verdict {
            Verdict::Pending => {}
            Verdict::Sealed { .. } => {
                self.sealed_packets += 1;
                self.sealed_bytes += bytes as u64;
            }
            Verdict::Opened(_) => {
                self.opened_packets += 1;
                self.opened_bytes += bytes as u64;
            }
            Verdict::NotEsp(_) => self.not_esp += 1,
            Verdict::TooBig { .. } => self.too_big += 1,
            Verdict::Drop(reason) => self.drops[reason as usize] += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_counters_are_separate() {
        let mut counters = Counters::default();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(
                DropReason::ALL[..index]
                    .iter()
                    .all(|other| other.name() != reason.name())
            );
            assert!(reason.xfrm().starts_with("Xfrm"));
            counters.count(Verdict::Drop(*reason), 1);
            assert_eq!(counters.drops(*reason), 1);
        }
        assert_eq!(counters.dropped(), DropReason::COUNT as u64);
        let mut sum = counters.clone();
        sum.merge(&counters);
        assert_eq!(sum.dropped(), 2 * DropReason::COUNT as u64);
    }
}
