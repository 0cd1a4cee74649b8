//! Virtual machine queues: whose memory a frame reaches, by which processor, without a copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use vesper_esp::{Buffer, PacketBuf};
use vesper_offload::{
    Fallback, InterruptModeration, Loss, MachineError, Nic, NicEvent, PortVlan, Profile,
    QueueError, QueueEvent, QueueId, QueueState, ReceiveFilter, Send, SendIpsec, VmAddress,
    VmSettings,
};
use vesper_sa::{Timestamp, VmId};
use vesper_tests::Random;
use vesper_tests::bed::{Bed, Node, empty, frame, mac, sendable, vlan};

const VM: VmId = VmId(7);
const NOW: Timestamp = Timestamp::from_secs(1);

fn tagged(frame: &[u8], id: u16) -> PacketBuf {
    let mut bytes = frame[..12].to_vec();
    bytes.extend([0x81, 0]);
    bytes.extend(id.to_be_bytes());
    bytes.extend(&frame[12..]);
    sendable(&bytes)
}

fn status(nic: &Nic<PacketBuf>, queue: QueueId) -> vesper_offload::QueueStatus {
    nic.queue_status(queue).expect("exists")
}

/// With a queue the very memory of the frame is handed over; without one the host copies.
#[test]
fn a_queue_saves_the_copy() {
    for (weight, copies) in [(100, 0), (0, 20)] {
        let mut bed = Bed::new(Profile::full(), None);
        let settings = VmSettings {
            vmq_weight: weight,
            ..VmSettings::default()
        };
        for node in &mut bed.nodes {
            node.add(VM, settings);
        }
        assert_eq!(bed.exchange(0, VM, 20), 20);
        let counters = bed.nodes[1].host.machine_counters(VM).unwrap();
        assert_eq!((counters.received, counters.copies), (20, copies));

        let sent = sendable(&frame(0, VM, 100));
        let address = sent.data().as_ptr();
        bed.nodes[1].host.nic().receive([sent]);
        bed.settle();
        let received = bed.nodes[1].received(VM);
        let same = received[0].data().as_ptr() == address;
        assert_eq!(same, weight > 0);
    }
}

/// A tag with a priority alone has no VLAN: what the host posts for a machine leaves on its own.
#[test]
fn a_priority_tag_is_no_vlan() {
    let plain = frame(0, VM, 60);
    for (id, expected) in [(None, sendable(&plain)), (Some(7), tagged(&plain, 7))] {
        let mut node = Node::new(0, Profile::full(), None);
        let address = VmAddress {
            mac: mac(0, VM),
            vlan: id.and_then(vlan),
        };
        let added = node.host.add_machine(VM, address, VmSettings::default());
        added.unwrap();
        let mut sends = vec![Send {
            ipsec: SendIpsec::Done,
            ..Send::new(1, tagged(&plain, 5 << 13))
        }];
        let nic = node.host.nic();
        assert_eq!(nic.send_from_host(VM, &mut sends).accepted, 1);
        node.run_adapter(NOW);
        let mut wire = Vec::new();
        nic.take_transmitted(&mut wire, usize::MAX);
        let wire: Vec<_> = wire.iter().map(|frame| frame.data()).collect();
        assert_eq!(wire, [expected.data()]);
    }
}

/// The posted buffer goes back to the wire for the one that was handed over: none is lost, and
/// without a posted buffer there is no frame.
#[test]
fn posted_buffers_are_exchanged() {
    let node = &mut Node::new(1, Profile::full(), None);
    let nic = Arc::clone(node.host.nic());
    nic.add_vm(VM, node.address(VM), VmSettings::default())
        .unwrap();
    let queue = running_queue(&nic, VM, None);
    nic.post_buffers(queue, [empty(), empty()]).unwrap();
    nic.receive((0..3).map(|_| sendable(&frame(0, VM, 100))));
    node.run_adapter(NOW);
    let status = status(&nic, queue);
    assert_eq!((status.ready, status.posted), (2, 0));
    let losses = nic.vm_counters(VM).unwrap().receive_losses;
    assert_eq!(losses.of(Loss::NoBuffer), 1);
    let mut recycled = Vec::new();
    nic.take_recycled(&mut recycled);
    assert_eq!(recycled.len(), 3, "two exchanged, one dropped");
}

