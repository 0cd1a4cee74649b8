//! The vhost-user port against a front-end that does what a guest should do, and one that does
//! what it should not (`reliability.md` rows 20 to 24: header out of range, surplus
//! descriptors, impossible indices, loops, geometry).

mod front_end;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use front_end::{
    BUFFERS, Directory, FrontEnd, GUEST, INDIRECT, MEMORY, NEXT, SIZE, USER, WRITE, feature, open,
    options,
};
use vesper_daemon::port::vhost_user::{Role, VhostUser};
use vesper_daemon::port::{Incoming, Pool, Port};
use vesper_esp::{Buffer, PacketBuf};
use vesper_sa::Timestamp;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};

const NOW: Timestamp = Timestamp::ZERO;

/// What one visit may take at most, whatever the guest does. The promise is 100 ms; this is
/// for a busy machine.
const VISIT: Duration = Duration::from_millis(100);

fn pool() -> Pool {
    Pool::new(512, 9018)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|index| index as u8).collect()
}

fn receive(port: &mut VhostUser, pool: &mut Pool) -> Vec<PacketBuf> {
    let mut frames: Vec<Incoming> = Vec::new();
    let start = Instant::now();
    port.receive(NOW, pool, 64, &mut frames);
    assert!(start.elapsed() < VISIT, "{:?}", start.elapsed());
    frames.into_iter().map(|incoming| incoming.frame).collect()
}

fn send(port: &mut VhostUser, pool: &mut Pool, frames: &[&[u8]]) -> usize {
    let mut frames: Vec<_> = frames.iter().filter_map(|f| pool.copy(f)).collect();
    let start = Instant::now();
    port.send(NOW, pool, &mut frames);
    assert!(start.elapsed() < VISIT, "{:?}", start.elapsed());
    let left = frames.len();
    frames.drain(..).for_each(|frame| pool.give(frame));
    left
}

/// Waits for the session's thread.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

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

