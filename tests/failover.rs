//! Associations move between adapter and software under traffic, with the state that they have.

use vesper_esp::{Buffer, PacketBuf};
use vesper_offload::{Fault, Host, OffloadMode, Placement, Profile, SoftwareReason, VmSettings};
use vesper_sa::{SaHandle, VmId};
use vesper_tests::Random;
use vesper_tests::bed::{Bed, SaPlan, frame, sendable};

const VM: VmId = VmId(7);

/// Back and forth, at random, in the middle of traffic both ways: nothing is lost, no number is
/// used twice, nothing is clear, and what was on the wire once is never accepted again.
#[test]
fn ten_thousand_moves_lose_nothing() {
    for mode in [OffloadMode::Packet, OffloadMode::Crypto] {
        for functions in [None, Some(2)] {
            let mut random = Random::new(5);
            let mut bed = Bed::new(Profile::full(), functions);
            let settings = VmSettings {
                iov_weight: if functions.is_some() { 100 } else { 0 },
                ..VmSettings::default()
            };
            let handles = bed.add_pair(settings, &SaPlan::new(VM, &[mode]));
            if functions.is_some() && mode == OffloadMode::Packet {
                for node in &mut bed.nodes {
                    node.give_function(VM);
                    let buffers = (0..256).map(|_| vesper_tests::bed::empty());
                    node.host.post_buffers(VM, buffers).unwrap();
                }
            }
            let mut sent = [0; 2];
            let mut got = [0; 2];
            let mut moves = 0;
            while moves < 2500 {
                for (from, sent) in sent.iter_mut().enumerate() {
                    let frame = frame(from as u8, VM, 60);
                    for _ in 0..random.below(4) {
                        assert!(bed.nodes[from].send(VM, sendable(&frame)));
                        *sent += 1;
                    }
                }
                if random.below(2) == 0 {
                    bed.step();
                } else {
                    let node = random.below(2);
                    bed.nodes[node].run(bed.now);
                }
                let (at, which) = (random.below(2), random.below(2));
                let (host, handle) = (&mut bed.nodes[at].host, handles[at][which]);
                match host.placement(VM, handle) {
                    Some(Placement::Offloaded { .. }) => host.withdraw(VM, handle),
                    _ => assert!(host.offload(VM, handle)),
                }
                moves += 1;
                for (at, got) in got.iter_mut().enumerate() {
                    *got += bed.nodes[at].received(VM).len();
                }
            }
            bed.settle();
            for (at, got) in got.iter_mut().enumerate() {
                *got += bed.nodes[at].received(VM).len();
            }
            assert_eq!([got[1], got[0]], sent, "{mode} {functions:?}");
            assert_eq!((bed.monitor.clear, bed.monitor.repeated), (0, 0));
            let both = [&bed.nodes[0], &bed.nodes[1]].map(|node| {
                let nic = node.host.nic().vm_counters(VM).unwrap();
                (
                    nic.sealed > 100,
                    node.host.esp_counters().sealed_packets > 100,
                )
            });
            assert_eq!(both, [(true, true); 2], "both have worked");
        }
    }
}

