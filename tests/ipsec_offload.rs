//! IPsec task offload: what the adapter does with packets.

use std::net::IpAddr;
use std::sync::Arc;

use etherparse::PacketBuilder;
use vesper_esp::aead::Cipher;
use vesper_esp::{Buffer, Engine, Outbound, PacketBuf, Suite, Verdict, association};
use vesper_offload::{
    CryptoStatus, Loss, NicEvent, OffloadHandle, OffloadMode, OffloadWish, Placement, Profile,
    QueueId, Received, ReceivedIpsec, Send, UpdateSaError, VmSettings,
};
use vesper_sa::{
    Action, Direction, Mode, Policy, Protection, SaParams, SaUpdate, Scope, Selector, Spd,
    Timestamp, UdpEncapsulation, VmId,
};
use vesper_tests::bed::{Bed, Node, SaPlan, empty, frame, gateway, ip, sendable, spi, tunnel};

const VM: VmId = VmId(7);
const BOTH: [OffloadMode; 2] = [OffloadMode::Packet, OffloadMode::Crypto];

/// Both modes carry packets both ways, nothing is clear on the wire, and the host's engine has
/// sealed nothing.
#[test]
fn packets_are_protected_in_both_modes() {
    for mode in BOTH {
        for esn in [false, true] {
            let mut bed = Bed::new(Profile::full(), None);
            let mut plan = SaPlan::new(VM, &[mode]);
            plan.esn = esn;
            plan.sequence = if esn { u64::from(u32::MAX) - 50 } else { 0 };
            let handles = bed.add_pair(VmSettings::default(), &plan);
            for (node, handles) in bed.nodes.iter().zip(handles) {
                for handle in handles {
                    let placement = node.host.placement(VM, handle);
                    assert!(matches!(placement, Some(Placement::Offloaded { .. })));
                }
            }
            for _ in 0..10 {
                assert_eq!(bed.exchange(0, VM, 20), 20, "{mode} {esn}");
                assert_eq!(bed.exchange(1, VM, 20), 20, "{mode} {esn}");
            }
            assert_eq!((bed.monitor.esp, bed.monitor.clear), (400, 0));
            assert_eq!(bed.monitor.repeated, 0);
            for node in &bed.nodes {
                let sealed = node.host.nic().vm_counters(VM).unwrap().sealed;
                assert_eq!(sealed, 200);
                let counters = node.host.esp_counters();
                let (adapter, host) = (node.host.nic().esp_counters(), counters);
                match mode {
                    OffloadMode::Packet => {
                        assert_eq!((adapter.sealed_packets, adapter.opened_packets), (200, 200));
                        assert_eq!((host.sealed_packets, host.opened_packets), (0, 0));
                    }
                    OffloadMode::Crypto => {
                        assert_eq!((adapter.sealed_packets, adapter.opened_packets), (0, 0));
                        assert_eq!((host.sealed_packets, host.opened_packets), (200, 200));
                    }
                }
            }
        }
    }
}

