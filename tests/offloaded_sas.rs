//! Associations in the adapter: which it takes, whose they are, and when it lets them go.

use std::sync::Arc;

use vesper_esp::{Buffer, Suite};
use vesper_offload::{
    Capabilities, IpsecDriver, Loss, NicEvent, OffloadHandle, OffloadMode, Placement, PortId,
    Poster, Profile, SaOffload, Send, SendError, SendIpsec, SoftwareReason, UpdateSaError,
    VmSettings, WhyNot,
};
use vesper_sa::{Direction, Lifetime, SaUpdate, Timestamp, VmId};
use vesper_tests::bed::{Bed, Node, SaPlan, frame, gateway, sendable};

const VM: VmId = VmId(7);
const BOTH: [OffloadMode; 2] = [OffloadMode::Packet, OffloadMode::Crypto];

/// The quota of a machine, 512 unless set, 0 is off; the capacity of the adapter; every reason
/// is told, and what does not fit works in software.
#[test]
fn quota_and_capacity_are_kept_and_told() {
    let mut bed = Bed::new(Profile::full(), None);
    let node = &mut bed.nodes[0];
    let nic = Arc::clone(node.host.nic());
    node.add(VM, VmSettings::default());
    assert_eq!(nic.vm_usage(VM).unwrap().ipsec_sas.capacity, 512);
    let wanted = node.offload(VM, OffloadMode::Packet);
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
    let wanted = node.offload(VM, OffloadMode::Packet);
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
    let wanted = node.offload(VM, OffloadMode::Packet);
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
        nic.take_completions(sender, Poster::Host, Timestamp::ZERO, &mut completions);
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
        .add_sa(sa, node.offload(VM, OffloadMode::Packet))
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
    let wanted = node.offload(VM, OffloadMode::Packet);
    let nic = Arc::clone(node.host.nic());
    let handle = drive(&*nic, wanted, Timestamp::ZERO);
    assert_eq!(nic.sa_statistics(VM, handle), None);
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
