//! Moments that can be compared after a restart.

use std::fs;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// A moment, on the clock that runs from boot (CLOCK_BOOTTIME) and on the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// Which boot; all zero if the system does not say.
    boot: [u8; 16],
    /// Nanoseconds since then.
    since_boot: u64,
    /// Nanoseconds since 1970.
    wall: u64,
}

impl Moment {
    /// Bytes of the encoded form.
    pub(super) const LEN: usize = 32;

    pub(super) fn now() -> Self {
        let clock = clock_gettime(ClockId::Boottime);
        let since_boot = Duration::new(
            clock.tv_sec.unsigned_abs(),
            u32::try_from(clock.tv_nsec).unwrap_or(0),
        );
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            boot: boot_id(),
            since_boot: nanos(since_boot),
            wall: nanos(wall),
        }
    }

    /// The time since `earlier`. Within one boot nobody can change it by setting the clock;
    /// over a restart of the machine there is only the clock on the wall.
    pub(super) fn since(&self, earlier: &Moment) -> Duration {
        let same_boot = self.boot == earlier.boot && self.boot != [0; 16];
        Duration::from_nanos(if same_boot {
            self.since_boot.saturating_sub(earlier.since_boot)
        } else {
            self.wall.saturating_sub(earlier.wall)
        })
    }

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..16].copy_from_slice(&self.boot);
        bytes[16..24].copy_from_slice(&self.since_boot.to_be_bytes());
        bytes[24..].copy_from_slice(&self.wall.to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: [u8; Self::LEN]) -> Self {
        let (boot, rest) = bytes.split_first_chunk().expect("32 bytes have 16");
        let (since_boot, rest) = rest.split_first_chunk().expect("16 bytes have 8");
        let wall = rest.first_chunk().expect("8 bytes are left");
        Self {
            boot: *boot,
            since_boot: u64::from_be_bytes(*since_boot),
            wall: u64::from_be_bytes(*wall),
        }
    }
}

/// The name that the kernel has given to this boot.
/// It stays the same for as long as this process may run.
fn boot_id() -> [u8; 16] {
    static BOOT: LazyLock<[u8; 16]> = LazyLock::new(|| read_boot_id().unwrap_or_default());
    *BOOT
}

fn read_boot_id() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: Vec<u32> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = (pair[0] << 4 | pair[1]) as u8;
    }
    (digits.len() == 32).then_some(id)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_counts_only_over_a_boot() {
        let now = Moment::now();
        assert_ne!(now.boot, [0; 16]);
        assert_eq!(Moment::decode(now.encode()), now);
        let later = Moment {
            since_boot: now.since_boot + 5,
            wall: now.wall - 1_000_000,
            ..now
        };
        assert_eq!(later.since(&now), Duration::from_nanos(5));
        let rebooted = Moment {
            boot: [1; 16],
            since_boot: 3,
            wall: now.wall + 70,
        };
        assert_eq!(rebooted.since(&now), Duration::from_nanos(70));
        assert_eq!(now.since(&rebooted), Duration::ZERO);
    }
}