fn running_queue(nic: &Nic<PacketBuf>, vm: VmId, id: Option<u16>) -> QueueId {
    let queue = nic.allocate_queue(vm, 0).unwrap();
    let filter = ReceiveFilter {
        mac: mac(1, vm),
        vlan: id.and_then(vlan),
    };
    nic.set_filter(queue, filter).unwrap();
    let states = nic.complete_allocation(&[queue]);
    assert_eq!(states, [Ok(QueueState::Running)]);
    queue
}

/// The VLAN is decided before the frame reaches memory that a machine sees: the same address
/// on another VLAN is somebody else.
#[test]
fn vlans_are_kept_apart_before_memory() {
    let node = Node::new(1, Profile::full(), None);
    let nic = node.host.nic();
    let address = |id| VmAddress {
        mac: mac(1, VM),
        vlan: vlan(id),
    };
    nic.add_vm(VM, address(5), VmSettings::default()).unwrap();
    let other = VmId(8);
    nic.add_vm(other, address(6), VmSettings::default())
        .unwrap();
    let five = running_queue(nic, VM, Some(5));
    let six = nic.allocate_queue(other, 0).unwrap();
    let filter = ReceiveFilter {
        mac: mac(1, VM),
        vlan: vlan(6),
    };
    nic.set_filter(six, filter).unwrap();
    nic.complete_allocation(&[six]);
    for queue in [five, six] {
        nic.post_buffers(queue, [empty(), empty()]).unwrap();
    }
    let frame = frame(0, VM, 50);
    nic.receive([
        tagged(&frame, 5),
        tagged(&frame, 6),
        tagged(&frame, 7),
        sendable(&frame),
        tagged(&frame, 4095),
    ]);
    node.run_adapter(NOW);
    assert_eq!(status(nic, five).ready, 1);
    assert_eq!(status(nic, six).ready, 1);
    assert_eq!(status(nic, QueueId::DEFAULT).ready, 2);
    assert_eq!(nic.receive_losses().of(Loss::Malformed), 1);
}

/// Stop DMA, indicate it, wait for every packet, free: in this order, and the buffers come
/// back.
#[test]
fn a_queue_is_freed_in_its_order() {
    let node = Node::new(1, Profile::full(), None);
    let nic = node.host.nic();
    nic.add_vm(VM, node.address(VM), VmSettings::default())
        .unwrap();
    let queue = running_queue(nic, VM, None);
    nic.post_buffers(queue, (0..4).map(|_| empty())).unwrap();
    nic.receive([sendable(&frame(0, VM, 100)), sendable(&frame(0, VM, 100))]);
    node.run_adapter(NOW);
    let mut packets = Vec::new();
    nic.take_indication(queue, &mut packets, 1);
    nic.receive([sendable(&frame(0, VM, 100))]);

    let filters = nic.filters(queue);
    assert!(matches!(
        nic.free_queue(queue),
        Err(QueueError::State(wrong)) if wrong.event == QueueEvent::Free
    ));
    nic.clear_filter(filters[0].0).unwrap();
    assert_eq!(status(nic, queue).state, QueueState::Paused);
    nic.free_queue(queue).unwrap();
    assert_eq!(status(nic, queue).state, QueueState::StopDma);
    node.run_adapter(NOW);
    assert_eq!(nic.take_events().0, [NicEvent::DmaStopped(queue)]);
    let freeing = status(nic, queue);
    assert_eq!(freeing.state, QueueState::Freeing);
    assert_eq!(
        (freeing.ready, freeing.outstanding, freeing.posted),
        (2, 1, 0)
    );
    // Nothing comes any more.
    nic.receive([sendable(&frame(0, VM, 100))]);
    node.run_adapter(NOW);
    assert_eq!(status(nic, queue).ready, 2);
    nic.take_indication(queue, &mut packets, 10);
    let wrong = nic.return_packets(queue, 4).unwrap_err();
    assert!(matches!(
        wrong,
        QueueError::NotOutstanding { outstanding: 3, .. }
    ));
    nic.return_packets(queue, 2).unwrap();
    assert_eq!(nic.take_events().0, []);
    nic.return_packets(queue, 1).unwrap();
    assert_eq!(nic.take_events().0, [NicEvent::QueueFreed(queue)]);
    assert_eq!(nic.queue_status(queue), None);
    assert_eq!(nic.vm_usage(VM).unwrap().queue, None);
    let mut recycled = Vec::new();
    nic.take_recycled(&mut recycled);
    assert_eq!(recycled.len(), 4, "as many as were posted");
}

