//! What the service manager hears: that the daemon is ready, alive, and how it is.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service manager, if there is one: without it nothing happens.
#[derive(Debug, Default)]
pub struct ServiceManager;

impl ServiceManager {
    /// Everything is in force.
    pub fn ready(&self) {
        notify(&[NotifyState::Ready]);
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, now]);
        }
    }

    /// The daemon ends.
    pub fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }

    /// A line for `systemctl status`.
    pub fn status(&self, text: &str) {
        notify(&[NotifyState::Status(text)]);
    }

    /// The daemon is alive; to be said at least as often as [`interval`](Self::interval).
    pub fn alive(&self) {
        notify(&[NotifyState::Watchdog]);
    }

    /// How often the service manager wants to hear that the daemon is alive; `None`: never.
    pub fn interval(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // A manager that does not listen is not the daemon's concern.
    let _ = sd_notify::notify(states);
}
