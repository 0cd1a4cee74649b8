//! The outbound pass before the cryptography: measure a packet and make room, then, with its
//! sequence number, write headers, padding and trailer.

use vesper_sa::{Df, Dscp, Ecn, Mode, OutboundRefusal, TunnelHeader};

use crate::association::{EspContext, EspSa};
use crate::buffer::Buffer;
use crate::fate::{DropReason, Verdict};
use crate::wire::{Brief, Checksum, IpHeader, IpVersion, adjusted, protocol};

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
pub(crate) struct Measured {
    /// Bytes of the packet before anything was added.
    pub(crate) packet_len: u32,
    /// Bytes that were added at the end.
    back: u32,
    /// Zero bytes for traffic flow confidentiality.
    tfc: u16,
    /// Bytes of its IP header that stay in front of ESP; 0 in tunnel mode.
    header_len: u16,
    /// Where the byte is that names the protocol, in transport mode.
    protocol_at: u16,
    /// Bytes that were added in front.
    front: u8,
    /// Padding bytes.
    padding: u8,
    next_header: u8,
    version: IpVersion,
    traffic_class: u8,
    dont_fragment: bool,
    /// Take one off the hop limit of the inner packet.
    decrement: bool,
}

impl Measured {
    /// Bytes that the cipher is applied to.
    pub(crate) fn text_len(&self, context: &EspContext) -> u32 {
        self.packet_len - u32::from(self.header_len) + self.back - context.icv_len() as u32
    }

    /// Offset of the SPI.
    pub(crate) fn esp_at(&self, context: &EspContext) -> usize {
        usize::from(self.header_len) + usize::from(self.front) - 8 - context.iv_len()
    }
}

/// Checks the packet, computes its lengths and makes room for everything around it.
///
/// On refusal the buffer is as it was.
pub(crate) fn measure<B: Buffer>(entry: &mut Outbound<'_, B>) -> Result<Measured, Verdict> {
    let context = entry.sa.context();
    let mtu = entry.sa.mtu();
    let mut measured = match (entry.content, context.mode()) {
        (Content::Ip, Mode::Tunnel) => measure_tunnel(entry.sa, &mut entry.packet)?,
        (Content::Ip, Mode::Transport) => measure_transport(entry.sa, &mut entry.packet)?,
        (Content::Dummy, mode) => measure_dummy(context, mode, entry.packet.data().len())?,
    };
    let mut payload = measured.packet_len as usize - usize::from(measured.header_len);
    if context.mode() == Mode::Tunnel {
        let tfc = context.tfc_padding(payload, mtu);
        // At most the target, a 16-bit number.
        measured.tfc = tfc as u16;
        payload += tfc;
    }
    let padding = context.padding(payload);
    measured.padding = padding as u8;
    measured.back = (usize::from(measured.tfc) + padding + 2 + context.icv_len()) as u32;

    let front = usize::from(measured.front);
    let back = measured.back as usize;
    let sealed_len = measured.packet_len as usize + front + back;
    if let Some(mtu) = mtu
        && sealed_len > mtu as usize
    {
        let header_len = usize::from(measured.header_len);
        let mtu = context.max_packet(mtu as usize, header_len).unwrap_or(0);
        return Err(Verdict::TooBig { mtu: mtu as u32 });
    }
    if sealed_len > longest(context.headers().version()) {
        return Err(Verdict::Drop(DropReason::OutTooLong));
    }
    if !entry.packet.grow_front(front) {
        return Err(Verdict::Drop(DropReason::OutNoRoom));
    }
    if !entry.packet.grow_back(back) {
        entry.packet.trim_front(front);
        return Err(Verdict::Drop(DropReason::OutNoRoom));
    }
    Ok(measured)
}

/// Bytes of the longest IP packet of this version.
const fn longest(version: IpVersion) -> usize {
    match version {
        IpVersion::V4 => 65_535,
        IpVersion::V6 => 65_535 + 40,
    }
}

const MALFORMED: Verdict = Verdict::Drop(DropReason::OutMalformed);

fn measure_tunnel<B: Buffer>(sa: &EspSa, packet: &mut B) -> Result<Measured, Verdict> {
    let context = sa.context();
    let ip = Brief::parse(packet.data()).map_err(|_| MALFORMED)?;
    let decrement = sa.params().tunnel.decrement_hop_limit;
    if decrement && ip.hop_limit <= 1 {
        return Err(Verdict::Drop(DropReason::OutHopLimit));
    }
    let surplus = packet.data().len() - ip.total_len;
    packet.trim_back(surplus);
    Ok(Measured {
        packet_len: ip.total_len as u32,
        back: 0,
        tfc: 0,
        header_len: 0,
        protocol_at: 0,
        front: context.front_len() as u8,
        padding: 0,
        next_header: match ip.version {
            IpVersion::V4 => protocol::IPV4,
            IpVersion::V6 => protocol::IPV6,
        },
        version: ip.version,
        traffic_class: ip.traffic_class,
        dont_fragment: ip.dont_fragment,
        decrement,
    })
}

