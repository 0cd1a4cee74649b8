//! The inbound passes around the cryptography: find the association and check the window,
//! then, once the packet is authentic, everything up to the inner packet.

mod gate;
mod open;

use core::net::IpAddr;
use core::ptr;

use vesper_sa::Spi;

use crate::aead;
use crate::association::EspSa;
use crate::buffer::Buffer;
use crate::fate::{DropReason, Verdict};
use crate::wire::{
    EncapsulationPorts, IpVersion, Located, PlainLocation, locate, locate_plain, plain_key,
};

pub(crate) use gate::Gate;
pub(crate) use open::{open, open_plain, refused};

/// A packet to be decapsulated, and what became of it.
#[derive(Debug)]
pub struct Inbound<'a, B> {
    /// Before: the outer IP packet. After [`Verdict::Opened`]: the inner one.
    pub packet: B,
    /// The association. Given, it is used as it is (an adapter has looked it up already);
    /// `None`, it is looked up and filled in.
    pub sa: Option<&'a EspSa>,
    /// Filled in where the packet has an SPI.
    pub spi: u32,
    /// Filled in: the sequence number, of 64 bits where an association was found.
    pub sequence: u64,
    /// Set by the engine.
    pub verdict: Verdict,
}

impl<B> Inbound<'_, B> {
    /// A packet whose association is yet to be found.
    pub const fn new(packet: B) -> Self {
        Self {
            packet,
            sa: None,
            spi: 0,
            sequence: 0,
            verdict: Verdict::Pending,
        }
    }
}

/// Finds inbound associations. A database seen through one epoch is one; a closure is another.
pub trait InboundSas<'a> {
    /// The association for packets to `destination` with this SPI.
    fn inbound(&self, destination: IpAddr, spi: Spi) -> Option<&'a EspSa>;
}

impl<'a, F> InboundSas<'a> for F
where
    F: Fn(IpAddr, Spi) -> Option<&'a EspSa>,
{
    fn inbound(&self, destination: IpAddr, spi: Spi) -> Option<&'a EspSa> {
        self(destination, spi)
    }
}

/// A packet that is worth the cryptography. Small: it is written and read for every packet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Candidate<'a> {
    pub(crate) sa: &'a EspSa,
    pub(crate) sequence: u64,
    esp_at: u16,
    /// Bytes of IP header, options and extension headers.
    header_len: u16,
    protocol_at: u16,
    version: IpVersion,
    udp: bool,
    pub(crate) esp_len: u32,
    traffic_class: u8,
    /// Its place in the chunk.
    pub(crate) index: u8,
    /// Why it is dropped, once that is known.
    pub(crate) refusal: Option<DropReason>,
}

/// Asks for the memory of packets and associations that [`find`] will look at, and looks up
/// the associations of plain packets that brought none along.
#[inline]
pub(crate) fn prefetch<'a, B: Buffer>(batch: &mut [Inbound<'a, B>], sas: &impl InboundSas<'a>) {
    let mut latest = Latest::NONE;
    let mut last: *const EspSa = ptr::null();
    for entry in batch {
        let packet = entry.packet.data();
        aead::prefetch(packet, 0);
        if entry.sa.is_none() {
            entry.sa = latest.find(packet, sas);
        }
        if let Some(sa) = entry.sa
            && !ptr::eq(last, sa)
        {
            last = sa;
            // Sequence number and limits, window, then how it is framed.
            for offset in [0, 64, 128] {
                aead::prefetch(sa, offset);
            }
            aead::prefetch(sa.context().framing(), 0);
        }
    }
}

/// The association that the latest packet was for: most come in runs.
struct Latest<'a> {
    /// Destination and SPI as they are in a packet. SPI 0 is no packet's.
    key: [u8; 8],
    sa: Option<&'a EspSa>,
}

impl<'a> Latest<'a> {
    const NONE: Self = Self {
        key: [0; 8],
        sa: None,
    };

    /// The association of the packet, if that can be told by a glance.
    #[inline]
    fn find(&mut self, packet: &[u8], sas: &impl InboundSas<'a>) -> Option<&'a EspSa> {
        let key = plain_key(packet)?;
        if key != self.key {
            let [a, b, c, d, spi @ ..] = key;
            let spi = Spi::new(u32::from_be_bytes(spi));
            let sa = spi.and_then(|spi| sas.inbound(IpAddr::from([a, b, c, d]), spi));
            *self = Self { key, sa };
        }
        self.sa
    }
}

/// [`admit`], or for an adapter [`admit_opened`], for most packets: those that the gate of
/// their association lets pass at a glance; `None` asks for that one.
#[inline(always)]
pub(crate) fn admit_plain<'a, B: Buffer, const ADAPTER: bool>(
    gate: &Gate<'a>,
    entry: &mut Inbound<'a, B>,
    index: u8,
) -> Option<Candidate<'a>> {
    let plain = locate_plain(entry.packet.data())?;
    let sequence = gate.admit_plain(plain.esp_len, plain.sequence)?;
    if ADAPTER && sequence != entry.sequence {
        return None;
    }
    entry.spi = plain.spi;
    entry.sequence = sequence;
    Some(Candidate::plain(gate.sa, sequence, &plain, index))
}

