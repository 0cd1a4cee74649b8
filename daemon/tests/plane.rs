//! The plane: verbs on associations, policies and machines, and what a refusal leaves behind.

mod common;

use common::{Bed, inbound, key, outbound, state};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use vesper_daemon::plane::{
    Change, Desired, Kind, MachineSpec, Origin, Persistence, PersistenceError, PolicyFilter,
    Resume, SaFilter, SaSpec, Scope, Severity, VmChange,
};
use vesper_daemon::store::Loss;
use vesper_esp::EspSa;
use vesper_offload::{MacAddress, OffloadMode, Profile};
use vesper_sa::{Direction, SaIdentity, VmId};
use vesper_verify::xfrm::{PolicyLine, parse_policies};
use zeroize::Zeroizing;

fn policy(words: &str) -> PolicyLine {
    parse_policies(words, "test").unwrap().remove(0)
}

const PROTECT: &str = "vm web1 src 10.0.0.0/24 dst 10.1.0.0/24 dir out tmpl src 192.0.2.1 \
                       dst 192.0.2.2 proto esp reqid 7 mode tunnel";

#[test]
fn an_association_is_added_found_and_deleted() {
    let bed = Bed::new();
    let id = bed.add(&outbound(0x1000)).unwrap();
    bed.add(&inbound(0x2000)).unwrap();
    let all = bed.plane.sas(Scope::All, &SaFilter::default());
    assert_eq!(all.len(), 2);
    let record = &all[0];
    assert_eq!(record.id.0, id);
    assert_eq!((&*record.host, record.vm.as_deref()), ("a", Some("web1")));
    // The addresses of the host tell the direction.
    assert_eq!(record.sa.direction(), Direction::Outbound);
    assert_eq!(all[1].sa.direction(), Direction::Inbound);
    assert_eq!(record.offloaded().unwrap(), OffloadMode::Packet);
    assert!(!record.words.contains("0x0a00"), "{}", record.words);
    let secret = bed.plane.secret_words(record).unwrap().unwrap();
    assert!(secret.contains(&key("0a", 0x1000)));
    let nic = bed.plane.nodes()[0].nic().clone();
    assert_eq!(nic.usage().ipsec_sas.used, 2);

    let mut filter = SaFilter::default();
    filter.set("spi", "0x2000").unwrap();
    bed.plane.delete_one(Scope::All, &filter).unwrap();
    let gone = bed.plane.delete_one(Scope::All, &filter).unwrap_err();
    assert_eq!(gone.kind, Kind::NotFound);
    drop(all);
    assert_eq!(
        bed.plane.delete_sas(Scope::All, &SaFilter::default()),
        Ok(1)
    );
    assert_eq!(nic.usage().ipsec_sas.used, 0);
    assert_eq!(nic.draining_sas(), 0);
}

#[test]
fn refusals_name_the_word_and_the_way_out() {
    let bed = Bed::new();
    bed.add(&outbound(0x1000)).unwrap();
    for (words, expected) in [
        (
            outbound(0x1000),
            "spi 0x00001000: in use: there is an outbound SA to 192.0.2.2",
        ),
        (
            outbound(0x1001).replace("web1", "web9"),
            "vm web9: not found",
        ),
        (
            outbound(0x1001).replace("vm web1", "host c"),
            "host c: not found",
        ),
        (
            outbound(0x1001).replace("vm web1", ""),
            "host: missing: there are several hosts",
        ),
        (
            outbound(0x1001).replace("192.0.2.1", "192.0.2.9"),
            "dir: missing, and the addresses do not tell it; add `dir in` or `dir out`",
        ),
    ] {
        let refusal = bed.add(&words).unwrap_err();
        assert!(refusal.starts_with(expected), "{words}: {refusal}");
    }
    assert_eq!(bed.plane.sas(Scope::All, &SaFilter::default()).len(), 1);
}

