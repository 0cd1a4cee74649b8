//! The inbound passes around the cryptography: find the association and check the window,
//! then, once the packet is authentic, everything up to the inner packet.

use core::net::IpAddr;

use vesper_sa::{Commit, Direction, Ecn, Flow, InboundRefusal, Mode, SaState, Spi};

use crate::aead::{Job, open_batch};
use crate::association::EspSa;
use crate::buffer::Buffer;
use crate::fate::{DropReason, Opened, Verdict};
use crate::wire::{
    Brief, Checksum, EncapsulationPorts, EspLocation, IpHeader, IpVersion, Located, adjusted, flow,
    locate, protocol,
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

/// A packet that may be worth the cryptography.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    /// Its place in the batch.
    pub(crate) index: usize,
    pub(crate) sa: &'a EspSa,
    pub(crate) sequence: u64,
    pub(crate) esp_at: usize,
    pub(crate) esp_len: usize,
    /// Bytes of IP header, options and extension headers.
    header_len: usize,
    protocol_at: usize,
    version: IpVersion,
    traffic_class: u8,
    udp: bool,
    /// What the cryptography says.
    pub(crate) authentic: bool,
}

/// Everything that is checked before authentication; changes nothing.
#[inline]
pub(crate) fn prepare<'a, B: Buffer>(
    entry: &mut Inbound<'a, B>,
    index: usize,
    sas: &impl InboundSas<'a>,
    ports: &EncapsulationPorts,
    scratch: &mut Option<Vec<u8>>,
) -> Result<Candidate<'a>, Verdict> {
    let (sa, location) = find(entry, sas, ports)?;
    let resynchronised = match scratch {
        Some(scratch) if sa.is_resync_due() => {
            let packet = entry.packet.data();
            let esp = &packet[location.esp_at..location.esp_at + location.esp_len];
            resynchronise(sa, location.sequence, esp, scratch)
        }
        _ => None,
    };
    let sequence = match resynchronised {
        Some(sequence) => sequence,
        None => match sa.check(location.sequence) {
            Ok(sequence) => sequence,
            Err(_) => return Err(Verdict::Drop(DropReason::Replay)),
        },
    };
    entry.sequence = sequence;
    Ok(Candidate::new(index, sa, sequence, &location))
}

/// As [`prepare`], of a packet that an adapter has opened with the sequence number in `entry`.
pub(crate) fn prepare_opened<'a, B: Buffer>(
    entry: &mut Inbound<'a, B>,
    index: usize,
    ports: &EncapsulationPorts,
) -> Result<Candidate<'a>, Verdict> {
    let authenticated = entry.sequence;
    let (sa, location) = find(entry, &|_, _| None, ports)?;
    entry.sequence = authenticated;
    match sa.check(location.sequence) {
        Ok(sequence) if sequence == authenticated => {
            Ok(Candidate::new(index, sa, sequence, &location))
        }
        _ => Err(Verdict::Drop(DropReason::Replay)),
    }
}

/// The association of a packet, if it is in force, and where ESP lies in the packet, if it is
/// long enough for that association.
#[inline]
fn find<'a, B: Buffer>(
    entry: &mut Inbound<'a, B>,
    sas: &impl InboundSas<'a>,
    ports: &EncapsulationPorts,
) -> Result<(&'a EspSa, EspLocation), Verdict> {
    let drop = |reason| Err(Verdict::Drop(reason));
    let packet = entry.packet.data();
    let location = match locate(packet, ports) {
        Located::Esp(location) => location,
        Located::NotEsp(kind) => return Err(Verdict::NotEsp(kind)),
        Located::Fragment(_) => return drop(DropReason::Fragment),
        Located::Malformed(_) => return drop(DropReason::Malformed),
    };
    entry.spi = location.spi;
    entry.sequence = u64::from(location.sequence);
    let found = entry
        .sa
        .or_else(|| Spi::new(location.spi).and_then(|spi| sas.inbound(location.destination, spi)));
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.2
    //# If no valid Security Association exists for this packet, the
    //# receiver MUST discard the packet; this is an auditable event.
    let Some(sa) = found else {
        return drop(DropReason::NoSa);
    };
    entry.sa = Some(sa);
    if sa.direction() != Direction::Inbound {
        return drop(DropReason::Direction);
    }
    match sa.state() {
        SaState::Mature | SaState::Dying => {}
        SaState::Dead => return drop(DropReason::Expired),
        SaState::Deleted => return drop(DropReason::Deleted),
    }
    let framing = sa.context().framing();
    let around = 8 + framing.iv_len() + framing.icv_len();
    let text_len = location.esp_len.saturating_sub(around);
    // Every alignment is a power of two.
    if text_len < 2 || text_len & (framing.alignment() - 1) != 0 {
        return drop(DropReason::Malformed);
    }
    Ok((sa, location))
}

impl<'a> Candidate<'a> {
    #[inline]
    fn new(index: usize, sa: &'a EspSa, sequence: u64, location: &EspLocation) -> Self {
        Self {
            index,
            sa,
            sequence,
            esp_at: location.esp_at,
            esp_len: location.esp_len,
            header_len: location.header_len,
            protocol_at: location.protocol_at,
            version: location.version,
            traffic_class: location.traffic_class,
            udp: location.udp,
            authentic: false,
        }
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

/// Everything that follows the decryption of one authentic packet.
#[inline]
pub(crate) fn finish<B: Buffer>(
    candidate: &Candidate<'_>,
    commit: &mut Commit<'_>,
    packet: &mut B,
) -> Verdict {
    let context = candidate.sa.context();
    let framing = context.framing();
    let text_at = candidate.esp_at + 8 + framing.iv_len();
    let text_end = candidate.esp_at + candidate.esp_len - framing.icv_len();
    let outcome = match commit.accept(candidate.sequence, (text_end - text_at) as u32) {
        Ok(()) => open(candidate, packet, text_at, text_end),
        Err(InboundRefusal::Replay(_)) => Err(DropReason::Replay),
        Err(InboundRefusal::Expired) => Err(DropReason::Expired),
        Err(InboundRefusal::Deleted) => Err(DropReason::Deleted),
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
#[inline]
fn open<B: Buffer>(
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
#[inline]
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

/// Checks the inner packet at the beginning of `payload`; its length.
#[inline]
fn open_tunnel(
    candidate: &Candidate<'_>,
    payload: &mut [u8],
    next_header: u8,
) -> Result<usize, DropReason> {
    let inner = Brief::parse(payload).map_err(|_| DropReason::InnerMalformed)?;
    match (next_header, inner.version) {
        (protocol::IPV4, IpVersion::V4) | (protocol::IPV6, IpVersion::V6) => {}
        _ => return Err(DropReason::InnerMalformed),
    }
    // What follows the inner packet is padding for traffic flow confidentiality.
    let packet = &mut payload[..inner.total_len];
    let is_plain = candidate.sa.context().framing().is_plain_in();
    if !is_plain {
        check_selectors(candidate.sa, || flow(packet))?;
    }
    if is_plain || candidate.sa.params().tunnel.ecn != Ecn::Off {
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
    let Candidate {
        version,
        udp,
        header_len,
        protocol_at,
        ..
    } = *candidate;
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
