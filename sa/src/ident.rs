//! Names of things: SPIs, owners, directions, moments.

use core::fmt;
use core::num::NonZeroU32;
use core::time::Duration;

/// A security parameter index that may appear in a database (RFC 4303 section 2.1).
///
/// Zero is for local use and 1 to 255 are reserved by IANA; neither can be constructed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spi(NonZeroU32);

impl Spi {
    /// The smallest SPI that an association may have.
    pub const MIN: Spi = Spi(NonZeroU32::new(256).expect("256 is not zero"));

    /// `None` for the values 0 to 255.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4303#section-2.1
    //# The set of SPI values in the range 1 through 255 is reserved by the
    //# Internet Assigned Numbers Authority (IANA) for future use
    pub const fn new(value: u32) -> Option<Self> {
        match NonZeroU32::new(value) {
            Some(value) if value.get() >= 256 => Some(Self(value)),
            _ => None,
        }
    }

    /// The number as it appears on the wire, in host byte order.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:08x}", self.0)
    }
}

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who owns an association: a virtual machine, or the host itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VmId(pub u32);

impl VmId {
    /// The owner of associations that serve no particular virtual machine.
    pub const HOST: VmId = VmId(0);
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::HOST => f.write_str("host"),
            Self(id) => write!(f, "vm{id}"),
        }
    }
}

/// The direction that an association serves; associations are one-way (RFC 4301 section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// Packets that arrive protected.
    Inbound,
    /// Packets that leave protected.
    Outbound,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        })
    }
}

/// A moment on the embedder's monotonic clock, in nanoseconds since an origin of its choice.
///
/// The libraries have no clock: whoever drives them passes `now`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The origin of the clock.
    pub const ZERO: Timestamp = Timestamp(0);

    /// A moment given in nanoseconds since the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// A moment given in whole seconds since the origin; saturates after 584 years.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; zero if the clock went backwards.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_spis_cannot_exist() {
        for value in 0..256 {
            assert_eq!(Spi::new(value), None);
        }
        assert_eq!(Spi::new(256), Some(Spi::MIN));
        assert_eq!(Spi::new(u32::MAX).map(Spi::get), Some(u32::MAX));
        assert_eq!(Spi::MIN.to_string(), "0x00000100");
    }

    #[test]
    fn a_clock_that_goes_back_gives_zero() {
        let earlier = Timestamp::from_secs(2);
        assert_eq!(Timestamp::from_secs(1).since(earlier), Duration::ZERO);
        assert_eq!(
            Timestamp::from_secs(5).since(earlier),
            Duration::from_secs(3)
        );
    }
}
