//! The outbound pass before the cryptography: measure a packet and make room, then, with its
//! sequence number, write headers, padding and trailer.

mod write;

use core::ptr;

use vesper_sa::{Mode, OutboundRefusal};

use crate::aead;
use crate::association::{EspContext, EspSa, Framing, PlainOut};
use crate::buffer::Buffer;
use crate::fate::{DropReason, Verdict};
use crate::wire::{Brief, Checksum, DONT_FRAGMENT, IpHeader, IpVersion, protocol};
use write::{write_any, write_plain};

/// A packet to be encapsulated, and what became of it.
#[derive(Debug)]
pub struct Outbound<'a, B> {
    /// The association that policy gave.
    pub sa: &'a EspSa,
    /// Before: the IP packet. After [`Verdict::Sealed`]: the IP packet with ESP in it.
    pub packet: B,
    /// An IP packet or a dummy.
    pub content: Content,
    /// Set by the engine.
    pub verdict: Verdict,
}

/// What an outbound buffer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// An IP packet.
    #[default]
    Ip,
    /// Arbitrary bytes for a packet that the receiver discards: traffic flow confidentiality
    /// (RFC 4303 section 2.6). It gets an IP header of its own in both modes.
    Dummy,
}

impl<'a, B> Outbound<'a, B> {
    /// An IP packet to be encapsulated by `sa`.
    pub const fn new(sa: &'a EspSa, packet: B) -> Self {
        Self {
            sa,
            packet,
            content: Content::Ip,
            verdict: Verdict::Pending,
        }
    }

    /// A dummy packet with these bytes as its payload.
    pub const fn dummy(sa: &'a EspSa, payload: B) -> Self {
        Self {
            sa,
            packet: payload,
            content: Content::Dummy,
            verdict: Verdict::Pending,
        }
    }
}

/// Lengths of a packet for which room has been made. No length exceeds that of an IP packet,
/// which keeps this small: it is written and read for every packet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Measured {
    /// Bytes of the packet before anything was added.
    packet_len: u32,
    /// Padding bytes.
    padding: u8,
    next_header: u8,
    /// Of the outer header.
    traffic_class: u8,
    /// Of an outer IPv4 header.
    flags: u8,
    /// Zero bytes for traffic flow confidentiality.
    tfc: u16,
    /// Bytes of its IP header that stay in front of ESP; 0 in tunnel mode.
    header_len: u16,
    /// Where the byte is that names the protocol, in transport mode.
    protocol_at: u16,
    /// Bytes of an IP header that was added although the mode is transport: that of a dummy.
    dummy_header: u8,
    /// Take one off the hop limit of the inner packet.
    decrement: bool,
}

impl Measured {
    /// Bytes of the packet before anything was added.
    #[inline]
    pub(crate) fn packet_len(&self) -> u32 {
        self.packet_len
    }

    /// Bytes that the cipher is applied to.
    #[inline]
    pub(crate) fn text_len(&self) -> u32 {
        self.packet_len - u32::from(self.header_len)
            + u32::from(self.tfc)
            + u32::from(self.padding)
            + 2
    }

    /// Bytes that were added in front.
    fn front(&self, framing: &Framing) -> usize {
        framing.front_len() + usize::from(self.dummy_header)
    }

    /// Bytes that were added at the end.
    fn back(&self, framing: &Framing) -> usize {
        usize::from(self.tfc) + usize::from(self.padding) + 2 + framing.icv_len()
    }
}

/// Asks for the memory of the packets that [`Path::measure`] and [`write`] will look at,
/// and for that of their associations.
#[inline]
pub(crate) fn prefetch<B: Buffer>(batch: &[Outbound<'_, B>]) {
    let mut last: *const EspSa = ptr::null();
    for entry in batch {
        if !ptr::eq(last, entry.sa) {
            last = entry.sa;
            // Sequence number and limits, then how it is framed.
            aead::prefetch(entry.sa, 0);
            aead::prefetch(entry.sa, 64);
            aead::prefetch(entry.sa.context().framing(), 0);
        }
        aead::prefetch(entry.packet.data(), 0);
    }
}

/// What the packets of a run have in common.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    sa: &'a EspSa,
    framing: &'a Framing,
    /// Of the packets with ESP, in bytes.
    mtu: Option<u32>,
    /// Bytes of the longest packet with ESP.
    longest: usize,
}

impl<'a> Path<'a> {
    /// That of packets of this association, at this moment.
    #[inline]
    pub(crate) fn of(sa: &'a EspSa) -> Self {
        let framing = sa.context().framing();
        let mtu = sa.mtu();
        let longest = longest(framing.version());
        Self {
            sa,
            framing,
            mtu,
            longest: mtu.map_or(longest, |mtu| longest.min(mtu as usize)),
        }
    }

