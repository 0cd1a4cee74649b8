//! The inbound passes around the cryptography: find the association and check the window,
//! then, once the packet is authentic, everything up to the inner packet.

use core::net::IpAddr;
use core::ptr;

use vesper_sa::{Direction, Ecn, Flow, InboundRefusal, Mode, Precheck, SaState, Spi};

use crate::aead::{self, Cipher, Job, open_batch};
use crate::association::EspSa;
use crate::buffer::Buffer;
use crate::fate::{DropReason, Opened, Verdict};
use crate::wire::{
    Brief, Checksum, EncapsulationPorts, IpHeader, IpVersion, Located, PlainLocation, adjusted,
    flow, locate, locate_plain, plain_key, protocol,
};
use crate::{nat, wire};

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
    esp_len: u32,
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
            // Sequence number, lifetime and window, then how it is framed.
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

/// [`admit`], or for an adapter [`admit_opened`], for most packets: those that the gate of their association lets pass at a glance;
/// `None` asks for that one.
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

/// What the packets of a run are checked against before authentication; changes nothing.
pub(crate) struct Gate<'a> {
    sa: &'a EspSa,
    /// All packets of the association are dropped.
    closed: Option<DropReason>,
    cipher: &'a Cipher,
    esn: bool,
    precheck: Precheck<'a>,
    /// Bytes of an ESP packet without text.
    around: u32,
    /// Bits that are not set in the length of a text.
    misaligned: u32,
    /// Bytes of the longest text that passes at a glance.
    longest: u32,
}

impl<'a> Gate<'a> {
    /// The work that an admitted packet is for the cipher.
    #[inline(always)]
    pub(crate) fn job<'p>(&self, candidate: &Candidate<'_>, packet: &'p mut [u8]) -> Job<'p>
    where
        'a: 'p,
    {
        Job {
            cipher: self.cipher,
            sequence: candidate.sequence,
            esn: self.esn,
            esp: candidate.esp_mut(packet),
            authentic: false,
        }
    }

    /// That of an association at this moment.
    #[inline]
    pub(crate) fn of(sa: &'a EspSa) -> Self {
        let framing = sa.context().framing();
        let closed = match (sa.direction(), sa.state()) {
            (Direction::Outbound, _) => Some(DropReason::Direction),
            (_, SaState::Mature | SaState::Dying) => None,
            (_, SaState::Dead) => Some(DropReason::Expired),
            (_, SaState::Deleted) => Some(DropReason::Deleted),
        };
        let is_open = closed.is_none() && !sa.is_resync_due();
        Self {
            sa,
            closed,
            longest: if is_open { u16::MAX.into() } else { 0 },
            cipher: sa.context().cipher(),
            esn: sa.esn(),
            precheck: sa.precheck(),
            around: (8 + framing.iv_len() + framing.icv_len()) as u32,
            // Every alignment is a power of two.
            misaligned: framing.alignment() as u32 - 1,
        }
    }

    /// [`admit`](Self::admit) for most packets; `None` asks for that one.
    #[inline(always)]
    fn admit_plain(&self, esp_len: u32, sequence_low: u32) -> Option<u64> {
        let text_len = esp_len.wrapping_sub(self.around);
        if text_len.wrapping_sub(2) >= self.longest || text_len & self.misaligned != 0 {
            return None;
        }
        self.precheck.check_ahead(sequence_low)
    }

    /// The full sequence number of a packet that may be authentic.
    fn admit(
        &self,
        candidate: &Candidate<'_>,
        packet: &[u8],
        scratch: &mut Option<Vec<u8>>,
    ) -> Result<u64, DropReason> {
        self.admit_length(candidate.esp_len)?;
        let low = candidate.sequence as u32;
        if self.sa.is_resync_due()
            && let Some(scratch) = scratch
            && let Some(sequence) = resynchronise(self.sa, low, candidate.esp(packet), scratch)
        {
            return Ok(sequence);
        }
        self.precheck.check(low).map_err(|_| DropReason::Replay)
    }

    /// As [`admit`](Self::admit), of a packet that an adapter has opened with the number
    /// `authenticated`.
    fn admit_opened(
        &self,
        candidate: &Candidate<'_>,
        authenticated: u64,
    ) -> Result<(), DropReason> {
        self.admit_length(candidate.esp_len)?;
        match self.precheck.check(candidate.sequence as u32) {
            Ok(sequence) if sequence == authenticated => Ok(()),
            _ => Err(DropReason::Replay),
        }
    }

