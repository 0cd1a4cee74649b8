//! Packets that must not be accepted, and the name under which each is counted: truncated,
//! altered, replayed, authentic but wrong. Every packet is made here byte by byte and sealed
//! below the engine.

use std::collections::HashSet;
use std::io::sink;

use vesper_esp::Verdict;
use vesper_esp::aead::{Cipher, Implementation, Job, seal_batch};
use vesper_sa::Timestamp;
use vesper_verify::capture::{CaptureReader, CaptureWriter};
use vesper_verify::opener::{Opener, count_name};
use vesper_verify::unseal::{self, Summary};
use vesper_verify::xfrm;

const SPI: u32 = 0x1000;
const INNER: [u8; 21] = [
    0x45, 0, 0, 21, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0xaa,
];

/// A sender that seals whatever text it is given, and the receiver that is tested.
struct Peer {
    opener: Opener,
    cipher: Cipher,
    esn: bool,
    udp: bool,
}

impl Peer {
    fn new(words: &str) -> Self {
        let line = format!(
            "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi {SPI:#x} mode tunnel \
             aead 'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 128 {words}"
        );
        Self::of(&line)
    }

    fn of(line: &str) -> Self {
        let entries = xfrm::parse(line, "sa").unwrap();
        let cipher = entries[0]
            .keys()
            .cipher(Implementation::RustCrypto)
            .unwrap();
        let available: Vec<Implementation> = Implementation::available().collect();
        Self {
            opener: Opener::new(entries, &available).unwrap(),
            cipher,
            esn: line.contains("esn"),
            udp: line.contains("encap"),
        }
    }

    /// An outer packet with this text, which ends with padding, pad length, next header.
    fn packet(&self, sequence: u64, text: &[u8]) -> Vec<u8> {
        let suite = self.cipher.suite();
        let mut esp = SPI.to_be_bytes().to_vec();
        esp.extend((sequence as u32).to_be_bytes());
        esp.extend(vec![7; suite.iv_len]);
        esp.extend(text);
        esp.extend(vec![0; suite.icv_len]);
        let cipher = &self.cipher;
        let (esn, authentic) = (self.esn, false);
        let esp_bytes = &mut esp;
        seal_batch(&mut [Job {
            cipher,
            sequence,
            esn,
            esp: esp_bytes,
            authentic,
        }]);
        if self.udp {
            return udp(4500, &esp);
        }
        ip(50, &esp)
    }

    /// An ordinary packet.
    fn right(&self, sequence: u64) -> Vec<u8> {
        self.packet(sequence, &text(&INNER, 4))
    }

    /// What the packet is counted as: `accepted`, `not_esp`, or the reason it is dropped for.
    fn count(&mut self, packet: &[u8]) -> &'static str {
        let opening = self.opener.open(Timestamp::ZERO, packet).unwrap();
        assert!(opening.dissent.is_none(), "implementations disagree");
        match opening.verdict {
            Verdict::Opened(_) => {
                assert_eq!(opening.inner, INNER);
                "accepted"
            }
            Verdict::NotEsp(_) => "not_esp",
            Verdict::Drop(reason) => count_name(reason),
            other => panic!("{other:?}"),
        }
    }
}

/// A payload with the padding, pad length and next header that belong to it.
fn text(payload: &[u8], next_header: u8) -> Vec<u8> {
    let padding = (payload.len() + 2).next_multiple_of(4) - payload.len() - 2;
    let mut text = payload.to_vec();
    text.extend(1..=padding as u8);
    text.extend([padding as u8, next_header]);
    text
}

fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0x12, 0x34, 0, 0, 64, protocol, 0, 0]);
    packet.extend([192, 0, 2, 1, 192, 0, 2, 2]);
    packet.extend(payload);
    checksummed(packet)
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = port.to_be_bytes().to_vec();
    datagram.extend(port.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    ip(17, &datagram)
}

/// With the IPv4 header checksum that belongs to it.
fn checksummed(mut packet: Vec<u8>) -> Vec<u8> {
    packet[10..12].fill(0);
    let words = packet[..20].chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!sum as u16).to_be_bytes());
    packet
}

