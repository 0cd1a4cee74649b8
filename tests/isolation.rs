//! Isolation: no machine's packets on another one's association, no plain text to another
//! machine, no clear text on the wire, whatever is forged.

use std::sync::Arc;

use vesper_esp::Buffer;
use vesper_offload::{
    DataPath, OffloadHandle, OffloadMode, Placement, Profile, Send, SendIpsec, UpdateSaError,
    VmSettings,
};
use vesper_sa::{SaHandle, VmId};
use vesper_tests::Random;
use vesper_tests::bed::{Bed, SaPlan, frame, mac, sendable, spi};

/// Whose packet it is: the destination port of [`frame`].
fn owner_of(frame: &[u8]) -> Option<u32> {
    Some(u32::from(u16::from_be_bytes([
        *frame.get(36)?,
        *frame.get(37)?,
    ])))
}

/// The frame with the tag of a VLAN.
fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    [&frame[..12], &[0x81, 0, high, low], &frame[12..]].concat()
}

#[test]
fn machines_are_isolated_under_forgery() {
    let long = std::env::var_os("VESPER_LONG").is_some();
    let (machines, per_machine, steps) = match long {
        true => (64, 1024, 10_000_000_u64),
        false => (16, 32, 60_000),
    };
    let mut random = Random::new(9);
    let mut bed = Bed::new(Profile::full(), Some(8));
    let vms: Vec<VmId> = (1..=machines).map(VmId).collect();
    let mut handles: Vec<Vec<OffloadHandle>> = Vec::new();
    let mut moving: Vec<[SaHandle; 2]> = Vec::new();
    for vm in &vms {
        let has_function = vm.0 % 4 == 0 && vm.0 <= 32;
        let settings = VmSettings {
            iov_weight: if has_function { 100 } else { 0 },
            ipsec_offload_limit: 4096,
            ..VmSettings::default()
        };
        for node in &mut bed.nodes {
            node.host.set_sa_limit(*vm, 4096);
        }
        let pair = bed.add_pair(settings, &SaPlan::new(*vm, &[OffloadMode::Packet]));
        let mut newest = pair[1];
        if has_function {
            for node in &mut bed.nodes {
                node.give_function(*vm);
            }
        }
        // Half of them outbound, half inbound; the newest outbound one is used.
        for generation in 1..per_machine / 2 {
            let mut plan = SaPlan::new(*vm, &[OffloadMode::Packet]);
            plan.generation = generation;
            bed.nodes[0].add_sas(&plan);
            newest = bed.nodes[1].add_sas(&plan);
        }
        moving.push(newest);
        let bits = |slot: u64| OffloadHandle::from_bits(1 << 32 | slot);
        let own: Vec<_> = (0..u64::from(machines * per_machine))
            .map(bits)
            .filter(|handle| {
                let nic = bed.nodes[0].host.nic();
                nic.update_lifetime(*vm, *handle, &Default::default())
                    .is_ok()
            })
            .collect();
        assert_eq!(own.len() as u32, per_machine.max(2) / 2 * 2);
        handles.push(own);
    }
    bed.monitor.kept = Some(Vec::new());
    let mut wire: Vec<vesper_esp::PacketBuf> = Vec::new();
    let mut received = 0_u64;
    for step in 0..steps {
        let vm = vms[random.below(vms.len())];
        let other = vms[random.below(vms.len())];
        let from = random.below(2);
        let text = frame(from as u8, vm, 40);
        match random.below(10) {
            // Honest.
            0..=2 => {
                bed.nodes[from].send(vm, sendable(&text));
            }
            // A handle of another machine, or of nobody.
            3 => {
                let theirs = &handles[other.0 as usize - 1];
                let handle = match random.below(3) {
                    0 => SaHandle::from_bits(random.next()),
                    _ => theirs[random.below(theirs.len())],
                };
                let mut sends = vec![Send {
                    ipsec: SendIpsec::Handle(handle),
                    ..Send::new(random.next(), sendable(&frame(0, vm, 40)))
                }];
                let node = &bed.nodes[0];
                let before = node.host.nic().vm_counters(vm).unwrap();
                match node.host.data_path(vm) {
                    Some(DataPath::Function { vf, .. }) => {
                        node.host.nic().send_from_function(vf, &mut sends);
                    }
                    _ => {
                        node.host.nic().send_from_host(vm, &mut sends);
                    }
                }
                let after = node.host.nic().vm_counters(vm).unwrap();
                let refused = after.send_losses.total() > before.send_losses.total();
                let owned = handles[vm.0 as usize - 1].contains(&handle);
                assert_eq!(refused, !owned, "a handle works for its owner alone");
            }
            // Another machine's address, or another VLAN.
            4 => {
                let mut spoofed = text;
                match random.below(2) {
                    0 => spoofed[6..12].copy_from_slice(&mac(from as u8, other).0),
                    _ => spoofed = tagged(&spoofed, random.below(4095) as u16),
                }
                bed.nodes[from].send(vm, sendable(&spoofed));
            }
            // Another machine's association is none for any verb.
            5 => {
                let theirs = &handles[other.0 as usize - 1];
                let handle = theirs[random.below(theirs.len())];
                let nic = bed.nodes[0].host.nic();
                let is_own = vm == other;
                let update = nic.update_lifetime(vm, handle, &Default::default());
                assert_eq!(update.is_ok(), is_own);
                assert_eq!(nic.sa_statistics(vm, handle).is_some(), is_own);
                if !is_own {
                    let unknown = Err(UpdateSaError::Unknown(handle));
                    assert_eq!(nic.update_sa(vm, handle, 1 << 40, bed.now), unknown);
                    assert_eq!(nic.delete_sa(vm, handle), unknown);
                    assert!(!nic.offload_ok(vm, handle, &text[14..]));
                }
            }
            // Associations go between adapter and software, with what is on its way.
            6 => {
                let moving = &moving[vm.0 as usize - 1];
                let handle = moving[random.below(2)];
                let host = &mut bed.nodes[1].host;
                match host.placement(vm, handle) {
                    Some(Placement::Offloaded { .. }) => host.withdraw(vm, handle),
                    _ => assert!(host.offload(vm, handle)),
                }
            }
            // Garbage with somebody's SPI, or a captured packet with another address, VLAN,
            // SPI or a flipped bit.
            _ => {
                let Some(captured) = wire.get(random.below(wire.len().max(1))) else {
                    continue;
                };
                let mut forged = captured.clone();
                let data = forged.data_mut();
                match random.below(5) {
                    0 => data[..6].copy_from_slice(&mac(from as u8, other).0),
                    1 if data.len() > 38 => {
                        let spi = spi(1 - from as u8, other, random.below(4) as u32);
                        data[34..38].copy_from_slice(&spi.get().to_be_bytes());
                    }
                    2 => data[random.below(data.len())] ^= 1 << random.below(8),
                    3 => {
                        let tagged = tagged(data, random.below(4095) as u16);
                        forged = sendable(&tagged);
                    }
                    _ => {}
                }
                bed.nodes[from].host.nic().receive([forged]);
            }
        }
        if step % 16 == 0 {
            bed.step();
            let kept = bed.monitor.kept.as_mut().unwrap();
            if kept.len() > 500 {
                wire = core::mem::take(kept);
            }
        }
        if step % 4096 == 0 {
            bed.nodes[1].host.reap_sas();
        }
        if step % 64 == 0 {
            for (at, node) in bed.nodes.iter_mut().enumerate() {
                for vm in &vms {
                    for packet in node.received(*vm) {
                        received += 1;
                        let data = packet.data();
                        assert_eq!(owner_of(data), Some(vm.0), "plain text of another machine");
                        assert_eq!(data[..6], mac(at as u8, *vm).0);
                    }
                }
            }
        }
    }
    assert!(received > steps / 10, "{received} of {steps}");
    assert_eq!(bed.monitor.clear, 0, "clear text on the wire");
    assert_eq!(bed.monitor.repeated, 0, "a number twice");
    let nic = Arc::clone(bed.nodes[0].host.nic());
    assert_eq!(
        nic.usage().ipsec_sas.used,
        machines * per_machine.max(2) / 2 * 2
    );
}
