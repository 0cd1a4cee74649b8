//! ESP packets that come in pieces are made whole before ESP looks at them (RFC 4303 section
//! 3.4.1), within bounds, on every path of a machine.

use etherparse::{Ipv4Header, Ipv4HeaderSlice};
use vesper_esp::{Buffer, PacketBuf, ReassemblyLimits};
use vesper_offload::{Loss, OffloadMode, Profile, VmSettings};
use vesper_sa::VmId;
use vesper_tests::Random;
use vesper_tests::bed::{Bed, SaPlan, frame, mac, sendable};

const VM: VmId = VmId(7);

/// Cuts an IPv4 frame into pieces with at most `size` bytes of payload, a multiple of 8.
fn pieces(frame: &[u8], identification: u16, size: usize) -> Vec<PacketBuf> {
    let (ethernet, packet) = frame.split_at(14);
    let slice = Ipv4HeaderSlice::from_slice(packet).unwrap();
    let payload = &packet[slice.slice().len()..];
    let count = payload.len().div_ceil(size);
    let chunks = payload.chunks(size).enumerate();
    chunks
        .map(|(index, chunk)| {
            let mut header: Ipv4Header = slice.to_header();
            header.identification = identification;
            header.dont_fragment = false;
            header.more_fragments = index + 1 < count;
            header.fragment_offset = ((index * size / 8) as u16).try_into().unwrap();
            header.set_payload_len(chunk.len()).unwrap();
            header.header_checksum = header.calc_header_checksum();
            let mut bytes = ethernet.to_vec();
            header.write(&mut bytes).unwrap();
            bytes.extend_from_slice(chunk);
            PacketBuf::with_room(&bytes, 128, 2048)
        })
        .collect()
}

/// What the machine of node 0 sends, as it is on the wire.
fn wire(bed: &mut Bed, count: usize) -> Vec<PacketBuf> {
    let node = &mut bed.nodes[0];
    for _ in 0..count {
        assert!(node.send(VM, sendable(&frame(0, VM, 1000))));
    }
    node.run(bed.now);
    let mut wire = Vec::new();
    node.host.nic().take_transmitted(&mut wire, usize::MAX);
    wire
}

#[test]
fn pieces_of_esp_packets_become_whole() {
    let modes: [&[OffloadMode]; 3] = [&[], &[OffloadMode::Crypto], &[OffloadMode::Packet]];
    for modes in modes {
        for (weight, functions) in [(0, None), (100, None), (100, Some(2))] {
            let mut bed = Bed::new(Profile::full(), functions);
            let settings = VmSettings {
                vmq_weight: weight,
                iov_weight: if functions.is_some() { 100 } else { 0 },
                ..VmSettings::default()
            };
            bed.add_pair(settings, &SaPlan::new(VM, modes));
            if functions.is_some() {
                bed.nodes[1].give_function(VM);
            }
            let mut random = Random::new(1);
            for (number, packet) in wire(&mut bed, 20).iter().enumerate() {
                let mut pieces = pieces(packet.data(), number as u16, 304);
                assert_eq!(pieces.len(), 4);
                // In any order.
                while !pieces.is_empty() {
                    let piece = pieces.swap_remove(random.below(pieces.len()));
                    bed.nodes[1].host.nic().receive([piece]);
                    bed.nodes[1].run(bed.now);
                }
            }
            bed.settle();
            let received = bed.nodes[1].received(VM);
            assert_eq!(received.len(), 20, "{modes:?} {weight} {functions:?}");
            for packet in received {
                assert_eq!(packet.data()[14..], frame(0, VM, 1000)[14..]);
            }
            assert_eq!(bed.nodes[1].host.reassembler().pending(), 0);
        }
    }
}

/// Pieces that never become whole occupy what they may and no more, and nothing gets lost that
/// is whole.
#[test]
fn pieces_are_bounded() {
    let mut bed = Bed::new(Profile::full(), None);
    bed.add_pair(VmSettings::default(), &SaPlan::new(VM, &[]));
    bed.nodes[1].host.set_reassembly_limits(ReassemblyLimits {
        datagrams: 8,
        ..ReassemblyLimits::default()
    });
    let packets = wire(&mut bed, 101);
    for (number, packet) in packets[..100].iter().enumerate() {
        let first = pieces(packet.data(), number as u16, 304).remove(0);
        bed.nodes[1].host.nic().receive([first]);
        bed.settle();
        assert!(bed.nodes[1].host.reassembler().pending() <= 8);
    }
    assert_eq!(bed.nodes[1].host.reassembler().given_up(), 92);
    bed.nodes[1].host.nic().receive([packets[100].clone()]);
    bed.settle();
    assert_eq!(bed.nodes[1].received(VM).len(), 1);

    // An overlap with other content throws the datagram away, counted.
    let mut two = pieces(packets[0].data(), 1000, 304);
    two.truncate(2);
    let mut other = two[1].clone();
    *other.data_mut().last_mut().unwrap() ^= 1;
    bed.nodes[1].host.nic().receive([two.remove(1), other]);
    bed.settle();
    assert_eq!(bed.nodes[1].host.losses().of(Loss::Fragment), 1);
}

/// Fragments are looked at closer than whole packets are, which do not overtake them for that:
/// neither to the wire nor to another machine of the host.
#[test]
fn whole_packets_do_not_overtake_fragments() {
    let (mut bed, other) = (Bed::new(Profile::full(), None), VmId(8));
    let node = &mut bed.nodes[0];
    for vm in [VM, other] {
        node.add(vm, VmSettings::default());
    }
    for is_local in [false, true] {
        let mut whole = frame(0, VM, 600);
        if is_local {
            whole[..6].copy_from_slice(&mac(0, other).0);
        }
        let mut frames = vec![sendable(&whole)];
        frames.extend(pieces(&whole, 1, 400));
        frames.push(sendable(&whole));
        let expected: Vec<_> = frames.iter().map(|sent| sent.data().to_vec()).collect();
        assert_eq!(node.host.send(VM, &mut frames), Ok(4));
        node.run(bed.now);
        let mut wire = Vec::new();
        node.host.nic().take_transmitted(&mut wire, usize::MAX);
        let arrived = match is_local {
            true => node.received(other),
            false => wire,
        };
        let arrived: Vec<_> = arrived.iter().map(|frame| frame.data().to_vec()).collect();
        assert_eq!(arrived, expected, "{is_local}");
    }
}
