//! What is refused leaves everything as it was: what it would have replaced, the parts of it
//! that other hosts had accepted, and what others asked for at the same time.

mod common;

use std::iter;
use std::sync::Arc;
use std::thread;

use common::{Bed, durable, inbound, outbound, state};
use vesper_daemon::plane::{
    Desired, Diff, Kind, MachineSpec, Origin, Persistence, PolicyFilter, Refusal, SaFilter,
    SaRecord, SaSpec, Scope,
};
use vesper_offload::{OffloadMode, Profile};
use vesper_sa::Timestamp;
use vesper_verify::xfrm::parse_policies;

const NOW: Timestamp = Timestamp::from_secs(1);

/// A plane with a store in this directory.
fn bed(directory: &tempfile::TempDir) -> Bed {
    let durable = durable(directory.path());
    durable.started(&[]).unwrap();
    Bed::with(durable as Arc<dyn Persistence>, Profile::full())
}

/// The same machines, each of which may have one association in the adapter.
fn one_in_the_adapter(bed: &Bed) -> Vec<MachineSpec> {
    let mut machines: Vec<_> = bed.plane.vms().iter().map(|vm| vm.spec.clone()).collect();
    for machine in &mut machines {
        machine.settings.ipsec_offload_limit = 1;
    }
    machines
}

fn reload(
    bed: &Bed,
    machines: &[MachineSpec],
    sas: &[String],
    policies: &str,
) -> Result<Diff, Refusal> {
    let desired = Desired {
        machines: machines.to_vec(),
        sas: sas.iter().map(|words| state(words)).collect(),
        policies: parse_policies(policies, "test").unwrap(),
    };
    bed.plane.reload(desired, false)
}

fn all(bed: &Bed) -> Vec<Arc<SaRecord>> {
    bed.plane.sas(Scope::All, &SaFilter::default())
}

/// Takes the next number; 0 if there is none.
fn next(record: &SaRecord) -> u64 {
    let granted = record.sa.reserve(NOW, iter::once(100));
    if granted.count == 1 { granted.first } else { 0 }
}

fn in_adapter(words: &str) -> String {
    format!("{words} offload packet dir out")
}

/// The same for the machine on the other host.
fn on_b(words: &str) -> String {
    words
        .replace("vm web1", "vm db1")
        .replace("192.0.2.1", "192.0.2.9")
        .replace("192.0.2.2", "192.0.2.1")
        .replace("192.0.2.9", "192.0.2.2")
}

/// The same words with another key.
fn rekeyed(words: &str) -> String {
    words.replace(" 0x0", " 0xf")
}

#[test]
fn what_would_have_been_replaced_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let bed = bed(&directory);
    let machines = one_in_the_adapter(&bed);
    let old = [in_adapter(&outbound(0x1000)), inbound(0x2000)];
    reload(&bed, &machines, &old, "").unwrap();
    let before = all(&bed);
    assert_eq!((next(&before[0]), next(&before[0])), (1, 2));

    // The adapter has a place for one.
    let new = [
        rekeyed(&old[0]),
        in_adapter(&outbound(0x1001)),
        rekeyed(&old[1]),
    ];
    let refusal = reload(&bed, &machines, &new, "").unwrap_err();
    assert_eq!(refusal.kind, Kind::Conflict, "{refusal}");
    let after = all(&bed);
    assert_eq!(after.len(), 2);
    for (before, after) in before.iter().zip(&after) {
        assert!(Arc::ptr_eq(&before.sa, &after.sa));
        let words = bed.plane.secret_words(after).unwrap().unwrap();
        assert!(!words.contains(" 0xf"));
    }
    assert_eq!(after[0].offloaded().unwrap(), OffloadMode::Packet);
    // It is found, it sends, it has more numbers, and it can be replaced and deleted.
    assert_eq!(next(&after[0]), 3);
    assert_eq!(after[1].sa.check(1), Ok(1));
    reload(&bed, &machines, &[rekeyed(&old[0])], "").unwrap();
    let replaced = all(&bed);
    assert!(replaced.len() == 1 && next(&replaced[0]) > 0);
    assert_eq!(next(&before[0]), 0);
    let nic = bed.plane.nodes()[0].nic().clone();
    assert_eq!(nic.usage().ipsec_sas.used, 1);
    drop((before, after, replaced));
    bed.plane
        .delete_sas(Scope::All, &SaFilter::default())
        .unwrap();
    assert_eq!((nic.usage().ipsec_sas.used, nic.draining_sas()), (0, 0));
}