/// Crypto mode indicates what failed, with the reason; not done is not passed.
#[test]
fn crypto_mode_indicates_failed_packets_with_their_status() {
    let mut bed = Bed::new(Profile::ndis(), None);
    bed.monitor.kept = Some(Vec::new());
    bed.add_pair(VmSettings::default(), &SaPlan::new(VM, &BOTH));
    assert_eq!(bed.exchange(0, VM, 3), 3);
    let wire = bed.monitor.kept.take().unwrap();

    // A fresh receiver that only has the adapter.
    let mut node = Node::new(1, Profile::ndis(), None);
    node.add(VM, VmSettings::default());
    let nic = Arc::clone(node.host.nic());
    let inbound = SaPlan::new(VM, &[]).make(0, Direction::Inbound);
    let offload = node.offload(VM, OffloadMode::Crypto);
    let handle = nic.add_sa(inbound, offload).unwrap();
    let queue = nic.vm_usage(VM).unwrap().queue.unwrap();
    let mut damaged = wire[1].clone();
    *damaged.data_mut().last_mut().unwrap() ^= 1;
    let mut short = wire[2].clone();
    short.trim_back(1);
    let ip_len = (short.data().len() - 14) as u16;
    short.data_mut()[16..18].copy_from_slice(&ip_len.to_be_bytes());
    // A header checksum of zero is taken for one that is still to be filled in.
    short.data_mut()[24..26].fill(0);
    let clear = sendable(&frame(0, VM, 50));
    nic.receive([wire[0].clone(), damaged, short, clear]);
    node.run_adapter(bed.now);
    let mut packets: Vec<Received<PacketBuf>> = Vec::new();
    nic.take_indication(queue, &mut packets, 10);
    let seen: Vec<_> = packets
        .iter()
        .map(|packet| (packet.crypto_done(), packet.crypto_status()))
        .collect();
    assert_eq!(
        seen,
        [
            (true, Some(CryptoStatus::Success)),
            (true, Some(CryptoStatus::TunnelEspAuthFailed)),
            (true, Some(CryptoStatus::InvalidPacketSyntax)),
            (false, None),
        ]
    );
    let ReceivedIpsec::Crypto(info) = packets[0].ipsec else {
        panic!("not crypto mode");
    };
    assert_eq!(
        (info.handle, info.sequence, info.esp_offset),
        (handle, 1, 20)
    );
    assert_eq!((info.next_header, info.pad_length), (4, 2));
    // What failed is wiped.
    let text = packets[1].frame.payload.data();
    assert!(text[36..text.len() - 16].iter().all(|byte| *byte == 0));
}

/// ESN in crypto mode: the adapter uses the number that was pushed last; a push for an
/// association without ESN, or in packet mode, is an error.
#[test]
fn sequence_numbers_are_pushed() {
    let mut bed = Bed::new(Profile::full(), None);
    let node = &mut bed.nodes[0];
    node.add(VM, VmSettings::default());
    let nic = Arc::clone(node.host.nic());
    let add = |esn, generation, mode| {
        let plan = SaPlan {
            esn,
            generation,
            ..SaPlan::new(VM, &[])
        };
        let sa = plan.make(1, Direction::Inbound);
        nic.add_sa(sa, node.offload(VM, mode)).unwrap()
    };
    let plain = add(false, 0, OffloadMode::Crypto);
    let packet = add(true, 1, OffloadMode::Packet);
    let crypto = add(true, 2, OffloadMode::Crypto);
    let push = |handle| nic.update_sa(VM, handle, 5 << 32, bed.now);
    assert_eq!(push(plain), Err(UpdateSaError::NotExtended));
    assert_eq!(push(packet), Err(UpdateSaError::PacketMode));
    assert_eq!(push(crypto), Ok(()));
    let unknown = OffloadHandle::from_bits(1 << 40);
    assert_eq!(push(unknown), Err(UpdateSaError::Unknown(unknown)));
    let shorter = SaUpdate {
        mtu: Some(1400),
        ..SaUpdate::default()
    };
    assert_eq!(nic.update_lifetime(VM, packet, &shorter), Ok(()));
}

