//! No number of a key is used twice within a process, whatever is added, replaced and deleted:
//! without a state directory, and for keys that are made for the process and not kept.

mod common;

use std::collections::HashSet;
use std::iter;
use std::sync::Arc;

use common::{Bed, durable, inbound, key, outbound, state};
use vesper_daemon::plane::{
    Desired, MachineSpec, Origin, Persistence, SaFilter, SaRecord, SaSpec, Scope, Volatile,
};
use vesper_offload::Profile;
use vesper_sa::Timestamp;

const NOW: Timestamp = Timestamp::from_secs(1);

fn all() -> SaFilter {
    SaFilter::default()
}

/// The two stores that are asked: one that keeps nothing, and one that keeps other keys.
fn each(test: impl Fn(&Bed, &dyn Persistence)) {
    let volatile = Arc::new(Volatile::default());
    let bed = Bed::with(
        Arc::clone(&volatile) as Arc<dyn Persistence>,
        Profile::full(),
    );
    test(&bed, &*volatile);
    drop(bed);

    let directory = tempfile::tempdir().unwrap();
    let durable = durable(directory.path());
    for words in [outbound(0x1000), outbound(0x1001), inbound(0x2000)] {
        durable.do_not_keep(&state(&words).keys);
    }
    let bed = Bed::with(
        Arc::clone(&durable) as Arc<dyn Persistence>,
        Profile::full(),
    );
    test(&bed, &*durable);
}

/// Takes the next number of an association, as a packet does, and tells the store what follows.
fn send(record: &SaRecord, store: &dyn Persistence) -> u64 {
    let granted = record.sa.reserve(NOW, iter::once(100));
    assert_eq!(granted.count, 1, "{granted:?}");
    for message in record.sa.messages(granted.events) {
        store.notice(&record.host, &message);
    }
    granted.first
}

/// The other association with the key of that with SPI 0x1000.
fn twin(spi: u32) -> String {
    outbound(spi).replace(&key("0a", spi), &key("0a", 0x1000))
}

#[test]
fn what_is_deleted_and_added_again_goes_on() {
    each(|bed, store| {
        let mut used = HashSet::new();
        for _ in 0..5 {
            bed.add(&outbound(0x1000)).unwrap();
            let record = bed.plane.sas(Scope::All, &all()).remove(0);
            for _ in 0..1000 {
                assert!(used.insert(send(&record, store)));
            }
            // One that holds the association still, as a batch of packets may.
            bed.plane.delete_sas(Scope::All, &all()).unwrap();
        }
    });
}

#[test]
fn two_with_one_key_have_numbers_of_their_own() {
    each(|bed, store| {
        bed.add(&outbound(0x1000)).unwrap();
        bed.add(&twin(0x1002)).unwrap();
        let records = bed.plane.sas(Scope::All, &all());
        let mut used = HashSet::new();
        // Beyond the first lease of each.
        for _ in 0..(3 << 19) {
            for record in &records {
                assert!(used.insert(send(record, store)));
            }
        }
    });
}

#[test]
fn a_reload_that_changes_words_but_no_key_goes_on() {
    each(|bed, store| {
        let machines: Vec<MachineSpec> = bed.plane.vms().iter().map(|vm| vm.spec.clone()).collect();
        let reload = |words: &[String]| {
            let desired = Desired {
                machines: machines.clone(),
                sas: words.iter().map(|words| state(words)).collect(),
                policies: Vec::new(),
            };
            bed.plane.reload(desired, false)
        };
        let mut used = HashSet::new();
        let other_key = outbound(0x1000).replace("0x0a", "0xfa");
        for words in [
            outbound(0x1000),
            format!("{} replay-window 64", outbound(0x1000)),
            // Another key under the name, and the first one again.
            other_key,
            outbound(0x1000),
        ] {
            let is_first = !words.contains("0xfa");
            let old = bed.plane.sas(Scope::All, &all());
            reload(&[words]).unwrap();
            let record = bed.plane.sas(Scope::All, &all()).remove(0);
            // The old one is deleted: it has no more numbers.
            for old in old {
                assert_eq!(old.sa.reserve(NOW, iter::once(100)).count, 0);
            }
            for _ in 0..1000 {
                let number = send(&record, store);
                assert!(!is_first || used.insert(number), "{number}");
            }
        }
    });
}

#[test]
fn a_refused_change_leaves_the_old_one_its_numbers_and_words() {
    each(|bed, store| {
        let mut machines: Vec<MachineSpec> =
            bed.plane.vms().iter().map(|vm| vm.spec.clone()).collect();
        for machine in &mut machines {
            machine.settings.ipsec_offload_limit = 1;
        }
        let reload = |sas: &[String]| {
            let desired = Desired {
                machines: machines.clone(),
                sas: sas.iter().map(|words| state(words)).collect(),
                policies: Vec::new(),
            };
            bed.plane.reload(desired, false)
        };
        let in_adapter = |words: String| format!("{words} offload packet dir out");
        reload(&[outbound(0x1000)]).unwrap();
        let record = bed.plane.sas(Scope::All, &all()).remove(0);
        let mut used = HashSet::new();
        for _ in 0..1000 {
            assert!(used.insert(send(&record, store)));
        }
        // The adapter has a place for one of them.
        let other_key = in_adapter(outbound(0x1000).replace("0x0a", "0xfa"));
        reload(&[other_key, in_adapter(outbound(0x1001))]).unwrap_err();
        let now = bed.plane.sas(Scope::All, &all()).remove(0);
        assert!(Arc::ptr_eq(&now.sa, &record.sa));
        let words = bed.plane.secret_words(&now).unwrap().unwrap();
        assert!(words.contains(&key("0a", 0x1000)), "the old words");
        for _ in 0..(3 << 19) {
            assert!(used.insert(send(&now, store)));
        }
        bed.plane.delete_sas(Scope::All, &all()).unwrap();
        bed.add(&outbound(0x1000)).unwrap();
        let record = bed.plane.sas(Scope::All, &all()).remove(0);
        for _ in 0..1000 {
            assert!(used.insert(send(&record, store)));
        }
    });
}

#[test]
fn what_was_received_is_not_received_again() {
    each(|bed, _| {
        let spec = || vec![SaSpec::new(state(&inbound(0x2000)))];
        let add = || {
            bed.plane
                .add_sas(Scope::All, spec(), Origin::Requested)
                .unwrap();
            bed.plane.sas(Scope::All, &all()).remove(0)
        };
        let record = add();
        let mut commit = record.sa.commit(NOW);
        commit.accept(7, 100).unwrap();
        commit.finish();
        bed.plane.delete_sas(Scope::All, &all()).unwrap();
        let again = add();
        assert!(again.sa.check(7).is_err() && again.sa.check(6).is_err());
        // Nothing but that is lost.
        assert_eq!(again.sa.check(8), Ok(8));
    });
}

#[test]
fn a_key_that_has_come_to_its_end_says_so() {
    let bed = Bed::new();
    let end = format!("{} replay-oseq 0xfffffff0", outbound(0x1000));
    bed.add(&end).unwrap();
    bed.plane.delete_sas(Scope::All, &all()).unwrap();
    let refusal = bed.add(&outbound(0x1000)).unwrap_err();
    assert!(
        refusal.contains("key") && refusal.contains("4294967295"),
        "{refusal}"
    );
}
