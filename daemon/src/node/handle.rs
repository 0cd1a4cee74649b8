//! The control side of a running node.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use vesper_esp::PacketBuf;
use vesper_offload::{Admission, Host, Nic};
use vesper_sa::{Timestamp, VmId};

use super::driver::Driver;
use super::machine::{Attach, AttachError};
use super::waker::Waker;
use crate::port::Port;

type Ask<T> = Box<dyn FnOnce(&mut T, Timestamp) + Send>;

/// What a worker is asked to do between two batches.
enum Command {
    Host(Ask<Host<PacketBuf>>),
    Driver(Ask<Driver>),
}

/// A running node, as control requests see it. Cheap to clone.
///
/// The adapter is shared and takes verbs from any thread; the host belongs to one worker, which
/// carries out what it is [asked](Self::call) between two batches.
#[derive(Clone)]
pub struct NodeHandle {
    name: Arc<str>,
    nic: Arc<Nic<PacketBuf>>,
    commands: Sender<Command>,
    worker: Arc<OnceLock<Arc<Waker>>>,
}

/// Where the worker that drives the host finds what it is asked to do.
pub struct HostCommands {
    commands: Receiver<Command>,
    worker: Arc<OnceLock<Arc<Waker>>>,
}

/// The worker that drives the host has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl NodeHandle {
    /// A handle, and the end of it that the worker keeps.
    pub fn new(name: &str, nic: Arc<Nic<PacketBuf>>) -> (Self, HostCommands) {
        let (commands, receiver) = unbounded();
        let worker = Arc::new(OnceLock::new());
        let handle = Self {
            name: name.into(),
            nic,
            commands,
            worker: Arc::clone(&worker),
        };
        let commands = HostCommands {
            commands: receiver,
            worker,
        };
        (handle, commands)
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
        self.command(Command::Host(Box::new(move |host, now| {
            // Nobody waits any more if the asker has ended.
            let _ = answer.send(ask(host, now));
        })))?;
        answered.recv().map_err(|_| Stopped)
    }

    /// Adds a machine with its port: in the adapter, in the host, and as a source of frames.
    /// The answer names what the machine does not get.
    pub fn attach(&self, machine: Attach) -> Result<Result<Admission, AttachError>, Stopped> {
        self.drive(move |driver, now| driver.attach(machine, now))
    }

    /// Removes a machine and closes its port; what was on its way to it is lost. Its queue is
    /// freed as soon as the adapter has let go of it.
    pub fn detach(&self, vm: VmId) -> Result<Result<(), AttachError>, Stopped> {
        // The port is closed here, which may take a while, and not by the worker.
        let port = self.drive(move |driver, now| driver.detach(vm, now))?;
        Ok(port.map(drop))
    }

    /// Moves a machine to another port; its associations stay. Closes the old port.
    pub fn replace_port(
        &self,
        vm: VmId,
        port: Box<dyn Port>,
    ) -> Result<Result<(), AttachError>, Stopped> {
        let old = self.drive(move |driver, _| driver.replace_port(vm, port))?;
        Ok(old.map(drop))
    }

    /// Begins to take frames from machines, and, the first time, from the network.
    pub fn release(&self) -> Result<(), Stopped> {
        self.drive(|driver, _| driver.hold(false))
    }

    /// Stops to take frames from machines; those that are on their way go on.
    pub fn hold(&self) -> Result<(), Stopped> {
        self.drive(|driver, _| driver.hold(true))
    }

    pub(super) fn drive<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Driver, Timestamp) -> R + Send + 'static,
    ) -> Result<R, Stopped> {
        let (answer, answered) = bounded(1);
        self.command(Command::Driver(Box::new(move |driver, now| {
            let _ = answer.send(ask(driver, now));
        })))?;
        answered.recv().map_err(|_| Stopped)
    }

    fn command(&self, command: Command) -> Result<(), Stopped> {
        self.commands.send(command).map_err(|_| Stopped)?;
        if let Some(worker) = self.worker.get() {
            worker.wake();
        }
        Ok(())
    }
}

impl HostCommands {
    /// Does what is asked, if something is, for a host without ports; what concerns ports is
    /// answered with [`Stopped`]. Returns how much was done.
    pub fn run(&self, host: &mut Host<PacketBuf>, now: Timestamp) -> usize {
        let mut done = 0;
        for command in self.commands.try_iter() {
            if let Command::Host(command) = command {
                command(host, now);
            }
            done += 1;
        }
        done
    }

    /// Who is to be woken when something is asked.
    pub(super) fn set_worker(&self, waker: Arc<Waker>) {
        // A node stays with its worker.
        let _ = self.worker.set(waker);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
}

impl Driver {
    /// Does what is asked, if something is. Returns how much was done.
    pub(super) fn run_commands(&mut self, now: Timestamp) -> usize {
        let mut done = 0;
        while let Ok(command) = self.commands.commands.try_recv() {
            match command {
                Command::Host(command) => command(&mut self.host, now),
                Command::Driver(command) => command(self, now),
            }
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
