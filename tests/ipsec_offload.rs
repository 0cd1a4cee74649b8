//! IPsec task offload: what the adapter takes, for whom, and what it does with packets.

use std::net::IpAddr;
use std::sync::Arc;

use etherparse::PacketBuilder;
use vesper_esp::aead::Cipher;
use vesper_esp::{Buffer, Engine, Outbound, PacketBuf, Suite, Verdict, association};
use vesper_offload::{
    Capabilities, CryptoStatus, IpsecDriver, Loss, NicEvent, OffloadHandle, OffloadMode,
    OffloadWish, Placement, PortId, Profile, QueueId, Received, ReceivedIpsec, SaOffload, Send,
    SendError, SendIpsec, SoftwareReason, UpdateSaError, VmSettings, WhyNot,
};
use vesper_sa::{
    Action, Direction, Lifetime, Mode, Policy, Protection, SaParams, SaUpdate, Scope, Selector,
    Spd, Timestamp, UdpEncapsulation, VmId,
};
use vesper_tests::bed::{Bed, Node, SaPlan, empty, frame, gateway, ip, sendable, spi, tunnel};

const VM: VmId = VmId(7);
const BOTH: [OffloadMode; 2] = [OffloadMode::Packet, OffloadMode::Crypto];

fn offload(node: &Node, vm: VmId, mode: OffloadMode) -> SaOffload {
    let port = node.host.nic().vm_usage(vm).map(|usage| usage.port);
    SaOffload {
        mode,
        port: port.unwrap_or(PortId::HOST),
        vlan: None,
        rewrite: None,
        inner_checksum: false,
    }
}

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

/// The quota of a machine, 512 unless set, 0 is off; the capacity of the adapter; every reason
/// is told, and what does not fit works in software.
#[test]
fn quota_and_capacity_are_kept_and_told() {
    let mut bed = Bed::new(Profile::full(), None);
    let node = &mut bed.nodes[0];
    let nic = Arc::clone(node.host.nic());
    node.add(VM, VmSettings::default());
    assert_eq!(nic.vm_usage(VM).unwrap().ipsec_sas.capacity, 512);
    let wanted = offload(node, VM, OffloadMode::Packet);
    let sa = |generation| {
        let mut plan = SaPlan::new(VM, &[]);
        plan.generation = generation;
        plan.make(0, Direction::Outbound)
    };
    for generation in 0..512 {
        nic.add_sa(sa(generation), wanted).unwrap();
    }
    let refused = nic.add_sa(sa(512), wanted).unwrap_err();
    assert_eq!(refused.reasons, [WhyNot::Quota { limit: 512 }]);
    assert_eq!(nic.vm_usage(VM).unwrap().ipsec_sas.used, 512);
    assert_eq!(nic.usage().ipsec_sas.used, 512);

    nic.set_ipsec_offload_limit(VM, 0).unwrap();
    let off = nic.add_sa(sa(512), wanted).unwrap_err();
    assert_eq!(off.reasons, [WhyNot::OffloadDisabled]);
    nic.set_ipsec_offload_limit(VM, 1000).unwrap();
    nic.inject(vesper_offload::Fault::Capacity(500));
    let (events, _) = nic.take_events();
    let lost = events.iter().filter(|event| {
        matches!(event, NicEvent::SaLost { why, .. } if *why == WhyNot::Capacity { capacity: 500 })
    });
    assert_eq!(lost.count(), 12);
    let full = nic.add_sa(sa(512), wanted).unwrap_err();
    assert_eq!(full.reasons, [WhyNot::Capacity { capacity: 500 }]);
    assert_eq!(full.to_string(), "the adapter has its 500 SAs already");
}