/// The adapter knows whose an address is, so that a machine's own associations in transport
/// mode are at work there although no filter and no queue is the machine's.
#[test]
fn a_machine_without_a_queue_has_its_associations_in_the_adapter() {
    let mut bed = Bed::new(Profile::full(), None);
    let settings = VmSettings {
        vmq_weight: 0,
        ..VmSettings::default()
    };
    let addresses = [0, 1].map(|node| IpAddr::from(ip(node, VM)));
    for (here, node) in bed.nodes.iter_mut().enumerate() {
        node.add(VM, settings);
        let policy = |direction| Policy {
            direction,
            selector: Selector::default(),
            action: Action::Protect(Protection {
                reqid: VM.0,
                tunnel: None,
            }),
        };
        let policies = [Direction::Outbound, Direction::Inbound].map(policy);
        node.host
            .set_policies(VM, Some(Spd::new(policies.to_vec())));
        for (from, direction) in [(here, Direction::Outbound), (1 - here, Direction::Inbound)] {
            let spi = spi(from as u8, VM, 0);
            let ends = (addresses[from], addresses[1 - from]);
            let mut params = SaParams::new(spi, direction, Mode::Transport, ends.0, ends.1);
            params.owner = VM;
            params.scope = Scope::Vm;
            params.reqid = VM.0;
            let suite = Suite::by_name("aes256gcm16").unwrap();
            let cipher = Cipher::new(suite, &[from as u8; 36], &[]).unwrap();
            let sa = association(params, cipher, Timestamp::ZERO).unwrap();
            let wish = OffloadWish {
                modes: vec![OffloadMode::Packet],
                ..OffloadWish::default()
            };
            let handle = node.host.add_sa(Arc::new(sa), wish).unwrap();
            let placement = node.host.placement(VM, handle);
            assert!(matches!(placement, Some(Placement::Offloaded { .. })));
        }
    }
    assert_eq!(bed.exchange(0, VM, 20), 20);
    assert_eq!((bed.monitor.esp, bed.monitor.clear), (20, 0));
    let receiver = &bed.nodes[1].host;
    let opened = [
        receiver.nic().esp_counters().opened_packets,
        receiver.esp_counters().opened_packets,
    ];
    assert_eq!(opened, [20, 0], "in the adapter, not in software");
}

/// ESP in UDP and IKE share addresses and ports: every packet of a batch is told apart by its SPI,
/// or by the lack of one.
#[test]
fn what_shares_ports_with_esp_is_told_apart() {
    let sa = |generation, direction| {
        let spi = spi(0, VM, generation);
        let mut params = SaParams::new(spi, direction, Mode::Tunnel, tunnel(0), tunnel(1));
        params.owner = VM;
        params.encapsulation = Some(UdpEncapsulation {
            source_port: 4500,
            destination_port: 4500,
        });
        let suite = Suite::by_name("aes256gcm16").unwrap();
        let cipher = Cipher::new(suite, &[generation as u8; 36], &[]).unwrap();
        Arc::new(association(params, cipher, Timestamp::ZERO).unwrap())
    };
    let mut node = Node::new(1, Profile::full(), None);
    node.add(VM, VmSettings::default());
    let nic = Arc::clone(node.host.nic());
    for generation in [0, 1] {
        let inbound = sa(generation, Direction::Inbound);
        nic.add_sa(inbound, node.offload(VM, OffloadMode::Packet))
            .unwrap();
    }
    let on_link = PacketBuilder::ethernet2(gateway(0).0, gateway(1).0);
    let mut ike = Vec::new();
    on_link
        .ipv4([192, 0, 2, 0], [192, 0, 2, 1], 64)
        .udp(4500, 4500)
        .write(&mut ike, &[[0; 4], [7; 4], [8; 4]].concat())
        .unwrap();
    let ethernet = ike[..14].to_vec();
    let senders = [0, 1, 2].map(|generation| sa(generation, Direction::Outbound));
    let mut engine = Engine::default();
    let mut sealed = |generation: usize| {
        let packet = sendable(&frame(0, VM, 100)[14..]);
        let mut batch = [Outbound::new(&senders[generation], packet)];
        engine.encapsulate(Timestamp::ZERO, &mut batch);
        let [entry] = batch;
        assert!(matches!(entry.verdict, Verdict::Sealed { .. }));
        sendable(&[&ethernet, entry.packet.data()].concat())
    };
    let queue = nic.vm_usage(VM).unwrap().queue.unwrap();
    let receive = |frames: Vec<PacketBuf>| {
        nic.receive(frames);
        node.run_adapter(Timestamp::ZERO);
        let mut opened: Vec<Received<PacketBuf>> = Vec::new();
        nic.take_indication(queue, &mut opened, 10);
        nic.return_packets(queue, opened.len() as u32).unwrap();
        let done = |packet: &Received<_>| matches!(packet.ipsec, ReceivedIpsec::Opened { .. });
        assert!(opened.iter().all(done));
        let mut others: Vec<Received<PacketBuf>> = Vec::new();
        nic.take_indication(QueueId::DEFAULT, &mut others, 10);
        let untouched = |packet: &Received<_>| packet.ipsec == ReceivedIpsec::Untouched;
        assert!(others.iter().all(untouched));
        let others = others.iter().map(|packet| packet.frame.payload.data());
        (opened.len(), others.map(<[u8]>::to_vec).collect::<Vec<_>>())
    };
    let key_exchange = ike[14..].to_vec();
    let batch = vec![sealed(0), sealed(1), sendable(&ike), sealed(0)];
    assert_eq!(receive(batch), (3, vec![key_exchange.clone()]));
    // The first is of no association here.
    let unknown = sealed(2);
    let expected = vec![unknown.data()[14..].to_vec(), key_exchange];
    let batch = vec![unknown, sealed(1), sendable(&ike)];
    assert_eq!(receive(batch), (1, expected));
    let losses = nic.vm_counters(VM).unwrap().receive_losses;
    assert_eq!(losses.total(), 0);
}

