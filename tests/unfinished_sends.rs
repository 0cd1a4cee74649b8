//! What a machine's driver leaves undone is done by whoever sees the packet in clear last:
//! large sends are cut and checksums computed, on every path of a machine and wherever its
//! associations are at work.

use etherparse::PacketBuilder;
use vesper_esp::Buffer;
use vesper_offload::{DataPath, HostSend, Loss, OffloadMode, Profile, Send, SendIpsec, VmSettings};
use vesper_sa::VmId;
use vesper_tests::bed::{Bed, MARK, SaPlan, empty, ip, mac, sendable};

const VM: VmId = VmId(7);

/// The wrong checksum that a driver leaves behind.
const UNDONE: [u8; 2] = [0x55, 0x55];

/// Which path the machines of a bed take.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Path {
    Synthetic,
    Queue,
    Function,
}

/// A bed whose machines take `path`, protected in `modes` if they are at all.
fn bed(profile: Profile, path: Path, modes: Option<&[OffloadMode]>) -> Bed {
    let functions = (path == Path::Function).then_some(2);
    let mut bed = Bed::new(profile, functions);
    let settings = VmSettings {
        vmq_weight: if path == Path::Synthetic { 0 } else { 100 },
        iov_weight: if path == Path::Function { 100 } else { 0 },
        ..VmSettings::default()
    };
    for node in &mut bed.nodes {
        node.add(VM, settings);
        if let Some(modes) = modes {
            node.protect(VM);
            node.add_sas(&SaPlan::new(VM, modes));
        }
        if path == Path::Function {
            node.give_function(VM);
        }
        let nic = node.host.nic();
        nic.post_segment_buffers((0..40).map(|_| empty()));
        let has_path = match node.host.data_path(VM) {
            Some(DataPath::Synthetic) => Path::Synthetic,
            Some(DataPath::Queue(_)) => Path::Queue,
            _ => Path::Function,
        };
        assert_eq!(has_path, path);
    }
    bed
}

/// A whole frame, TCP or UDP, from node 0 to node 1.
fn frame(v6: bool, tcp: bool, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(mac(0, VM).0, mac(1, VM).0);
    let ip = match v6 {
        false => ethernet.ipv4(ip(0, VM), ip(1, VM), 64),
        true => ethernet.ipv6([0xfd; 16], [0xfe; 16], 64),
    };
    let mut frame = Vec::new();
    match tcp {
        true => ip.tcp(1, 2, 1000, 500).write(&mut frame, payload),
        false => ip.udp(1, 2).write(&mut frame, payload),
    }
    .unwrap();
    frame
}

/// Where the checksum of [`frame`] is, and where its payload begins.
const fn offsets(v6: bool, tcp: bool) -> (usize, usize) {
    let upper = if v6 { 54 } else { 34 };
    if tcp {
        (upper + 16, upper + 20)
    } else {
        (upper + 6, upper + 8)
    }
}

fn send(bed: &mut Bed, frame: &[u8], segment_size: Option<u16>) {
    let host = &mut bed.nodes[0].host;
    let send = HostSend {
        frame: sendable(frame),
        segment_size,
        checksum: true,
    };
    match host.data_path(VM) {
        Some(DataPath::Function { vf, .. }) => {
            let mut sends = vec![Send {
                id: 1,
                frame: send.frame,
                ipsec: SendIpsec::Policy,
                segment_size,
                checksum: true,
            }];
            assert_eq!(host.nic().send_from_function(vf, &mut sends).accepted, 1);
        }
        _ => assert_eq!(host.send_frames(VM, &mut vec![send]), Ok(1)),
    }
}

/// Every way in which a machine can send: by path, and by who protects it.
fn ways() -> Vec<(Profile, Path, Option<&'static [OffloadMode]>)> {
    let modes: [Option<&[OffloadMode]>; 4] = [
        None,
        Some(&[]),
        Some(&[OffloadMode::Crypto]),
        Some(&[OffloadMode::Packet]),
    ];
    let mut ways = Vec::new();
    for path in [Path::Synthetic, Path::Queue, Path::Function] {
        for modes in modes {
            ways.push((Profile::full(), path, modes));
            let mut no_large_send = Profile::full();
            no_large_send.ipsec.large_send = false;
            ways.push((no_large_send, path, modes));
        }
    }
    ways
}

