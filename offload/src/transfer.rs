//! What passes between a host, or a virtual machine, and the adapter's rings.

use vesper_esp::Buffer;
use vesper_sa::VmId;

use crate::crypto_status::{CryptoInfo, CryptoStatus};
use crate::ethernet::Frame;
use crate::fate::SendError;
use crate::queue::QueueId;
use crate::unit::OffloadHandle;

/// A frame to be sent: a send descriptor with its buffer.
#[derive(Clone, Debug)]
pub struct Send<B> {
    /// Chosen by the sender; comes back in the [`Completion`].
    pub id: u64,
    /// The whole Ethernet frame, with room around it for what protection adds.
    pub frame: B,
    /// What to do about IPsec.
    pub ipsec: SendIpsec,
    /// Large send: cut a TCP packet into segments with at most this many bytes of payload.
    pub segment_size: Option<u16>,
    /// Compute the TCP or UDP checksum of the (inner) packet.
    pub checksum: bool,
}

/// What to do about IPsec for a frame to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendIpsec {
    /// What the policies of the sender say that the adapter has; without policies, nothing.
    Policy,
    /// Use this association: in packet mode make ESP of the packet, in crypto mode encrypt the
    /// ESP packet that the host has made.
    Handle(OffloadHandle),
    /// Nothing: the host has done it. A virtual function may not say so.
    Done,
}

impl<B> Send<B> {
    /// A frame of which the adapter's policies decide.
    pub const fn new(id: u64, frame: B) -> Self {
        Self {
            id,
            frame,
            ipsec: SendIpsec::Policy,
            segment_size: None,
            checksum: false,
        }
    }
}

/// A frame that a machine sends on the synthetic path, with what its driver leaves to others.
///
/// Whoever is the last to see the packet in clear does it: the adapter where it protects the
/// packet itself and can cut, else the host.
#[derive(Clone, Debug)]
pub struct HostSend<B> {
    /// The whole Ethernet frame, with room around it for what protection adds.
    pub frame: B,
    /// Large send: cut a TCP packet into segments with at most this many bytes of payload.
    pub segment_size: Option<u16>,
    /// Compute the TCP or UDP checksum of the packet; segments have theirs in any case.
    pub checksum: bool,
}

impl<B> HostSend<B> {
    /// A frame that is complete.
    pub const fn new(frame: B) -> Self {
        Self {
            frame,
            segment_size: None,
            checksum: false,
        }
    }
}

/// The end of a send. Every accepted [`Send`] has one, unless a fault loses it.
#[derive(Clone, Debug)]
pub struct Completion<B> {
    /// The sender's.
    pub id: u64,
    /// Whether the frame is on its way.
    pub result: Result<(), SendError>,
    /// The frame, if the send failed; else it is on its way.
    pub buffer: Option<B>,
}

impl<B> Completion<B> {
    /// Of a frame that is on its way.
    pub(crate) const fn done(id: u64) -> Self {
        Self {
            id,
            result: Ok(()),
            buffer: None,
        }
    }
}

/// A received frame, as it is indicated.
#[derive(Clone, Debug)]
pub struct Received<B> {
    /// The frame, taken apart.
    pub frame: Frame<B>,
    /// The queue that indicates it; for one that is gone, the default queue.
    pub queue: QueueId,
    /// For whom it is, where a filter or an association says so.
    pub owner: Option<VmId>,
    /// What was done about IPsec.
    pub ipsec: ReceivedIpsec,
}

/// What the adapter did about IPsec for a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceivedIpsec {
    /// Nothing: not ESP, or none of its associations. If it is ESP, software has to open it.
    Untouched,
    /// Packet mode: all of it; the frame holds the inner packet.
    Opened {
        /// Whether the inner TCP or UDP checksum is right; `None` if there is none to check.
        checksum: Option<bool>,
    },
    /// Crypto mode: the frame still holds the ESP packet.
    Crypto(CryptoInfo),
    /// The adapter could not, and leaves it to the host's software.
    Host(HostWork),
}

/// What the host has to do that the adapter could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostWork {
    /// Protect and send a packet of the owner's virtual function.
    Protect {
        /// It is a large send, not yet cut.
        segment_size: Option<u16>,
    },
    /// Open a packet for the owner, and deliver it.
    Open,
}

impl<B: Buffer> Received<B> {
    /// `CryptoDone` of NDIS: the adapter has done the cryptography, well or not.
    ///
    /// Not done never means passed.
    pub const fn crypto_done(&self) -> bool {
        matches!(
            self.ipsec,
            ReceivedIpsec::Opened { .. } | ReceivedIpsec::Crypto(_)
        )
    }

    /// `CryptoStatus` of NDIS, if crypto is done.
    pub const fn crypto_status(&self) -> Option<CryptoStatus> {
        match self.ipsec {
            ReceivedIpsec::Opened { .. } => Some(CryptoStatus::Success),
            ReceivedIpsec::Crypto(info) => Some(info.status),
            ReceivedIpsec::Untouched | ReceivedIpsec::Host(_) => None,
        }
    }

    /// The whole Ethernet frame as a virtual machine gets it, without the tag of its VLAN.
    pub fn into_untagged(self) -> Option<B> {
        let frame = Frame {
            vlan: None,
            ..self.frame
        };
        frame.close().ok()
    }
}
