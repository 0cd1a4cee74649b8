//! The state of an association in a form that survives a restart or travels to another host.

use core::fmt;
use core::sync::atomic::Ordering;
use core::time::Duration;

use crate::ident::{Direction, Spi, Timestamp};
use crate::lifetime::{Usage, nanos};
use crate::params::WindowSize;
use crate::replay::ReplayWindow;
use crate::sequence::end_of_space;
use crate::state::{Flags, PacketState, PerDirection};

/// Sequence number, replay window, lifetimes and counters of one association at one moment;
/// no configuration and no key.
///
/// Restoring an outbound association is safe only if the original sends nothing any more (it
/// was [closed](crate::Sa::close) before the snapshot was taken), or if both draw on leases
/// from the same store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaSnapshot {
    pub(crate) spi: Spi,
    pub(crate) direction: Direction,
    pub(crate) esn: bool,
    flags: Flags,
    sequence: u64,
    usage: Usage,
    age: Duration,
    idle: Duration,
    replays: u64,
    authentication_failures: u64,
    refused: u64,
    /// W, 0 if the association has no window.
    window: u32,
    /// Bit `i` (of word `i / 64`) tells whether the number `sequence - i` was received.
    received: Vec<u64>,
}

/// What an association had carried before its host crashed, as far as anybody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Packets, at most.
    pub packets: u64,
    /// Bytes that the cipher was applied to, at most.
    pub bytes: u64,
    /// Time since the association was added.
    pub age: Duration,
}

/// Why bytes are not a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// They do not begin as a snapshot does.
    NotASnapshot,
    /// They are of a version that this release does not read.
    Version(u8),
    /// Their number contradicts the header.
    Length {
        /// Bytes that there should be.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// A field has a value that no association could have written.
    Field {
        /// The field's name.
        name: &'static str,
        /// Its value.
        value: u64,
    },
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASnapshot => f.write_str("not the snapshot of an association"),
            Self::Version(version) => write!(
                f,
                "snapshot version {version} is unknown, this release reads version {VERSION}"
            ),
            Self::Length { expected, found } => {
                write!(f, "snapshot of {found} bytes should have {expected}")
            }
            Self::Field { name, value } => {
                write!(
                    f,
                    "snapshot field \"{name}\" has the impossible value {value}"
                )
            }
        }
    }
}

impl core::error::Error for SnapshotError {}

/// Why a snapshot can not be restored into an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreError {
    /// The snapshot is of an association with another SPI, direction or ESN setting.
    OtherAssociation,
    /// The association is to continue from a later sequence number than the snapshot's, which
    /// therefore is an old one.
    Behind {
        /// The sequence number in the snapshot.
        snapshot: u64,
        /// The sequence number in the parameters.
        params: u64,
    },
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherAssociation => {
                f.write_str("the snapshot is of another SPI, direction or ESN setting")
            }
            Self::Behind { snapshot, params } => write!(
                f,
                "the snapshot ends at sequence number {snapshot}, before {params} from which \
                 the association continues"
            ),
        }
    }
}

impl core::error::Error for RestoreError {}

const MAGIC: [u8; 3] = *b"VSA";
const VERSION: u8 = 1;
const HEADER: usize = 80;
const KEPT_FLAGS: u32 = Flags::DYING.0 | Flags::DEAD.0 | Flags::SEQUENCE_HIGH.0 | Flags::OVERFLOW.0;

impl SaSnapshot {
    /// The security parameter index.
    pub fn spi(&self) -> Spi {
        self.spi
    }

    /// Inbound or outbound.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether sequence numbers are extended to 64 bits.
    pub fn esn(&self) -> bool {
        self.esn
    }

    /// Outbound the last sequence number used, inbound the highest one accepted.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How old the association was.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// The same state after a pause in which the association carried nothing.
    #[must_use]
    pub fn aged(mut self, pause: Duration) -> Self {
        self.age = self.age.saturating_add(pause);
        self.idle = self.idle.saturating_add(pause);
        self
    }

