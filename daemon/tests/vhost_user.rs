//! The vhost-user port against a front-end that does what a guest should do.

mod front_end;

use front_end::visits::{eventually, frame, pool, receive, send};
use front_end::{
    BUFFERS, Directory, FrontEnd, GUEST, INDIRECT, NEXT, SIZE, feature, open, options,
};
use vesper_daemon::port::vhost_user::{Role, VhostUser};
use vesper_daemon::port::{Pool, Port};
use vesper_esp::Buffer;
use vhost::vhost_user::VhostUserFrontend;

#[test]
fn frames_pass_both_ways() {
    let directory = Directory::new("passes");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    // A round more than the ring has entries.
    for round in 0..=u16::MAX / 512 {
        for len in [14, 60, 1500] {
            guest.transmit(&[0; 12], &frame(len));
        }
        let received = receive(&mut port, &mut pool);
        let lengths: Vec<_> = received.iter().map(|frame| frame.data().len()).collect();
        assert_eq!(lengths, [14, 60, 1500]);
        assert!(received.iter().all(|f| f.data() == frame(f.data().len())));
        received.into_iter().for_each(|frame| pool.give(frame));
        assert_eq!(guest.used(1), (round + 1) * 3);
        guest.post(2048);
        assert_eq!(send(&mut port, &mut pool, &[&frame(700)]), 0);
        assert_eq!(guest.used_entry(0, round), (u32::from(round % SIZE), 712));
        let posted = guest.posted(round, 712);
        assert_eq!(posted[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(posted[12..], frame(700));
    }
    assert!(guest.calls[0].read().is_ok() && guest.calls[1].read().is_ok());
    let status = port.status();
    assert!(status.up);
    assert_eq!((status.malformed, status.dropped), (0, 0));
    assert_eq!(status.received_bytes, status.received / 3 * 1574);
}

/// QEMU enables rings before it sets the features.
/// Chains are looked at several at a time, and a visit may end anywhere among them.
#[test]
fn order_and_content_survive_visits_that_end_anywhere() {
    let directory = Directory::new("windows");
    let socket = directory.0.join("vm");
    let mut port = open(&socket, 1);
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    let numbered = |number: u16| {
        let mut bytes = frame(60 + usize::from(number) % 50);
        bytes[20..22].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    let (mut made, mut seen) = (0, 0);
    // More chains than one look takes, fewer buffers than chains, around the ring several times.
    for buffers in (1..80).step_by(7) {
        let mut pool = Pool::new(buffers, 9018);
        while guest.outstanding(1) < 100 {
            guest.transmit(&[0; 12], &numbered(made));
            made += 1;
        }
        let received = receive(&mut port, &mut pool);
        assert_eq!(received.len(), buffers.min(64));
        for buffer in received {
            assert_eq!(buffer.data(), numbered(seen));
            seen += 1;
        }
        assert_eq!(guest.outstanding(1), made - seen);
    }
    let (mut pool, mut sent) = (pool(), 0);
    for room in (1..80).step_by(7) {
        for _ in 0..room {
            guest.post(2048);
        }
        let frames: Vec<_> = (0..70).map(|more| numbered(sent + more)).collect();
        let frames: Vec<_> = frames.iter().map(|frame| &**frame).collect();
        assert_eq!(send(&mut port, &mut pool, &frames), 70 - room.min(70));
        for _ in 0..room.min(70) {
            let expected = numbered(sent);
            let written = guest.posted(sent, 12 + expected.len());
            assert_eq!(written[12..], expected);
            let (_, len) = guest.used_entry(0, sent);
            assert_eq!(len as usize, 12 + expected.len());
            sent += 1;
        }
        if room > 70 {
            return;
        }
    }
}

#[test]
fn a_ring_may_be_enabled_before_the_features_are_set() {
    let directory = Directory::new("early");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    for (ring, flags) in [(0u32, 1u32), (1, 9)] {
        let message = [18, flags, 8, ring, 1].map(u32::to_ne_bytes).concat();
        assert_eq!(rustix::io::write(&stream, &message), Ok(20));
    }
    let mut reply = [0; 20];
    assert_eq!(rustix::io::read(&stream, &mut reply), Ok(20));
    assert_eq!(reply, [18, 5, 8, 0, 0].map(u32::to_ne_bytes).concat()[..]);
    let mut guest = FrontEnd::over(stream, 1, feature::USUAL);
    guest.transmit(&[0; 12], &frame(60));
    assert_eq!(receive(&mut port, &mut pool).len(), 1);
}

#[test]
fn large_frames_spread_over_buffers_only_when_merging_was_agreed() {
    let directory = Directory::new("merges");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    for _ in 0..4 {
        guest.post(2048);
    }
    // 9,012 bytes need five buffers: it waits for the fifth.
    assert_eq!(send(&mut port, &mut pool, &[&frame(9000)]), 1);
    assert_eq!(guest.used(0), 0);
    guest.post(2048);
    assert_eq!(send(&mut port, &mut pool, &[&frame(9000)]), 0);
    assert_eq!(guest.used(0), 5);
    let posted: Vec<u8> = (0..5).flat_map(|n| guest.posted(n, 2048)).collect();
    assert_eq!((posted[10], posted[11]), (5, 0));
    assert_eq!(posted[12..9012], frame(9000));
    let lengths: Vec<_> = (0..5).map(|n| guest.used_entry(0, n).1).collect();
    assert_eq!(lengths, [2048, 2048, 2048, 2048, 820]);
    drop(guest);

    eventually("the front-end is gone", || {
        receive(&mut port, &mut pool);
        !port.status().up
    });
    let mut guest = FrontEnd::connect(&socket, feature::PROTOCOL | feature::VERSION_1);
    guest.post(1024);
    // Never fits: dropped, and the buffer is still good for the next one.
    let dropped = port.status().dropped;
    assert_eq!(send(&mut port, &mut pool, &[&frame(1013), &frame(1012)]), 0);
    assert_eq!(port.status().dropped, dropped + 1);
    assert_eq!(guest.used_entry(0, 0), (0, 1024));
    // Longer than the MTU.
    assert_eq!(send(&mut port, &mut pool, &[&frame(9019)]), 0);
    assert_eq!(pool.free(), 512);
}

#[test]
fn indirect_tables_and_split_headers_are_followed() {
    let directory = Directory::new("indirect");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    guest.poke(BUFFERS - GUEST + 12, &frame(100));
    let table = BUFFERS + 0x8000;
    guest.descriptor_at(table - GUEST, BUFFERS, 5, NEXT, 2);
    guest.descriptor_at(table - GUEST + 32, BUFFERS + 5, 50, NEXT, 1);
    guest.descriptor_at(table - GUEST + 16, BUFFERS + 55, 57, 0, 0);
    guest.descriptor(1, 7, table, 48, INDIRECT, 0);
    guest.offer(1, 7);
    let received = receive(&mut port, &mut pool);
    assert_eq!(received[0].data(), frame(100));
    assert_eq!(guest.used_entry(1, 0), (7, 0));
}

#[test]
fn a_guest_with_event_indices_is_told_and_tells_only_when_it_must() {
    let directory = Directory::new("events");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL | feature::EVENT_IDX);
    let used_event = 0x1_4004 + 2 * u64::from(SIZE);
    let avail_event = 0x1_8004 + 8 * u64::from(SIZE);
    // An interrupt after the third entry.
    guest.poke(used_event, &2u16.to_le_bytes());
    for told in [false, false, true, false] {
        guest.transmit(&[0; 12], &frame(60));
        assert_eq!(receive(&mut port, &mut pool).len(), 1);
        assert_eq!(guest.calls[1].read().is_ok(), told);
    }
    // Before it sleeps, the worker asks for a kick for the next entry; the kick wakes it.
    assert!(!port.prepare_sleep(true));
    assert_eq!(u16::from_le_bytes(guest.peek(avail_event)), 4);
    let readable = |port: &VhostUser| {
        let wake = port.wake().unwrap();
        let mut fds = [nix::poll::PollFd::new(wake, nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut fds, nix::poll::PollTimeout::ZERO).unwrap() == 1
    };
    assert!(!readable(&port));
    guest.kicks[1].write(1).unwrap();
    assert!(readable(&port));
    assert!(!port.prepare_sleep(false));
    assert!(!readable(&port));
    // What has come meanwhile keeps it awake.
    guest.transmit(&[0; 12], &frame(60));
    assert!(port.prepare_sleep(true));
}

#[test]
fn checksums_and_large_packets_are_finished() {
    let directory = Directory::new("offloads");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    let link = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
    let tcp = link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 77, 9);
    let mut right = Vec::new();
    tcp.write(&mut right, &[1; 1000]).unwrap();
    let mut left = right.clone();
    let pseudo = vesper_esp::wire::Checksum::new().bytes(&left[26..34]);
    let pseudo = !pseudo.word(6).word(1020).finish();
    left[50..52].copy_from_slice(&pseudo.to_be_bytes());
    guest.transmit(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0], &left);
    guest.transmit(&[1, 1, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0], &left);
    let received = receive(&mut port, &mut pool);
    assert_eq!(received.len(), 11);
    assert_eq!(received[0].data(), right);
    for (index, segment) in received[1..].iter().enumerate() {
        let headers = etherparse::PacketHeaders::from_ethernet_slice(segment.data()).unwrap();
        let tcp = headers.transport.unwrap().tcp().unwrap();
        assert_eq!(tcp.sequence_number as usize, 77 + index * 100);
        let Some(etherparse::NetHeaders::Ipv4(ip, _)) = headers.net else {
            panic!("no IPv4")
        };
        let sum = tcp.calc_checksum_ipv4(&ip, headers.payload.slice());
        assert_eq!(tcp.checksum, sum.unwrap());
    }
    // More segments than the worker takes at once: the rest comes later, nothing is lost.
    guest.transmit(&[1, 1, 54, 0, 10, 0, 34, 0, 16, 0, 0, 0], &left);
    let counts: Vec<_> = (0..3)
        .map(|_| receive(&mut port, &mut pool).len())
        .collect();
    assert_eq!(counts, [64, 36, 0]);
}

#[test]
fn a_client_finds_its_front_end_again() {
    let directory = Directory::new("client");
    let socket = directory.0.join("vm");
    let mut options = options(&socket, 2);
    options.role = Role::Client;
    let (mut port, mut pool) = (VhostUser::open(&options).unwrap(), pool());
    for _ in 0..3 {
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut guest = FrontEnd::over(stream, 2, feature::USUAL | 1 << 22);
        assert_eq!(guest.protocol.get_queue_num().unwrap(), 2);
        guest.transmit(&[0; 12], &frame(60));
        assert_eq!(receive(&mut port, &mut pool).len(), 1);
        drop((guest, listener));
        std::fs::remove_file(&socket).unwrap();
    }
}

#[test]
fn a_socket_is_for_its_owner_and_not_taken_from_another_process() {
    use std::os::unix::fs::PermissionsExt;
    let directory = Directory::new("socket");
    let socket = directory.0.join("vm");
    let port = open(&socket, 1);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let refused = VhostUser::open(&options(&socket, 1)).unwrap_err();
    assert!(refused.to_string().contains("another process"), "{refused}");
    drop(port);
    assert!(!socket.exists());
    // What a killed process leaves is replaced, anything else is not.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    drop(open(&socket, 1));
    std::fs::write(&socket, "mine").unwrap();
    assert!(VhostUser::open(&options(&socket, 1)).is_err());
    assert_eq!(std::fs::read(&socket).unwrap(), b"mine");
}
