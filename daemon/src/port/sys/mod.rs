//! System calls on network interfaces that neither `rustix` nor `nix` has: interface ioctls, TAP
//! queues, options, rings and batches of packet sockets. And prefetching.
//!
//! `unsafe` may stand here; the only other place of this crate is `node::sys`.
#![allow(unsafe_code)]

mod frame_ring;
mod interface;
mod packet;
mod prefetch;

pub(super) use interface::{TapQueue, interface, open_tap, set_mtu, set_up};
pub(super) use packet::{BATCH, Info, PacketSocket};
pub(super) use prefetch::{prefetch_to_read, prefetch_to_write};