/// Packets that wait half done, made by the host and not yet encrypted, or decrypted and not yet
/// judged by the host, are finished when their association leaves crypto mode, and none is taken
/// for a replay.
#[test]
fn what_waits_in_crypto_mode_outlives_a_move() {
    let leave: [fn(&mut Host<PacketBuf>, SaHandle); 2] = [
        |host, sa| host.withdraw(VM, sa),
        |host, sa| host.set_modes(VM, sa, vec![OffloadMode::Packet]),
    ];
    for leave in leave {
        let mut profile = Profile::full();
        profile.ring = 16;
        let mut bed = Bed::new(profile, None);
        let mut plan = SaPlan::new(VM, &[OffloadMode::Crypto]);
        // The high half changes among the packets that wait.
        (plan.esn, plan.sequence) = (true, u64::from(u32::MAX) - 20);
        let handles = bed.add_pair(VmSettings::default(), &plan);
        let text = frame(0, VM, 60);
        for _ in 0..30 {
            assert!(bed.nodes[0].send(VM, sendable(&text)));
        }
        // The adapter takes what its ring has room for, the rest waits with its numbers.
        bed.nodes[0].host.run(bed.now, 1000);
        leave(&mut bed.nodes[0].host, handles[0][0]);
        let mut got = Vec::new();
        for round in 0..4 {
            bed.nodes[0].run_adapter(bed.now);
            let mut wire = Vec::new();
            let nic = bed.nodes[0].host.nic();
            nic.take_transmitted(&mut wire, usize::MAX);
            wire.iter().for_each(|frame| bed.monitor.look(frame.data()));
            bed.nodes[1].host.nic().receive(wire);
            // Decrypted, and indicated to nobody yet.
            bed.nodes[1].run_adapter(bed.now);
            if round == 0 {
                leave(&mut bed.nodes[1].host, handles[1][1]);
            }
            for node in &mut bed.nodes {
                node.host.run(bed.now, 1000);
            }
            got.extend(bed.nodes[1].received(VM));
        }
        assert_eq!(got.len(), 30);
        assert!(got.iter().all(|got| got.data()[14..] == text[14..]));
        assert_eq!((bed.monitor.esp, bed.monitor.clear), (30, 0));
        assert_eq!(bed.monitor.repeated, 0);
    }
}

/// What was accepted by the adapter is a replay for the software, and the other way round.
#[test]
fn a_replay_is_one_wherever_the_association_is() {
    let mut bed = Bed::new(Profile::full(), None);
    let handles = bed.add_pair(
        VmSettings::default(),
        &SaPlan::new(VM, &[OffloadMode::Packet]),
    );
    let inbound = handles[1][1];
    for round in 0..20 {
        bed.monitor.kept = Some(Vec::new());
        assert_eq!(bed.exchange(0, VM, 20), 20);
        let wire = bed.monitor.kept.take().unwrap();
        let host = &mut bed.nodes[1].host;
        match round % 2 {
            0 => host.withdraw(VM, inbound),
            _ => assert!(host.offload(VM, inbound)),
        }
        bed.nodes[1].host.nic().receive(wire);
        bed.settle();
        assert!(bed.nodes[1].received(VM).is_empty());
    }
}

/// A reset loses what the adapter had in its rings, counted, and nothing else; the reason is
/// told, and everything goes back when it can.
#[test]
fn a_reset_costs_what_was_in_flight() {
    let mut bed = Bed::new(Profile::full(), None);
    let handles = bed.add_pair(
        VmSettings::default(),
        &SaPlan::new(VM, &[OffloadMode::Packet]),
    );
    assert_eq!(bed.exchange(0, VM, 10), 10);
    for round in 0..50 {
        for _ in 0..10 {
            assert!(bed.nodes[0].send(VM, sendable(&frame(0, VM, 60))));
        }
        // The host has posted them, the adapter has not run.
        bed.nodes[0].host.run(bed.now, 1000);
        bed.nodes[0].host.nic().inject(Fault::Reset);
        bed.settle();
        assert!(bed.nodes[1].received(VM).is_empty(), "round {round}");
        let expected = handles[0].map(|handle| (handle, SoftwareReason::Reset));
        assert_eq!(bed.nodes[0].host.in_software(VM), expected);
        assert_eq!(bed.exchange(0, VM, 10), 10, "in software");
        assert_eq!(bed.nodes[0].host.restore(), 2);
        assert_eq!(bed.exchange(0, VM, 10), 10, "in the adapter");
    }
    let losses = bed.nodes[0].host.nic().vm_counters(VM).unwrap().send_losses;
    assert_eq!(losses.of(vesper_offload::Loss::Reset), 500);
    assert_eq!((bed.monitor.clear, bed.monitor.repeated), (0, 0));
}