fn measure_transport<B: Buffer>(sa: &EspSa, packet: &mut B) -> Result<Measured, Verdict> {
    let context = sa.context();
    let ip = IpHeader::parse(packet.data()).map_err(|_| MALFORMED)?;
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.3.4
    //# Thus, transport mode ESP is applied only to whole
    //# IP datagrams (not to IP fragments).
    if ip.fragment.is_some() || ip.version != context.headers().version() {
        return Err(MALFORMED);
    }
    let (header_len, protocol_at) = transport_header(&ip, packet.data());
    let surplus = packet.data().len() - ip.total_len;
    packet.trim_back(surplus);
    Ok(Measured {
        packet_len: ip.total_len as u32,
        back: 0,
        tfc: 0,
        header_len: u16::try_from(header_len).map_err(|_| MALFORMED)?,
        protocol_at: u16::try_from(protocol_at).map_err(|_| MALFORMED)?,
        front: context.front_len() as u8,
        padding: 0,
        next_header: packet.data()[protocol_at],
        version: ip.version,
        traffic_class: ip.traffic_class,
        dont_fragment: ip.dont_fragment,
        decrement: false,
    })
}

/// A dummy gets an IP header of its own, whatever the mode.
fn measure_dummy(context: &EspContext, mode: Mode, len: usize) -> Result<Measured, Verdict> {
    let ip_len = match mode {
        Mode::Tunnel => 0,
        Mode::Transport => context.headers().ip_len(),
    };
    if len > longest(IpVersion::V4) {
        return Err(Verdict::Drop(DropReason::OutTooLong));
    }
    Ok(Measured {
        packet_len: len as u32,
        back: 0,
        tfc: 0,
        header_len: 0,
        protocol_at: 0,
        front: (context.front_len() + ip_len) as u8,
        padding: 0,
        next_header: protocol::NONE,
        version: context.headers().version(),
        traffic_class: 0,
        dont_fragment: true,
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

fn decrement_hop_limit(version: IpVersion, packet: &mut [u8]) {
    match version {
        IpVersion::V4 => {
            let old = u16::from_be_bytes([packet[8], packet[9]]);
            packet[8] -= 1;
            let new = u16::from_be_bytes([packet[8], packet[9]]);
            let sum = u16::from_be_bytes([packet[10], packet[11]]);
            packet[10..12].copy_from_slice(&adjusted(sum, old, new).to_be_bytes());
        }
        IpVersion::V6 => packet[7] -= 1,
    }
}

/// Gives the room back that [`measure`] made.
pub(crate) fn unmeasure<B: Buffer>(packet: &mut B, measured: &Measured) {
    packet.trim_front(measured.front.into());
    packet.trim_back(measured.back as usize);
}

/// Writes everything but ciphertext and ICV, and returns the ESP packet within `packet`.
#[inline]
pub(crate) fn write<'p>(
    sa: &EspSa,
    packet: &'p mut [u8],
    measured: &Measured,
    sequence: u64,
) -> &'p mut [u8] {
    let context = sa.context();
    let headers = context.headers();
    if measured.header_len == 0 {
        headers.write_with_ip(packet);
        match headers.version() {
            IpVersion::V4 => finish_ipv4(sa, packet, measured, sequence),
            IpVersion::V6 => finish_ipv6(sa, packet, measured),
        }
    } else {
        move_transport_header(context, packet, measured);
    }
    if measured.decrement {
        decrement_hop_limit(measured.version, &mut packet[measured.front.into()..]);
    }
    let esp_at = measured.esp_at(context);
    if context.is_udp() {
        let udp_len = (packet.len() - (esp_at - 8)) as u16;
        packet[esp_at - 4..esp_at - 2].copy_from_slice(&udp_len.to_be_bytes());
    }
    let esp = &mut packet[esp_at..];
    let (header, text) = esp.split_at_mut(8 + context.iv_len());
    header[4..8].copy_from_slice(&(sequence as u32).to_be_bytes());
    context.cipher().write_iv(sequence, &mut header[8..]);
    write_trailer(context, text, measured);
    esp
}

/// Padding for traffic flow confidentiality, padding, pad length and next header at the end of
/// `text`, in front of the ICV.
//= https://www.rfc-editor.org/rfc/rfc4303#section-2.4
//# The first padding byte appended to the plaintext is
//# numbered 1, with subsequent padding bytes making up a monotonically
//# increasing sequence: 1, 2, 3, ....
#[inline]
fn write_trailer(context: &EspContext, text: &mut [u8], measured: &Measured) {
    let end = text.len() - context.icv_len();
    let text = &mut text[..end];
    if measured.tfc == 0
        && measured.padding < 6
        && let Some(last) = text.last_chunk_mut::<8>()
    {
        // Eight bytes at once: what belongs to the payload stays.
        const TRAILER: u64 = u64::from_be_bytes([1, 2, 3, 4, 5, 0, 0, 0]);
        let bits = u32::from(measured.padding) * 8;
        let payload = !(u64::MAX >> (48 - bits)) & u64::from_be_bytes(*last);
        let padding = TRAILER >> (64 - bits).min(63) << 16;
        let end = u64::from(measured.padding) << 8 | u64::from(measured.next_header);
        let padding = if bits == 0 { 0 } else { padding };
        *last = (payload | padding | end).to_be_bytes();
        return;
    }
    let trailer_at = end - 2 - usize::from(measured.padding) - usize::from(measured.tfc);
    let (tfc, trailer) = text[trailer_at..].split_at_mut(measured.tfc.into());
    tfc.fill(0);
    let (padding, rest) = trailer.split_at_mut(measured.padding.into());
    for (byte, value) in padding.iter_mut().zip(1..) {
        *byte = value;
    }
    rest[0] = measured.padding;
    rest[1] = measured.next_header;
}

/// Type of service, length, identification, fragment bits and checksum of an outer IPv4
/// header.
#[inline]
fn finish_ipv4(sa: &EspSa, packet: &mut [u8], measured: &Measured, sequence: u64) {
    let tunnel = &sa.params().tunnel;
    let class = outer_traffic_class(tunnel, measured.traffic_class);
    let len = packet.len() as u16;
    // An identification is needed only where a router may fragment; unique for long enough.
    let identification = sequence as u16;
    let dont_fragment = match tunnel.df {
        Df::Copy => measured.dont_fragment,
        Df::Set => true,
        Df::Clear => false,
    };
    let bits = u16::from(dont_fragment) << 14;
    let sum = sa
        .context()
        .headers()
        .sum()
        .word(0x4500 | u16::from(class))
        .word(len)
        .word(identification)
        .word(bits)
        .finish();
    if let Some(header) = packet.first_chunk_mut::<12>() {
        header[1] = class;
        header[2..4].copy_from_slice(&len.to_be_bytes());
        header[4..6].copy_from_slice(&identification.to_be_bytes());
        header[6..8].copy_from_slice(&bits.to_be_bytes());
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Traffic class, flow label and length of an outer IPv6 header.
fn finish_ipv6(sa: &EspSa, packet: &mut [u8], measured: &Measured) {
    let tunnel = &sa.params().tunnel;
    let class = outer_traffic_class(tunnel, measured.traffic_class);
    let label = if tunnel.copy_flow_label
        && measured.version == IpVersion::V6
        && measured.next_header == protocol::IPV6
    {
        let inner = &packet[measured.front.into()..];
        [inner[1] & 0xf, inner[2], inner[3]]
    } else {
        [0; 3]
    };
    packet[0] = 0x60 | class >> 4;
    packet[1] = class << 4 | label[0];
    packet[2] = label[1];
    packet[3] = label[2];
    let len = (packet.len() - 40) as u16;
    packet[4..6].copy_from_slice(&len.to_be_bytes());
}

/// DSCP and ECN of the outer header (RFC 4301 section 5.1.2.1, RFC 6040 section 4.1).
fn outer_traffic_class(tunnel: &TunnelHeader, inner: u8) -> u8 {
    let dscp = match tunnel.dscp {
        Dscp::Copy => inner & 0xfc,
        Dscp::Set(dscp) => dscp << 2,
    };
    let ecn = match tunnel.ecn {
        Ecn::Normal => inner & 3,
        Ecn::Compatibility | Ecn::Off => 0,
    };
    dscp | ecn
}

/// Moves the IP header in front of the ESP header and corrects its length, protocol and
/// checksum, and writes UDP header and SPI behind it.
fn move_transport_header(context: &EspContext, packet: &mut [u8], measured: &Measured) {
    let headers = context.headers();
    let front = usize::from(measured.front);
    let header_len = usize::from(measured.header_len);
    packet.copy_within(front..front + header_len, 0);
    packet[header_len..header_len + headers.udp_len() + 4].copy_from_slice(headers.without_ip());
    packet[usize::from(measured.protocol_at)] = if context.is_udp() {
        protocol::UDP
    } else {
        protocol::ESP
    };
    let len = packet.len();
    match measured.version {
        IpVersion::V4 => {
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[10..12].fill(0);
            let sum = Checksum::new().bytes(&packet[..header_len]).finish();
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        IpVersion::V6 => {
            packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
        }
    }
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