    fn admit_length(&self, esp_len: u32) -> Result<(), DropReason> {
        if let Some(reason) = self.closed {
            return Err(reason);
        }
        let text_len = esp_len.saturating_sub(self.around);
        if text_len < 2 || text_len & self.misaligned != 0 {
            return Err(DropReason::Malformed);
        }
        Ok(())
    }
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
        let framing = self.sa.context().framing();
        self.esp_len - (8 + framing.iv_len() + framing.icv_len()) as u32
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

/// After long silence the high half of an extended sequence number may be guessed wrong for
/// every packet: when the association says that it might be so, tries the few numbers that it
/// offers on a copy, the usual guess first (RFC 4303 appendix A3).
fn resynchronise(sa: &EspSa, sequence_low: u32, esp: &[u8], scratch: &mut Vec<u8>) -> Option<u64> {
    let mut candidates = sa.resync_candidates(sequence_low).peekable();
    candidates.peek()?;
    let usual = sa.check(sequence_low).ok();
    let mut authentic = |sequence| {
        scratch.clear();
        scratch.extend_from_slice(esp);
        let mut jobs = [Job {
            cipher: sa.context().cipher(),
            sequence,
            esn: true,
            esp: scratch,
            authentic: false,
        }];
        open_batch(&mut jobs);
        let authentic = jobs[0].authentic;
        scratch.fill(0);
        authentic
    };
    if usual.is_some_and(&mut authentic) {
        return usual;
    }
    candidates.find(|&sequence| authentic(sequence))
}

/// [`open`] for most packets: those of an association that takes every inner packet by a
/// tunnel, without congestion on its way. `None`, and nothing has happened, asks for that one;
/// else next header and length of the inner packet.
#[inline(always)]
pub(crate) fn open_plain<B: Buffer>(
    candidate: &Candidate<'_>,
    packet: &mut B,
) -> Option<(u8, usize)> {
    let framing = candidate.sa.context().framing();
    let text_at = usize::from(candidate.esp_at) + 8 + framing.iv_len();
    let text_end = usize::from(candidate.esp_at) + candidate.esp_len as usize - framing.icv_len();
    let data = packet.data();
    let text = data.get(text_at..text_end)?;
    let (payload_len, next_header) = short_trailer(text)?;
    // The inner packet is all of the payload.
    let header = text.first_chunk::<20>()?;
    let traffic_class = if next_header == protocol::IPV4 && header[0] == 0x45 {
        let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
        (payload_len >= 20 && total_len == payload_len).then_some(header[1])?
    } else {
        let inner = Brief::parse(&text[..payload_len]).ok()?;
        let is_whole = next_header == inner.version.protocol() && inner.total_len == payload_len;
        is_whole.then_some(inner.traffic_class)?
    };
    let is_plain = framing.is_plain_in() && (candidate.traffic_class ^ traffic_class) & 3 == 0;
    if !is_plain {
        return None;
    }
    let behind = data.len() - text_at - payload_len;
    packet.trim_back(behind);
    packet.trim_front(text_at);
    Some((next_header, payload_len))
}

/// What a refused packet is dropped for.
pub(crate) const fn refused(refusal: InboundRefusal) -> DropReason {
    match refusal {
        InboundRefusal::Replay(_) => DropReason::Replay,
        InboundRefusal::Expired => DropReason::Expired,
        InboundRefusal::AboveMark => DropReason::Mark,
        InboundRefusal::Deleted => DropReason::Deleted,
    }
}

/// Everything that follows the decision about one authentic packet.
#[inline(never)]
pub(crate) fn open<B: Buffer>(candidate: &Candidate<'_>, packet: &mut B) -> Verdict {
    let context = candidate.sa.context();
    let framing = context.framing();
    let text_at = usize::from(candidate.esp_at) + 8 + framing.iv_len();
    let text_end = text_at + candidate.text_len() as usize;
    let outcome = match candidate.refusal {
        None => open_text(candidate, packet, text_at, text_end),
        Some(reason) => Err(reason),
    };
    match outcome {
        Ok(next_header) => Verdict::Opened(Opened {
            sequence: candidate.sequence,
            mode: context.mode(),
            next_header,
        }),
        Err(reason) => {
            packet.data_mut()[text_at..text_end].fill(0);
            Verdict::Drop(reason)
        }
    }
}

/// Checks the trailer and the inner packet, and leaves the inner packet in the buffer; the
/// next header.
fn open_text<B: Buffer>(
    candidate: &Candidate<'_>,
    packet: &mut B,
    text_at: usize,
    text_end: usize,
) -> Result<u8, DropReason> {
    let text = &mut packet.data_mut()[text_at..text_end];
    let (payload_len, next_header) = trailer(text).ok_or(DropReason::Padding)?;
    //= https://www.rfc-editor.org/rfc/rfc4303#section-2.6
    //# a receiver MUST be prepared to discard such packets, without
    //# indicating an error.
    if next_header == protocol::NONE {
        return Err(DropReason::Dummy);
    }
    match candidate.sa.context().mode() {
        Mode::Tunnel => {
            let len = open_tunnel(candidate, &mut text[..payload_len], next_header)?;
            let behind = packet.data().len() - text_at - len;
            packet.trim_back(behind);
            packet.trim_front(text_at);
        }
        Mode::Transport => open_transport(candidate, packet, text_at, payload_len, next_header)?,
    }
    Ok(next_header)
}

/// Payload length and next header; `None` if the padding is too long or not 1, 2, 3...
///
//= https://www.rfc-editor.org/rfc/rfc4303#section-2.4
//# When this padding scheme is employed, the
//# receiver SHOULD inspect the Padding field.
fn trailer(text: &[u8]) -> Option<(usize, u8)> {
    let [body @ .., padding_len, next_header] = text else {
        return None;
    };
    let payload_len = body.len().checked_sub(usize::from(*padding_len))?;
    let mut wrong = 0;
    for (byte, value) in body[payload_len..].iter().zip(1..=u8::MAX) {
        wrong |= byte ^ value;
    }
    (wrong == 0).then_some((payload_len, *next_header))
}

/// [`trailer`], with less than four bytes of padding in a text of at least eight; `None` asks
/// for a closer look.
#[inline(always)]
fn short_trailer(text: &[u8]) -> Option<(usize, u8)> {
    let last = u64::from_be_bytes(*text.last_chunk()?);
    // Padding as it stands in front of both lengths, in the upper bytes.
    const PADDING: [u64; 4] = [0, 1, 0x01_02, 0x01_02_03];
    let (padding_len, next_header) = ((last >> 8) as u8, last as u8);
    let expected = *PADDING.get(usize::from(padding_len))?;
    let found = last >> 16 & ((1 << (8 * padding_len)) - 1);
    (found == expected).then_some((text.len() - 2 - usize::from(padding_len), next_header))
}

/// Checks the inner packet at the beginning of `payload`; its length.
fn open_tunnel(
    candidate: &Candidate<'_>,
    payload: &mut [u8],
    next_header: u8,
) -> Result<usize, DropReason> {
    let inner = Brief::parse(payload).map_err(|_| DropReason::InnerMalformed)?;
    if next_header != inner.version.protocol() {
        return Err(DropReason::InnerMalformed);
    }
    // What follows the inner packet is padding for traffic flow confidentiality.
    let packet = &mut payload[..inner.total_len];
    check_selectors(candidate.sa, || flow(packet))?;
    if candidate.sa.params().tunnel.ecn != Ecn::Off {
        let class = merged_traffic_class(candidate.traffic_class, inner.traffic_class)?;
        if class != inner.traffic_class {
            set_traffic_class(packet, inner.version, class);
        }
    }
    Ok(inner.total_len)
}

fn open_transport<B: Buffer>(
    candidate: &Candidate<'_>,
    packet: &mut B,
    text_at: usize,
    payload_len: usize,
    next_header: u8,
) -> Result<(), DropReason> {
    let Candidate { version, udp, .. } = *candidate;
    let header_len = usize::from(candidate.header_len);
    let protocol_at = usize::from(candidate.protocol_at);
    check_selectors(candidate.sa, || {
        let outer = IpHeader::base(packet.data()).ok()?;
        let upper = &packet.data()[text_at..text_at + payload_len];
        let (protocol, ports) = wire::upper_layer(version, next_header, upper);
        Some(Flow {
            source: outer.source,
            destination: outer.destination,
            protocol,
            ports,
        })
    })?;
    let behind = packet.data().len() - text_at - payload_len;
    packet.trim_back(behind);
    let data = packet.data_mut();
    data.copy_within(..header_len, text_at - header_len);
    packet.trim_front(text_at - header_len);

    let data = packet.data_mut();
    data[protocol_at] = next_header;
    let len = data.len();
    match version {
        IpVersion::V4 => {
            data[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            data[10..12].fill(0);
            let sum = Checksum::new().bytes(&data[..header_len]).finish();
            data[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        IpVersion::V6 => data[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
    }
    if udp {
        let policy = candidate.sa.params().nat_checksum;
        nat::correct_checksum(policy, header_len, next_header, data);
    }
    Ok(())
}

/// The inner packet must lie within what the association was negotiated for, else an
/// authenticated peer could speak for anybody (RFC 4301 section 5.2, step 4).
fn check_selectors(sa: &EspSa, flow: impl FnOnce() -> Option<Flow>) -> Result<(), DropReason> {
    let selectors = &sa.params().selectors;
    if selectors.is_empty() {
        return Ok(());
    }
    let flow = flow().ok_or(DropReason::InnerMalformed)?;
    if selectors.iter().any(|selector| selector.matches(&flow)) {
        Ok(())
    } else {
        Err(DropReason::Selector)
    }
}

/// The traffic class that leaves the tunnel: the inner one with the congestion mark that the
/// packet met on its way (RFC 6040 section 4.2, figure 4).
#[inline]
fn merged_traffic_class(outer: u8, inner: u8) -> Result<u8, DropReason> {
    // Most packets meet no congestion: nothing changes.
    if (outer ^ inner) & 3 == 0 {
        return Ok(inner);
    }
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    let ecn = match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => return Err(DropReason::Congestion),
        (NOT_ECT, _) => NOT_ECT,
        (ECT_0, ECT_1) => ECT_1,
        (_, CE) => CE,
        (inner, _) => inner,
    };
    Ok(inner & 0xfc | ecn)
}

fn set_traffic_class(packet: &mut [u8], version: IpVersion, class: u8) {
    match version {
        IpVersion::V4 => {
            let old = u16::from_be_bytes([packet[0], packet[1]]);
            packet[1] = class;
            let new = u16::from_be_bytes([packet[0], packet[1]]);
            let sum = u16::from_be_bytes([packet[10], packet[11]]);
            packet[10..12].copy_from_slice(&adjusted(sum, old, new).to_be_bytes());
        }
        IpVersion::V6 => {
            packet[0] = 0x60 | class >> 4;
            packet[1] = class << 4 | packet[1] & 0xf;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The short way of reading trailers says what the long way says.
    #[test]
    fn both_ways_of_reading_trailers_agree() {
        let mut short = 0;
        for payload_len in 0..12 {
            for padding_len in 0..8_u8 {
                for wrong_at in (0..padding_len).map(Some).chain([None]) {
                    let mut text = vec![0xaa; payload_len];
                    text.extend(1..=padding_len);
                    if let Some(at) = wrong_at {
                        text[payload_len + usize::from(at)] ^= 0x40;
                    }
                    text.extend([padding_len, 4]);
                    let expected = wrong_at.is_none().then_some((payload_len, 4));
                    assert_eq!(trailer(&text), expected);
                    match short_trailer(&text) {
                        None => assert!(padding_len > 3 || text.len() < 8 || expected.is_none()),
                        found => {
                            assert_eq!(found, expected);
                            short += 1;
                        }
                    }
                }
            }
        }
        assert!(short > 20);
        // Padding that is longer than the text.
        assert_eq!(trailer(&[9, 9, 9, 9, 9, 9, 7, 4]), None);
    }

    #[test]
    fn congestion_marks_merge_by_the_table_of_rfc_6040() {
        // Figure 4; rows inner Not-ECT, ECT(0), ECT(1), CE; columns outer the same.
        let order = [0, 2, 1, 3];
        let table = [
            [Ok(0), Ok(0), Ok(0), Err(DropReason::Congestion)],
            [Ok(2), Ok(2), Ok(1), Ok(3)],
            [Ok(1), Ok(1), Ok(1), Ok(3)],
            [Ok(3), Ok(3), Ok(3), Ok(3)],
        ];
        for (inner, row) in order.iter().zip(table) {
            for (outer, expected) in order.iter().zip(row) {
                assert_eq!(
                    merged_traffic_class(0xb8 | outer, 0x28 | inner),
                    expected.map(|ecn| 0x28 | ecn)
                );
            }
        }
    }

    #[test]
    fn padding_counts_up_from_one() {
        assert_eq!(trailer(&[0, 4]), Some((0, 4)));
        assert_eq!(trailer(&[9, 1, 2, 2, 4]), Some((1, 4)));
        assert_eq!(trailer(&[9, 1, 3, 2, 4]), None);
        assert_eq!(trailer(&[9, 2, 2, 2, 4]), None);
        assert_eq!(trailer(&[9, 1, 3, 4]), None);
        assert_eq!(trailer(&[4]), None);
        let mut longest: Vec<u8> = (1..=255).collect();
        longest.extend([255, 41]);
        assert_eq!(trailer(&longest), Some((0, 41)));
    }
}
