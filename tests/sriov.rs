//! SR-IOV: a machine with a virtual function goes past the host both ways, and has its
//! associations, its quota and its guard all the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use vesper_esp::Buffer;
use vesper_offload::{
    DataPath, Fallback, Fault, Loss, NicEvent, NicSwitchParams, OffloadMode, Poster, Profile,
    QueueError, QueueId, Send, SendIpsec, SendRefusal, SriovError, VfId, VfState, VmSettings,
};
use vesper_sa::VmId;
use vesper_tests::Random;
use vesper_tests::bed::{Bed, Node, SaPlan, empty, frame, mac, sendable};

const VM: VmId = VmId(7);
const PACKET: [OffloadMode; 1] = [OffloadMode::Packet];

fn wishing() -> VmSettings {
    VmSettings {
        iov_weight: 100,
        ..VmSettings::default()
    }
}

fn with_functions() -> Bed {
    let mut bed = Bed::new(Profile::full(), Some(4));
    bed.add_pair(wishing(), &SaPlan::new(VM, &PACKET));
    for node in &mut bed.nodes {
        node.give_function(VM);
    }
    bed
}

/// The host moves nothing and encrypts nothing, the adapter does; quota and counters are the
/// machine's.
#[test]
fn a_function_bypasses_the_host_in_both_directions() {
    let mut bed = with_functions();
    for _ in 0..5 {
        assert_eq!(bed.exchange(0, VM, 40), 40);
        assert_eq!(bed.exchange(1, VM, 40), 40);
    }
    for node in &bed.nodes {
        let host = node.host.machine_counters(VM).unwrap();
        assert_eq!((host.sent, host.received, host.copies), (0, 0, 0));
        assert_eq!(node.host.esp_counters().sealed_packets, 0);
        let nic = node.host.nic();
        let counters = nic.vm_counters(VM).unwrap();
        assert_eq!(
            (counters.sent, counters.sealed, counters.opened),
            (200, 200, 200)
        );
        let usage = nic.vm_usage(VM).unwrap();
        assert_eq!((usage.ipsec_sas.used, usage.ipsec_sas.capacity), (2, 512));
    }
    assert_eq!((bed.monitor.esp, bed.monitor.clear), (400, 0));
}

/// The number of functions is fixed when the switch is made, and the refusal names the remedy.
#[test]
fn the_switch_is_made_once_and_first() {
    let params = NicSwitchParams {
        virtual_functions: 4,
        default_queue_pairs: 1,
    };
    let node = Node::new(0, Profile::full(), Some(2));
    let again = node.host.nic().create_nic_switch(params).unwrap_err();
    assert!(matches!(again, SriovError::AlreadyCreated(made) if made.virtual_functions == 2));
    assert!(again.to_string().contains("make a new adapter"));
    let mut node = Node::new(0, Profile::full(), None);
    node.add(VM, VmSettings::default());
    let late = node.host.nic().create_nic_switch(params).unwrap_err();
    assert_eq!(late, SriovError::InUse);
    let node = Node::new(0, Profile::without_sriov(), None);
    let none = node.host.nic().create_nic_switch(params).unwrap_err();
    assert_eq!(none, SriovError::NotSupported);
    // Without a switch a wish falls back, visibly; with one, queues come with its ports.
    let mut node = Node::new(0, Profile::full(), None);
    let admission = node.add(VM, wishing());
    assert_eq!(admission.fallbacks, [Fallback::NoNicSwitch]);
    let mut node = Node::new(0, Profile::full(), Some(2));
    let admission = node.add(VM, VmSettings::default());
    assert_eq!(admission.fallbacks, []);
    assert!(matches!(node.host.data_path(VM), Some(DataPath::Queue(_))));
    assert_eq!(
        node.host.nic().allocate_queue(VM, 0),
        Err(QueueError::SriovEnabled)
    );
}

