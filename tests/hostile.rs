//! Hostile packets: no panic, no state change before authentication, no clear text of a failed
//! packet left behind, every packet counted once.
//!
//! `VESPER_HOSTILE_PACKETS=10000000` makes the run longer than the few seconds of an ordinary
//! one.

use vesper_esp::{
    Buffer, DropReason, Engine, EspSa, Inbound, Outbound, PacketBuf, Reassembler, Suite, Verdict,
};
use vesper_sa::{Direction, Mode, SaParams, Spi, Timestamp};
use vesper_tests::{Carrier, Random, params, sa, udp_packet};

const NOW: Timestamp = Timestamp::ZERO;

fn packets() -> usize {
    std::env::var("VESPER_HOSTILE_PACKETS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(400_000)
}

/// One association per suite, mode and carrier that the index selects.
fn associations(direction: Direction) -> Vec<EspSa> {
    (0..Suite::ALL.len() * 2)
        .map(|index| {
            let mode = if index % 2 == 0 {
                Mode::Tunnel
            } else {
                Mode::Transport
            };
            let base = params(direction, mode, Carrier::ALL[index / 2 % 4]);
            let params = SaParams {
                spi: Spi::new(0x1000 + index as u32).unwrap(),
                esn: index % 5 == 0,
                ..base
            };
            sa(params, &Suite::ALL[index / 2], index as u8)
        })
        .collect()
}

/// Sealed packets of every association, to be mutated.
fn seeds(outbound: &[EspSa]) -> Vec<Vec<u8>> {
    let mut engine = Engine::default();
    let mut seeds = Vec::new();
    for (index, sa) in outbound.iter().enumerate() {
        for payload in [0, 1, 37, 300] {
            let v6 = matches!(sa.params().source, std::net::IpAddr::V6(_));
            let packet = PacketBuf::from_packet(&udp_packet(v6, payload + index % 4));
            let mut batch = [Outbound::new(sa, packet)];
            engine.encapsulate(NOW, &mut batch);
            assert!(matches!(batch[0].verdict, Verdict::Sealed { .. }));
            seeds.push(batch[0].packet.data().to_vec());
        }
    }
    seeds
}

fn mutate(random: &mut Random, seed: &[u8]) -> Vec<u8> {
    let mut packet = seed.to_vec();
    for _ in 0..=random.below(3) {
        match random.below(7) {
            0 => {
                // A random byte of the headers.
                let at = random.below(packet.len().clamp(1, 60));
                if let Some(byte) = packet.get_mut(at) {
                    *byte = random.next() as u8;
                }
            }
            1 => {
                let at = random.below(packet.len().max(1));
                if let Some(byte) = packet.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            2 => packet.truncate(random.below(packet.len() + 1)),
            3 => {
                let more = random.below(40);
                packet.extend((0..more).map(|byte| byte as u8));
            }
            4 => set_length(random, &mut packet),
            5 => {
                packet = vec![0; random.below(200)];
                random.fill(&mut packet);
            }
            _ => {
                // Truncated, and the lengths corrected.
                packet.truncate(random.below(packet.len() + 1));
                correct_length(&mut packet);
            }
        }
    }
    if random.below(3) > 0 {
        correct_checksum(&mut packet);
    }
    packet
}

fn set_length(random: &mut Random, packet: &mut [u8]) {
    let edges = [
        0,
        1,
        19,
        20,
        27,
        28,
        packet.len(),
        packet.len().wrapping_sub(1),
        0xffff,
    ];
    let length = (edges[random.below(edges.len())] as u16).to_be_bytes();
    let at = [2, 4, 24, 44][random.below(4)];
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&length);
    }
}

fn correct_length(packet: &mut [u8]) {
    let len = packet.len();
    match packet.first().map(|first| first >> 4) {
        Some(4) if len >= 20 => packet[2..4].copy_from_slice(&(len as u16).to_be_bytes()),
        Some(6) if len >= 40 => packet[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes()),
        _ => {}
    }
}

