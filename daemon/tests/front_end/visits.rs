//! Visits to a port, as a worker makes them.

use std::time::{Duration, Instant};

use vesper_daemon::port::vhost_user::VhostUser;
use vesper_daemon::port::{Incoming, Pool, Port};
use vesper_esp::PacketBuf;
use vesper_sa::Timestamp;

pub const NOW: Timestamp = Timestamp::ZERO;

/// What one visit may take at most, whatever the guest does. The promise is 100 ms; this is
/// for a busy machine.
const VISIT: Duration = Duration::from_millis(100);

pub fn pool() -> Pool {
    Pool::new(512, 9018)
}

pub fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|index| index as u8).collect()
}

pub fn receive(port: &mut VhostUser, pool: &mut Pool) -> Vec<PacketBuf> {
    let mut frames: Vec<Incoming> = Vec::new();
    let start = Instant::now();
    port.receive(NOW, pool, 64, &mut frames);
    assert!(start.elapsed() < VISIT, "{:?}", start.elapsed());
    frames.into_iter().map(|incoming| incoming.frame).collect()
}

pub fn send(port: &mut VhostUser, pool: &mut Pool, frames: &[&[u8]]) -> usize {
    let mut frames: Vec<_> = frames.iter().filter_map(|f| pool.copy(f)).collect();
    let start = Instant::now();
    port.send(NOW, pool, &mut frames);
    assert!(start.elapsed() < VISIT, "{:?}", start.elapsed());
    let left = frames.len();
    frames.drain(..).for_each(|frame| pool.give(frame));
    left
}

/// Waits for the session's thread.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