/// Functions and queue pairs run out; a machine without a driver, or without the wish, stays
/// synthetic.
#[test]
fn functions_are_given_to_those_who_can_use_them() {
    let mut node = Node::new(0, Profile::full(), Some(1));
    node.add(VM, wishing());
    node.add(VmId(8), wishing());
    node.add(VmId(9), VmSettings::default());
    let nic = Arc::clone(node.host.nic());
    assert_eq!(nic.allocate_vf(VM), Err(SriovError::NoGuestDriver(VM)));
    for vm in [VM, VmId(8), VmId(9)] {
        nic.declare_guest_driver(vm, true).unwrap();
    }
    assert_eq!(
        nic.allocate_vf(VmId(9)),
        Err(SriovError::NotWanted(VmId(9)))
    );
    let vf = nic.allocate_vf(VM).unwrap();
    assert_eq!(nic.allocate_vf(VM), Err(SriovError::HasFunction(vf)));
    assert_eq!(nic.allocate_vf(VmId(8)), Err(SriovError::NoFunctionLeft));
    // Before it is active it carries nothing.
    let mut sends = vec![Send::new(1, sendable(&frame(0, VM, 10)))];
    let posted = nic.send_from_function(vf, &mut sends);
    assert_eq!(posted.stopped, Some(SendRefusal::NoSender));
    assert_eq!(sends.len(), 1);
}

/// A machine can speak neither for another one nor on another VLAN, nor say that its packets
/// need no protection.
#[test]
fn a_function_is_guarded() {
    let mut bed = with_functions();
    let Some(DataPath::Function { vf, .. }) = bed.nodes[0].host.data_path(VM) else {
        panic!("no function");
    };
    let nic = Arc::clone(bed.nodes[0].host.nic());
    let honest = frame(0, VM, 50);
    let mut spoofed = honest.clone();
    spoofed[6..12].copy_from_slice(&mac(0, VmId(8)).0);
    let mut tagged = honest[..12].to_vec();
    tagged.extend([0x81, 0, 0, 9]);
    tagged.extend(&honest[12..]);
    let mut sends = vec![
        Send::new(1, sendable(&spoofed)),
        Send::new(2, sendable(&tagged)),
        Send {
            ipsec: SendIpsec::Done,
            ..Send::new(3, sendable(&honest))
        },
        Send::new(4, sendable(&honest)),
    ];
    assert_eq!(nic.send_from_function(vf, &mut sends).accepted, 4);
    bed.settle();
    let counters = nic.vm_counters(VM).unwrap();
    for loss in [Loss::Spoofed, Loss::Vlan, Loss::Policy] {
        assert_eq!(counters.send_losses.of(loss), 1, "{loss}");
    }
    assert_eq!((counters.posted, counters.sent), (4, 1));
    assert_eq!((bed.monitor.esp, bed.monitor.clear), (1, 0));
}

/// Attach and detach under traffic: the fallback receives first, no packet is lost, the queue
/// is freed when its last packet is back.
#[test]
fn a_function_comes_and_goes_without_loss() {
    let mut bed = Bed::new(Profile::full(), Some(2));
    bed.add_pair(wishing(), &SaPlan::new(VM, &PACKET));
    let (mut sent, mut got) = (0, 0);
    for round in 0..100 {
        for _ in 0..10 {
            assert!(bed.nodes[0].send(VM, sendable(&frame(0, VM, 100))));
            sent += 1;
        }
        let path = bed.nodes[1].host.data_path(VM).unwrap();
        match path {
            DataPath::Function { vf, queue } => {
                bed.nodes[0].run(bed.now);
                let nic = Arc::clone(bed.nodes[1].host.nic());
                let mut wire = Vec::new();
                bed.nodes[0].host.nic().take_transmitted(&mut wire, 5);
                nic.receive(wire);
                bed.nodes[1].host.detach_function(VM).unwrap();
                assert_eq!(
                    nic.activate_vf(vf),
                    Err(SriovError::UnknownFunction(vf)),
                    "round {round}"
                );
                bed.settle();
                let mut frames = Vec::new();
                bed.nodes[1].drain(queue, &mut frames);
                got += frames.len();
                assert_eq!(nic.queue_status(queue), None, "freed");
            }
            _ => {
                bed.settle();
                bed.nodes[1].give_function(VM);
            }
        }
        got += bed.nodes[1].received(VM).len();
    }
    bed.settle();
    got += bed.nodes[1].received(VM).len();
    assert_eq!(got, sent);
    assert_eq!((bed.monitor.clear, bed.monitor.repeated), (0, 0));
}

