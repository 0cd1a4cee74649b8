//! The state of a host's interface, looked at now and then.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use vesper_sa::Timestamp;

use super::PortStatus;
use super::sys::interface;

/// Between two looks. Each is three system calls.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// An interface of the host.
#[derive(Debug)]
pub(super) struct Link {
    name: String,
    socket: OwnedFd,
    looked: Option<Timestamp>,
}

impl Link {
    /// `socket` is any socket in the interface's network namespace.
    pub(super) fn new(name: &str, socket: OwnedFd) -> Self {
        Self {
            name: name.to_owned(),
            socket,
            looked: None,
        }
    }

    /// Looks at address, MTU and carrier.
    pub(super) fn look(&self, status: &mut PortStatus) -> io::Result<()> {
        let interface = interface(self.socket.as_fd(), &self.name)?;
        status.up = interface.running;
        status.mac = Some(interface.mac);
        status.mtu = interface.mtu;
        Ok(())
    }

    /// Looks again if the last look is a while ago. An interface that is gone is down.
    pub(super) fn follow(&mut self, now: Timestamp, status: &mut PortStatus) {
        if self.looked.is_some_and(|at| now.since(at) < LOOK_EVERY) {
            return;
        }
        self.looked = Some(now);
        let mac = status.mac;
        if self.look(status).is_err() {
            status.up = false;
        }
        if mac.is_none() {
            status.mac = None;
        }
    }
}