    /// [`measure`](Self::measure) for most packets: they fill their buffer, fit the path and
    /// find room. `None` asks for a closer look; nothing has happened then.
    #[inline(always)]
    pub(crate) fn measure_plain<B: Buffer>(
        &self,
        content: Content,
        packet: &mut B,
    ) -> Option<Measured> {
        let framing = self.framing;
        if framing.plain_out() == PlainOut::No || content != Content::Ip {
            return None;
        }
        let data = packet.data();
        let len = data.len();
        let header = data.first_chunk::<20>()?;
        let (version, class, flags) = match header[0] >> 4 {
            4 if header[0] == 0x45
                && usize::from(u16::from_be_bytes([header[2], header[3]])) == len =>
            {
                (IpVersion::V4, header[1], header[6])
            }
            6 => {
                let ip = Brief::parse(data).ok().filter(|ip| ip.total_len == len)?;
                (ip.version, ip.traffic_class, DONT_FRAGMENT)
            }
            _ => return None,
        };
        let padding = framing.padding(len);
        let around = framing.around() + padding;
        if len + around > self.longest {
            return None;
        }
        let front = framing.front_len();
        let back = around - front;
        if !packet.grow_back(back) {
            return None;
        }
        if !packet.grow_front(front) {
            packet.trim_back(back);
            return None;
        }
        Some(Measured {
            packet_len: len as u32,
            padding: padding as u8,
            next_header: version.protocol(),
            traffic_class: framing.outer_class(class),
            flags: framing.outer_flags(flags),
            tfc: 0,
            header_len: 0,
            protocol_at: 0,
            dummy_header: 0,
            decrement: false,
        })
    }

    /// Checks the packet, computes its lengths and makes room for everything around it.
    ///
    /// On refusal the buffer is as it was.
    #[inline(never)]
    pub(crate) fn measure<B: Buffer>(
        &self,
        content: Content,
        packet: &mut B,
    ) -> Result<Measured, Verdict> {
        let framing = self.framing;
        let context = self.sa.context();
        let mut measured = match (content, context.mode()) {
            (Content::Ip, Mode::Tunnel) => self.measure_tunnel(packet)?,
            (Content::Ip, Mode::Transport) => measure_transport(framing, packet)?,
            (Content::Dummy, mode) => self.measure_dummy(mode, packet.data().len())?,
        };
        let mut payload = measured.packet_len as usize - usize::from(measured.header_len);
        if context.mode() == Mode::Tunnel {
            let tfc = context.tfc_padding(payload, self.mtu);
            // At most the target, a 16-bit number.
            measured.tfc = tfc as u16;
            payload += tfc;
        }
        measured.padding = framing.padding(payload) as u8;

        let front = measured.front(framing);
        let back = measured.back(framing);
        let sealed_len = measured.packet_len as usize + front + back;
        if let Some(mtu) = self.mtu
            && sealed_len > mtu as usize
        {
            let header_len = usize::from(measured.header_len);
            let mtu = context.max_packet(mtu as usize, header_len).unwrap_or(0);
            return Err(Verdict::TooBig { mtu: mtu as u32 });
        }
        if sealed_len > self.longest {
            return Err(Verdict::Drop(DropReason::OutTooLong));
        }
        if !packet.grow_front(front) {
            return Err(Verdict::Drop(DropReason::OutNoRoom));
        }
        if !packet.grow_back(back) {
            packet.trim_front(front);
            return Err(Verdict::Drop(DropReason::OutNoRoom));
        }
        Ok(measured)
    }

    /// Gives the room back that [`measure`](Self::measure) made.
    pub(crate) fn unmeasure<B: Buffer>(&self, packet: &mut B, measured: &Measured) {
        packet.trim_front(measured.front(self.framing));
        packet.trim_back(measured.back(self.framing));
    }

    fn measure_tunnel<B: Buffer>(&self, packet: &mut B) -> Result<Measured, Verdict> {
        let ip = Brief::parse(packet.data()).map_err(|_| MALFORMED)?;
        let decrement = self.sa.params().tunnel.decrement_hop_limit;
        if decrement && ip.hop_limit <= 1 {
            return Err(Verdict::Drop(DropReason::OutHopLimit));
        }
        let surplus = packet.data().len() - ip.total_len;
        packet.trim_back(surplus);
        Ok(Measured {
            packet_len: ip.total_len as u32,
            padding: 0,
            next_header: ip.version.protocol(),
            traffic_class: self.framing.outer_class(ip.traffic_class),
            flags: self
                .framing
                .outer_flags(u8::from(ip.dont_fragment) * DONT_FRAGMENT),
            tfc: 0,
            header_len: 0,
            protocol_at: 0,
            dummy_header: 0,
            decrement,
        })
    }