fn correct_checksum(packet: &mut [u8]) {
    if packet.len() >= 20 && packet[0] == 0x45 {
        packet[10..12].fill(0);
        let sum = vesper_esp::wire::Checksum::new()
            .bytes(&packet[..20])
            .finish();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

#[test]
fn mutated_packets_are_dropped_and_counted() {
    let outbound = associations(Direction::Outbound);
    let inbound = associations(Direction::Inbound);
    let seeds = seeds(&outbound);
    let find = |_, spi: Spi| inbound.get(spi.get().wrapping_sub(0x1000) as usize);
    let mut random = Random::new(0x5eed);
    let mut engine = Engine::default();
    let mut stage = Reassembler::default();
    let (mut handed_in, mut reassembled) = (0u64, 0u64);
    while handed_in < packets() as u64 {
        let batch_len = 1 + random.below(100);
        let mut batch: Vec<_> = (0..batch_len)
            .map(|_| {
                let seed = &seeds[random.below(seeds.len())];
                let packet = mutate(&mut random, seed);
                if let vesper_esp::Reassembly::Complete(_) = stage.push(NOW, 0, &packet) {
                    reassembled += 1;
                }
                Inbound::new(PacketBuf::from_packet(&packet))
            })
            .collect();
        engine.decapsulate(NOW, &find, &mut batch);
        handed_in += batch_len as u64;
        for entry in &batch {
            match entry.verdict {
                Verdict::Opened(opened) => {
                    assert!(vesper_esp::wire::IpHeader::base(entry.packet.data()).is_ok());
                    assert!(opened.sequence > 0);
                }
                Verdict::Drop(_) | Verdict::NotEsp(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    let counters = engine.counters();
    assert_eq!(
        counters.opened_packets + counters.dropped() + counters.not_esp,
        handed_in,
        "every packet is counted once"
    );
    for reason in [
        DropReason::Malformed,
        DropReason::Fragment,
        DropReason::NoSa,
        DropReason::Replay,
        DropReason::Icv,
    ] {
        assert!(counters.drops(reason) > 0, "{reason} was never reached");
    }
    println!(
        "{handed_in} packets: {} opened, {} not ESP, {} dropped, {reassembled} reassembled",
        counters.opened_packets,
        counters.not_esp,
        counters.dropped()
    );
}

/// Outbound packets may be as hostile: a guest wrote them.
#[test]
fn anything_may_be_offered_for_sealing() {
    let outbound = associations(Direction::Outbound);
    let seeds = [
        udp_packet(false, 50),
        udp_packet(true, 50),
        udp_packet(false, 1400),
    ];
    let mut random = Random::new(0xbad);
    let mut engine = Engine::default();
    for _ in 0..packets() / 100 {
        let mut batch: Vec<_> = (0..50)
            .map(|_| {
                let sa = &outbound[random.below(outbound.len())];
                let seed = &seeds[random.below(seeds.len())];
                let packet = mutate(&mut random, seed);
                Outbound::new(sa, PacketBuf::from_packet(&packet))
            })
            .collect();
        engine.encapsulate(NOW, &mut batch);
        for entry in &batch {
            assert!(matches!(
                entry.verdict,
                Verdict::Sealed { .. } | Verdict::Drop(_)
            ));
        }
    }
    assert!(engine.counters().drops(DropReason::OutMalformed) > 0);
    assert!(engine.counters().sealed_packets > 0);
}

/// A forged packet far ahead moves nothing: the genuine ones still pass.
#[test]
fn forged_numbers_do_not_move_the_window() {
    let suite = Suite::by_name("aes256gcm16").unwrap();
    for esn in [false, true] {
        let make = |direction| {
            let mut params = params(direction, Mode::Tunnel, Carrier::ALL[0]);
            params.esn = esn;
            sa(params, suite, 1)
        };
        let (outbound, inbound) = (make(Direction::Outbound), make(Direction::Inbound));
        let mut engine = Engine::default();
        for round in 0..1000u32 {
            let mut batch = [Outbound::new(
                &outbound,
                PacketBuf::from_packet(&udp_packet(false, 40)),
            )];
            engine.encapsulate(NOW, &mut batch);
            let [genuine] = batch;
            let mut forged = genuine.packet.clone();
            forged.data_mut()[24..28].copy_from_slice(&(round + (1 << 30)).to_be_bytes());
            let mut batch = [Inbound::new(forged), Inbound::new(genuine.packet)];
            engine.decapsulate(NOW, &|_, _| Some(&inbound), &mut batch);
            assert_eq!(batch[0].verdict, Verdict::Drop(DropReason::Icv));
            assert!(
                matches!(batch[1].verdict, Verdict::Opened(_)),
                "{:?}",
                batch[1].verdict
            );
            let clear = udp_packet(false, 40);
            let failed = batch[0].packet.data();
            assert!(
                !failed.windows(16).any(|window| window == &clear[28..44]),
                "not wiped"
            );
        }
    }
}

/// Twins in one batch: one passes.
#[test]
fn twins_in_a_batch_do_not_both_pass() {
    let suite = Suite::by_name("chacha20poly1305").unwrap();
    let outbound = sa(
        params(Direction::Outbound, Mode::Tunnel, Carrier::ALL[0]),
        suite,
        1,
    );
    let inbound = sa(
        params(Direction::Inbound, Mode::Tunnel, Carrier::ALL[0]),
        suite,
        1,
    );
    let mut engine = Engine::default();
    let mut batch = [Outbound::new(
        &outbound,
        PacketBuf::from_packet(&udp_packet(false, 40)),
    )];
    engine.encapsulate(NOW, &mut batch);
    let mut batch: Vec<_> = (0..100)
        .map(|_| Inbound::new(batch[0].packet.clone()))
        .collect();
    engine.decapsulate(NOW, &|_, _| Some(&inbound), &mut batch);
    assert_eq!(engine.counters().opened_packets, 1);
    assert_eq!(engine.counters().drops(DropReason::Replay), 99);
}

/// After 2^32 packets were lost the receiver finds the sender again (RFC 4303 appendix A3).
#[test]
fn a_silent_subspace_is_found_again() {
    let suite = Suite::by_name("aes256gcm16").unwrap();
    let make = |direction, sequence| {
        let mut params = params(direction, Mode::Tunnel, Carrier::ALL[0]);
        params.esn = true;
        params.sequence = sequence;
        sa(params, suite, 1)
    };
    let outbound = make(Direction::Outbound, (3 << 32) + 100);
    let inbound = make(Direction::Inbound, 1000);
    let mut engine = Engine::default();
    let mut lost = 0;
    for _ in 0..100 {
        let mut batch = [Outbound::new(
            &outbound,
            PacketBuf::from_packet(&udp_packet(false, 40)),
        )];
        engine.encapsulate(NOW, &mut batch);
        let [entry] = batch;
        let mut batch = [Inbound::new(entry.packet)];
        engine.decapsulate(NOW, &|_, _| Some(&inbound), &mut batch);
        match batch[0].verdict {
            Verdict::Opened(_) => {}
            Verdict::Drop(DropReason::Icv) => lost += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!((1..50).contains(&lost), "{lost} lost");
    assert!(inbound.sequence() > 3 << 32);

    // An engine that was told not to look never finds it.
    let inbound = make(Direction::Inbound, 1000);
    let mut engine = Engine::default().without_resynchronisation();
    for _ in 0..100 {
        let packet = PacketBuf::from_packet(&udp_packet(false, 40));
        let mut batch = [Outbound::new(&outbound, packet)];
        engine.encapsulate(NOW, &mut batch);
        let [entry] = batch;
        let mut batch = [Inbound::new(entry.packet)];
        engine.decapsulate(NOW, &|_, _| Some(&inbound), &mut batch);
        assert_eq!(batch[0].verdict, Verdict::Drop(DropReason::Icv));
    }
}