/// A filter moves in one step: under traffic every frame arrives in one queue or the other.
#[test]
fn a_filter_moves_without_a_gap() {
    let node = Node::new(1, Profile::full(), None);
    let nic = node.host.nic();
    nic.add_vm(VM, node.address(VM), VmSettings::default())
        .unwrap();
    let queue = running_queue(nic, VM, None);
    let filter = nic.filters(queue)[0].0;
    let (mut here, mut there) = (0, 0);
    let mut packets = Vec::new();
    for round in 0..2000 {
        nic.post_buffers(queue, (0..3).map(|_| empty())).unwrap();
        nic.receive((0..3).map(|_| sendable(&frame(0, VM, 20))));
        let to = if round % 2 == 0 {
            QueueId::DEFAULT
        } else {
            queue
        };
        nic.move_filter(filter, to).unwrap();
        node.run_adapter(NOW);
        for (id, count) in [(queue, &mut here), (QueueId::DEFAULT, &mut there)] {
            nic.take_indication(id, &mut packets, 100);
            *count += packets.len();
            if id == queue && !packets.is_empty() {
                nic.return_packets(queue, packets.len() as u32).unwrap();
            }
            packets.clear();
        }
    }
    assert_eq!(here + there, 6000);
    assert_eq!((here, there), (3000, 3000));
}

/// Interrupts are coalesced by number and by time; a batch is of one queue.
#[test]
fn interrupts_are_coalesced() {
    let node = Node::new(1, Profile::full(), None);
    let nic = node.host.nic();
    nic.add_vm(VM, node.address(VM), VmSettings::default())
        .unwrap();
    let queue = running_queue(nic, VM, None);
    let moderation = InterruptModeration {
        packets: 16,
        delay: 1_000_000,
    };
    nic.set_interrupts(queue, moderation).unwrap();
    nic.post_buffers(queue, (0..64).map(|_| empty())).unwrap();
    let receive = |count: usize, now| {
        nic.receive((0..count).map(|_| sendable(&frame(0, VM, 20))));
        node.run_adapter(now);
    };
    receive(15, NOW);
    assert_eq!(nic.interrupts(NOW), []);
    receive(1, NOW);
    assert_eq!(nic.interrupts(NOW), [queue]);
    let mut packets = Vec::new();
    nic.take_indication(queue, &mut packets, 100);
    assert_eq!(packets.len(), 16);
    assert!(packets.iter().all(|packet| packet.queue == queue));
    receive(1, NOW);
    let later = Timestamp::from_nanos(NOW.as_nanos() + 999_999);
    assert_eq!(nic.interrupts(later), []);
    let later = Timestamp::from_nanos(NOW.as_nanos() + 1_000_000);
    assert_eq!(nic.interrupts(later), [queue]);
    assert_eq!(status(nic, queue).counters.interrupts, 1);
}

/// What can not be has a name: look-ahead split, a queue for weight 0, one too many.
#[test]
fn impossible_queues_are_refused_by_name() {
    let mut profile = Profile::full();
    profile.queues = 1;
    let mut node = Node::new(1, profile, None);
    let nic = Arc::clone(node.host.nic());
    nic.add_vm(VM, node.address(VM), VmSettings::default())
        .unwrap();
    assert_eq!(
        nic.allocate_queue(VM, 128),
        Err(QueueError::Lookahead { asked: 128 })
    );
    let queue = nic.allocate_queue(VM, 0).unwrap();
    assert_eq!(nic.allocate_queue(VM, 0), Err(QueueError::HasQueue(queue)));
    let unwanted = VmSettings {
        vmq_weight: 0,
        ..VmSettings::default()
    };
    nic.add_vm(VmId(8), node.address(VmId(8)), unwanted)
        .unwrap();
    assert_eq!(
        nic.allocate_queue(VmId(8), 0),
        Err(QueueError::NotWanted(VmId(8)))
    );
    assert_eq!(nic.free_queue(QueueId::DEFAULT), Err(QueueError::Default));
    let admission = node.add(VmId(9), VmSettings::default());
    assert_eq!(admission.fallbacks, [Fallback::NoReceiveQueue]);
}

