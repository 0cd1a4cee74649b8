//! Faults on demand: whatever the adapter does wrong, no wrong plain text, no number twice, no
//! clear text, every packet accounted once, and back to normal afterwards.

use vesper_offload::{Fault, FaultPlan, Loss, OffloadMode, PerMillion, Profile, VmSettings};
use vesper_sa::{SaUpdate, Timestamp, VmId};
use vesper_tests::bed::{Bed, SaPlan, frame, sendable};

const VM: VmId = VmId(7);

/// One of a hundred.
const OFTEN: PerMillion = PerMillion(10_000);

fn packets() -> usize {
    match std::env::var_os("VESPER_LONG") {
        Some(_) => 1_000_000,
        None => 4_000,
    }
}

fn plans() -> Vec<(&'static str, FaultPlan)> {
    let base = FaultPlan {
        seed: 42,
        late_by: 3_000_000,
        ..FaultPlan::default()
    };
    let plan = |name, change: fn(&mut FaultPlan)| {
        let mut plan = base;
        change(&mut plan);
        (name, plan)
    };
    vec![
        plan("wrong icv", |plan| plan.wrong_icv = OFTEN),
        plan("corrupt output", |plan| plan.corrupt_output = OFTEN),
        plan("lost completion", |plan| plan.lost_completion = OFTEN),
        plan("late completion", |plan| plan.late_completion = OFTEN),
        plan("double completion", |plan| plan.double_completion = OFTEN),
        plan("reordered completion", |plan| {
            plan.reordered_completion = OFTEN
        }),
        plan("busy", |plan| plan.busy = PerMillion(200_000)),
        plan("queue full", |plan| plan.queue_full = PerMillion(200_000)),
        plan("late esn", |plan| plan.late_esn = PerMillion(500_000)),
        plan("corrupt input", |plan| plan.corrupt_input = OFTEN),
        plan("lost input", |plan| plan.lost_input = OFTEN),
        plan("reordered input", |plan| {
            plan.reordered_input = PerMillion(200_000)
        }),
    ]
}

#[test]
fn every_fault_in_every_mode_is_survived() {
    let modes: [&[OffloadMode]; 3] = [&[OffloadMode::Packet], &[OffloadMode::Crypto], &[]];
    for (name, plan) in plans() {
        for modes in modes {
            let mut bed = Bed::new(Profile::full(), None);
            let sas = SaPlan {
                esn: true,
                ..SaPlan::new(VM, modes)
            };
            bed.add_pair(VmSettings::default(), &sas);
            for node in &bed.nodes {
                node.host.nic().plan_faults(plan);
            }
            let text = frame(0, VM, 60);
            let (mut sent, mut got) = (0, 0);
            while sent < packets() {
                for _ in 0..20 {
                    sent += usize::from(bed.nodes[0].send(VM, sendable(&text)));
                }
                bed.step();
                for packet in bed.nodes[1].received(VM) {
                    assert_eq!(
                        vesper_esp::Buffer::data(&packet)[14..],
                        text[14..],
                        "{name}"
                    );
                    got += 1;
                }
            }
            for _ in 0..40 {
                bed.settle();
            }
            got += bed.nodes[1].received(VM).len();

            let nic = bed.nodes[0].host.nic();
            let counters = nic.fault_counters();
            let received = bed.nodes[1].host.nic().fault_counters();
            let spoiled = counters.wrong_icv + counters.corrupt_output;
            let spoiled = spoiled + received.corrupt_input + received.lost_input;
            assert_eq!(got as u64 + spoiled, sent as u64, "{name} {modes:?}");
            assert_eq!((bed.monitor.clear, bed.monitor.repeated), (0, 0), "{name}");
            let vm = nic.vm_counters(VM).unwrap();
            assert_eq!(vm.posted, vm.sent, "{name}: nothing refused");

            // Completions: each send once, whatever the adapter said.
            let later = Timestamp::from_nanos(bed.now.as_nanos() + 2_000_000_000);
            bed.nodes[0].host.run(later, 1000);
            let outstanding = bed.nodes[0].host.outstanding(VM).unwrap();
            let seen = outstanding.counters();
            assert!(outstanding.is_empty(), "{name}");
            assert_eq!(seen.completed + seen.timed_out, sent as u64, "{name}");
            assert_eq!(seen.timed_out, counters.lost_completions, "{name}");
            assert_eq!(seen.unexpected, counters.double_completions, "{name}");

            // A fault that could strike here did.
            let struck = [
                counters.lost_completions,
                counters.late_completions,
                counters.double_completions,
                counters.reordered_completions,
                counters.busy,
                counters.queue_full,
                spoiled,
                received.reordered_input,
            ];
            let can_strike = match name {
                "late esn" => false,
                "wrong icv" | "corrupt output" => !modes.is_empty(),
                _ => true,
            };
            assert_eq!(
                struck.iter().sum::<u64>() > 0,
                can_strike,
                "{name} {modes:?}"
            );

            bed.nodes[0].host.nic().plan_faults(FaultPlan::default());
            bed.now = later;
            assert_eq!(bed.exchange(0, VM, 50), 50, "{name}: back to normal");
        }
    }
}

/// A processor that stands still delays its machines and loses nothing.
#[test]
fn a_stalled_processor_goes_on() {
    let mut bed = Bed::new(Profile::full(), None);
    let plan = SaPlan::new(VM, &[OffloadMode::Packet]);
    bed.add_pair(VmSettings::default(), &plan);
    let until = Timestamp::from_nanos(bed.now.as_nanos() + 5_000_000);
    for processor in 0..2 {
        let nic = bed.nodes[0].host.nic();
        nic.inject(Fault::Stall { processor, until });
    }
    assert_eq!(bed.exchange(0, VM, 30), 0);
    bed.now = until;
    bed.settle();
    assert_eq!(bed.nodes[1].received(VM).len(), 30);
}

