//! A node: one adapter with its host, and the workers that drive them.

mod handle;

pub use handle::{HostCommands, NodeHandle, Stopped};