#[test]
fn packet_offload_is_refused_where_the_adapter_has_none() {
    let bed = Bed::with(
        std::sync::Arc::new(vesper_daemon::plane::Volatile::default()),
        Profile::ndis(),
    );
    let refusal = bed
        .add(&format!("{} offload packet dir out", outbound(0x1000)))
        .unwrap_err();
    assert!(
        refusal.starts_with("offload packet: the adapter can not: "),
        "{refusal}"
    );
    bed.add(&outbound(0x1000)).unwrap();
    let record = bed.plane.sas(Scope::All, &SaFilter::default()).remove(0);
    assert_eq!(record.offloaded().unwrap(), OffloadMode::Crypto);
    let reasons = bed.plane.why_not(&state(&outbound(0x1001))).unwrap();
    assert!(
        !reasons[0].1.is_empty() && reasons[1].1.is_empty(),
        "{reasons:?}"
    );
}

#[test]
fn a_list_is_added_as_a_whole_or_not_at_all() {
    let bed = Bed::new();
    let specs = |last: &str| {
        let mut specs: Vec<_> = (0..100)
            .map(|number| SaSpec::new(state(&outbound(0x1000 + number))))
            .collect();
        specs.push(SaSpec::new(state(last)));
        specs
    };
    let add = |last: &str| {
        bed.plane
            .add_sas(Scope::All, specs(last), Origin::Requested)
    };
    let refusal = add(&outbound(0x1000)).unwrap_err();
    assert_eq!(refusal.kind, Kind::Conflict);
    assert!(bed.plane.sas(Scope::All, &SaFilter::default()).is_empty());
    assert_eq!(bed.plane.nodes()[0].nic().usage().ipsec_sas.used, 0);
    assert_eq!(add(&inbound(0x2000)).unwrap().len(), 101);
}

#[test]
fn the_quota_is_the_machines_own() {
    let bed = Bed::new();
    let change = VmChange {
        sa_limit: Some(2),
        ..VmChange::default()
    };
    bed.plane.change_vm(None, "web1", &change).unwrap();
    bed.add(&outbound(0x1000)).unwrap();
    bed.add(&outbound(0x1001)).unwrap();
    let refusal = bed.add(&outbound(0x1002)).unwrap_err();
    assert_eq!(
        refusal,
        "vm web1: has its 2 SAs already; delete one, or raise its sa_limit"
    );
    bed.add(&outbound(0x1002).replace("web1", "web2")).unwrap();
    let findings = bed.plane.doctor();
    assert!(
        findings
            .iter()
            .any(|finding| finding.severity == Severity::Warning
                && finding.about == "vm a/web1"
                && finding.text == "has 2 of 2 SAs"),
        "{findings:?}"
    );
}

#[test]
fn a_machine_sees_its_own_associations_only() {
    let bed = Bed::new();
    let theirs = bed.add(&outbound(0x1000)).unwrap();
    let web2 = Scope::Vm(bed.plane.vm_named(None, "web2").unwrap().id);
    assert!(bed.plane.sas(web2, &SaFilter::default()).is_empty());
    let id = vesper_daemon::plane::SaId(theirs);
    assert!(bed.plane.sa(web2, id).is_none());
    // Exactly what is said about one that does not exist.
    let absent = vesper_daemon::plane::SaId(999_999);
    let mut refusals = [id, absent].map(|id| bed.plane.delete_sa(web2, id).unwrap_err());
    refusals
        .iter_mut()
        .for_each(|refusal| refusal.value.clear());
    assert_eq!(refusals[0], refusals[1]);
    let add = |words: &str| {
        bed.plane
            .add_sas(web2, vec![SaSpec::new(state(words))], Origin::Requested)
    };
    assert_eq!(add(&outbound(0x1001)).unwrap_err().kind, Kind::NotFound);
    let own = add(&outbound(0x1001).replace("vm web1 ", "")).unwrap();
    assert_eq!(
        bed.plane.sa(web2, own[0]).unwrap().vm.as_deref(),
        Some("web2")
    );
    assert_eq!(bed.plane.delete_sas(web2, &SaFilter::default()), Ok(1));
    assert_eq!(bed.plane.sas(Scope::All, &SaFilter::default()).len(), 1);
}