#[test]
fn large_sends_are_cut_on_every_path() {
    let payload: Vec<u8> = MARK.into_iter().cycle().take(20_000).collect();
    for (profile, path, modes) in ways() {
        for v6 in [false, true] {
            let way = (profile.ipsec.large_send, path, modes, v6);
            let mut bed = bed(profile.clone(), path, modes);
            let (checksum_at, payload_at) = offsets(v6, true);
            let mut large = frame(v6, true, &payload);
            large[checksum_at..checksum_at + 2].copy_from_slice(&UNDONE);
            send(&mut bed, &large, Some(1400));
            bed.settle();
            let seen = (bed.monitor.esp, bed.monitor.other);
            let expected = if modes.is_some() { (15, 0) } else { (0, 15) };
            assert_eq!(seen, expected, "{way:?}");
            assert_eq!(bed.monitor.clear > 0, modes.is_none(), "{way:?}");
            let mut stream = Vec::new();
            for segment in bed.nodes[1].received(VM) {
                let payload = &segment.data()[payload_at..];
                // The sequence number by hand, all else as etherparse would make it.
                let mut right = frame(v6, true, payload);
                let tcp = payload_at - 20;
                let sequence = 1000 + stream.len() as u32;
                right[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
                let sum = etherparse_checksum(&right, v6);
                right[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
                assert_eq!(segment.data()[tcp..], right[tcp..], "{way:?}");
                stream.extend_from_slice(payload);
            }
            assert!(stream == payload, "{way:?}: {} bytes", stream.len());
        }
    }
}

/// What etherparse says that the checksum of a TCP frame is to be.
fn etherparse_checksum(frame: &[u8], v6: bool) -> u16 {
    let (ip, upper) = etherparse::IpHeaders::from_slice(&frame[14..]).unwrap();
    let (tcp, payload) = etherparse::TcpHeader::from_slice(upper.payload).unwrap();
    match (ip, v6) {
        (etherparse::IpHeaders::Ipv4(ip, _), false) => tcp.calc_checksum_ipv4(&ip, payload),
        (etherparse::IpHeaders::Ipv6(ip, _), true) => tcp.calc_checksum_ipv6(&ip, payload),
        _ => panic!("the other version"),
    }
    .unwrap()
}

#[test]
fn checksums_are_computed_on_every_path() {
    let payload: Vec<u8> = MARK.into_iter().cycle().take(333).collect();
    for (profile, path, modes) in ways() {
        for (v6, tcp) in [(false, false), (false, true), (true, false), (true, true)] {
            let way = (path, modes, v6, tcp);
            let mut bed = bed(profile.clone(), path, modes);
            let right = frame(v6, tcp, &payload);
            let (at, _) = offsets(v6, tcp);
            let mut undone = right.clone();
            undone[at..at + 2].copy_from_slice(&UNDONE);
            send(&mut bed, &undone, None);
            bed.settle();
            assert_eq!(bed.monitor.clear > 0, modes.is_none(), "{way:?}");
            let received = bed.nodes[1].received(VM);
            assert_eq!(received.len(), 1, "{way:?}");
            assert_eq!(received[0].data()[14..], right[14..], "{way:?}");
        }
    }
}

/// Between machines of one host nothing passes the adapter: the switch gets finished frames.
#[test]
fn large_sends_are_cut_between_machines_of_a_host() {
    let mut bed = bed(Profile::full(), Path::Queue, None);
    let other = VmId(8);
    bed.nodes[0].add(other, VmSettings::default());
    let payload: Vec<u8> = MARK.into_iter().cycle().take(3_000).collect();
    let mut large = frame(false, true, &payload);
    large[..6].copy_from_slice(&mac(0, other).0);
    send(&mut bed, &large, Some(1400));
    bed.settle();
    let received = bed.nodes[0].received(other);
    let stream: Vec<u8> = received
        .iter()
        .flat_map(|segment| segment.data()[54..].to_vec())
        .collect();
    assert_eq!((received.len(), stream), (3, payload));
}

/// What the host has to finish is not overtaken by what needs nothing.
#[test]
fn finished_sends_do_not_overtake_others() {
    for (profile, path, modes) in ways() {
        if path == Path::Function {
            continue;
        }
        let way = (path, modes, profile.ipsec.large_send);
        let mut bed = bed(profile, path, modes);
        let send = |number: u8, len, segment_size, checksum| HostSend {
            frame: sendable(&frame(false, true, &vec![number; len])),
            segment_size,
            checksum,
        };
        let mut sends = vec![
            send(1, 100, None, false),
            send(2, 3_000, Some(1400), true),
            send(3, 100, None, false),
            send(4, 100, None, true),
            send(5, 100, None, false),
        ];
        assert_eq!(bed.nodes[0].host.send_frames(VM, &mut sends), Ok(5));
        bed.settle();
        let received = bed.nodes[1].received(VM);
        let numbers: Vec<_> = received.iter().map(|packet| packet.data()[54]).collect();
        assert_eq!(numbers, [1, 2, 2, 2, 3, 4, 5], "{way:?}");
    }
}

#[test]
fn a_large_send_without_buffers_is_counted_and_its_buffer_free() {
    let mut bed = Bed::new(Profile::full(), None);
    bed.add_pair(VmSettings::default(), &SaPlan::new(VM, &[]));
    send(&mut bed, &frame(false, true, &[0; 3_000]), Some(1400));
    bed.settle();
    assert_eq!((bed.monitor.esp, bed.monitor.other), (0, 0));
    let host = &bed.nodes[0].host;
    let losses = host.machine_counters(VM).unwrap().losses;
    assert_eq!((losses.of(Loss::LargeSend), losses.total()), (1, 1));
    let mut free = Vec::new();
    host.nic().take_recycled(&mut free);
    assert_eq!(free.len(), 1);
}

/// Only TCP is cut. A large UDP packet leaves neither whole nor in pieces, on no path; the reason
/// is counted, once, and its buffer is free again.
#[test]
fn a_large_udp_packet_is_refused_with_its_reason() {
    let payload: Vec<u8> = MARK.into_iter().cycle().take(3_000).collect();
    for (profile, path, modes) in ways() {
        for v6 in [false, true] {
            let way = (path, modes, v6);
            let mut bed = bed(profile.clone(), path, modes);
            send(&mut bed, &frame(v6, false, &payload), Some(1400));
            bed.settle();
            let on_wire = (bed.monitor.esp, bed.monitor.clear, bed.monitor.other);
            assert_eq!(on_wire, (0, 0, 0), "{way:?}");
            assert_eq!(bed.nodes[1].received(VM).len(), 0, "{way:?}");
            let host = &bed.nodes[0].host;
            let mut losses = host.machine_counters(VM).unwrap().losses;
            losses.merge(&host.nic().vm_counters(VM).unwrap().send_losses);
            let refused = (losses.of(Loss::LargeSend), losses.total());
            assert_eq!(refused, (1, 1), "{way:?}");
        }
    }
}
