//! vesperd: adapters for virtual machines that encrypt their traffic, with ports to real
//! machines and networks, a control interface, and state that survives.
//!
//! ```text
//!  virtual machine ─ Port ─┐                                   ┌─ Port ─ network
//!  virtual machine ─ Port ─┤ worker: Host (switching, software) │
//!  virtual machine ─ Port ─┘ worker: Nic (cryptography) ────────┘
//!                               ▲ NodeHandle::call, Nic verbs
//!                            plane: which SAs, policies and machines there should be
//!                               ▲                 │ ahead of use
//!                  control API, configuration     ▼ store: keys (wrapped), leases, marks
//! ```
//!
//! [`port`] is where frames come from and go to, [`node`] one adapter with its host and the
//! threads that drive them. What they do is in the libraries `vesper-offload`, `vesper-esp` and
//! `vesper-sa`; this crate has the sockets, threads and files.
#![deny(unsafe_code)]

pub mod cli;
pub mod config;
pub mod control;
pub mod neighbour;
pub mod node;
pub mod ops;
pub mod pair;
pub mod plane;
pub mod port;
mod secret_file;
pub mod store;
pub mod vesperd;