/// A function that vanishes takes down nothing but itself.
#[test]
fn a_function_may_vanish() {
    let mut bed = with_functions();
    assert_eq!(bed.exchange(0, VM, 10), 10);
    let Some(DataPath::Function { vf, .. }) = bed.nodes[0].host.data_path(VM) else {
        panic!("no function");
    };
    // Five frames are in the function's ring.
    for _ in 0..5 {
        assert!(bed.nodes[0].send(VM, sendable(&frame(0, VM, 100))));
    }
    let nic = Arc::clone(bed.nodes[0].host.nic());
    nic.inject(Fault::SurpriseRemoval(vf));
    bed.settle();
    let events = bed.nodes[0].host.take_events();
    assert!(events.contains(&NicEvent::FunctionLost(vf, VM)));
    assert_eq!(bed.nodes[0].host.data_path(VM), Some(DataPath::Synthetic));
    let losses = nic.vm_counters(VM).unwrap().send_losses;
    assert_eq!(losses.of(Loss::Gone), 5);
    bed.nodes[1].received(VM);
    bed.nodes[0]
        .host
        .post_buffers(VM, (0..64).map(|_| vesper_tests::bed::empty()))
        .unwrap();
    assert_eq!(bed.exchange(0, VM, 10), 10);
    assert_eq!(bed.exchange(1, VM, 10), 10);
    assert_eq!(bed.monitor.clear, 0);
}

/// What the adapter can not protect for a function goes to the host's software, not out in
/// clear.
#[test]
fn a_function_falls_back_to_the_hosts_software() {
    let mut bed = with_functions();
    bed.nodes[0].host.nic().inject(Fault::Reset);
    bed.nodes[1].host.nic().inject(Fault::Reset);
    for node in &mut bed.nodes {
        // Software delivers by copy, through the synthetic half of the machine's adapter.
        let buffers = (0..128).map(|_| vesper_tests::bed::empty());
        node.host.post_buffers(VM, buffers).unwrap();
    }
    assert_eq!(bed.exchange(0, VM, 30), 30);
    assert_eq!(bed.nodes[0].host.esp_counters().sealed_packets, 30);
    assert_eq!(bed.nodes[1].host.esp_counters().opened_packets, 30);
    for node in &mut bed.nodes {
        assert_eq!(node.host.restore(), 2);
    }
    assert_eq!(bed.exchange(1, VM, 30), 30);
    assert_eq!(bed.nodes[1].host.esp_counters().sealed_packets, 0);
    assert_eq!((bed.monitor.clear, bed.monitor.repeated), (0, 0));
}

/// What the host sends for a machine is completed to the host, and what the machine sends through
/// its function to the machine, at the same time and with the same identifiers.
#[test]
fn a_send_is_completed_to_whoever_posted_it() {
    let mut bed = with_functions();
    for node in &bed.nodes {
        node.host.nic().inject(Fault::Reset);
    }
    let buffers = (0..128).map(|_| empty());
    bed.nodes[1].host.post_buffers(VM, buffers).unwrap();
    // The host protects what the function has sent, and posts it for the same machine.
    for _ in 0..3 {
        assert_eq!(bed.exchange(0, VM, 30), 30);
    }
    let host = &bed.nodes[0].host;
    let outstanding = host.outstanding(VM).unwrap();
    let counters = outstanding.counters();
    assert_eq!((counters.completed, counters.unexpected), (90, 0));
    assert_eq!((counters.timed_out, outstanding.len()), (0, 0));
    let mut failed = Vec::new();
    let take = |poster, failed: &mut _| host.nic().take_failures(VM, poster, bed.now, failed);
    assert_eq!(take(Poster::Guest, &mut failed), 90);
    assert_eq!(take(Poster::Host, &mut failed), 0);
    assert!(failed.is_empty());
}