/// Random commands: the adapter's queues are where a model written from the NDIS table says.
#[test]
fn queues_follow_the_model() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Model {
        Allocated,
        Set,
        Running,
        Paused,
    }
    let mut random = Random::new(3);
    let node = Node::new(1, Profile::full(), None);
    let nic = node.host.nic();
    let mut model: BTreeMap<QueueId, (Model, u16)> = BTreeMap::new();
    for vm in 1..=8 {
        let vm = VmId(vm);
        nic.add_vm(vm, node.address(vm), VmSettings::default())
            .unwrap();
    }
    let steps = if std::env::var_os("VESPER_LONG").is_some() {
        1_000_000
    } else {
        20_000
    };
    let mut freed = 0;
    for _ in 0..steps {
        let queues: Vec<_> = model.keys().copied().collect();
        let queue = queues.get(random.below(8)).copied();
        match (random.below(6), queue) {
            (0, _) => {
                let vm = VmId(1 + random.below(8) as u32);
                if let Ok(queue) = nic.allocate_queue(vm, 0) {
                    assert_eq!(model.insert(queue, (Model::Allocated, 0)), None);
                }
            }
            (1, Some(queue)) => {
                // An address of its own for every filter.
                let filter = ReceiveFilter {
                    mac: vesper_offload::MacAddress([
                        2,
                        9,
                        0,
                        0,
                        queue.0 as u8,
                        random.below(3) as u8,
                    ]),
                    vlan: None,
                };
                let (state, count) = model.get_mut(&queue).unwrap();
                if nic.set_filter(queue, filter).is_ok() {
                    *count += 1;
                    *state = match *state {
                        Model::Allocated | Model::Set => Model::Set,
                        Model::Running | Model::Paused => Model::Running,
                    };
                } else {
                    assert!(*count > 0, "only a filter that exists is refused");
                }
            }
            (2, Some(queue)) => {
                let (state, count) = model.get_mut(&queue).unwrap();
                let filters = nic.filters(queue);
                assert_eq!(filters.len(), usize::from(*count));
                if let Some((id, _)) = filters.first() {
                    nic.clear_filter(*id).unwrap();
                    *count -= 1;
                    if *count == 0 {
                        *state = match *state {
                            Model::Set => Model::Allocated,
                            Model::Running => Model::Paused,
                            other => panic!("{other:?} had a filter"),
                        };
                    }
                }
            }
            (3, Some(queue)) => {
                let state = &mut model.get_mut(&queue).unwrap().0;
                let answer = nic.complete_allocation(&[queue]).pop().unwrap();
                *state = match *state {
                    Model::Allocated => Model::Paused,
                    Model::Set => Model::Running,
                    other => {
                        assert!(answer.is_err(), "{other:?}");
                        other
                    }
                };
            }
            (4, Some(queue)) => {
                let (state, _) = model[&queue];
                let may = matches!(state, Model::Allocated | Model::Paused);
                assert_eq!(nic.free_queue(queue).is_ok(), may, "{state:?}");
                if may {
                    node.run_adapter(NOW);
                    freed += 1;
                    model.remove(&queue);
                    let (events, _) = nic.take_events();
                    assert_eq!(
                        events,
                        [NicEvent::DmaStopped(queue), NicEvent::QueueFreed(queue)]
                    );
                }
            }
            _ => {}
        }
        for (queue, (state, _)) in &model {
            let found = format!("{:?}", status(nic, *queue).state);
            assert_eq!(found, format!("{state:?}"));
        }
        assert_eq!(nic.queues().len(), model.len() + 1);
    }
    assert!(freed > steps / 100);
}

/// Dynamic VMQ: idle machines share a processor, busy ones are spread by their load.
#[test]
fn load_is_spread_over_processors() {
    let mut bed = Bed::new(Profile::full(), None);
    let vms: Vec<VmId> = (1..=4).map(VmId).collect();
    for node in &mut bed.nodes {
        for vm in &vms {
            node.add(*vm, VmSettings::default());
        }
    }
    let nic = Arc::clone(bed.nodes[1].host.nic());
    nic.spread(1_000_000);
    assert!(
        vms.iter()
            .all(|vm| nic.vm_usage(*vm).unwrap().processor == 0)
    );
    for _ in 0..20 {
        for vm in &vms {
            assert_eq!(bed.exchange(0, *vm, 30), 30);
        }
    }
    assert_eq!(nic.spread(1000).len(), 2);
    let on_second = vms
        .iter()
        .filter(|vm| nic.vm_usage(**vm).unwrap().processor == 1);
    assert_eq!(on_second.count(), 2);
    assert_eq!(bed.exchange(0, VmId(1), 30), 30);
    assert_eq!(bed.exchange(0, VmId(4), 30), 30);
}