    /// The snapshot as bytes: a header of 80 bytes in network byte order, then the window.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.received.len() * 8);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.spi.get().to_be_bytes());
        bytes.push(match self.direction {
            Direction::Inbound => 0,
            Direction::Outbound => 1,
        });
        bytes.push(u8::from(self.esn));
        bytes.extend_from_slice(&(self.flags.0 as u16).to_be_bytes());
        bytes.extend_from_slice(&self.window.to_be_bytes());
        for field in [
            self.sequence,
            self.usage.packets,
            self.usage.bytes,
            nanos(self.age),
            nanos(self.idle),
            self.replays,
            self.authentication_failures,
            self.refused,
        ] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        for word in &self.received {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote, and nothing else.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let field = |name, value| SnapshotError::Field { name, value };
        let too_short = SnapshotError::Length {
            expected: HEADER,
            found: bytes.len(),
        };
        let mut rest = Reader(bytes);
        match rest.take::<4>() {
            Some([a, b, c, VERSION]) if [a, b, c] == MAGIC => {}
            Some([a, b, c, version]) if [a, b, c] == MAGIC => {
                return Err(SnapshotError::Version(version));
            }
            _ => return Err(SnapshotError::NotASnapshot),
        }
        let spi = rest.u32().ok_or(too_short)?;
        let [direction, esn] = rest.take().ok_or(too_short)?;
        let flags = u32::from(u16::from_be_bytes(rest.take().ok_or(too_short)?));
        let window = rest.u32().ok_or(too_short)?;
        let mut next = || rest.u64().ok_or(too_short);
        let snapshot = Self {
            spi: Spi::new(spi).ok_or(field("SPI", spi.into()))?,
            direction: match direction {
                0 => Direction::Inbound,
                1 => Direction::Outbound,
                other => return Err(field("direction", other.into())),
            },
            esn: match esn {
                0 => false,
                1 => true,
                other => return Err(field("ESN", other.into())),
            },
            flags: Flags(flags),
            sequence: next()?,
            usage: Usage {
                packets: next()?,
                bytes: next()?,
            },
            age: Duration::from_nanos(next()?),
            idle: Duration::from_nanos(next()?),
            replays: next()?,
            authentication_failures: next()?,
            refused: next()?,
            window,
            received: Vec::new(),
        };
        if flags & !KEPT_FLAGS != 0 {
            return Err(field("flags", flags.into()));
        }
        if snapshot.sequence > end_of_space(snapshot.esn) {
            return Err(field("sequence", snapshot.sequence));
        }
        if snapshot.idle > snapshot.age {
            return Err(field("idle", nanos(snapshot.idle)));
        }
        if window != 0
            && (WindowSize::new(window).is_none() || snapshot.direction == Direction::Outbound)
        {
            return Err(field("window", window.into()));
        }
        let words = window.div_ceil(u64::BITS) as usize;
        if rest.0.len() != words * 8 {
            return Err(SnapshotError::Length {
                expected: HEADER + words * 8,
                found: bytes.len(),
            });
        }
        let received: Vec<u64> = core::iter::from_fn(|| rest.u64()).collect();
        // Neither beyond the window nor before number 1 can anything have been received.
        let possible = u64::from(window).min(snapshot.sequence);
        for (first, &word) in (0..).step_by(64).zip(&received) {
            let bits = possible.saturating_sub(first).min(64) as u32;
            if word & !low_bits(bits) != 0 {
                return Err(field("received", word));
            }
        }
        Ok(Self {
            received,
            ..snapshot
        })
    }
}

impl PacketState {
    /// Needs the lock.
    pub(crate) fn snapshot(&self, now: Timestamp) -> SaSnapshot {
        let sequence = self.sequence.load(Ordering::Relaxed);
        let (window, received) = match &self.per_direction {
            PerDirection::Inbound(window, _) => (window.size(), received(window, sequence)),
            PerDirection::Outbound(_) => (0, Vec::new()),
        };
        let age = self.age(now);
        SaSnapshot {
            spi: self.spi,
            direction: self.direction,
            esn: self.esn,
            flags: Flags(self.flags().0 & KEPT_FLAGS),
            sequence,
            usage: self.usage(),
            age,
            idle: now.since(self.used()).min(age),
            replays: self.replays.load(Ordering::Relaxed),
            authentication_failures: self.authentication_failures.load(Ordering::Relaxed),
            refused: self.refused(),
            window,
            received,
        }
    }

    /// Takes the snapshot's state over. Numbers of which the snapshot knows nothing count as
    /// received.
    pub(crate) fn restore(&self, snapshot: &SaSnapshot, now: Timestamp) {
        let _held = self.lock.acquire();
        self.sequence.store(snapshot.sequence, Ordering::Relaxed);
        self.raise(snapshot.flags, crate::Events::NONE);
        let idle = nanos(snapshot.idle);
        let used = Timestamp::from_nanos(now.as_nanos().saturating_sub(idle));
        self.restore_usage(snapshot.usage, used, snapshot.refused);
        self.replays.store(snapshot.replays, Ordering::Relaxed);
        self.authentication_failures
            .store(snapshot.authentication_failures, Ordering::Relaxed);
        if let PerDirection::Inbound(window, _) = &self.per_direction {
            let top = snapshot.sequence;
            for back in 0..u64::from(window.size()).min(top) {
                let word = snapshot.received.get((back / 64) as usize);
                let was_received = word.is_some_and(|word| word >> (back % 64) & 1 != 0);
                if was_received || back >= u64::from(snapshot.window) {
                    window.mark(top, top - back);
                }
            }
        }
    }
}

/// The window as bits counted back from `top`.
fn received(window: &ReplayWindow, top: u64) -> Vec<u64> {
    let mut words = vec![0; window.size().div_ceil(u64::BITS) as usize];
    for (first, word) in (0..).step_by(64).zip(&mut words) {
        for back in first..(first + 64).min(u64::from(window.size())).min(top) {
            *word |= u64::from(window.is_marked(top - back)) << (back - first);
        }
    }
    words
}

fn low_bits(count: u32) -> u64 {
    u64::MAX.checked_shr(u64::BITS - count).unwrap_or(0)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}