/// Two functions of one adapter reach each other in the NIC switch, not over the wire.
#[test]
fn functions_reach_each_other_in_the_switch() {
    let mut bed = Bed::new(Profile::full(), Some(2));
    let other = VmId(8);
    let node = &mut bed.nodes[0];
    for vm in [VM, other] {
        node.add(vm, wishing());
        node.give_function(vm);
    }
    let mut local = frame(0, VM, 60);
    local[..6].copy_from_slice(&mac(0, other).0);
    assert!(node.send(VM, sendable(&local)));
    let mut broadcast = local.clone();
    broadcast[..6].fill(0xff);
    assert!(node.send(VM, sendable(&broadcast)));
    bed.settle();
    let received = bed.nodes[0].received(other);
    assert_eq!(received.len(), 2);
    assert_eq!(received[0].data(), local);
    assert_eq!(received[1].data(), broadcast);
    assert_eq!(bed.monitor.other, 1, "the broadcast");
    assert!(bed.nodes[0].received(VM).is_empty(), "not its own");
}

/// A rate limit holds for a function too.
#[test]
fn the_rate_of_a_function_is_limited() {
    let mut bed = Bed::new(Profile::full(), Some(2));
    let node = &mut bed.nodes[0];
    node.add(
        VM,
        VmSettings {
            rate_limit: 80_000_000,
            ..wishing()
        },
    );
    node.give_function(VM);
    let big = frame(0, VM, 1400);
    let mut bytes = 0;
    // A tenth of a second: a million bytes, and a burst.
    for _ in 0..1000 {
        for _ in 0..8 {
            bed.nodes[0].send(VM, sendable(&big));
        }
        bed.now = vesper_sa::Timestamp::from_nanos(bed.now.as_nanos() + 100_000);
        bed.nodes[0].run_adapter(bed.now);
        let mut wire = Vec::new();
        bed.nodes[0]
            .host
            .nic()
            .take_transmitted(&mut wire, usize::MAX);
        bytes += wire.iter().map(|frame| frame.data().len()).sum::<usize>();
    }
    assert!((1_000_000..1_100_000).contains(&bytes), "{bytes}");
}

/// Random commands: functions are where a model says, and only its order is possible.
#[test]
fn functions_follow_the_model() {
    let mut random = Random::new(11);
    let mut node = Node::new(0, Profile::full(), Some(3));
    let nic = Arc::clone(node.host.nic());
    for vm in 1..=4 {
        node.add(VmId(vm), wishing());
        nic.declare_guest_driver(VmId(vm), true).unwrap();
    }
    let mut model: [Option<VfState>; 3] = [None; 3];
    let steps = if std::env::var_os("VESPER_LONG").is_some() {
        500_000
    } else {
        20_000
    };
    let mut cycles = 0;
    for _ in 0..steps {
        let at = random.below(3);
        let (vf, state) = (VfId(at as u16), model[at]);
        use VfState::*;
        let (answer, possible) = match random.below(8) {
            0 => {
                if let Ok(VfId(at)) = nic.allocate_vf(VmId(1 + random.below(4) as u32)) {
                    assert_eq!(model[usize::from(at)].replace(Allocated), None);
                }
                continue;
            }
            1 => (
                // A machine whose last queue is on its way out gets no second one.
                match nic.create_vf_vport(vf) {
                    Err(SriovError::Queue(QueueError::HasQueue(_))) => continue,
                    answer => answer.map(drop),
                },
                (state == Some(Allocated)).then_some(Some(PortCreated)),
            ),
            2 => (
                nic.activate_vf(vf),
                matches!(state, Some(PortCreated | Released)).then_some(Some(Active)),
            ),
            3 => (
                nic.release_vf(vf),
                (state == Some(Active)).then_some(Some(Released)),
            ),
            4 => (
                nic.delete_vf_vport(vf),
                matches!(state, Some(PortCreated | Released)).then_some(Some(PortDeleted)),
            ),
            5 => (
                nic.reset_vf(vf),
                matches!(state, Some(PortDeleted | Allocated | Reset)).then_some(Some(Reset)),
            ),
            6 => {
                cycles += usize::from(state == Some(Reset));
                (nic.free_vf(vf), (state == Some(Reset)).then_some(None))
            }
            _ => {
                node.run_adapter(vesper_sa::Timestamp::ZERO);
                continue;
            }
        };
        assert_eq!(answer.is_ok(), possible.is_some(), "{state:?}: {answer:?}");
        if let Some(next) = possible {
            model[at] = next;
        }
        let switch = nic.nic_switch().unwrap();
        let found: Vec<_> = switch
            .virtual_functions
            .iter()
            .map(|(vf, _, state)| (usize::from(vf.0), *state))
            .collect();
        let expected: Vec<_> = (0..3).filter_map(|at| Some((at, model[at]?))).collect();
        assert_eq!(found, expected);
    }
    assert!(cycles > 100, "{cycles}");
}

