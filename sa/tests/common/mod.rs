//! What several tests need: parameters, and random numbers that a failure can repeat.
#![allow(dead_code, reason = "each test uses a part of it")]

use vesper_sa::{Direction, Mode, ReplayProtection, Sa, SaParams, Spi, Timestamp, WindowSize};

/// Parameters with the SPI 0x1000 between 192.0.2.1 and 192.0.2.2.
pub(crate) fn params(direction: Direction) -> SaParams {
    SaParams::new(
        Spi::new(0x1000).unwrap(),
        direction,
        Mode::Tunnel,
        "192.0.2.1".parse().unwrap(),
        "192.0.2.2".parse().unwrap(),
    )
}

/// An inbound association; window 0 is none.
pub(crate) fn inbound(window: u32, esn: bool, sequence: u64) -> Sa<()> {
    let replay = match window {
        0 => ReplayProtection::Off,
        _ => ReplayProtection::Window(WindowSize::new(window).unwrap()),
    };
    let params = SaParams {
        replay,
        esn,
        sequence,
        ..params(Direction::Inbound)
    };
    Sa::new(params, (), Timestamp::ZERO).unwrap()
}

/// Accepts one number, without a lifetime charge.
pub(crate) fn accept(sa: &Sa<()>, sequence: u64) -> bool {
    let mut commit = sa.commit(Timestamp::ZERO);
    let outcome = commit.accept(sequence, 0);
    commit.finish();
    outcome.is_ok()
}

/// SplitMix64: not random enough for keys, but for walks.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}
