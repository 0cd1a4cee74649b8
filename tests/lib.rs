//! Promises that hold across the crates, one file per promise. Run them with
//! `cargo test -p vesper-tests`.
//!
//! This library is what the promises share: keys, associations and packets to try them on.
#![forbid(unsafe_code)]

pub mod bed;

use std::net::IpAddr;

use etherparse::PacketBuilder;
use vesper_esp::aead::{Cipher, Implementation};
use vesper_esp::{EspSa, Suite, association};
use vesper_sa::{Direction, Mode, SaParams, Spi, Timestamp, UdpEncapsulation};

/// What a packet travels in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrier {
    /// Outer IPv6 rather than IPv4.
    pub v6: bool,
    /// ESP in UDP.
    pub udp: bool,
}

impl Carrier {
    /// All four.
    pub const ALL: [Carrier; 4] = [
        Carrier {
            v6: false,
            udp: false,
        },
        Carrier {
            v6: false,
            udp: true,
        },
        Carrier {
            v6: true,
            udp: false,
        },
        Carrier {
            v6: true,
            udp: true,
        },
    ];

    /// Outer source and destination.
    pub fn addresses(self) -> (IpAddr, IpAddr) {
        let [source, destination] = if self.v6 {
            ["fd00::1", "fd00::2"]
        } else {
            ["192.0.2.1", "192.0.2.2"]
        }
        .map(|address| address.parse().expect("a literal"));
        (source, destination)
    }
}

/// Parameters of an association with SPI 0x1000 over `carrier`.
pub fn params(direction: Direction, mode: Mode, carrier: Carrier) -> SaParams {
    let (source, destination) = carrier.addresses();
    let spi = Spi::new(0x1000).expect("not reserved");
    let mut params = SaParams::new(spi, direction, mode, source, destination);
    params.encapsulation = carrier.udp.then_some(UdpEncapsulation {
        source_port: 4500,
        destination_port: 4500,
    });
    params
}

/// A key for `suite` that depends on `seed` alone.
pub fn cipher(suite: &'static Suite, seed: u8, implementation: Implementation) -> Cipher {
    let bytes: Vec<u8> = (0..)
        .map(|index: u8| index.wrapping_mul(37) ^ seed)
        .take(104)
        .collect();
    let (key, auth_key) = bytes.split_at(40);
    Cipher::with_implementation(
        suite,
        &key[..suite.key_len + suite.salt_len],
        &auth_key[..suite.auth_key_len],
        implementation,
    )
    .expect("a key of the right length")
}

/// An association for `suite` with the implementation that a user would get.
pub fn sa(params: SaParams, suite: &'static Suite, seed: u8) -> EspSa {
    let cipher = cipher(suite, seed, Implementation::fastest(suite));
    association(params, cipher, Timestamp::ZERO).expect("sound parameters")
}

/// A UDP packet of the given IP version with `payload` bytes of payload.
pub fn udp_packet(v6: bool, payload: usize) -> Vec<u8> {
    let text: Vec<u8> = (0..payload).map(|byte| byte as u8).collect();
    let mut packet = Vec::new();
    if v6 {
        let (source, destination) = ([0xfd; 16], [0xfc; 16]);
        PacketBuilder::ipv6(source, destination, 61)
            .udp(7, 9)
            .write(&mut packet, &text)
    } else {
        PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 61)
            .udp(7, 9)
            .write(&mut packet, &text)
    }
    .expect("short enough");
    packet
}

/// Small random numbers for long loops: fast, seeded, of no cryptographic worth (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same sequence for the same seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next() as u8;
        }
    }
}