#[test]
fn update_changes_limits_alone() {
    let bed = Bed::new();
    bed.add(&outbound(0x1000)).unwrap();
    let update = |words: &str| bed.plane.update_sa(Scope::All, &state(words));
    update(&format!("{} limit packet-hard 5", outbound(0x1000))).unwrap();
    let record = bed.plane.sas(Scope::All, &SaFilter::default()).remove(0);
    assert_eq!(record.lifetime.hard.packets, Some(5));
    assert!(record.words.contains("limit packet-hard 5"));
    let granted = record.sa.reserve(
        vesper_sa::Timestamp::from_secs(1),
        std::iter::repeat_n(100, 10),
    );
    assert_eq!(granted.count, 5);
    let other = outbound(0x1000).replace("reqid 7", "reqid 8");
    assert_eq!(update(&other).unwrap_err().kind, Kind::Words);
    assert_eq!(update(&outbound(0x1001)).unwrap_err().kind, Kind::NotFound);
}

/// A store that keeps nothing, and says that it can not.
#[derive(Default)]
struct Forgetful(std::sync::atomic::AtomicU32);

impl Persistence for Forgetful {
    fn vm_id(&self, _: &str, _: &str) -> Result<VmId, PersistenceError> {
        let last = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(VmId(last + 1))
    }