/// One way to break the rules on the ring, and whether it ends the use of the ring.
type Trick = (&'static str, fn(&mut FrontEnd, usize), bool);

const TRICKS: &[Trick] = &[
    ("index far ahead", |g, r| g.set_available(r, SIZE + 1), true),
    ("index behind", |g, r| g.set_available(r, u16::MAX), true),
    ("head beyond the table", |g, r| g.offer(r, SIZE), false),
    ("head 65535", |g, r| g.offer(r, u16::MAX), false),
    (
        "chain that is a loop",
        |g, r| {
            g.descriptor(r, 0, BUFFERS, 64, NEXT | write(r), 1);
            g.descriptor(r, 1, BUFFERS, 64, NEXT | write(r), 0);
            g.offer(r, 0);
        },
        false,
    ),
    (
        "next beyond the table",
        |g, r| {
            g.descriptor(r, 0, BUFFERS, 64, NEXT | write(r), SIZE);
            g.offer(r, 0);
        },
        false,
    ),
    ("length 0", |g, r| part(g, r, BUFFERS, 0), false),
    ("length 2^32-1", |g, r| part(g, r, BUFFERS, u32::MAX), false),
    (
        "address beyond the memory",
        |g, r| part(g, r, GUEST + MEMORY as u64, 2048),
        false,
    ),
    (
        "end beyond the memory",
        |g, r| part(g, r, GUEST + MEMORY as u64 - 40, 2048),
        false,
    ),
    ("address 2^64-1", |g, r| part(g, r, u64::MAX, 2048), false),
    (
        "wrong direction",
        |g, r| {
            g.descriptor(r, 0, BUFFERS, 2048, WRITE ^ write(r), 0);
            g.offer(r, 0);
        },
        false,
    ),
    (
        "indirect in indirect",
        |g, r| {
            g.descriptor_at(BUFFERS - GUEST, BUFFERS, 16, INDIRECT, 0);
            g.descriptor(r, 0, BUFFERS, 16, INDIRECT, 0);
            g.offer(r, 0);
        },
        false,
    ),
    (
        "indirect with a next",
        |g, r| {
            g.descriptor_at(BUFFERS - GUEST, BUFFERS, 2048, write(r), 0);
            g.descriptor(r, 0, BUFFERS, 16, INDIRECT | NEXT, 1);
            g.offer(r, 0);
        },
        false,
    ),
    ("indirect, empty", |g, r| indirect(g, r, BUFFERS, 0), false),
    (
        "indirect, odd length",
        |g, r| indirect(g, r, BUFFERS, 17),
        false,
    ),
    (
        "indirect, longer than a chain may be",
        |g, r| indirect(g, r, BUFFERS, (u32::from(SIZE) + 1) * 16),
        false,
    ),
    (
        "indirect, length 2^32-16",
        |g, r| indirect(g, r, BUFFERS, u32::MAX - 15),
        false,
    ),
    ("indirect, nowhere", |g, r| indirect(g, r, 0, 64), false),
    (
        "indirect at the end of the address space",
        |g, r| indirect(g, r, u64::MAX - 7, 64),
        false,
    ),
    (
        "indirect loop",
        |g, r| {
            g.descriptor_at(BUFFERS - GUEST, BUFFERS, 8, NEXT | write(r), 1);
            g.descriptor_at(BUFFERS - GUEST + 16, BUFFERS, 8, NEXT | write(r), 0);
            indirect(g, r, BUFFERS, 32);
        },
        false,
    ),
    (
        "indirect, next beyond it",
        |g, r| {
            g.descriptor_at(BUFFERS - GUEST, BUFFERS, 8, NEXT | write(r), 2);
            indirect(g, r, BUFFERS, 32);
        },
        false,
    ),
];

fn write(ring: usize) -> u16 {
    if ring.is_multiple_of(2) { WRITE } else { 0 }
}

fn part(guest: &mut FrontEnd, ring: usize, at: u64, len: u32) {
    guest.descriptor(ring, 0, at, len, write(ring), 0);
    guest.offer(ring, 0);
}

fn indirect(guest: &mut FrontEnd, ring: usize, at: u64, len: u32) {
    guest.descriptor(ring, 0, at, len, INDIRECT, 0);
    guest.offer(ring, 0);
}

#[test]
fn no_trick_on_a_ring_hurts_more_than_the_trickster() {
    let directory = Directory::new("tricks");
    let sockets = [directory.0.join("bad"), directory.0.join("good")];
    let mut port = open(&sockets[0], 1);
    let (mut other, mut pool) = (open(&sockets[1], 1), pool());
    let mut guest = FrontEnd::connect(&sockets[0], feature::USUAL);
    let mut neighbour = FrontEnd::connect(&sockets[1], feature::USUAL);
    for (name, trick, breaks) in TRICKS {
        for ring in [0, 1] {
            let (malformed, used) = (port.status().malformed, guest.used(ring));
            trick(&mut guest, ring);
            assert!(receive(&mut port, &mut pool).is_empty(), "{name}");
            let waits = send(&mut port, &mut pool, &[&frame(60)]);
            neighbour.transmit(&[0; 12], &frame(60));
            assert_eq!(receive(&mut other, &mut pool).len(), 1, "{name}");
            assert_eq!(port.status().malformed, malformed + 1, "{name} on {ring}");
            let given_back = guest.used(ring).wrapping_sub(used);
            assert_eq!(given_back, u16::from(!breaks), "{name} on {ring}");
            // For want of a good buffer.
            assert!(waits <= 1);

            guest.protocol.get_vring_base(ring).unwrap();
            guest.start(ring);
            // And it works again.
            guest.transmit(&[0; 12], &frame(64));
            let received = receive(&mut port, &mut pool);
            assert_eq!(received[0].data(), frame(64), "after {name}");
            guest.post(2048);
            assert_eq!(send(&mut port, &mut pool, &[&frame(60)]), 0);
            received.into_iter().for_each(|frame| pool.give(frame));
            guest.protocol.get_vring_base(1 - ring).unwrap();
            guest.start(1 - ring);
        }
    }
}

#[test]
fn headers_out_of_range_are_refused() {
    let directory = Directory::new("headers");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    let len = 100u16;
    let edges = [0, 1, len - 1, len, len + 1, 65535];
    let mut seen = 0;
    for flags in [0, 1, 0xff] {
        for gso in [0, 1, 3, 4, 5, 0x81, 0xff] {
            for (size, start) in edges.iter().flat_map(|a| edges.map(|b| (*a, b))) {
                for offset in edges {
                    let mut header = [0; 12];
                    (header[0], header[1]) = (flags, gso);
                    header[2..4].copy_from_slice(&offset.to_le_bytes());
                    header[4..6].copy_from_slice(&size.to_le_bytes());
                    header[6..8].copy_from_slice(&start.to_le_bytes());
                    header[8..10].copy_from_slice(&offset.to_le_bytes());
                    guest.transmit(&header, &frame(len.into()));
                    let before = port.status();
                    let received = receive(&mut port, &mut pool);
                    let malformed = port.status().malformed - before.malformed;
                    assert_eq!(received.len() as u64 + malformed, 1);
                    // The frame is no TCP packet: nothing large comes of it.
                    assert!(received.is_empty() || gso & 0x7f == 0);
                    received.into_iter().for_each(|frame| pool.give(frame));
                    seen += 1;
                    assert_eq!(guest.used(1), seen);
                }
            }
        }
    }
    // Shorter than a header, than an Ethernet header; longer than any frame.
    for (total, good) in [(11, 0), (12, 0), (25, 0), (26, 1), (9030, 1), (9031, 0)] {
        guest.descriptor(1, 0, BUFFERS, total, 0, 0);
        guest.poke(BUFFERS - GUEST, &[0; 12]);
        guest.offer(1, 0);
        let received = receive(&mut port, &mut pool);
        assert_eq!(received.len(), good, "{total}");
        received.into_iter().for_each(|frame| pool.give(frame));
    }
    assert_eq!(pool.free(), 512);
}

#[test]
fn rings_of_random_bytes_end_in_bounded_time() {
    let directory = Directory::new("random");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..3000 {
        let ring = random() % 2 * 0x1_0000;
        for _ in 0..16 {
            let index = random() % 16;
            // Mostly near what could be right, so that more than the first check is reached.
            let at = [BUFFERS, BUFFERS + random() % 4096, random()][(random() % 3) as usize];
            let len = [64, random() as u32 % 4096, random() as u32][(random() % 3) as usize];
            let next = random() as u16 % 20;
            let flags = random() as u16 % 8;
            guest.descriptor_at(ring + index * 16, at, len, flags, next);
            guest.descriptor_at(BUFFERS - GUEST + index * 16, at, len, flags, next);
            let slot = random() % u64::from(SIZE);
            guest.poke(ring + 0x4004 + slot * 2, &(index as u16).to_le_bytes());
        }
        for ring in [0, 1] {
            let step = if random() % 64 == 0 {
                random() as u16
            } else {
                5
            };
            let index = guest.used(ring).wrapping_add(step);
            guest.set_available(ring, index);
        }
        for frame in receive(&mut port, &mut pool) {
            pool.give(frame);
        }
        send(&mut port, &mut pool, &[&frame(60), &frame(3000)]);
        port.prepare_sleep(random() % 2 == 0);
        if random() % 64 == 0 {
            for ring in [0, 1] {
                guest.protocol.get_vring_base(ring).unwrap();
                guest.start(ring);
            }
        }
    }
    assert_eq!(pool.free(), 512);
}

#[test]
fn memory_may_go_at_any_time() {
    let directory = Directory::new("memory");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    for _ in 0..100 {
        guest.transmit(&[0; 12], &frame(60));
        guest.post(2048);
        guest.protocol.remove_mem_region(&guest.region).unwrap();
        assert!(receive(&mut port, &mut pool).is_empty());
        assert_eq!(send(&mut port, &mut pool, &[&frame(60)]), 1);
        guest.protocol.add_mem_region(&guest.region).unwrap();
        assert_eq!(receive(&mut port, &mut pool).len(), 1);
        pool = self::pool();
        assert_eq!(send(&mut port, &mut pool, &[&frame(60)]), 0);
    }
    // A region that is not where the rings are.
    let elsewhere = vhost::VhostUserMemoryRegionInfo {
        userspace_addr: USER + (1 << 40),
        ..guest.region
    };
    guest.protocol.set_mem_table(&[elsewhere]).unwrap();
    assert!(receive(&mut port, &mut pool).is_empty());
}

#[test]
fn memory_may_go_while_the_rings_are_polled() {
    let directory = Directory::new("flight");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let mut guest = FrontEnd::connect(&socket, feature::USUAL);
    let stop = AtomicBool::new(false);
    let mut sent = 0;
    let received = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let (mut frames, mut answers) = (Vec::new(), Vec::new());
            let mut received = 0;
            while !stop.load(Ordering::Relaxed) {
                received += port.receive(NOW, &mut pool, 64, &mut frames);
                for incoming in frames.drain(..) {
                    assert_eq!(incoming.frame.data(), frame(60));
                    pool.give(incoming.frame);
                }
                answers.extend(pool.copy(&frame(3000)));
                port.send(NOW, &mut pool, &mut answers);
                answers.drain(..).for_each(|frame| pool.give(frame));
                port.prepare_sleep(true);
            }
            received
        });
        for turn in 0..500 {
            while guest.outstanding(1) < SIZE / 2 {
                guest.transmit(&[0; 12], &frame(60));
                sent += 1;
            }
            while guest.outstanding(0) < SIZE / 2 {
                guest.post(2048);
            }
            if turn % 2 == 0 {
                guest.protocol.remove_mem_region(&guest.region).unwrap();
                guest.protocol.add_mem_region(&guest.region).unwrap();
            } else {
                guest.protocol.set_mem_table(&[guest.region]).unwrap();
            }
        }
        eventually("all is taken in the end", || guest.outstanding(1) == 0);
        stop.store(true, Ordering::Relaxed);
        worker.join().unwrap()
    });
    assert_eq!((received, port.status().malformed), (sent, 0));
    assert_eq!(pool.free(), 512);
}