    /// A dummy gets an IP header of its own, whatever the mode.
    fn measure_dummy(&self, mode: Mode, len: usize) -> Result<Measured, Verdict> {
        if len > longest(IpVersion::V4) {
            return Err(Verdict::Drop(DropReason::OutTooLong));
        }
        Ok(Measured {
            packet_len: len as u32,
            padding: 0,
            next_header: protocol::NONE,
            traffic_class: self.framing.outer_class(0),
            flags: self.framing.outer_flags(DONT_FRAGMENT),
            tfc: 0,
            header_len: 0,
            protocol_at: 0,
            dummy_header: match mode {
                Mode::Tunnel => 0,
                Mode::Transport => self.framing.ip_len() as u8,
            },
            decrement: false,
        })
    }
}

/// Writes everything but ciphertext and ICV of a packet that was [measured](Path::measure), and
/// returns the ESP packet within `packet`.
#[inline(always)]
pub(crate) fn write<'p>(
    sa: &EspSa,
    packet: &'p mut [u8],
    measured: &Measured,
    sequence: u64,
) -> &'p mut [u8] {
    let framing = sa.context().framing();
    match framing.plain_out() {
        PlainOut::Ip => write_plain::<36>(framing, packet, measured, sequence),
        PlainOut::Udp => write_plain::<44>(framing, packet, measured, sequence),
        PlainOut::No => write_any(sa, packet, measured, sequence),
    }
}

/// Bytes of the longest IP packet of this version.
const fn longest(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => 65_535,
        IpVersion::V6 => 65_535 + 40,
    }
}

const MALFORMED: Verdict = Verdict::Drop(DropReason::OutMalformed);

fn measure_transport<B: Buffer>(framing: &Framing, packet: &mut B) -> Result<Measured, Verdict> {
    let ip = IpHeader::parse(packet.data()).map_err(|_| MALFORMED)?;
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.3.4
    //# Thus, transport mode ESP is applied only to whole
    //# IP datagrams (not to IP fragments).
    if ip.fragment.is_some() || ip.version != framing.version() {
        return Err(MALFORMED);
    }
    let (header_len, protocol_at) = transport_header(&ip, packet.data());
    let surplus = packet.data().len() - ip.total_len;
    packet.trim_back(surplus);
    Ok(Measured {
        packet_len: ip.total_len as u32,
        padding: 0,
        next_header: packet.data()[protocol_at],
        // The header stays what it is.
        traffic_class: 0,
        flags: 0,
        tfc: 0,
        header_len: u16::try_from(header_len).map_err(|_| MALFORMED)?,
        protocol_at: u16::try_from(protocol_at).map_err(|_| MALFORMED)?,
        dummy_header: 0,
        decrement: false,
    })
}

/// How many bytes stay in front of ESP in transport mode, and where the next header is named.
///
//= https://www.rfc-editor.org/rfc/rfc4303#section-3.1.1
//# In the IPv6 context, ESP is viewed as an end-to-end payload, and thus
//# should appear after hop-by-hop, routing, and fragmentation extension
//# headers.
fn transport_header(ip: &IpHeader, packet: &[u8]) -> (usize, usize) {
    if ip.version == IpVersion::V4 {
        return (ip.header_len, ip.protocol_at);
    }
    // `IpHeader::parse` has walked these headers: their lengths are within the packet.
    let (mut at, mut named_at) = (40, 6);
    let mut end = (40, 6);
    while at < ip.header_len {
        let header = packet[named_at];
        let len = match header {
            protocol::FRAGMENT => 8,
            _ => (usize::from(packet[at + 1]) + 1) * 8,
        };
        (at, named_at) = (at + len, at);
        // Destination options stay in front only where a routing header follows them.
        if header != protocol::DESTINATION_OPTIONS {
            end = (at, named_at);
        }
    }
    end
}

/// The UDP checksum of a packet that was sealed by an association which has one.
pub(crate) fn write_udp_checksum(context: &EspContext, packet: &mut [u8]) {
    if !context.has_udp_checksum() {
        return;
    }
    // The packet was made by `write`: an IPv6 header, extension headers and UDP.
    let Ok(ip) = IpHeader::parse(packet) else {
        return;
    };
    let (header, udp) = packet.split_at_mut(ip.header_len);
    udp[6..8].fill(0);
    let sum = Checksum::new()
        .bytes(&header[8..40])
        .word(protocol::UDP.into())
        .word(udp.len() as u16)
        .bytes(udp)
        .finish();
    let sum = if sum == 0 { 0xffff } else { sum };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
}

/// The drop that a refused sequence number means.
pub(crate) const fn refused(refusal: OutboundRefusal) -> DropReason {
    match refusal {
        OutboundRefusal::SequenceExhausted => DropReason::OutSequence,
        OutboundRefusal::LeaseExhausted => DropReason::OutLease,
        OutboundRefusal::Expired => DropReason::OutExpired,
        OutboundRefusal::Deleted | OutboundRefusal::Inbound => DropReason::OutInvalid,
    }
}