/// Everything that is checked before authentication; changes nothing.
#[inline(never)]
pub(crate) fn admit<'a, B: Buffer>(
    entry: &mut Inbound<'a, B>,
    index: u8,
    sas: &impl InboundSas<'a>,
    ports: &EncapsulationPorts,
    scratch: &mut Option<Vec<u8>>,
) -> Result<Candidate<'a>, Verdict> {
    let mut candidate = find(entry, index, sas, ports)?;
    entry.sequence = candidate.sequence;
    let packet = entry.packet.data();
    let sequence = Gate::of(candidate.sa)
        .admit(&candidate, packet, scratch)
        .map_err(Verdict::Drop)?;
    entry.sequence = sequence;
    candidate.sequence = sequence;
    Ok(candidate)
}

/// As [`admit`], of a packet that an adapter has opened with the sequence number in `entry`.
#[inline(never)]
pub(crate) fn admit_opened<'a, B: Buffer>(
    entry: &mut Inbound<'a, B>,
    index: u8,
    ports: &EncapsulationPorts,
) -> Result<Candidate<'a>, Verdict> {
    let authenticated = entry.sequence;
    let mut candidate = find(entry, index, &|_, _| None, ports)?;
    Gate::of(candidate.sa)
        .admit_opened(&candidate, authenticated)
        .map_err(Verdict::Drop)?;
    candidate.sequence = authenticated;
    Ok(candidate)
}

/// Where ESP lies in the packet, and its association.
fn find<'a, B: Buffer>(
    entry: &mut Inbound<'a, B>,
    index: u8,
    sas: &impl InboundSas<'a>,
    ports: &EncapsulationPorts,
) -> Result<Candidate<'a>, Verdict> {
    let Some(plain) = locate_plain(entry.packet.data()) else {
        return find_any(entry, index, sas, ports);
    };
    entry.spi = plain.spi;
    // [`prefetch`] has looked it up.
    match entry.sa {
        Some(sa) => Ok(Candidate::plain(sa, plain.sequence.into(), &plain, index)),
        None => no_association(entry, plain.sequence),
    }
}

/// As [`find`], for every kind of packet.
fn find_any<'a, B: Buffer>(
    entry: &mut Inbound<'a, B>,
    index: u8,
    sas: &impl InboundSas<'a>,
    ports: &EncapsulationPorts,
) -> Result<Candidate<'a>, Verdict> {
    let drop = |reason| Err(Verdict::Drop(reason));
    let location = match locate(entry.packet.data(), ports) {
        Located::Esp(location) => location,
        Located::NotEsp(kind) => return Err(Verdict::NotEsp(kind)),
        Located::Fragment(_) => return drop(DropReason::Fragment),
        Located::Malformed(_) => return drop(DropReason::Malformed),
    };
    entry.spi = location.spi;
    let found = entry
        .sa
        .or_else(|| Spi::new(location.spi).and_then(|spi| sas.inbound(location.destination, spi)));
    let Some(sa) = found else {
        return no_association(entry, location.sequence);
    };
    entry.sa = Some(sa);
    let offset = |at: usize| u16::try_from(at).map_err(|_| Verdict::Drop(DropReason::Malformed));
    Ok(Candidate {
        sa,
        sequence: location.sequence.into(),
        esp_at: offset(location.esp_at)?,
        header_len: offset(location.header_len)?,
        protocol_at: offset(location.protocol_at)?,
        version: location.version,
        udp: location.udp,
        // No length exceeds that of an IP packet.
        esp_len: location.esp_len as u32,
        traffic_class: location.traffic_class,
        index,
        refusal: None,
    })
}

//= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.2
//# If no valid Security Association exists for this packet, the
//# receiver MUST discard the packet; this is an auditable event.
#[cold]
fn no_association<'a, B>(
    entry: &mut Inbound<'a, B>,
    sequence: u32,
) -> Result<Candidate<'a>, Verdict> {
    entry.sequence = sequence.into();
    Err(Verdict::Drop(DropReason::NoSa))
}

impl<'a> Candidate<'a> {
    #[inline(always)]
    fn plain(sa: &'a EspSa, sequence: u64, location: &PlainLocation, index: u8) -> Self {
        Self {
            sa,
            sequence,
            esp_at: PlainLocation::HEADER_LEN as u16,
            header_len: PlainLocation::HEADER_LEN as u16,
            protocol_at: PlainLocation::PROTOCOL_AT as u16,
            version: IpVersion::V4,
            udp: false,
            esp_len: location.esp_len,
            traffic_class: location.traffic_class,
            index,
            refusal: None,
        }
    }

    /// Bytes that the cipher is applied to.
    #[inline]
    pub(crate) fn text_len(&self) -> u32 {
        self.esp_len - self.sa.context().framing().esp_around()
    }

    /// The ESP packet within the IP packet.
    #[inline]
    fn esp<'p>(&self, packet: &'p [u8]) -> &'p [u8] {
        &packet[usize::from(self.esp_at)..][..self.esp_len as usize]
    }

    /// The ESP packet within the IP packet.
    #[inline(always)]
    fn esp_mut<'p>(&self, packet: &'p mut [u8]) -> &'p mut [u8] {
        &mut packet[usize::from(self.esp_at)..][..self.esp_len as usize]
    }
}
