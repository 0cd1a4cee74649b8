//! The vhost-user port against a guest that does what it should not (`reliability.md` rows 20 to
//! 24: header out of range, surplus descriptors, impossible indices, loops, geometry).

mod front_end;

use std::sync::atomic::{AtomicBool, Ordering};

use front_end::visits::{NOW, eventually, frame, pool, receive, send};
use front_end::{
    BUFFERS, Directory, FrontEnd, GUEST, INDIRECT, MEMORY, NEXT, SIZE, USER, WRITE, feature, open,
};
use vesper_daemon::port::Port;
use vesper_esp::Buffer;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};

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