/// A machine with the limit 1 has its second association in software, and traffic flows.
#[test]
fn beyond_the_limit_software_takes_over() {
    let mut bed = Bed::new(Profile::full(), None);
    let settings = VmSettings {
        ipsec_offload_limit: 1,
        ..VmSettings::default()
    };
    let handles = bed.add_pair(settings, &SaPlan::new(VM, &BOTH));
    let [outbound, inbound] = handles[0];
    let host = &bed.nodes[0].host;
    assert!(matches!(
        host.placement(VM, outbound),
        Some(Placement::Offloaded { .. })
    ));
    assert_eq!(
        host.in_software(VM),
        [(
            inbound,
            SoftwareReason::Refused(vec![WhyNot::Quota { limit: 1 }])
        )]
    );
    assert_eq!(bed.exchange(0, VM, 50), 50);
    assert_eq!(bed.exchange(1, VM, 50), 50);
    assert_eq!(bed.nodes[0].host.esp_counters().opened_packets, 50);
    assert_eq!(bed.monitor.clear, 0);
}

/// A list is taken in part: each entry by itself.
#[test]
fn a_list_succeeds_in_part() {
    let mut bed = Bed::new(Profile::mlx5(), None);
    let node = &mut bed.nodes[0];
    node.add(VM, VmSettings::default());
    let nic = Arc::clone(node.host.nic());
    let wanted = offload(node, VM, OffloadMode::Packet);
    let good = SaPlan::new(VM, &[]).make(0, Direction::Outbound);
    let elsewhere = SaOffload {
        port: PortId(99),
        ..wanted
    };
    let twin = SaPlan::new(VM, &[]).make(0, Direction::Outbound);
    let answers = nic.add_sas([
        (Arc::clone(&good), wanted),
        (good, elsewhere),
        (twin, wanted),
    ]);
    assert!(answers[0].is_ok());
    assert_eq!(answers[1].as_ref().unwrap_err().reasons, [WhyNot::Port]);
    assert_eq!(answers[2].as_ref().unwrap_err().reasons, [WhyNot::SpiInUse]);
    // Nothing of this adapter can do ChaCha20-Poly1305.
    let suite = Suite::by_name("chacha20poly1305").unwrap();
    let params = SaPlan::new(VM, &[]).make(1, Direction::Inbound);
    let why = nic.why_not(params.params(), suite, &wanted);
    assert_eq!(why, [WhyNot::Encryption(suite.encryption)]);
}

/// A foreign handle, a stale one and one that never was: the send fails, the frame comes back,
/// and nothing leaves.
#[test]
fn a_foreign_or_stale_handle_never_sends() {
    let mut bed = Bed::new(Profile::full(), None);
    let other = VmId(8);
    let node = &mut bed.nodes[0];
    node.add(VM, VmSettings::default());
    node.add(other, VmSettings::default());
    let nic = Arc::clone(node.host.nic());
    let wanted = offload(node, VM, OffloadMode::Packet);
    let sa = SaPlan::new(VM, &[]).make(0, Direction::Outbound);
    let handle = nic.add_sa(Arc::clone(&sa), wanted).unwrap();
    let text = frame(0, other, 100);
    let attempt = |sender: VmId, handle: OffloadHandle| {
        let mut sends = vec![Send {
            ipsec: SendIpsec::Handle(handle),
            ..Send::new(5, sendable(&text))
        }];
        assert_eq!(nic.send_from_host(sender, &mut sends).accepted, 1);
        nic.run_processor(0, Timestamp::ZERO, 100);
        nic.run_processor(1, Timestamp::ZERO, 100);
        let mut completions = Vec::new();
        nic.take_completions(sender, Timestamp::ZERO, &mut completions);
        let mut wire = Vec::new();
        nic.take_transmitted(&mut wire, 10);
        assert_eq!(completions.len(), 1);
        let completion = completions.pop().unwrap();
        (completion.result, completion.buffer, wire.len())
    };
    let foreign = Err(SendError::Lost(Loss::ForeignHandle));
    for wrong in [
        handle,
        OffloadHandle::from_bits(77),
        OffloadHandle::from_bits(u64::MAX),
    ] {
        let (result, buffer, wire) = attempt(other, wrong);
        assert_eq!((result, wire), (foreign, 0));
        assert_eq!(buffer.unwrap().data(), text);
    }
    let (result, _, wire) = attempt(VM, handle);
    assert_eq!((result, wire), (Ok(()), 1));
    nic.delete_sa(VM, handle).unwrap();
    let (result, _, wire) = attempt(VM, handle);
    assert_eq!((result, wire), (foreign, 0));
    // The next association in the same place has another handle.
    let again = nic.add_sa(sa, wanted).unwrap();
    assert_ne!(again, handle);
    assert_eq!(attempt(VM, handle).0, foreign);
    assert_eq!(
        nic.delete_sa(other, again),
        Err(UpdateSaError::Unknown(again))
    );
    assert_eq!(nic.vm_counters(other).unwrap().sent, 0);
}

