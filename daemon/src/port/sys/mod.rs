//! System calls on network interfaces that neither `rustix` nor `nix` has: interface ioctls, TAP
//! queues, options, rings and batches of packet sockets. And prefetching.
//!
//! The only place of this crate where `unsafe` may stand.
#![allow(unsafe_code)]

mod frame_ring;
mod interface;
mod packet;
mod prefetch;

pub(super) use interface::{TapQueue, interface, open_tap, set_mtu, set_up};
pub(super) use packet::{BATCH, Info, PacketSocket};
pub(super) use prefetch::{prefetch_to_read, prefetch_to_write};
