//! What became of a frame in the adapter.

use core::fmt;

use vesper_esp::DropReason;

macro_rules! losses {
    ($($(#[$doc:meta])* $name:ident, $key:literal, $text:literal;)*) => {
        /// Why the adapter or the software switch threw a frame away, apart from what ESP
        /// itself refuses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Loss {
            $($(#[$doc])* $name,)*
        }

        impl Loss {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Loss] = &[$(Self::$name,)*];

            /// The name in metrics, in snake case.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $key,)* }
            }
        }

        impl fmt::Display for Loss {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $text,)* })
            }
        }
    };
}

losses! {
    /// Not an Ethernet frame.
    Malformed, "malformed", "not an Ethernet frame";
    /// The receive ring is full.
    RingFull, "ring_full", "receive ring full";
    /// The virtual machine has posted no buffer, or none that is large enough.
    NoBuffer, "no_buffer", "no receive buffer posted";
    /// The source address is not the sender's.
    Spoofed, "spoofed", "source address is not the sender's";
    /// The VLAN is not the one of the port or of the association.
    Vlan, "vlan", "wrong VLAN";
    /// The handle names no association of this sender.
    ForeignHandle, "foreign_handle", "handle names no association of the sender";
    /// Policy discards the packet, or protects it and it came in clear.
    Policy, "policy", "discarded by policy";
    /// Policy protects the packet and no association is there.
    NoSa, "no_sa", "no association for a packet to protect";
    /// A crypto-mode packet is not the ESP packet of its association.
    NotFramed, "not_framed", "not an ESP packet of its association";
    /// A packet with options or extension headers that the adapter can not protect.
    NotOffloadable, "not_offloadable", "options or extension headers are beyond the adapter";
    /// A large segment that can not be cut, or no buffer to cut it into.
    LargeSend, "large_send", "large segment can not be cut";
    /// No room in the buffer for the Ethernet header.
    NoRoom, "no_room", "no room for the Ethernet header";
    /// The adapter was reset while it had the frame.
    Reset, "reset", "lost in a reset";
    /// A planned fault has lost it.
    Fault, "fault", "lost by a planned fault";
    /// The queue or function is gone.
    Gone, "gone", "queue or function is gone";
    /// A fragment that contradicts another one, or is malformed.
    Fragment, "fragment", "fragment does not fit the others";
    /// More flooded frames than the limit allows.
    Flood, "flood", "flooding limit reached";
    /// Nobody is there, or the port is isolated from everybody who is.
    NoDestination, "no_destination", "no destination";
    /// Larger than the path to the peer allows.
    TooBig, "too_big", "larger than the path MTU";
    /// ESP refused the packet; the engine's counters say why.
    Esp, "esp", "refused by ESP";
}

/// How many frames were lost, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses([u64; Loss::ALL.len()]);

impl Losses {
    /// Frames lost for `loss`.
    pub const fn of(&self, loss: Loss) -> u64 {
        self.0[loss as usize]
    }

    /// Frames lost for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) const fn count(&mut self, loss: Loss) {
        self.0[loss as usize] += 1;
    }

    /// Adds those of another place.
    pub fn merge(&mut self, other: &Self) {
        for (sum, losses) in self.0.iter_mut().zip(other.0) {
            *sum += losses;
        }
    }
}

/// Why a send failed; its buffer comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// See [`Loss`].
    Lost(Loss),
    /// The association refused the packet.
    Esp(DropReason),
    /// Larger than the path to the peer allows, which is this many bytes of inner packet.
    TooBig {
        /// Bytes.
        mtu: u32,
    },
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(loss) => loss.fmt(f),
            Self::Esp(reason) => reason.fmt(f),
            Self::TooBig { mtu } => write!(f, "larger than the {mtu} bytes that the path allows"),
        }
    }
}

impl core::error::Error for SendError {}

impl SendError {
    /// The counter that it goes to.
    pub const fn loss(self) -> Loss {
        match self {
            Self::Lost(loss) => loss,
            Self::Esp(_) => Loss::Esp,
            Self::TooBig { .. } => Loss::TooBig,
        }
    }
}