/// Deletion has two phases: what was posted before finishes, then the adapter lets go.
#[test]
fn packets_in_flight_finish_before_an_association_is_let_go() {
    let mut bed = Bed::new(Profile::full(), None);
    let node = &mut bed.nodes[0];
    node.add(VM, VmSettings::default());
    let nic = Arc::clone(node.host.nic());
    let sa = SaPlan::new(VM, &[]).make(0, Direction::Outbound);
    let handle = nic
        .add_sa(sa, offload(node, VM, OffloadMode::Packet))
        .unwrap();
    let mut sends: Vec<_> = (0..10)
        .map(|id| Send {
            ipsec: SendIpsec::Handle(handle),
            ..Send::new(id, sendable(&frame(0, VM, 100)))
        })
        .collect();
    nic.send_from_host(VM, &mut sends);
    nic.delete_sa(VM, handle).unwrap();
    assert_eq!(nic.reap_sas(), []);
    assert_eq!(nic.draining_sas(), 1);
    node.run_adapter(bed.now);
    let reaped = nic.reap_sas();
    assert_eq!(reaped.len(), 1);
    assert_eq!((reaped[0].0, nic.draining_sas()), (handle, 0));
    assert_eq!(nic.vm_counters(VM).unwrap().sealed, 10);
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
    let offload = offload(&node, VM, OffloadMode::Crypto);
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
        nic.add_sa(sa, offload(node, VM, mode)).unwrap()
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
        nic.add_sa(inbound, offload(&node, VM, OffloadMode::Packet))
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

/// What is enabled can shrink; associations that do not fit go to software with the reason.
#[test]
fn disabled_capabilities_send_associations_to_software() {
    let mut bed = Bed::new(Profile::full(), None);
    let handles = bed.add_pair(VmSettings::default(), &SaPlan::new(VM, &BOTH));
    let nic = Arc::clone(bed.nodes[0].host.nic());
    let crypto_only = Capabilities {
        packet_mode: false,
        ..nic.supported().clone()
    };
    nic.set_enabled(&crypto_only);
    assert!(!nic.enabled().packet_mode && nic.supported().packet_mode);
    assert_eq!(bed.exchange(0, VM, 10), 10);
    let lost = SoftwareReason::Lost(WhyNot::OffloadMode(OffloadMode::Packet));
    let expected = handles[0].map(|handle| (handle, lost.clone()));
    assert_eq!(bed.nodes[0].host.in_software(VM), expected);
    let events = bed.nodes[0].host.take_events();
    let told = events
        .iter()
        .filter(|event| **event == NicEvent::CapabilitiesChanged);
    assert_eq!(told.count(), 1, "the change is told");
    // Crypto mode is left.
    assert_eq!(bed.nodes[0].host.restore(), 2);
    assert_eq!(bed.exchange(0, VM, 10), 10);
    assert_eq!(bed.exchange(1, VM, 10), 10);
    assert_eq!((bed.monitor.clear, bed.monitor.repeated), (0, 0));
    nic.set_enabled(&Capabilities::none());
    assert_eq!(bed.exchange(1, VM, 10), 10);
    assert_eq!(nic.usage().ipsec_sas.used, 0);
}

/// The VLAN of an association is kept: its packets on another VLAN do not get near the machine.
#[test]
fn an_association_has_one_vlan() {
    let mut bed = Bed::new(Profile::full(), None);
    bed.monitor.kept = Some(Vec::new());
    bed.add_pair(VmSettings::default(), &SaPlan::new(VM, &BOTH));
    assert_eq!(bed.exchange(0, VM, 1), 1);
    assert_eq!(bed.exchange(0, VM, 1), 1);
    let mut tagged = bed.monitor.kept.take().unwrap().pop().unwrap();
    let header: [u8; 12] = tagged.data()[..12].try_into().unwrap();
    assert_eq!(header[..6], gateway(1).0);
    assert!(tagged.grow_front(4));
    tagged.data_mut()[..12].copy_from_slice(&header);
    tagged.data_mut()[12..16].copy_from_slice(&[0x81, 0, 0, 9]);
    let nic = Arc::clone(bed.nodes[1].host.nic());
    nic.receive([tagged]);
    bed.settle();
    let losses = nic.vm_counters(VM).unwrap().receive_losses;
    assert_eq!(losses.of(Loss::Vlan), 1);
    assert!(bed.nodes[1].received(VM).is_empty());
}

/// The same verbs through the trait that a real driver would implement.
#[test]
fn a_driver_is_driven_through_the_trait() {
    fn drive(driver: &dyn IpsecDriver, wanted: SaOffload, now: Timestamp) -> OffloadHandle {
        let sa = SaPlan::new(VM, &[]).make(0, Direction::Outbound);
        let suite = sa.context().cipher().suite();
        assert_eq!(driver.why_not(sa.params(), suite, &wanted), []);
        let handle = driver.add_sa(Arc::clone(&sa), wanted).unwrap();
        assert_eq!(
            driver.why_not(sa.params(), suite, &wanted),
            [WhyNot::Quota { limit: 1 }]
        );
        assert!(driver.offload_ok(VM, handle, &frame(0, VM, 9)[14..]));
        assert!(!driver.offload_ok(VmId(9), handle, &frame(0, VM, 9)[14..]));
        assert_eq!(driver.sa_statistics(VM, handle), Some(sa.statistics()));
        assert!(driver.update_sa(VM, handle, 1, now).is_err());
        driver.delete_sa(VM, handle).unwrap();
        assert_eq!(driver.reap_sas(), [(handle, sa.identity())]);
        driver.set_policies(VM, None);
        handle
    }
    let mut node = Node::new(0, Profile::full(), None);
    let settings = VmSettings {
        ipsec_offload_limit: 1,
        ..VmSettings::default()
    };
    node.add(VM, settings);
    let wanted = offload(&node, VM, OffloadMode::Packet);
    let nic = Arc::clone(node.host.nic());
    let handle = drive(&*nic, wanted, Timestamp::ZERO);
    assert_eq!(nic.sa_statistics(VM, handle), None);
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

/// An association that has reached its hard limit is asked back by the adapter, and only then.
#[test]
fn the_adapter_asks_for_the_place_of_an_ended_association() {
    let mut bed = Bed::new(Profile::ndis(), None);
    let handles = bed.add_pair(VmSettings::default(), &SaPlan::new(VM, &BOTH));
    let inbound = handles[1][1];
    let mut lifetime = Lifetime::default();
    lifetime.hard.packets = Some(5);
    let update = SaUpdate {
        lifetime: Some(lifetime),
        ..SaUpdate::default()
    };
    let host = &bed.nodes[1].host;
    host.sad().update(VM, inbound, &update).unwrap();
    assert_eq!(bed.exchange(0, VM, 3), 3);
    assert_eq!(bed.nodes[1].host.in_software(VM), []);
    assert_eq!(bed.exchange(0, VM, 5), 2);
    assert_eq!(bed.exchange(0, VM, 1), 0);
    assert_eq!(
        bed.nodes[1].host.in_software(VM),
        [(inbound, SoftwareReason::Ended)]
    );
    assert_eq!(bed.nodes[1].host.nic().usage().ipsec_sas.used, 1);
    assert_eq!(bed.nodes[1].host.restore(), 0, "it does not come back");
}
