//! A working vswitch datapath: two adapters back to back, a machine on each, and ESP between
//! them. Run it with `cargo run --release -p vesper-offload --example vswitch`.

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;

use etherparse::PacketBuilder;
use vesper_esp::aead::Cipher;
use vesper_esp::{EspSa, PacketBuf, Suite, association};
use vesper_offload::{
    HEADROOM, Host, MacAddress, Nic, OffloadMode, OffloadWish, Profile, Rewrite, SwitchLimits,
    VmAddress, VmSettings,
};
use vesper_sa::{
    Action, Direction, Mode, Policy, Protection, SaParams, Selector, Spd, Spi, Timestamp, VmId,
};

/// One host with one machine: what differs between the two ends.
struct End {
    vm: VmId,
    mac: MacAddress,
    ip: [u8; 4],
    tunnel: IpAddr,
    gateway: MacAddress,
    spi: Spi,
}

/// The association from one end to the other; in reality the key comes from IKE.
fn sa(from: &End, to: &End, direction: Direction, key: &[u8]) -> Result<EspSa, Box<dyn Error>> {
    let mut params = SaParams::new(to.spi, direction, Mode::Tunnel, from.tunnel, to.tunnel);
    params.owner = if direction == Direction::Inbound {
        to.vm
    } else {
        from.vm
    };
    params.reqid = 1;
    let suite = Suite::by_name("aes256gcm16").ok_or("no such suite")?;
    Ok(association(
        params,
        Cipher::new(suite, key, &[])?,
        Timestamp::ZERO,
    )?)
}

/// An adapter with its host, the machine, its policy and both of its associations.
fn set_up(here: &End, there: &End, keys: [&[u8]; 2]) -> Result<Host<PacketBuf>, Box<dyn Error>> {
    let nic = Arc::new(Nic::new(Profile::full()));
    let mut host = Host::new(nic, SwitchLimits::default());
    let address = VmAddress {
        mac: here.mac,
        vlan: None,
    };
    let admission = host.add_machine(here.vm, address, VmSettings::default())?;
    assert!(admission.fallbacks.is_empty());

    let protect = Action::Protect(Protection {
        reqid: 1,
        tunnel: Some(there.tunnel),
    });
    let policy = |direction| Policy {
        direction,
        selector: Selector::default(),
        action: protect,
    };
    let policies = vec![policy(Direction::Outbound), policy(Direction::Inbound)];
    host.set_policies(here.vm, Some(Spd::new(policies)));

    let wish = |destination, source| OffloadWish {
        modes: vec![OffloadMode::Packet, OffloadMode::Crypto],
        rewrite: Some(Rewrite {
            destination,
            source,
        }),
        ..OffloadWish::default()
    };
    let outbound = sa(here, there, Direction::Outbound, keys[0])?;
    host.add_sa(outbound.into(), wish(there.gateway, here.gateway))?;
    let inbound = sa(there, here, Direction::Inbound, keys[1])?;
    host.add_sa(inbound.into(), wish(here.mac, here.gateway))?;
    let buffers = (0..512).map(|_| PacketBuf::with_room(&[0; 2048], 0, 0));
    host.post_buffers(here.vm, buffers)?;
    Ok(host)
}

fn main() -> Result<(), Box<dyn Error>> {
    let end = |number: u8| -> Result<End, Box<dyn Error>> {
        Ok(End {
            vm: VmId(7),
            mac: MacAddress([2, 0, 0, 0, number, 7]),
            ip: [10, 0, number, 7],
            tunnel: [192, 0, 2, number].into(),
            gateway: MacAddress([2, 0, 0, 0, number, 1]),
            spi: Spi::new(0x1000 + u32::from(number)).ok_or("reserved")?,
        })
    };
    let (a, b) = (end(1)?, end(2)?);
    let (there, back) = ([1; 36], [2; 36]);
    let mut hosts = [
        set_up(&a, &b, [&there, &back])?,
        set_up(&b, &a, [&back, &there])?,
    ];

    let mut frame = Vec::new();
    PacketBuilder::ethernet2(a.mac.0, b.mac.0)
        .ipv4(a.ip, b.ip, 64)
        .udp(1000, 2000)
        .write(&mut frame, &[0xa5; 1000])?;
    let (mut wire, mut received) = (Vec::new(), Vec::new());
    for round in 0..=100_u64 {
        let now = Timestamp::from_nanos(round * 100_000);
        let sent = if round < 100 { 32 } else { 0 };
        let mut burst: Vec<_> = (0..sent)
            .map(|_| PacketBuf::with_room(&frame, HEADROOM, 64))
            .collect();
        hosts[0].send(a.vm, &mut burst)?;
        for (from, to) in [(0, 1), (1, 0)] {
            hosts[from].run(now, 256); // the software switch
            for processor in 0..hosts[from].nic().processors() {
                hosts[from].nic().run_processor(processor, now, 256); // the adapter
            }
            hosts[from].nic().take_transmitted(&mut wire, usize::MAX);
            hosts[to].nic().receive(wire.drain(..)); // the cable
        }
        hosts[1].take_received(b.vm, &mut received)?;
        hosts[1].post_buffers(
            b.vm,
            received
                .drain(..)
                .map(|_| PacketBuf::with_room(&[0; 2048], 0, 0)),
        )?;
    }
    let sent = hosts[0].nic().vm_counters(a.vm).ok_or("no machine")?;
    let got = hosts[1].machine_counters(b.vm).ok_or("no machine")?;
    println!(
        "{} sealed by the adapter, {} received, {} copies",
        sent.sealed, got.received, got.copies
    );
    Ok(())
}