/// The queue pairs of a function share its flows: each flow, and each association, stays in
/// one queue and in order; the processors share the queues; all of them go with the function.
#[test]
fn queue_pairs_share_the_flows_of_a_function() {
    const PAIRS: u16 = 4;
    let settings = VmSettings {
        iov_queue_pairs: PAIRS,
        ..wishing()
    };
    for protected in [false, true] {
        let mut bed = Bed::new(Profile::full(), Some(4));
        for node in &mut bed.nodes {
            node.add(VM, settings);
            if protected {
                node.protect(VM);
            }
            node.give_function(VM);
        }
        let nic = Arc::clone(bed.nodes[1].host.nic());
        let Some(DataPath::Function { queue, .. }) = bed.nodes[1].host.data_path(VM) else {
            panic!("no function");
        };
        let queues = nic.queues_of_port(queue);
        assert_eq!(queues.len(), usize::from(PAIRS));
        for queue in &queues[1..] {
            nic.post_buffers(*queue, (0..256).map(|_| empty())).unwrap();
        }
        // Of each flow: its queue, and the number that comes next.
        let mut flows = BTreeMap::new();
        let mut counts = [0; PAIRS as usize];
        for round in 0..160_u16 {
            let flow = round % 16;
            if protected && round < 16 {
                // The association that was added last is the one in use.
                for node in &mut bed.nodes {
                    node.add_sas(&SaPlan {
                        generation: u32::from(flow),
                        ..SaPlan::new(VM, &PACKET)
                    });
                }
            }
            let flow = if protected { round.min(15) } else { flow };
            for number in 0..4_u16 {
                let mut text = frame(0, VM, 60);
                text[34..36].copy_from_slice(&flow.to_be_bytes());
                text[60..62].copy_from_slice(&(round * 4 + number).to_be_bytes());
                assert!(bed.nodes[0].send(VM, sendable(&text)));
            }
            bed.step();
            bed.step();
            for (place, queue) in queues.iter().enumerate() {
                let mut frames = Vec::new();
                bed.nodes[1].drain(*queue, &mut frames);
                nic.post_buffers(*queue, frames.iter().map(|_| empty()))
                    .unwrap();
                counts[place] += frames.len();
                for packet in frames {
                    let word = |at| u16::from_be_bytes([packet.data()[at], packet.data()[at + 1]]);
                    let before = flows.insert(word(34), (place, word(60)));
                    if let Some((before_place, before_number)) = before {
                        assert_eq!(before_place, place, "a flow stays where it is");
                        assert!(before_number < word(60), "in order");
                    }
                }
            }
        }
        assert_eq!(counts.iter().sum::<usize>(), 640, "{counts:?}");
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        let work = [0, 1].map(|processor| nic.work(processor).contains_key(&VM));
        assert_eq!(work, [true; 2], "both processors");
        assert_eq!(bed.monitor.clear > 0, !protected);

        bed.nodes[1].host.detach_function(VM).unwrap();
        bed.settle();
        assert_eq!(nic.queues(), [QueueId::DEFAULT]);
        let events = bed.nodes[1].host.take_events();
        let freed = events
            .iter()
            .filter(|event| matches!(event, NicEvent::QueueFreed(_)));
        assert_eq!(freed.count(), usize::from(PAIRS));
        assert_eq!(bed.exchange(0, VM, 10), 10, "on the synthetic path");
    }
}
