//! What RFC 4303 wants told of packets that are refused (section 4): as much as a log can take.

use core::time::Duration;

use vesper_sa::{Auditable, AuditedPacket, Event, Timestamp};

use crate::association::EspSa;
use crate::fate::DropReason;
use crate::wire::{EncapsulationPorts, IpHeader, Located, locate, protocol};

/// How far apart two packets are that are told of, if both are refused for one reason.
const APART: Duration = Duration::from_secs(1);

/// What was told of, and when.
#[derive(Debug)]
pub(crate) struct Audit {
    told: [Option<Timestamp>; DropReason::COUNT],
}

impl Audit {
    pub(crate) const fn new() -> Self {
        Self {
            told: [None; DropReason::COUNT],
        }
    }

    /// What is to be told of a packet, whose outer and ESP headers are as they came.
    #[cold]
    pub(crate) fn refused(
        &mut self,
        now: Timestamp,
        reason: DropReason,
        sa: Option<&EspSa>,
        packet: &[u8],
        ports: &EncapsulationPorts,
    ) -> Option<Event> {
        let told = &mut self.told[reason as usize];
        let is_early = |told| now.since(told) < APART;
        let auditable = auditable(reason).filter(|_| !told.is_some_and(is_early))?;
        let packet = audited(packet, ports)?;
        *told = Some(now);
        Some(Event::PacketRefused {
            sa: sa.map(EspSa::identity),
            reason: auditable,
            packet,
        })
    }
}

const fn auditable(reason: DropReason) -> Option<Auditable> {
    match reason {
        DropReason::NoSa => Some(Auditable::NoAssociation),
        DropReason::Fragment => Some(Auditable::Fragment),
        DropReason::Replay => Some(Auditable::Replay),
        DropReason::Icv => Some(Auditable::Integrity),
        _ => None,
    }
}

/// What is told of an ESP packet, or of a fragment of one; `None` if it is neither.
pub fn audited(packet: &[u8], ports: &EncapsulationPorts) -> Option<AuditedPacket> {
    let ip = IpHeader::parse(packet).ok()?;
    let (spi, sequence) = match locate(packet, ports) {
        Located::Esp(esp) => (esp.spi, esp.sequence),
        // The first one has an ESP header; of the others nothing is known.
        Located::Fragment(ip) => {
            let is_first = ip.protocol == protocol::ESP
                && ip.fragment.is_some_and(|fragment| fragment.offset == 0);
            let esp = packet.get(ip.header_len..).filter(|_| is_first);
            let word = |at: usize| {
                let bytes = esp?.get(at..at + 4)?.first_chunk::<4>()?;
                Some(u32::from_be_bytes(*bytes))
            };
            (word(0).unwrap_or(0), word(4).unwrap_or(0))
        }
        _ => return None,
    };
    let first = packet.first_chunk::<4>()?;
    let flow_label = u32::from_be_bytes(*first) & 0xf_ffff;
    Some(AuditedPacket {
        spi,
        source: ip.source,
        destination: ip.destination,
        sequence,
        flow_label: ip.source.is_ipv6().then_some(flow_label),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Version 6, traffic class 0, flow label 0x12345; ESP with SPI 0x1000 and number 7.
    fn ipv6() -> Vec<u8> {
        let mut packet = vec![0x60, 0x01, 0x23, 0x45, 0, 32, 50, 64];
        packet.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([0, 0, 0x10, 0, 0, 0, 0, 7]);
        packet.extend([0; 24]);
        packet
    }

    /// The first fragment of the same in IPv4, without options.
    fn ipv4_fragment() -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 52, 0, 1, 0x20, 0, 64, 50];
        // RFC 1071 by hand: 0x4500 + 0x34 + 1 + 0x2000 + 0x4032 + 2 * 0xc000 + 0x200 + 1 + 0x200
        // + 2 = 0x2296a, folded 0x296c, inverted.
        packet.extend([0xd6, 0x93, 192, 0, 2, 1, 192, 0, 2, 2]);
        packet.extend([0, 0, 0x10, 0, 0, 0, 0, 7]);
        packet.extend([0; 24]);
        packet
    }

    fn refused(audit: &mut Audit, secs: u64, reason: DropReason, packet: &[u8]) -> Option<Event> {
        let now = Timestamp::from_secs(secs);
        audit.refused(now, reason, None, packet, &EncapsulationPorts::default())
    }

    #[test]
    fn everything_that_the_rfc_wants_is_told() {
        let mut audit = Audit::new();
        for (reason, auditable) in [
            (DropReason::NoSa, Auditable::NoAssociation),
            (DropReason::Replay, Auditable::Replay),
            (DropReason::Icv, Auditable::Integrity),
        ] {
            let told = refused(&mut audit, 1, reason, &ipv6());
            let packet = AuditedPacket {
                spi: 0x1000,
                source: "2001:db8::1".parse().unwrap(),
                destination: "2001:db8::2".parse().unwrap(),
                sequence: 7,
                flow_label: Some(0x12345),
            };
            let expected = Event::PacketRefused {
                sa: None,
                reason: auditable,
                packet,
            };
            assert_eq!(told, Some(expected));
        }
        let Some(Event::PacketRefused { reason, packet, .. }) =
            refused(&mut audit, 1, DropReason::Fragment, &ipv4_fragment())
        else {
            panic!("nothing is told");
        };
        assert_eq!(reason, Auditable::Fragment);
        assert_eq!(
            packet.to_string(),
            "SPI 0x00001000, 192.0.2.1 to 192.0.2.2, sequence number 7"
        );
        assert_eq!(refused(&mut audit, 1, DropReason::Padding, &ipv6()), None);
    }

    #[test]
    fn a_flood_is_told_of_once_a_second() {
        let mut audit = Audit::new();
        let mut told = |secs| refused(&mut audit, secs, DropReason::Icv, &ipv6()).is_some();
        assert_eq!(
            [1, 1, 1, 2, 2, 9].map(&mut told),
            [true, false, false, true, false, true]
        );
    }
}
