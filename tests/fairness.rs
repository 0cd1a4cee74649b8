//! Fairness between machines: nobody who floods can starve another.

use std::collections::BTreeMap;

use vesper_esp::Buffer;
use vesper_offload::{OffloadMode, Profile, VmSettings};
use vesper_sa::{Timestamp, VmId};
use vesper_tests::bed::{Bed, SaPlan, frame, sendable};

fn bed(machines: u32) -> (Bed, Vec<VmId>) {
    let mut profile = Profile::full();
    profile.processors = 1;
    let mut bed = Bed::new(profile, Some(16));
    let vms: Vec<VmId> = (1..=machines).map(VmId).collect();
    for vm in &vms {
        let settings = VmSettings {
            iov_weight: 100,
            ..VmSettings::default()
        };
        bed.add_pair(settings, &SaPlan::new(*vm, &[OffloadMode::Packet]));
        bed.nodes[0].give_function(*vm);
    }
    (bed, vms)
}

/// Lets the adapter of node 0 do `budget` packets of work, and says whose packets left: the
/// second byte of the sending tunnel's SPI is not theirs, so the inner port does not show; the
/// counters do.
fn serve(bed: &mut Bed, vms: &[VmId], budget: usize) -> BTreeMap<VmId, (u64, u64)> {
    let count = |bed: &Bed, vm: &VmId| {
        let counters = bed.nodes[0].host.nic().vm_counters(*vm).unwrap();
        (counters.sent, counters.sent_bytes)
    };
    let before: Vec<_> = vms.iter().map(|vm| count(bed, vm)).collect();
    bed.now = Timestamp::from_nanos(bed.now.as_nanos() + 100_000);
    bed.nodes[0].host.nic().run_processor(0, bed.now, budget);
    let mut wire = Vec::new();
    let nic = bed.nodes[0].host.nic();
    nic.take_transmitted(&mut wire, usize::MAX);
    assert!(wire.iter().all(|frame| frame.data().len() > 60));
    vms.iter()
        .zip(before)
        .map(|(vm, before)| {
            let after = count(bed, vm);
            (*vm, (after.0 - before.0, after.1 - before.1))
        })
        .collect()
}

fn flood(bed: &mut Bed, vm: VmId, payload: usize) {
    let text = frame(0, vm, payload);
    while bed.nodes[0].send(vm, sendable(&text)) {}
}

/// Eight machines that send as much as they can, packets of all sizes: equal shares of the
/// adapter's work, bytes and packets together.
#[test]
fn eight_floods_share_alike() {
    let (mut bed, vms) = bed(8);
    let mut shares = vec![0.0; vms.len()];
    for _ in 0..400 {
        for (vm, payload) in vms.iter().zip([20, 60, 200, 500, 1000, 1400, 20, 1400]) {
            flood(&mut bed, *vm, payload);
        }
        let served = serve(&mut bed, &vms, 500);
        for (share, (packets, bytes)) in shares.iter_mut().zip(served.values()) {
            *share += (*bytes + *packets * 128) as f64;
        }
    }
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    let jain = sum * sum / (shares.len() as f64 * squares);
    println!("Jain index {jain:.4}");
    assert!(jain >= 0.95, "{jain} {shares:?}");
}

/// A machine that sends little beside seven floods: it gets all of it through, and waits at
/// most for the turns of the others.
#[test]
fn a_quiet_machine_is_not_starved() {
    let (mut bed, vms) = bed(8);
    let (quiet, floods) = (vms[0], &vms[1..]);
    let text = frame(0, quiet, 60);
    let mut waits = Vec::new();
    let mut waiting: Vec<u64> = Vec::new();
    for step in 0..1000 {
        for vm in floods {
            flood(&mut bed, *vm, 1400);
        }
        assert!(bed.nodes[0].send(quiet, sendable(&text)));
        waiting.push(step);
        let served = serve(&mut bed, &vms, 256);
        for since in waiting.drain(..served[&quiet].0 as usize) {
            waits.push(step - since);
        }
    }
    waits.sort_unstable();
    assert!(waits.len() >= 950, "{}", waits.len());
    // One step is about the turns of all the others.
    let p99 = waits[waits.len() * 99 / 100];
    assert!(p99 <= 2, "{p99} steps");
}