/// A TCP packet of many segments leaves as so many ESP packets, each whole.
#[test]
fn a_large_send_is_cut_in_the_adapter() {
    let mut bed = Bed::new(Profile::full(), None);
    bed.add_pair(VmSettings::default(), &SaPlan::new(VM, &BOTH));
    let payload: Vec<u8> = (0..20_000_u32).map(|byte| (byte * 7) as u8).collect();
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 7], [2, 0, 0, 1, 0, 7])
        .ipv4([10, 0, 0, 7], [10, 1, 0, 7], 64)
        .tcp(1, 2, 1000, 500)
        .write(&mut packet, &payload)
        .unwrap();
    let nic = Arc::clone(bed.nodes[0].host.nic());
    let mut sends = vec![Send {
        segment_size: Some(1400),
        ..Send::new(1, sendable(&packet))
    }];
    nic.send_from_host(VM, &mut sends);
    bed.nodes[0].run_adapter(bed.now);
    let counters = nic.vm_counters(VM).unwrap();
    assert_eq!(counters.send_losses.of(Loss::LargeSend), 1, "no buffers");

    nic.post_segment_buffers((0..20).map(|_| empty()));
    let mut sends = vec![Send {
        segment_size: Some(1400),
        ..Send::new(2, sendable(&packet))
    }];
    nic.send_from_host(VM, &mut sends);
    bed.settle();
    assert_eq!((bed.monitor.esp, bed.monitor.clear), (15, 0));
    let mut stream = Vec::new();
    for segment in bed.nodes[1].received(VM) {
        stream.extend_from_slice(&segment.data()[54..]);
    }
    assert_eq!(stream, payload);
}

/// The checksum of the inner packet is computed before it is protected.
#[test]
fn inner_checksums_are_filled_in() {
    let mut bed = Bed::new(Profile::full(), None);
    bed.add_pair(VmSettings::default(), &SaPlan::new(VM, &BOTH));
    let right = frame(0, VM, 333);
    let mut wrong = right.clone();
    wrong[40..42].fill(0x77);
    let nic = Arc::clone(bed.nodes[0].host.nic());
    let mut sends = vec![Send {
        checksum: true,
        ..Send::new(1, sendable(&wrong))
    }];
    nic.send_from_host(VM, &mut sends);
    bed.settle();
    let received = bed.nodes[1].received(VM);
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].data()[14..], right[14..]);
}

