//! IPsec ESP (RFC 4303), many packets at a time.
//!
//! A vswitch hands [`Engine::encapsulate`] a batch of IP packets, each with the association
//! that policy gave it, and gets back what the wire carries; [`Engine::decapsulate`] does the
//! reverse. Packets are changed in place in buffers of the caller ([`Buffer`]), nothing is
//! allocated and nothing is copied. Each packet ends in a [`Verdict`].
//!
//! ```text
//!             prepare                    cryptography            finish
//! outbound    measure, make room,        seal_batch: all         UDP checksum,
//!             reserve numbers, write     packets, any mix        counters
//!             headers and trailer        of keys
//! inbound     locate, find association,  open_batch              commit window, trailer,
//!             check window                                       selectors, inner packet
//! ```
//!
//! Not here: sockets, threads, a clock (`now` is passed in), policy lookup and the table of
//! associations (crate `vesper-sa`), key exchange.
//!
//! # Example
//!
//! Two hosts, one association from A to B, one packet through it:
//!
//! ```
//! use std::net::IpAddr;
//! use vesper_esp::aead::Cipher;
//! use vesper_esp::{Buffer, EspSa, Engine, Inbound, Outbound, PacketBuf, Suite, Verdict, association};
//! use vesper_sa::{Direction, Mode, SaParams, Spi, Timestamp};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse()?, "192.0.2.2".parse()?);
//! let spi = Spi::new(0x1001).ok_or("reserved SPI")?;
//! let suite = Suite::by_name("aes256gcm16").ok_or("no such suite")?;
//! let key = [7; 36]; // 32 bytes of key, 4 of salt; from a key exchange, never fixed
//! let now = Timestamp::ZERO;
//! let sa = |direction| -> Result<EspSa, Box<dyn std::error::Error>> {
//!     let params = SaParams::new(spi, direction, Mode::Tunnel, a, b);
//!     Ok(association(params, Cipher::new(suite, &key, &[])?, now)?)
//! };
//! let (outbound, inbound) = (sa(Direction::Outbound)?, sa(Direction::Inbound)?);
//!
//! # let mut inner = Vec::new();
//! # etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut inner, b"hello")?;
//! let mut engine = Engine::default();
//! let mut batch = [Outbound::new(&outbound, PacketBuf::from_packet(&inner))];
//! engine.encapsulate(now, &mut batch);
//! assert_eq!(batch[0].verdict, Verdict::Sealed { sequence: 1 });
//!
//! let [sealed] = batch;
//! let mut batch = [Inbound::new(sealed.packet)];
//! let sas = |destination, found| (destination == b && found == spi).then_some(&inbound);
//! engine.decapsulate(now, &sas, &mut batch);
//! assert!(matches!(batch[0].verdict, Verdict::Opened(_)));
//! assert_eq!(batch[0].packet.data(), inner);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod aead;
mod association;
mod audit;
mod buffer;
mod engine;
mod fate;
mod fragment;
mod inbound;
mod nat;
mod outbound;
mod reassembly;
mod recent;
mod suite;
pub mod wire;

pub use association::{AssociationError, EspContext, EspSa, association};
pub use audit::audited;
pub use buffer::{Buffer, PacketBuf, prefetch};
pub use engine::{CHUNK, Engine};
pub use fate::{Counters, DropReason, Opened, Verdict};
pub use fragment::{FragmentError, FragmentParts, Fragments, fragments, too_big};
pub use inbound::{Inbound, InboundSas};
pub use outbound::{Content, Outbound};
pub use reassembly::{Reassembler, Reassembly, ReassemblyError, ReassemblyLimits};
pub use suite::{Encryption, Integrity, Refused, Role, Suite, SuiteError, Xfrm};