#[test]
fn what_one_host_refuses_no_host_has() {
    let directory = tempfile::tempdir().unwrap();
    let bed = bed(&directory);
    let machines = one_in_the_adapter(&bed);
    let policies = "vm web1 dir out priority 1 action block\nvm db1 dir out action block";
    let a = [in_adapter(&outbound(0x1000)), inbound(0x2000)];
    let b = [in_adapter(&on_b(&outbound(0x3000)))];
    let old = [&a[..], &b[..]].concat();
    reload(&bed, &machines, &old, policies).unwrap();
    let before = all(&bed);
    let list = |bed: &Bed| -> Vec<String> {
        let policies = bed.plane.policies(&PolicyFilter::default());
        policies
            .iter()
            .map(|policy| policy.line.to_string())
            .collect()
    };
    let policies_before = list(&bed);
    assert_eq!(next(&before[0]), 1);

    // The first host takes all of it, the second has no place.
    let new: Vec<_> = (a.iter().map(|words| rekeyed(words)))
        .chain([inbound(0x2001), rekeyed(&b[0])])
        .chain([in_adapter(&on_b(&outbound(0x3001)))])
        .collect();
    let mut others = machines.clone();
    others[1].settings.ipsec_offload_limit = 7;
    let refusal = reload(&bed, &others, &new, "vm web2 dir out action block").unwrap_err();
    assert_eq!((&*refusal.word, refusal.kind), ("offload", Kind::Conflict));
    let after = all(&bed);
    assert_eq!(after.len(), before.len());
    for (before, after) in before.iter().zip(&after) {
        assert!(Arc::ptr_eq(&before.sa, &after.sa));
        assert_eq!(before.offloaded().ok(), after.offloaded().ok());
    }
    assert_eq!(list(&bed), policies_before);
    let nics: Vec<_> = bed
        .plane
        .nodes()
        .iter()
        .map(|node| node.nic().clone())
        .collect();
    for nic in nics {
        assert_eq!(nic.usage().ipsec_sas.used, 1);
    }
    assert_eq!((next(&after[0]), next(&after[2])), (2, 1));
    // What the first host has now, the databases of both tell.
    let found = bed.plane.nodes()[0].call(|host, _| {
        let sas = host.sad().iter();
        sas.map(|(_, sa)| sa.spi().get()).collect::<Vec<u32>>()
    });
    let mut found = found.unwrap();
    found.sort_unstable();
    assert_eq!(found, [0x1000, 0x2000]);

    // And without what it refused, all of it is accepted.
    reload(&bed, &others, &new[..new.len() - 1], "").unwrap();
    assert_eq!(all(&bed).len(), 4);
    assert!(list(&bed).is_empty());
    for old in before {
        assert_eq!(next(&old), 0);
    }
}

/// Requests that come while one is made are made together.
#[test]
fn who_is_refused_harms_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let bed = bed(&directory);
    let add = |words: &str| {
        let specs = vec![SaSpec::new(state(words))];
        bed.plane.add_sas(Scope::All, specs, Origin::Requested)
    };
    add(&outbound(0x900)).unwrap();
    for round in 0..20_u32 {
        let base = 0x1_0000 + round * 0x100;
        thread::scope(|scope| {
            for client in 0..8 {
                let add = &add;
                scope.spawn(move || {
                    let spi = base + client;
                    match client % 4 {
                        // Somebody has the name already.
                        0 => drop(add(&outbound(0x900)).unwrap_err()),
                        // Two ask for one name: one of them gets it.
                        1 => drop(add(&outbound(base + 0x80))),
                        _ => drop(add(&outbound(spi)).unwrap()),
                    }
                });
            }
        });
        let here = all(&bed);
        let here: Vec<_> = (here.iter())
            .filter(|record| record.sa.spi().get() >= base)
            .collect();
        let mut spis: Vec<u32> = here.iter().map(|record| record.sa.spi().get()).collect();
        spis.sort_unstable();
        let expected = [2, 3, 6, 7, 0x80].map(|client| base + client);
        assert_eq!(spis, expected);
        for record in here {
            // Nobody has used up its numbers.
            assert_eq!(next(record), 1, "{}", record.words);
        }
    }
}
