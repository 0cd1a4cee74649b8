//! How far the numbers of an association last, and when it needs more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vesper_esp::EspSa;
use vesper_sa::{Direction, LeaseError, SaIdentity, SaState};

use super::record::Usage;
use super::refill::RefillSettings;
use super::{Fingerprint, Granted, Need, NeedKind};

/// Packets that a lease should last for are counted over this time.
const LEASE_TIME: Duration = Duration::from_secs(2);
const SMALLEST_LEASE: u64 = 1 << 12;
const LARGEST_LEASE: u64 = 1 << 20;
const LARGEST_LEASE_32: u64 = 1 << 16;

/// More is asked for while there is enough left for so long, if a block lasts that long: a disk
/// that is late for once is not felt.
const RESERVE: Duration = Duration::from_millis(10);

/// Rates are measured over this time at least, unless a block is used up in less.
const MEASURE: Duration = Duration::from_millis(100);

/// What was granted to one association, and what it uses of it.
pub(super) struct Supply {
    pub(super) sa: Arc<EspSa>,
    /// The number that it began with here, which is not known to have been used.
    begun: u64,
    /// From this number on more is needed.
    low: u64,
    /// The last number granted, or the mark.
    end: u64,
    /// The mark that was put in force here last.
    in_force: Option<u64>,
    /// Packets in a second, as of late; `None` while nobody knows.
    rate: Option<u64>,
    /// When the rate was measured, and the number at that time.
    measured: (Instant, u64),
    /// Whose numbers these are: those of another key that takes the name are not for it.
    key: Option<Fingerprint>,
    /// Its first numbers are still to come: nobody else is to ask for them.
    pub(super) is_new: bool,
    /// It gets nothing more.
    pub(super) refused: bool,
    /// It is looked at between two sweeps.
    pub(super) is_busy: bool,
}

impl Supply {
    /// That of an association that was granted `before` under this name, and which may have the
    /// rate of another one. If it `waits`, its first packet asks for more.
    pub(super) fn new(
        sa: Arc<EspSa>,
        before: Option<&Self>,
        rate: Option<u64>,
        waits: bool,
        now: Instant,
    ) -> Self {
        let sequence = sa.sequence();
        Self {
            sa,
            begun: sequence,
            low: sequence + u64::from(waits),
            end: before.map_or(sequence, |before| before.end),
            in_force: None,
            rate,
            measured: (now, sequence),
            key: None,
            is_new: !waits,
            refused: false,
            is_busy: false,
        }
    }

    /// Packets in a second, if that is known.
    pub(super) const fn rate(&self) -> Option<u64> {
        self.rate
    }

    /// Whether more is needed.
    pub(super) fn is_low(&self) -> bool {
        !self.gets_nothing() && self.sa.highest_wanted() >= self.low
    }

    /// Whether it is low, or its mark is further ahead than its rate makes necessary.
    pub(super) fn is_due(&self, settings: &RefillSettings) -> bool {
        let is_inbound = self.sa.direction() == Direction::Inbound;
        let too_far = || {
            let wanted = self.sa.highest_wanted();
            self.end > wanted.saturating_add(2 * self.block(settings))
        };
        self.is_low() || !self.gets_nothing() && is_inbound && too_far()
    }

    /// How long it may take until it is low, at twice the rate so far.
    pub(super) fn lasts(&self) -> Duration {
        if self.gets_nothing() {
            return Duration::MAX;
        }
        let Some(rate) = self.rate else {
            return Duration::ZERO;
        };
        if rate == 0 {
            return Duration::MAX;
        }
        let left = self.low.saturating_sub(self.sa.highest_wanted());
        Duration::from_micros(left.saturating_mul(500_000) / rate)
    }

