//! The control side of a running node.

use std::fmt;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use vesper_esp::PacketBuf;
use vesper_offload::{Host, Nic};
use vesper_sa::Timestamp;

type Command = Box<dyn FnOnce(&mut Host<PacketBuf>, Timestamp) + Send>;

/// A running node, as control requests see it. Cheap to clone.
///
/// The adapter is shared and takes verbs from any thread; the host belongs to one worker, which
/// carries out what it is [asked](Self::call) between two batches.
#[derive(Clone)]
pub struct NodeHandle {
    name: Arc<str>,
    nic: Arc<Nic<PacketBuf>>,
    commands: Sender<Command>,
}

/// Where the worker that drives the host finds what it is asked to do.
pub struct HostCommands(Receiver<Command>);

/// The worker that drives the host has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl NodeHandle {
    /// A handle, and the end of it that the worker keeps.
    pub fn new(name: &str, nic: Arc<Nic<PacketBuf>>) -> (Self, HostCommands) {
        let (commands, receiver) = unbounded();
        let handle = Self {
            name: name.into(),
            nic,
            commands,
        };
        (handle, HostCommands(receiver))
    }

    /// The name of the node.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its adapter.
    pub const fn nic(&self) -> &Arc<Nic<PacketBuf>> {
        &self.nic
    }

    /// Has the host's worker do something between two batches, and waits for its answer. All
    /// of one call happens before the next packet: it is one epoch.
    ///
    /// The packets wait for it: keep it short, and prepare keys and tables before.
    pub fn call<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Host<PacketBuf>, Timestamp) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, answered) = bounded(1);
        let command: Command = Box::new(move |host, now| {
            // Nobody waits any more if the asker has ended.
            let _ = answer.send(ask(host, now));
        });
        self.commands.send(command).map_err(|_| Stopped)?;
        answered.recv().map_err(|_| Stopped)
    }
}

impl HostCommands {
    /// Does what is asked, if something is. Returns how much was done.
    pub fn run(&self, host: &mut Host<PacketBuf>, now: Timestamp) -> usize {
        let mut done = 0;
        for command in self.0.try_iter() {
            command(host, now);
            done += 1;
        }
        done
    }
}

impl fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeHandle")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for HostCommands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostCommands")
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the node's worker has ended; restart vesperd")
    }
}

impl std::error::Error for Stopped {}
