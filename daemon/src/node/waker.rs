//! Waking a thread that sleeps, at no cost while it does not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};

/// Wakes one thread that polls a descriptor, from any other.
///
/// The sleeper says so before it looks a last time whether there is something to do; who gives
/// it something looks afterwards whether it sleeps. One of both sees the other.
#[derive(Debug)]
pub struct Waker {
    event: OwnedFd,
    asleep: AtomicBool,
}

impl Waker {
    /// A waker of a thread that is awake.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            asleep: AtomicBool::new(false),
        })
    }

    /// Wakes the sleeper, if it sleeps or is about to.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // It can only fail when it is full, and then it is readable.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Says that the sleeper is about to sleep, or has woken. Between the two it looks once
    /// more whether there is something to do.
    pub fn set_asleep(&self, asleep: bool) {
        self.asleep.store(asleep, Ordering::Relaxed);
        if asleep {
            fence(Ordering::SeqCst);
        } else {
            // Nothing to read if nobody has woken it.
            let _ = rustix::io::read(&self.event, &mut [0_u8; 8]);
        }
    }
}

impl AsFd for Waker {
    /// Becomes readable when the sleeper is woken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