    /// What the association needs; `None` if it needs nothing.
    pub(super) fn need(&mut self, sa: SaIdentity, settings: &RefillSettings) -> Option<Need> {
        if self.gets_nothing() || self.sa.state() == SaState::Deleted {
            return None;
        }
        self.measure(Instant::now());
        let statistics = self.sa.statistics();
        let sequence = self.sa.sequence();
        let block = self.block(settings);
        let kind = match sa.direction {
            Direction::Outbound => {
                if sequence < self.low {
                    return None;
                }
                NeedKind::Lease {
                    used: if sequence > self.begun { sequence } else { 0 },
                    size: u32::try_from(block).unwrap_or(u32::MAX),
                    end: end_of_space(self.sa.esn()),
                }
            }
            Direction::Inbound => {
                let mark = self.sa.highest_wanted().saturating_add(block);
                let mark = mark.min(end_of_space(self.sa.esn()));
                if self.in_force == Some(mark) {
                    return None;
                }
                if mark < self.end {
                    // Taken back before the store hears of it: numbers between the two are not
                    // accepted from now on.
                    self.end = self.sa.set_mark(mark).ok()?;
                    self.in_force = Some(self.end);
                    self.low = self.low_before(self.end);
                    NeedKind::Mark(self.end)
                } else {
                    NeedKind::Mark(mark)
                }
            }
        };
        Some(Need {
            sa,
            key: self.key,
            kind,
            usage: Usage {
                sequence,
                packets: statistics.packets,
                bytes: statistics.bytes,
            },
        })
    }

    /// What was granted is durable.
    pub(super) fn put_in_force(
        &mut self,
        granted: Granted,
        key: Fingerprint,
    ) -> Result<(), LeaseError> {
        self.key = Some(key);
        match granted {
            Granted::Lease(lease) => {
                self.sa.set_lease(lease)?;
                self.low = self.low_between(lease.first(), lease.last());
                self.end = lease.last();
            }
            Granted::Mark(mark) => {
                self.end = self.sa.set_mark(mark)?;
                self.in_force = Some(self.end);
                self.low = self.low_before(self.end);
            }
        }
        Ok(())
    }

    const fn gets_nothing(&self) -> bool {
        self.refused || self.is_new
    }

    /// Measures the rate, if enough time has passed since the last time.
    pub(super) fn measure(&mut self, now: Instant) {
        let (then, number) = self.measured;
        let passed = now.saturating_duration_since(then);
        let sequence = self.sa.highest_wanted();
        let packets = sequence.saturating_sub(number);
        // Few milliseconds say nothing, except that a block was used up in them.
        if passed >= MEASURE || packets >= SMALLEST_LEASE / 2 {
            let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).max(1);
            let rate = packets.saturating_mul(1_000_000) / micros;
            // Up at once, down slowly.
            let before = self.rate.unwrap_or(0);
            self.rate = Some(rate.max(before - before / 8));
            self.measured = (now, sequence);
        }
    }

    /// The number at which what is left up to a mark is low. A packet above the mark before has
    /// asked for this one: numbers before it are not of the block.
    fn low_before(&self, mark: u64) -> u64 {
        let low = self.low_between(self.sa.highest_wanted().min(mark), mark);
        // At the end of all numbers there is no other mark to ask for.
        match mark == end_of_space(self.sa.esn()) {
            true => u64::MAX,
            false => low,
        }
    }

    /// The number at which a block is low: when half of it is used, and sooner where that half
    /// would not last for [`RESERVE`].
    fn low_between(&self, first: u64, last: u64) -> u64 {
        let block = last.saturating_sub(first);
        let reserve = self
            .rate
            .unwrap_or(0)
            .saturating_mul(RESERVE.as_millis() as u64)
            / 1000;
        last - reserve.clamp(block / 2, block - block / 8)
    }

    /// How many numbers the association should get at a time.
    fn block(&self, settings: &RefillSettings) -> u64 {
        match self.sa.direction() {
            Direction::Outbound => {
                let largest = match self.sa.esn() {
                    true => LARGEST_LEASE,
                    false => LARGEST_LEASE_32,
                };
                let wanted = match self.rate {
                    None => u64::from(settings.first_lease),
                    Some(rate) => rate.saturating_mul(LEASE_TIME.as_secs()),
                };
                wanted.clamp(SMALLEST_LEASE, largest)
            }
            Direction::Inbound => {
                // A second's worth, but enough for what comes in while the disk is at work.
                let most = u64::from(settings.inbound_block);
                self.rate.unwrap_or(most).clamp((most / 8).max(1), most)
            }
        }
    }
}

const fn end_of_space(esn: bool) -> u64 {
    if esn { u64::MAX } else { u32::MAX as u64 }
}
