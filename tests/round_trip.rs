//! What goes in comes out, byte for byte, whatever is mixed in a batch, and nothing around the
//! packet changes.

use std::collections::HashMap;

use proptest::prelude::*;
use vesper_esp::aead::Implementation;
use vesper_esp::{
    Buffer, Content, DropReason, Engine, EspSa, Inbound, Outbound, PacketBuf, Suite, Verdict,
    association,
};
use vesper_sa::{Direction, Mode, SaParams, Spi, Timestamp};
use vesper_tests::{Carrier, Random, cipher, params, sa, udp_packet};

const NOW: Timestamp = Timestamp::ZERO;

fn open(engine: &mut Engine, sa: &EspSa, packet: PacketBuf) -> (Verdict, PacketBuf) {
    let mut batch = [Inbound::new(packet)];
    engine.decapsulate(NOW, &|_, spi| (spi == sa.spi()).then_some(sa), &mut batch);
    let [entry] = batch;
    (entry.verdict, entry.packet)
}

fn seal(engine: &mut Engine, sa: &EspSa, packet: PacketBuf) -> PacketBuf {
    let mut batch = [Outbound::new(sa, packet)];
    engine.encapsulate(NOW, &mut batch);
    let [entry] = batch;
    assert!(
        matches!(entry.verdict, Verdict::Sealed { .. }),
        "{:?}",
        entry.verdict
    );
    entry.packet
}

/// Every suite, by every implementation at either end, both modes, every carrier, both inner
/// versions, with and without extended sequence numbers.
#[test]
fn every_suite_on_every_implementation_pair() {
    let mut engine = Engine::default();
    let mut pairs = 0;
    for suite in Suite::ALL {
        let able: Vec<Implementation> = Implementation::available()
            .filter(|implementation| implementation.supports(suite))
            .collect();
        for (sealer, opener) in able.iter().flat_map(|a| able.iter().map(move |b| (*a, *b))) {
            pairs += 1;
            for mode in [Mode::Tunnel, Mode::Transport] {
                for carrier in Carrier::ALL {
                    for (inner_v6, esn) in
                        [(false, false), (false, true), (true, false), (true, true)]
                    {
                        if mode == Mode::Transport && inner_v6 != carrier.v6 {
                            continue;
                        }
                        let make = |direction, implementation| {
                            let mut params = params(direction, mode, carrier);
                            params.esn = esn;
                            params.sequence = if esn { 5 << 32 } else { 5 };
                            let cipher = cipher(suite, 3, implementation);
                            association(params, cipher, NOW).unwrap()
                        };
                        let outbound = make(Direction::Outbound, sealer);
                        let inbound = make(Direction::Inbound, opener);
                        for payload in [0, 1, 2, 3, 13, 100, 1400] {
                            let packet = udp_packet(inner_v6, payload);
                            let sealed =
                                seal(&mut engine, &outbound, PacketBuf::from_packet(&packet));
                            assert!(
                                !sealed.data().windows(16).any(|window| payload == 1400
                                    && suite.key_len > 0
                                    && suite.encryption != vesper_esp::Encryption::AesGmac
                                    && window == &packet[packet.len() - 16..]),
                                "{suite}: clear text"
                            );
                            let (verdict, opened) = open(&mut engine, &inbound, sealed);
                            assert!(
                                matches!(verdict, Verdict::Opened(_)),
                                "{suite} {sealer:?}->{opener:?} {mode:?} {carrier:?} {verdict:?}"
                            );
                            assert_eq!(opened.data(), packet, "{suite} {mode:?} {carrier:?}");
                        }
                    }
                }
            }
        }
    }
    println!(
        "{pairs} pairs of implementations over {} suites",
        Suite::ALL.len()
    );
    assert!(pairs >= Suite::ALL.len());
}

