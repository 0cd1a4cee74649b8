//! What follows the cryptography: the trailer and the inner packet of an authentic packet.

use vesper_sa::{Ecn, Flow, InboundRefusal, Mode};

use super::Candidate;
use crate::association::EspSa;
use crate::buffer::Buffer;
use crate::fate::{DropReason, Opened, Verdict};
use crate::wire::{Brief, Checksum, IpHeader, IpVersion, adjusted, flow, protocol};
use crate::{nat, wire};

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
    let (padding_len, next_header) = ((last >> 8) as u8, last as u8);
    if padding_len > 3 {
        return None;
    }
    let expected = 0x01_02_03 >> (24 - 8 * padding_len);
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