/// Policy in the adapter: clear text to a protected machine is refused, and what has no
/// association is neither sent nor lost without a trace.
#[test]
fn policy_is_kept_by_the_adapter() {
    let mut bed = Bed::new(Profile::full(), None);
    for node in &mut bed.nodes {
        node.add(VM, VmSettings::default());
    }
    bed.nodes[1].protect(VM);
    // Node 0 has no policy: it sends clear text.
    assert_eq!(bed.exchange(0, VM, 5), 0);
    assert_eq!(bed.monitor.clear, 5);
    let nic = bed.nodes[1].host.nic();
    let losses = nic.vm_counters(VM).unwrap().receive_losses;
    assert_eq!(losses.of(Loss::Policy), 5);
    // Node 1 has a policy and no association: nothing leaves, and the key manager hears of it.
    assert_eq!(bed.exchange(1, VM, 5), 0);
    assert_eq!(bed.monitor.clear, 5);
    let events = bed.nodes[1].host.take_events();
    let acquires = events.iter().filter(|event| {
        matches!(
            event,
            NicEvent::Sa(vesper_sa::Event::Acquire {
                owner: VM,
                reqid: 7,
                ..
            })
        )
    });
    assert_eq!(acquires.count(), 1, "once for the packets of a flow");
    let lost = bed.nodes[1].host.machine_counters(VM).unwrap().losses;
    assert_eq!(lost.of(Loss::NoSa), 5);
}

/// Neighbours of one flow share what was decided for the first of them; where policy looks at ports,
/// neighbours with other ports do not.
#[test]
fn neighbours_with_other_ports_meet_other_policies() {
    let software = VmSettings {
        ipsec_offload_limit: 0,
        ..VmSettings::default()
    };
    let virtual_function = VmSettings {
        iov_weight: 100,
        ..VmSettings::default()
    };
    let plan = SaPlan::new(VM, &[OffloadMode::Packet]);
    for (settings, function) in [
        (VmSettings::default(), false),
        (virtual_function, true),
        (software, false),
    ] {
        let mut bed = Bed::new(Profile::full(), function.then_some(1));
        bed.add_pair(settings, &plan);
        if function {
            bed.nodes[0].give_function(VM);
        }
        let policy = |destination_port, action| Policy {
            direction: Direction::Outbound,
            selector: Selector {
                destination_port,
                ..Selector::default()
            },
            action,
        };
        let protect = Action::Protect(Protection {
            reqid: VM.0,
            tunnel: Some(tunnel(1)),
        });
        let policies = vec![
            policy(Some(53..=53), Action::Bypass),
            policy(Some(54..=54), Action::Discard),
            policy(None, protect),
        ];
        bed.nodes[0].host.set_policies(VM, Some(Spd::new(policies)));
        for port in [1000, 1001, 53, 1000, 54, 1001, 53, 53, 1002] {
            let mut frame = frame(0, VM, 100);
            frame[36..38].copy_from_slice(&u16::to_be_bytes(port));
            assert!(bed.nodes[0].send(VM, sendable(&frame)));
        }
        bed.settle();
        let seen = (bed.monitor.esp, bed.monitor.clear);
        assert_eq!(seen, (5, 3), "{settings:?} {function}");
    }
}

/// IPv4 options in transport mode, where the adapter stops at them: software protects those
/// packets, the adapter the others.
#[test]
fn options_beyond_the_adapter_are_left_to_software() {
    let mlx5 = Profile::mlx5().ipsec;
    let plain = &frame(0, VM, 20)[14..];
    let mut options = plain.to_vec();
    options[0] = 0x46;
    assert!(mlx5.carries(Mode::Transport, plain));
    assert!(!mlx5.carries(Mode::Transport, &options));
    assert!(mlx5.carries(Mode::Tunnel, &options));
    assert!(Profile::full().ipsec.carries(Mode::Transport, &options));
    let mut v6 = vec![0x60; 48];
    v6[6] = 60;
    assert!(!mlx5.carries(Mode::Transport, &v6));
    v6[6] = 17;
    assert!(mlx5.carries(Mode::Transport, &v6));
}
