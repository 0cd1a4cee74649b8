//! Ten thousand front-ends come and go, some in the middle of a message, some with descriptors
//! that nobody asked for: descriptors and memory are back where they were. A process of its
//! own, so that nothing else counts.

mod front_end;

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use front_end::{Directory, FrontEnd, feature, open};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vesper_daemon::port::vhost_user::VhostUser;
use vesper_daemon::port::{Pool, Port};
use vesper_sa::Timestamp;

const NOW: Timestamp = Timestamp::ZERO;

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|index| index as u8).collect()
}

#[test]
fn front_ends_come_and_go_and_leave_nothing() {
    let directory = Directory::new("cycles");
    let socket = directory.0.join("vm");
    let (mut port, mut pool) = (open(&socket, 1), Pool::new(512, 9018));
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages = status.split(' ').nth(1).unwrap();
        pages.parse::<i64>().unwrap() * 4
    };
    let cycles = |count: usize, port: &mut VhostUser, pool: &mut Pool| {
        let mut frames = Vec::new();
        for cycle in 0..count {
            if cycle % 10 > 0 {
                // Says nothing, or half a message.
                let stream = UnixStream::connect(&socket).unwrap();
                let said = &[1, 0, 0, 0, 1][..cycle % 6];
                let _ = rustix::io::write(&stream, said);
                continue;
            }
            let mut guest = FrontEnd::connect(&socket, feature::USUAL);
            guest.transmit(&[0; 12], &frame(60));
            port.receive(NOW, pool, 64, &mut frames);
            frames
                .drain(..)
                .for_each(|incoming| pool.give(incoming.frame));
        }
        eventually("all front-ends are gone", || {
            port.receive(NOW, pool, 64, &mut frames);
            !port.status().up
        });
    };
    cycles(500, &mut port, &mut pool);
    let (descriptors, before) = (open_descriptors(), memory());
    cycles(10_000, &mut port, &mut pool);
    // The session may not have let go of the last one yet, then or now.
    eventually("descriptors are back", || open_descriptors() <= descriptors);
    assert!(memory() - before < 1 << 10, "{} KiB", memory() - before);
    surplus_descriptors_are_closed(&socket);
    assert_eq!(pool.free(), 512);
}

fn surplus_descriptors_are_closed(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let before = open_descriptors();
    let fds = [file.as_fd(); 8];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    for _ in 0..10_000 {
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        // SET_VRING_ERR of ring 0 without a descriptor (bit 8): it has eight all the same.
        let mut message = Vec::new();
        for word in [14u32, 1, 8, 0x100, 0] {
            message.extend(word.to_le_bytes());
        }
        let message = [IoSlice::new(&message)];
        // Whoever sends such a message may be hung up on, and comes again.
        if sendmsg(&stream, &message, &mut control, SendFlags::NOSIGNAL).is_err() {
            stream = UnixStream::connect(socket).unwrap();
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            sendmsg(&stream, &message, &mut control, SendFlags::NOSIGNAL).unwrap();
        }
    }
    drop(stream);
    eventually("descriptors are closed", || open_descriptors() < before);
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Waits for the session's thread.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