/// The processors of an adapter run on threads of their own, machines come and go meanwhile,
/// and nothing is lost or counted twice.
#[test]
fn processors_run_on_threads_of_their_own() {
    let mut profile = Profile::full();
    profile.ring = 1 << 16;
    let node = Node::new(1, profile, None);
    let nic = node.host.nic();
    let vms: Vec<VmId> = (1..=4).map(VmId).collect();
    let queues: Vec<QueueId> = vms
        .iter()
        .map(|vm| {
            nic.add_vm(*vm, node.address(*vm), VmSettings::default())
                .unwrap();
            let queue = running_queue(nic, *vm, None);
            nic.post_buffers(queue, (0..5000).map(|_| empty())).unwrap();
            queue
        })
        .collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut counts = vec![0; vms.len()];
    std::thread::scope(|scope| {
        for processor in 0..nic.processors() {
            let done = &done;
            scope.spawn(move || {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    nic.run_processor(processor, NOW, 256);
                }
                while nic.run_processor(processor, NOW, 256) > 0 {}
            });
        }
        for round in 0..1000_u32 {
            for vm in &vms {
                nic.receive((0..5).map(|_| sendable(&frame(0, *vm, 20))));
            }
            let passing = VmId(100 + round % 10);
            if nic
                .add_vm(passing, node.address(passing), VmSettings::default())
                .is_ok()
            {
                nic.set_processor(VmId(1 + round % 4), round as usize)
                    .unwrap();
                nic.remove_vm(passing).unwrap();
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let mut packets = Vec::new();
    for ((vm, queue), count) in vms.iter().zip(&queues).zip(&mut counts) {
        nic.take_indication(*queue, &mut packets, usize::MAX);
        for packet in packets.drain(..) {
            assert_eq!(packet.owner, Some(*vm));
            *count += 1;
        }
    }
    assert_eq!(counts, [5000; 4]);
}

/// A machine with a trunk sees and sets the tags itself; a queue, whose filter is one VLAN,
/// can not serve it.
#[test]
fn a_trunk_carries_tags_through_the_software_switch() {
    let mut bed = Bed::new(Profile::full(), None);
    let trunk = || PortVlan::Trunk {
        allowed: [7, 8].into_iter().filter_map(vlan).collect(),
        native: None,
    };
    let plain = frame(0, VM, 60);
    for node in &mut bed.nodes {
        let synthetic = VmSettings {
            vmq_weight: 0,
            ..VmSettings::default()
        };
        node.add(VM, synthetic);
        node.host.set_port_vlan(VM, trunk()).unwrap();
    }
    for (bytes, arrives) in [
        (tagged(&plain, 7), true),
        (tagged(&plain, 8), true),
        (sendable(&plain), true),
        (tagged(&plain, 9), false),
    ] {
        assert!(bed.nodes[0].send(VM, bytes.clone()));
        bed.settle();
        let received = bed.nodes[1].received(VM);
        let received: Vec<_> = received.iter().map(|packet| packet.data()).collect();
        let expected: Vec<_> = arrives.then_some(bytes.data()).into_iter().collect();
        assert_eq!(received, expected);
    }
    let losses = bed.nodes[0].host.machine_counters(VM).unwrap().losses;
    assert_eq!(losses.of(Loss::Vlan), 1);

    let other = VmId(8);
    bed.nodes[0].add(other, VmSettings::default());
    let refused = bed.nodes[0].host.set_port_vlan(other, trunk());
    assert_eq!(refused, Err(MachineError::Trunk(other)));
}

/// Isolated machines do not reach each other through the software switch, be it by a flow that it
/// has seen; they reach the wire, and what comes from there reaches them.
#[test]
fn isolated_machines_reach_the_wire_alone() {
    let mut bed = Bed::new(Profile::full(), None);
    let other = VmId(8);
    for node in &mut bed.nodes {
        node.add(VM, VmSettings::default());
        node.add(other, VmSettings::default());
    }
    let mut local = frame(0, VM, 60);
    local[..6].copy_from_slice(&mac(0, other).0);
    let send = |bed: &mut Bed, isolated: bool| {
        for vm in [VM, other] {
            bed.nodes[0].host.set_isolated(vm, isolated).unwrap();
        }
        for _ in 0..3 {
            assert!(bed.nodes[0].send(VM, sendable(&local)));
        }
        bed.settle();
        bed.nodes[0].received(other).len()
    };
    assert_eq!(send(&mut bed, false), 3);
    assert_eq!(send(&mut bed, true), 0);
    assert_eq!(bed.exchange(0, VM, 5), 5);
    assert_eq!(bed.exchange(1, VM, 5), 5);
    assert_eq!(send(&mut bed, false), 3);
    let losses = bed.nodes[0].host.machine_counters(VM).unwrap().losses;
    assert_eq!(losses.of(Loss::NoDestination), 3);
}
