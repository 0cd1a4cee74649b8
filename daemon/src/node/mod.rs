//! Nodes: each is one adapter with its host, its ports, and the workers that drive them.
//!
//! A worker is a thread that carries every frame as far as it goes before it takes the next
//! ones: from a port into the adapter, through its processors, out of a port. It takes no lock
//! and allocates nothing beyond what the adapter does; what is to be changed reaches it through
//! [`NodeHandle`], between two batches.

mod build;
mod driver;
mod handle;
mod machine;
mod statistics;
mod sys;
mod waker;
mod worker;

pub use build::{Nodes, StartError};
pub use handle::{HostCommands, NodeHandle, Stopped};
pub use machine::{Attach, AttachError};
pub use statistics::{MachineStatistics, NodeStatistics, PathKind, Statistics, WorkerStatistics};
pub use waker::Waker;
pub use worker::Clock;

pub(crate) use sys::set_time_slice;