#[test]
fn impossible_geometry_ends_the_connection() {
    let directory = Directory::new("geometry");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), pool());
    let config = VringConfigData {
        queue_max_size: SIZE,
        queue_size: SIZE,
        flags: 0,
        desc_table_addr: USER,
        avail_ring_addr: USER + 0x4000,
        used_ring_addr: USER + 0x8000,
        log_addr: None,
    };
    let refused: &[fn(&mut FrontEnd) -> bool] = &[
        |g| g.protocol.set_vring_num(0, 0).is_err(),
        |g| g.protocol.set_vring_num(0, 100).is_err(),
        |g| g.protocol.set_features(u64::MAX).is_err(),
        |g| {
            let short = vhost::VhostUserMemoryRegionInfo {
                memory_size: MEMORY as u64 + 4096,
                ..g.region
            };
            g.protocol.set_mem_table(&[short]).is_err()
        },
        |g| g.protocol.set_mem_table(&[g.region, g.region]).is_err(),
    ];
    for trick in refused {
        let mut guest = FrontEnd::connect(&socket, feature::USUAL);
        guest.protocol.get_vring_base(0).unwrap();
        assert!(trick(&mut guest));
        eventually("the connection is closed", || {
            receive(&mut port, &mut pool);
            !port.status().up
        });
    }
    // Rings outside of the memory, or not aligned: they rest.
    for (descriptors, available, used) in [
        (USER + MEMORY as u64 - 64, USER + 0x4000, USER + 0x8000),
        (USER + 8, USER + 0x4000, USER + 0x8000),
        (USER, USER + 0x4001, USER + 0x8000),
        (USER, USER + 0x4000, USER + 0x8002),
        (USER, USER + 0x4000, u64::MAX),
        (0, 0, 0),
    ] {
        let mut guest = FrontEnd::connect(&socket, feature::USUAL);
        let config = VringConfigData {
            desc_table_addr: descriptors,
            avail_ring_addr: available,
            used_ring_addr: used,
            ..config
        };
        // The protocol itself refuses those that are not aligned.
        let _ = guest.protocol.set_vring_addr(1, &config);
        guest.transmit(&[0; 12], &frame(60));
        assert!(receive(&mut port, &mut pool).is_empty());
    }
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