/// An adapter that is behind with the high half of the sequence number refuses genuine packets
/// near the wrap rather than accept an old one; the push sets it right.
#[test]
fn a_late_push_never_lets_an_old_packet_in() {
    let mut bed = Bed::new(Profile::full(), None);
    let plan = SaPlan {
        esn: true,
        sequence: (1 << 33) + 5,
        ..SaPlan::new(VM, &[OffloadMode::Crypto])
    };
    let handles = bed.add_pair(VmSettings::default(), &plan);
    bed.monitor.kept = Some(Vec::new());
    assert_eq!(bed.exchange(0, VM, 10), 10);
    let old = bed.monitor.kept.take().unwrap();
    // The peer's numbers go on by a subspace; the receiver's adapter does not hear of it.
    let nic = bed.nodes[1].host.nic();
    let Some(vesper_offload::Placement::Offloaded { handle, .. }) =
        bed.nodes[1].host.placement(VM, handles[1][1]).cloned()
    else {
        panic!("not offloaded");
    };
    nic.plan_faults(FaultPlan {
        late_esn: PerMillion(1_000_000),
        late_by: 1_000_000_000,
        ..FaultPlan::default()
    });
    nic.update_sa(VM, handle, (1 << 33) + (1 << 32) + 20, bed.now)
        .unwrap();
    assert_eq!(nic.fault_counters().late_esn, 1);
    nic.receive(old.iter().cloned());
    bed.settle();
    assert!(bed.nodes[1].received(VM).is_empty(), "replays");
    assert_eq!(bed.exchange(0, VM, 10), 10, "still in the old subspace");
    bed.now = Timestamp::from_nanos(bed.now.as_nanos() + 2_000_000_000);
    bed.settle();
    // The push is in force, though the numbers are not there: nothing authenticates.
    assert_eq!(bed.exchange(0, VM, 10), 0);
    let failures = bed.nodes[1].host.machine_counters(VM).unwrap();
    assert_eq!(failures.crypto_failures, 10);
    bed.nodes[1].host.nic().plan_faults(FaultPlan::default());
    bed.nodes[1]
        .host
        .nic()
        .update_sa(VM, handle, (1 << 33) + 30, bed.now)
        .unwrap();
    assert_eq!(bed.exchange(0, VM, 10), 10);
}

/// Packets of the subspace before, which were lost on their way, and an adapter that was not
/// told of the next one: it authenticates them, and the host, whose window would take their
/// numbers for fresh ones, drops them all the same.
#[test]
fn an_old_packet_that_the_adapter_authenticates_is_no_fresh_one() {
    let mut bed = Bed::new(Profile::full(), None);
    let plan = SaPlan {
        esn: true,
        sequence: (2 << 32) + 499,
        ..SaPlan::new(VM, &[OffloadMode::Crypto])
    };
    let handles = bed.add_pair(VmSettings::default(), &plan);
    for _ in 0..10 {
        assert!(bed.nodes[0].send(VM, sendable(&frame(0, VM, 60))));
    }
    bed.nodes[0].run(bed.now);
    let mut lost = Vec::new();
    let sender = bed.nodes[0].host.nic();
    sender.take_transmitted(&mut lost, usize::MAX);
    assert_eq!(lost.len(), 10);

    let receiver = &bed.nodes[1].host;
    receiver.nic().plan_faults(FaultPlan {
        late_esn: PerMillion(1_000_000),
        late_by: u64::MAX,
        ..FaultPlan::default()
    });
    let next_subspace = SaUpdate {
        sequence_high: Some(3),
        ..SaUpdate::default()
    };
    let inbound = handles[1][1];
    let updated = receiver.sad().update(VM, inbound, &next_subspace);
    updated.unwrap();
    receiver.nic().receive(lost);
    bed.settle();
    assert!(bed.nodes[1].received(VM).is_empty());
    let pushed = bed.nodes[1].host.nic().fault_counters().late_esn;
    assert_eq!(pushed, 1, "the host has told the adapter, which is late");
    let counters = bed.nodes[1].host.machine_counters(VM).unwrap();
    assert_eq!(
        counters.crypto_failures, 0,
        "the adapter found them authentic"
    );
    assert_eq!(counters.losses.of(Loss::Esp), 10);
}

/// Packets that fail in crypto mode came in buffers of the machine: it gets them back, however
/// many there are.
#[test]
fn bad_packets_take_no_buffers_away() {
    let mut bed = Bed::new(Profile::full(), None);
    let plan = SaPlan::new(VM, &[OffloadMode::Crypto]);
    bed.add_pair(VmSettings::default(), &plan);
    bed.nodes[0].host.nic().plan_faults(FaultPlan {
        wrong_icv: PerMillion(1_000_000),
        ..FaultPlan::default()
    });
    for _ in 0..50 {
        assert_eq!(bed.exchange(0, VM, 20), 0);
    }
    bed.nodes[0].host.nic().plan_faults(FaultPlan::default());
    assert_eq!(bed.exchange(0, VM, 20), 20);
    let receiver = bed.nodes[1].host.nic().vm_counters(VM).unwrap();
    assert_eq!(receiver.receive_losses.total(), 0);
    let machine = bed.nodes[1].host.machine_counters(VM).unwrap();
    assert_eq!(machine.crypto_failures, 1000);
}