#[test]
fn truncated_at_every_length() {
    let mut peer = Peer::new("replay-window 32");
    let packet = peer.right(1);
    for len in 0..packet.len() {
        assert_eq!(peer.count(&packet[..len]), "malformed", "cut to {len}");
        if len < 20 {
            continue;
        }
        // An honest IP header: what is missing is missing from ESP.
        let mut cut = packet[..len].to_vec();
        cut[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        let text_len = (len as isize) - 20 - 8 - 8 - 16;
        let expected = match text_len {
            2.. if text_len % 4 == 0 => "icv",
            _ => "malformed",
        };
        assert_eq!(
            peer.count(&checksummed(cut)),
            expected,
            "shortened to {len}"
        );
    }
    assert_eq!(
        peer.count(&packet),
        "accepted",
        "nothing before has changed the state"
    );
}

#[test]
fn every_flipped_bit() {
    let mut peer = Peer::new("replay-window 32 replay-seq 100");
    let packet = peer.right(101);
    for bit in 0..packet.len() * 8 {
        let mut flipped = packet.clone();
        flipped[bit / 8] ^= 0x80 >> (bit % 8);
        let expected = match bit / 8 {
            0..20 => "malformed",
            20..24 => "no_sa",
            // A higher number fails authentication; a lower one is left of the window, or in it
            // and fails authentication as well.
            24..28 if (flipped[27] ^ packet[27]) == 0x40 || flipped[27] == 0x25 => "any",
            _ => "icv",
        };
        let count = peer.count(&flipped);
        if expected != "any" {
            assert_eq!(count, expected, "bit {bit}");
        }
    }
    assert_eq!(
        peer.count(&packet),
        "accepted",
        "nothing before has changed the state"
    );
    assert_eq!(peer.count(&packet), "replay");
}

#[test]
fn replays_around_windows() {
    for (esn, base) in [(false, 0_u64), (true, 0), (true, (7 << 32) - 2000)] {
        for window in [32, 64, 1024] {
            let words = match (esn, base) {
                (false, _) => format!("replay-window {window}"),
                (true, base) => format!(
                    "replay-window {window} flag esn replay-seq {} replay-seq-hi {}",
                    base as u32,
                    base >> 32
                ),
            };
            let mut peer = Peer::new(&words);
            let mut top = base;
            let mut seen = HashSet::new();
            // Jumps ahead and every distance around the window's left edge.
            let mut numbers = vec![];
            for jump in [1, 2, 3, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 4000] {
                let at = top + jump;
                numbers.push(at);
                for back in [
                    0,
                    1,
                    2,
                    window - 2,
                    window - 1,
                    window,
                    window + 1,
                    3 * window,
                ] {
                    numbers.push(at.saturating_sub(back));
                    numbers.push(at.saturating_sub(back));
                }
                top = at;
            }
            top = base;
            for number in numbers {
                let taken = if esn {
                    guessed(number as u32, top, window)
                } else {
                    number
                };
                let fresh = taken > 0 && taken + window > top && !seen.contains(&taken);
                // The number decides first: a forgery of a replayed number is a replay.
                let mut forged = peer.right(number);
                *forged.last_mut().unwrap() ^= 1;
                let expected = if fresh { "icv" } else { "replay" };
                assert_eq!(peer.count(&forged), expected, "{words}: {number} forged");
                let expected = match fresh {
                    false => "replay",
                    true if taken == number => "accepted",
                    // Far left of an extended window: taken for one of the next subspace.
                    true => "icv",
                };
                let packet = peer.right(number);
                assert_eq!(
                    peer.count(&packet),
                    expected,
                    "{words}: {number} after {top}"
                );
                if expected == "accepted" {
                    seen.insert(number);
                    top = top.max(number);
                }
            }
        }
    }
}

/// The 64-bit number that a receiver takes the low half for (RFC 4303 appendix A2.2).
fn guessed(low: u32, top: u64, window: u64) -> u64 {
    let (high, top_low) = (top >> 32, top & 0xffff_ffff);
    let low = u64::from(low);
    let bottom = (top_low + (1 << 32) + 1 - window) & 0xffff_ffff;
    let high = if top_low >= window - 1 {
        if low >= bottom { high } else { high + 1 }
    } else if low >= bottom && high > 0 {
        high - 1
    } else {
        high
    };
    high << 32 | low
}

#[test]
fn sequence_number_zero_and_the_window_switched_off() {
    let mut peer = Peer::new("replay-window 32");
    let zero = peer.right(0);
    assert_eq!(peer.count(&zero), "replay");
    let mut open = Peer::new("");
    for _ in 0..3 {
        let packet = open.right(5);
        assert_eq!(open.count(&packet), "accepted");
    }
}

#[test]
fn authentic_but_wrong_trailers() {
    let mut peer = Peer::new("replay-window 64");
    let mut sequence = 0;
    let mut count = |text: &[u8]| {
        sequence += 1;
        let packet = peer.packet(sequence, text);
        peer.count(&packet)
    };
    let with = |padding: &[u8], len: u8, next_header: u8| {
        let mut text = INNER.to_vec();
        text.extend(padding);
        text.extend([len, next_header]);
        assert!(text.len().is_multiple_of(4));
        text
    };
    assert_eq!(count(&with(&[1], 1, 4)), "accepted");
    assert_eq!(count(&with(&[1, 2, 3, 4, 5], 5, 4)), "accepted");
    // Padding that is not 1, 2, 3...
    for padding in [
        &[0][..],
        &[2],
        &[1, 2, 3, 4, 4],
        &[0, 0, 0, 0, 0],
        &[1, 2, 3, 5, 4],
    ] {
        assert_eq!(
            count(&with(padding, padding.len() as u8, 4)),
            "padding",
            "{padding:?}"
        );
    }
    // A pad length beyond the packet, whatever the next header says.
    for len in [23, 24, 255] {
        for next_header in [4, 59, 6] {
            assert_eq!(count(&with(&[1], len, next_header)), "padding", "{len}");
        }
    }
    assert_eq!(
        count(&[255, 4, 0, 0]),
        "malformed",
        "no padding, an unknown next header"
    );
    assert_eq!(
        count(&[1, 2, 2, 4]),
        "malformed",
        "an empty payload is no IP packet"
    );
    // Dummy packets of any size and content.
    assert_eq!(count(&[1, 2, 2, 59]), "dummy");
    assert_eq!(count(&with(&[1], 1, 59)), "dummy");
    assert_eq!(
        count(&with(&[2], 1, 59)),
        "padding",
        "padding is looked at first"
    );
}

#[test]
fn authentic_tunnel_payloads_that_are_no_ip_packet() {
    let mut peer = Peer::new("replay-window 64");
    let mut sequence = 0;
    let mut count = |payload: &[u8], next_header: u8| {
        sequence += 1;
        let packet = peer.packet(sequence, &text(payload, next_header));
        peer.count(&packet)
    };
    assert_eq!(count(&INNER, 41), "malformed", "IPv4 announced as IPv6");
    assert_eq!(count(&INNER, 6), "malformed", "TCP in a tunnel");
    assert_eq!(
        count(&INNER[..20], 4),
        "malformed",
        "shorter than its length field says"
    );
    assert_eq!(count(&INNER[..19], 4), "malformed");
    assert_eq!(count(&[0x45], 4), "malformed");
    let mut version = INNER;
    version[0] = 0x55;
    assert_eq!(count(&version, 4), "malformed");
    let mut short_header = INNER;
    short_header[0] = 0x44;
    assert_eq!(count(&short_header, 4), "malformed");
    let mut padded = INNER.to_vec();
    padded.extend([0; 99]);
    assert_eq!(count(&padded, 4), "accepted", "TFC padding is cut");
}

#[test]
fn congestion_marks_of_the_outer_header_change_nothing() {
    for words in ["replay-window 64", "replay-window 64 flag noecn decap-dscp"] {
        let mut peer = Peer::new(words);
        let mut marked = peer.right(1);
        marked[1] = 0xbb;
        // The inner packet is not capable of congestion marks, and has another DSCP.
        assert_eq!(peer.count(&checksummed(marked)), "accepted");
    }
}

#[test]
fn selectors_are_looked_at_last() {
    let mut peer = Peer::new("replay-window 64 sel src 10.0.0.1/32 dst 10.0.0.0/24 proto udp");
    let mut sequence = 0;
    let mut count = |change: &dyn Fn(&mut [u8])| {
        sequence += 1;
        let mut inner = INNER;
        change(&mut inner);
        let packet = peer.packet(sequence, &text(&inner, 4));
        peer.count(&packet)
    };
    assert_eq!(count(&|_| {}), "accepted");
    assert_eq!(count(&|inner| inner[15] = 9), "selector");
    assert_eq!(count(&|inner| inner[18] = 9), "selector");
    assert_eq!(count(&|inner| inner[9] = 6), "selector");
    assert_eq!(
        count(&|inner| inner[3] = 22),
        "malformed",
        "no packet, no selector"
    );
}

#[test]
fn unknown_associations_and_what_is_not_esp() {
    let mut peer = Peer::new("replay-window 64 encap espinudp 4500 4500 0.0.0.0");
    let right = peer.right(1);
    for spi in [1_u32, 255, 256, 0xffff_ffff] {
        let mut packet = right.clone();
        packet[28..32].copy_from_slice(&spi.to_be_bytes());
        assert_eq!(peer.count(&packet), "no_sa", "{spi}");
    }
    for spi in [0_u32, 1, 255] {
        let mut esp = spi.to_be_bytes().to_vec();
        esp.extend([0; 40]);
        assert_eq!(peer.count(&ip(50, &esp)), "no_sa", "{spi}");
    }
    let mut elsewhere = right.clone();
    elsewhere[19] = 3;
    assert_eq!(
        peer.count(&checksummed(elsewhere)),
        "no_sa",
        "another destination"
    );
    assert_eq!(peer.count(&udp(4500, &[0xff])), "not_esp", "keepalive");
    assert_eq!(peer.count(&udp(4500, &[0; 28])), "not_esp", "IKE");
    assert_eq!(peer.count(&udp(500, &[9; 28])), "not_esp");
    assert_eq!(peer.count(&ip(6, &[0; 20])), "not_esp");
    assert_eq!(
        peer.count(&udp(4500, &[1; 7])),
        "malformed",
        "too short for ESP"
    );
    let mut lying = right.clone();
    lying[25] = 0xff;
    assert_eq!(
        peer.count(&lying),
        "malformed",
        "UDP length beyond the packet"
    );
    assert_eq!(peer.count(&right), "accepted");
}

/// The outcome of a capture with these raw IP packets.
fn unsealed(peer: &mut Peer, packets: &[Vec<u8>]) -> Summary {
    let mut file = Vec::new();
    let mut writer = CaptureWriter::new(&mut file).unwrap();
    for packet in packets {
        writer.packet(0, packet).unwrap();
    }
    writer.finish().unwrap();
    let mut reader = CaptureReader::new(&file[..], "c".to_owned()).unwrap();
    let mut inner = CaptureWriter::new(sink()).unwrap();
    unseal::unseal(
        &mut reader,
        &mut peer.opener,
        Some(&mut inner),
        |_| {},
        |_| {},
    )
    .unwrap()
}

/// The packet in two fragments of this many bytes of payload and the rest.
fn fragments(packet: &[u8], first: usize) -> [Vec<u8>; 2] {
    let part = |from: usize, to: usize, bits: u16| {
        let mut part = packet[..20].to_vec();
        part.extend(&packet[20 + from..20 + to]);
        let len = part.len() as u16;
        part[2..4].copy_from_slice(&len.to_be_bytes());
        part[6..8].copy_from_slice(&(bits | (from / 8) as u16).to_be_bytes());
        checksummed(part)
    };
    [part(0, first, 0x2000), part(first, packet.len() - 20, 0)]
}

#[test]
fn fragments_count_once_or_not_at_all() {
    let mut peer = Peer::new("replay-window 64");
    let [first, second] = fragments(&peer.right(1), 24);
    let [lone, other] = fragments(&peer.right(2), 24);
    let [third, overlap] = fragments(&peer.right(3), 24);
    // The lone fragment must not belong to the same datagram as the others.
    let renamed = |mut packet: Vec<u8>, identification: u8| {
        packet[5] = identification;
        checksummed(packet)
    };
    let mut lying = overlap.clone();
    lying[7] -= 1;
    let summary = unsealed(
        &mut peer,
        &[
            second,
            renamed(lone, 9),
            first,
            renamed(third, 11),
            renamed(lying, 11),
            ip(17, &[0, 7, 0, 7, 0, 8, 0, 0]),
        ],
    );
    drop(other);
    assert_eq!(summary.frames, 6);
    assert_eq!(summary.accepted, 1);
    assert_eq!(summary.not_esp, 1);
    assert_eq!(summary.dropped["malformed"], 1, "fragments that overlap");
    assert_eq!(summary.packets, 2);
    assert_eq!(summary.incomplete_datagrams, 1);
    assert_eq!(summary.failures.len(), 1);
    assert_eq!(summary.failures[0].reason, "fragments overlap");
}

#[test]
fn mutations_never_panic_and_never_pass() {
    let mut peer = Peer::new("replay-window 64 flag esn encap espinudp 4500 4500 0.0.0.0");
    let right = peer.right(1);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..200_000 {
        let mut packet = right.clone();
        for _ in 0..=random() % 4 {
            let at = random() as usize % packet.len();
            match random() % 4 {
                0 => packet[at] = random() as u8,
                1 => packet[at] ^= 1 << (random() % 8),
                2 => packet.truncate(at.max(1)),
                _ => packet.insert(at, random() as u8),
            }
        }
        if random().is_multiple_of(2) && packet.len() >= 20 {
            let len = packet.len() as u16;
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            packet = checksummed(packet);
        }
        // What lies outside of ESP is not authenticated: only then may it pass.
        let same_esp = packet.get(28..right.len()) == right.get(28..);
        if !same_esp {
            assert_ne!(peer.count(&packet), "accepted", "{packet:?}");
        }
    }
    assert_eq!(peer.count(&right), "accepted");
}
