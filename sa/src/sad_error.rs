//! What a security association database refuses.

use core::fmt;
use core::net::IpAddr;

use crate::handle::SaHandle;
use crate::ident::{Spi, VmId};
use crate::snapshot::RestoreError;
use crate::update::UpdateError;

/// A handle names no association of the owner who used it: it is stale, or never was theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFound {
    /// The handle.
    pub handle: SaHandle,
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no security association {}", self.handle)
    }
}

impl core::error::Error for NotFound {}

/// Why an association was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddError {
    /// The owner has as many associations as it may have.
    QuotaExceeded {
        /// The owner.
        owner: VmId,
        /// How many it may have.
        limit: u32,
    },
    /// The SPI is in use, or allocated to somebody else, at this destination.
    SpiInUse {
        /// The SPI.
        spi: Spi,
        /// Outer destination address.
        destination: IpAddr,
    },
    /// All handles are used.
    TableFull,
}

impl fmt::Display for AddError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QuotaExceeded { owner, limit } => quota_exceeded(f, *owner, *limit),
            Self::SpiInUse { spi, destination } => spi_in_use(f, *spi, *destination),
            Self::TableFull => f.write_str("the database has no handle left"),
        }
    }
}

impl core::error::Error for AddError {}

/// Why no SPI was allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpiError {
    /// The owner has as many associations as it may have.
    QuotaExceeded {
        /// The owner.
        owner: VmId,
        /// How many it may have.
        limit: u32,
    },
    /// Every SPI of the range is in use at this destination.
    Exhausted {
        /// The first SPI of the range.
        first: Spi,
        /// The last SPI of the range.
        last: Spi,
        /// Outer destination address.
        destination: IpAddr,
    },
}

impl fmt::Display for SpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QuotaExceeded { owner, limit } => quota_exceeded(f, *owner, *limit),
            Self::Exhausted {
                first,
                last,
                destination,
            } => write!(
                f,
                "no SPI from {first} to {last} is free for {destination}; use a wider range or \
                 delete associations"
            ),
        }
    }
}

impl core::error::Error for SpiError {}

/// Why an association was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeError {
    /// There is none.
    NotFound(NotFound),
    /// The change is not possible in its state.
    Update(UpdateError),
    /// The replacement does not fit the association.
    Restore(RestoreError),
    /// The SPI is in use, or allocated to somebody else, at the new destination.
    SpiInUse {
        /// The SPI.
        spi: Spi,
        /// Outer destination address.
        destination: IpAddr,
    },
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound(error) => error.fmt(f),
            Self::Update(error) => error.fmt(f),
            Self::Restore(error) => error.fmt(f),
            Self::SpiInUse { spi, destination } => spi_in_use(f, *spi, *destination),
        }
    }
}

impl core::error::Error for ChangeError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::NotFound(error) => Some(error),
            Self::Update(error) => Some(error),
            Self::Restore(error) => Some(error),
            Self::SpiInUse { .. } => None,
        }
    }
}

impl From<NotFound> for ChangeError {
    fn from(error: NotFound) -> Self {
        Self::NotFound(error)
    }
}

impl From<UpdateError> for ChangeError {
    fn from(error: UpdateError) -> Self {
        Self::Update(error)
    }
}

impl From<RestoreError> for ChangeError {
    fn from(error: RestoreError) -> Self {
        Self::Restore(error)
    }
}

fn quota_exceeded(f: &mut fmt::Formatter<'_>, owner: VmId, limit: u32) -> fmt::Result {
    write!(
        f,
        "{owner} may have {limit} security associations and has them; delete one or raise the \
         limit"
    )
}

fn spi_in_use(f: &mut fmt::Formatter<'_>, spi: Spi, destination: IpAddr) -> fmt::Result {
    write!(f, "SPI {spi} is in use for {destination}; allocate another")
}