    fn commit(&self, _: &[Change<'_>]) -> Result<(), PersistenceError> {
        Ok(())
    }

    fn begin(&self, _: &[(&str, &Arc<EspSa>)]) -> Result<(), PersistenceError> {
        Ok(())
    }

    fn end(&self, _: &str, _: &SaIdentity) {}

    fn words(
        &self,
        _: &str,
        _: &SaIdentity,
    ) -> Result<Option<Zeroizing<String>>, PersistenceError> {
        Ok(None)
    }

    fn trouble(&self) -> Option<String> {
        Some("no space left".to_owned())
    }
}

#[test]
fn the_doctor_knows_that_the_store_fails() {
    let about_store = |bed: &Bed| {
        let findings = bed.plane.doctor().into_iter();
        findings
            .filter(|finding| finding.about == "store")
            .map(|finding| (finding.severity, finding.text))
            .collect::<Vec<_>>()
    };
    assert_eq!(about_store(&Bed::new()), []);
    let bed = Bed::with(Arc::new(Forgetful::default()), Profile::full());
    let text = "nothing can be made durable: no space left".to_owned();
    assert_eq!(about_store(&bed), [(Severity::Problem, text)]);
}

#[test]
fn what_must_be_rekeyed_carries_nothing() {
    let bed = Bed::with(Arc::new(Forgetful::default()), Profile::full());
    let spec = SaSpec {
        state: state(&outbound(0x1000)),
        resume: Resume::NeedsRekey(Loss::StoreOlder),
    };
    bed.plane
        .add_sas(Scope::All, vec![spec], Origin::Requested)
        .unwrap();
    let record = bed.plane.sas(Scope::All, &SaFilter::default()).remove(0);
    assert_eq!(record.state(), "NEEDS_REKEY");
    let granted = record
        .sa
        .reserve(vesper_sa::Timestamp::from_secs(1), [100].into_iter());
    assert_eq!(granted.count, 0);
    let spec = SaSpec {
        state: state(&inbound(0x2000)),
        resume: Resume::After(5000),
    };
    bed.plane
        .add_sas(Scope::All, vec![spec], Origin::Requested)
        .unwrap();
    let record = bed.plane.sas(Scope::All, &SaFilter::default()).remove(1);
    assert!(record.sa.check(5000).is_err() && record.sa.check(4990).is_err());
    assert_eq!(record.sa.check(5001), Ok(5001));
}

#[test]
fn a_key_that_comes_again_goes_on_after_its_last_number() {
    let bed = Bed::new();
    let now = vesper_sa::Timestamp::from_secs(1);
    bed.add(&outbound(0x1000)).unwrap();
    let take = || {
        let record = bed.plane.sas(Scope::All, &SaFilter::default()).remove(0);
        record.sa.reserve(now, std::iter::repeat_n(100, 10))
    };
    assert_eq!(take().first, 1);
    bed.plane
        .delete_sas(Scope::All, &SaFilter::default())
        .unwrap();
    bed.add(&outbound(0x1000)).unwrap();
    let again = take();
    assert!(again.count == 10 && again.first > 10, "{again:?}");
}

#[test]
fn policies_decide_by_priority_and_age() {
    let bed = Bed::new();
    let add = |words: &str, replace| {
        bed.plane
            .add_policies(vec![policy(words)], replace, Origin::Requested)
            .map_err(|refusal| refusal.to_string())
    };
    add("vm web1 dir out priority 100 action block", false).unwrap();
    add(PROTECT, false).unwrap();
    add("vm web1 dst 10.1.0.9 dir out priority 100", false).unwrap();
    let twice = add(PROTECT, false).unwrap_err();
    assert!(
        twice.contains("there is one for the same packets already"),
        "{twice}"
    );
    let lines = || {
        bed.plane
            .policies(&PolicyFilter::default())
            .iter()
            .map(|record| record.line.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        lines(),
        [
            "host a vm web1 src 10.0.0.0/24 dst 10.1.0.0/24 dir out priority 0 tmpl \
             src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel",
            "host a vm web1 dir out priority 100 action block",
            "host a vm web1 dst 10.1.0.9/32 dir out priority 100",
        ]
    );
    add(&PROTECT.replace("reqid 7", "reqid 8"), true).unwrap();
    assert!(lines()[0].contains("reqid 8"));
    let filter = PolicyFilter {
        selector: Some(" dst 10.1.0.9/32".to_owned()),
        ..PolicyFilter::default()
    };
    assert_eq!(bed.plane.delete_policies(&filter), Ok(1));
    assert_eq!(
        bed.plane.delete_policies(&filter).unwrap_err().kind,
        Kind::NotFound
    );
    assert_eq!(bed.plane.delete_policies(&PolicyFilter::default()), Ok(2));
    let orphan = add("dir out", false).unwrap_err();
    assert!(orphan.starts_with("host: missing"), "{orphan}");
}

#[test]
fn a_reload_keeps_what_is_the_same_and_all_or_nothing_changes() {
    let bed = Bed::new();
    let machines: Vec<MachineSpec> = bed.plane.vms().iter().map(|vm| vm.spec.clone()).collect();
    let desired = |sas: &[String], policies: &[&str]| Desired {
        machines: machines.clone(),
        sas: sas.iter().map(|words| state(words)).collect(),
        policies: policies.iter().map(|words| policy(words)).collect(),
    };
    bed.add(&outbound(0x9000)).unwrap();
    let first = desired(&[outbound(0x1000), inbound(0x2000)], &[PROTECT]);
    let diff = bed.plane.reload(first.clone(), false).unwrap();
    assert_eq!((diff.added.len(), diff.removed.len()), (3, 0));
    assert!(bed.plane.reload(first.clone(), false).unwrap().is_empty());

    let kept = bed.plane.sas(Scope::All, &SaFilter::default())[1].clone();
    assert_eq!(kept.sa.spi().get(), 0x1000);
    let other_key = inbound(0x2000).replace("0x0b00", "0xff00");
    let second = desired(&[outbound(0x1000), other_key, outbound(0x1001)], &[]);
    let checked = bed.plane.reload(second.clone(), true).unwrap();
    assert_eq!(bed.plane.policies(&PolicyFilter::default()).len(), 1);
    let diff = bed.plane.reload(second, false).unwrap();
    assert_eq!(diff, checked);
    assert_eq!(
        (diff.added.len(), diff.changed.len(), diff.removed.len()),
        (1, 1, 1),
        "{diff}"
    );
    assert!(diff.removed[0].starts_with("policy host a vm web1 src 10.0.0.0/24"));
    let records = bed.plane.sas(Scope::All, &SaFilter::default());
    assert_eq!(records.len(), 4);
    assert!(records.iter().any(|record| record.id == kept.id));

    // An error in the last line: nothing at all has changed.
    let mut bad = first;
    bad.policies
        .push(policy(&PROTECT.replace("web1", "nobody")));
    let refusal = bed.plane.reload(bad, false).unwrap_err();
    assert_eq!(refusal.kind, Kind::NotFound);
    let after: Vec<_> = bed
        .plane
        .sas(Scope::All, &SaFilter::default())
        .iter()
        .map(|record| record.id)
        .collect();
    assert_eq!(
        after,
        records.iter().map(|record| record.id).collect::<Vec<_>>()
    );
    assert!(bed.plane.policies(&PolicyFilter::default()).is_empty());
}

/// What a reload says of a machine holds for all of its associations: those that come with the
/// same reload, and those that stay; but for those whose own words say how.
#[test]
fn a_reload_changes_how_associations_are_offloaded() {
    let bed = Bed::new();
    let mut machines: Vec<MachineSpec> = bed.plane.vms().iter().map(|vm| vm.spec.clone()).collect();
    let sas = [
        outbound(0x1000),
        format!("{} offload packet dir out", outbound(0x1001)),
        outbound(0x1002),
    ];
    let desired = |machines: &[MachineSpec], sas: &[String]| Desired {
        machines: machines.to_vec(),
        sas: sas.iter().map(|words| state(words)).collect(),
        policies: Vec::new(),
    };
    let modes = || -> Vec<Option<OffloadMode>> {
        let records = bed.plane.sas(Scope::All, &SaFilter::default());
        let modes = records.iter().map(|record| record.offloaded().ok());
        modes.collect()
    };
    let reload = |machines: &[MachineSpec], sas: &[String]| {
        bed.plane.reload(desired(machines, sas), false).unwrap()
    };
    let (packet, crypto) = (Some(OffloadMode::Packet), Some(OffloadMode::Crypto));
    reload(&machines, &sas[..2]);
    assert_eq!(modes(), [packet, packet]);
    let web1 = |vm: &&mut MachineSpec| vm.name == "web1";
    machines.iter_mut().find(web1).unwrap().offload = vec![OffloadMode::Crypto];
    reload(&machines, &sas);
    assert_eq!(modes(), [crypto, packet, crypto]);
    machines.iter_mut().find(web1).unwrap().offload = Vec::new();
    reload(&machines, &sas);
    assert_eq!(modes(), [None, packet, None]);
    machines.iter_mut().find(web1).unwrap().offload = vec![OffloadMode::Packet];
    reload(&machines, &sas);
    assert_eq!(modes(), [packet, packet, packet]);
    let nic = bed.plane.nodes()[0].nic().clone();
    assert_eq!((nic.usage().ipsec_sas.used, nic.draining_sas()), (3, 0));
}

/// A store that keeps nothing, but who gets numbers.
#[derive(Default)]
struct Watching {
    watched: Mutex<HashMap<SaIdentity, Arc<EspSa>>>,
    forgetful: Forgetful,
}

impl Persistence for Watching {
    fn vm_id(&self, host: &str, vm: &str) -> Result<VmId, PersistenceError> {
        self.forgetful.vm_id(host, vm)
    }

    fn commit(&self, _: &[Change<'_>]) -> Result<(), PersistenceError> {
        Ok(())
    }

    fn begin(&self, sas: &[(&str, &Arc<EspSa>)]) -> Result<(), PersistenceError> {
        let mut watched = self.watched.lock().unwrap();
        watched.extend(sas.iter().map(|(_, sa)| (sa.identity(), Arc::clone(sa))));
        Ok(())
    }

    fn end(&self, _: &str, sa: &SaIdentity) {
        self.watched.lock().unwrap().remove(sa);
    }

    fn words(
        &self,
        _: &str,
        _: &SaIdentity,
    ) -> Result<Option<Zeroizing<String>>, PersistenceError> {
        Ok(None)
    }
}

#[test]
fn a_refused_reload_lets_go_on_what_it_would_have_replaced() {
    let store = Arc::new(Watching::default());
    let bed = Bed::with(Arc::clone(&store) as Arc<dyn Persistence>, Profile::full());
    let mut machines: Vec<MachineSpec> = bed.plane.vms().iter().map(|vm| vm.spec.clone()).collect();
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
    let in_adapter = |spi| format!("{} offload packet dir out", outbound(spi));
    reload(&[in_adapter(0x1000), inbound(0x2000)]).unwrap();

    // The adapter has no place for another one, which nobody knows before it is asked.
    let other_key = inbound(0x2000).replace("0x0b00", "0xff00");
    let refusal = reload(&[in_adapter(0x1000), in_adapter(0x1001), other_key]).unwrap_err();
    assert_eq!(refusal.kind, Kind::Conflict, "{refusal}");
    let records = bed.plane.sas(Scope::All, &SaFilter::default());
    let watched = store.watched.lock().unwrap();
    assert_eq!((records.len(), watched.len()), (2, 2));
    for record in records {
        assert!(Arc::ptr_eq(&record.sa, &watched[&record.identity()]));
    }
}

#[test]
fn a_machine_comes_and_goes() {
    let bed = Bed::new();
    let spec = MachineSpec::new("b", "mail", MacAddress([2, 0, 0, 1, 0, 9]));
    bed.plane
        .add_vm(spec.clone(), None, Origin::Requested)
        .unwrap();
    let twice = bed
        .plane
        .add_vm(spec.clone(), None, Origin::Requested)
        .unwrap_err();
    assert_eq!(twice.kind, Kind::Conflict);
    let odd = MachineSpec {
        name: "no such name".to_owned(),
        ..spec.clone()
    };
    assert_eq!(
        bed.plane
            .add_vm(odd, None, Origin::Requested)
            .unwrap_err()
            .kind,
        Kind::Words
    );
    let words = "vm mail src 192.0.2.2 dst 192.0.2.1 proto esp spi 0x3000 mode tunnel dir out \
                 aead rfc4106(gcm(aes)) ";
    bed.add(&format!("{words}{} 128", key("0c", 0x3000)))
        .unwrap();
    // Its queue is freed first, which takes the adapter a moment: nobody has to ask twice, and one
    // of the same name may come at once.
    bed.plane.remove_vm(None, "mail").unwrap();
    assert!(bed.plane.sas(Scope::All, &SaFilter::default()).is_empty());
    bed.plane
        .add_vm(spec.clone(), None, Origin::Requested)
        .unwrap();
    bed.plane.remove_vm(None, "mail").unwrap();
    assert_eq!(
        bed.plane.vm_named(None, "mail").unwrap_err().kind,
        Kind::NotFound
    );
}

#[test]
fn events_tell_what_was_done() {
    let bed = Bed::new();
    let mut events = bed.plane.events().subscribe();
    bed.add(&outbound(0x1000)).unwrap();
    let event = events.try_recv().unwrap();
    assert_eq!(event.kind, "sa-added");
    assert_eq!(
        event.text,
        "outbound SA 0x00001000 to 192.0.2.2 of web1 added"
    );
    let web1 = Scope::Vm(bed.plane.vm_named(None, "web1").unwrap().id);
    let web2 = Scope::Vm(bed.plane.vm_named(None, "web2").unwrap().id);
    assert!(event.is_for(web1) && event.is_for(Scope::All) && !event.is_for(web2));
}