/// A batch of 256 packets over 256 associations in random order gives the bytes and verdicts
/// of 256 single calls.
#[test]
fn a_batch_equals_single_calls() {
    let mut random = Random::new(7);
    for round in 0..20 {
        let make = |direction| -> Vec<EspSa> {
            (0..256usize)
                .map(|index| {
                    // CBC draws its IVs from a random key: not comparable.
                    let mut index_of_suite = (index * 7 + round) % Suite::ALL.len();
                    while Suite::ALL[index_of_suite].iv_len == 16 {
                        index_of_suite = (index_of_suite + 1) % Suite::ALL.len();
                    }
                    let mode = if index % 3 == 0 {
                        Mode::Transport
                    } else {
                        Mode::Tunnel
                    };
                    let base = params(direction, mode, Carrier::ALL[index % 4]);
                    let params = SaParams {
                        spi: Spi::new(0x1000 + index as u32).unwrap(),
                        ..base
                    };
                    sa(params, &Suite::ALL[index_of_suite], index as u8)
                })
                .collect()
        };
        let (together, alone) = (make(Direction::Outbound), make(Direction::Outbound));
        let choice: Vec<usize> = (0..256)
            .map(|_| random.below(if round % 2 == 0 { 256 } else { 3 }))
            .collect();
        let packets: Vec<PacketBuf> = choice
            .iter()
            .map(|index| PacketBuf::from_packet(&udp_packet(index % 4 >= 2, random.below(1500))))
            .collect();
        let mut engine = Engine::default();
        let mut batch: Vec<_> = choice
            .iter()
            .zip(&packets)
            .map(|(index, packet)| Outbound::new(&together[*index], packet.clone()))
            .collect();
        engine.encapsulate(NOW, &mut batch);
        let mut single = Engine::default();
        for ((index, packet), entry) in choice.iter().zip(&packets).zip(&batch) {
            let sealed = seal(&mut single, &alone[*index], packet.clone());
            assert_eq!(entry.packet.data(), sealed.data());
        }

        let (together, alone) = (make(Direction::Inbound), make(Direction::Inbound));
        let by_spi = |sas: &[EspSa]| -> HashMap<Spi, usize> {
            sas.iter()
                .enumerate()
                .map(|(index, sa)| (sa.spi(), index))
                .collect()
        };
        let places = by_spi(&together);
        // Some are replays, some are damaged, some are clear.
        let mut wire: Vec<PacketBuf> = Vec::new();
        for entry in batch {
            let mut packet = entry.packet;
            match random.below(8) {
                0 => wire.push(packet.clone()),
                1 => *packet.data_mut().last_mut().unwrap() ^= 1,
                _ => {}
            }
            wire.push(packet);
        }
        let mut batch: Vec<_> = wire.iter().cloned().map(Inbound::new).collect();
        engine.decapsulate(
            NOW,
            &|_, spi| places.get(&spi).map(|index| &together[*index]),
            &mut batch,
        );
        let mut kinds = [0; 3];
        for (entry, packet) in batch.iter().zip(wire) {
            let mut one = [Inbound::new(packet)];
            single.decapsulate(
                NOW,
                &|_, spi| places.get(&spi).map(|index| &alone[*index]),
                &mut one,
            );
            assert_eq!(entry.verdict, one[0].verdict);
            // A twin is found out before or after its decryption: only the verdict is the same.
            if matches!(entry.verdict, Verdict::Opened(_)) {
                assert_eq!(entry.packet.data(), one[0].packet.data());
            }
            kinds[match entry.verdict {
                Verdict::Opened(_) => 0,
                Verdict::Drop(DropReason::Icv) => 1,
                Verdict::Drop(DropReason::Replay) => 2,
                other => panic!("{other:?}"),
            }] += 1;
        }
        assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
        assert_eq!(engine.counters(), single.counters());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Packets with any room around them: sealed and opened, or refused cleanly; the memory
    /// outside of the packet's room never changes.
    #[test]
    fn room_is_respected(suite in 0..Suite::ALL.len(), payload in 0usize..300, headroom in 0usize..90, tailroom in 0usize..60, tunnel in any::<bool>(), carrier in 0usize..4, pad in prop::sample::select(vec![0u16, 64, 200])) {
        let suite = &Suite::ALL[suite];
        let mode = if tunnel { Mode::Tunnel } else { Mode::Transport };
        let carrier = Carrier::ALL[carrier];
        let make = |direction| {
            let mut params = params(direction, mode, carrier);
            params.tfc_pad = if tunnel { pad } else { 0 };
            sa(params, suite, 9)
        };
        let (outbound, inbound) = (make(Direction::Outbound), make(Direction::Inbound));
        let packet = udp_packet(carrier.v6, payload);
        let mut buffer = PacketBuf::with_room(&packet, headroom, tailroom);
        let mut engine = Engine::default();
        let mut batch = [Outbound::new(&outbound, &mut buffer)];
        engine.encapsulate(NOW, &mut batch);
        match batch[0].verdict {
            Verdict::Drop(reason) => {
                prop_assert_eq!(reason, DropReason::OutNoRoom);
                prop_assert_eq!(buffer.data(), &packet[..]);
                prop_assert!(headroom < 72 || tailroom < 2 + 32 + 15 || pad != 0);
                prop_assert_eq!(outbound.sequence(), 0, "no number was used");
            }
            _ => {
                let (verdict, opened) = open(&mut engine, &inbound, buffer);
                prop_assert!(matches!(verdict, Verdict::Opened(_)), "{:?}", verdict);
                prop_assert_eq!(opened.data(), &packet[..]);
            }
        }
    }
}

/// Dummies are sealed in both modes and discarded, counted, at the other end.
#[test]
fn dummies_are_sent_and_discarded() {
    for mode in [Mode::Tunnel, Mode::Transport] {
        for carrier in Carrier::ALL {
            let suite = Suite::by_name("aes256gcm16").unwrap();
            let outbound = sa(params(Direction::Outbound, mode, carrier), suite, 1);
            let inbound = sa(params(Direction::Inbound, mode, carrier), suite, 1);
            let mut engine = Engine::default();
            let mut batch = [Outbound::dummy(
                &outbound,
                PacketBuf::from_packet(&[0xab; 77]),
            )];
            assert_eq!(batch[0].content, Content::Dummy);
            engine.encapsulate(NOW, &mut batch);
            assert_eq!(batch[0].verdict, Verdict::Sealed { sequence: 1 });
            let [entry] = batch;
            let again = entry.packet.clone();
            let (verdict, wiped) = open(&mut engine, &inbound, entry.packet);
            assert_eq!(verdict, Verdict::Drop(DropReason::Dummy));
            assert!(!wiped.data().windows(8).any(|window| window == [0xab; 8]));
            assert_eq!(engine.counters().drops(DropReason::Dummy), 1);
            // It was authentic: its number is used up.
            let (verdict, _) = open(&mut engine, &inbound, again);
            assert_eq!(verdict, Verdict::Drop(DropReason::Replay));
        }
    }
}
