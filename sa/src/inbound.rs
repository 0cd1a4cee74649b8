//! Receiving: the sequence number is judged before authentication and decided after it.

use core::fmt;
use core::sync::atomic::Ordering;
use core::time::Duration;

use crate::event::Events;
use crate::ident::Timestamp;
use crate::lease::LeaseError;
use crate::lifetime::Usage;
use crate::lock::Held;
use crate::replay::{ReplayRefusal, ReplayWindow};
use crate::sequence::end_of_space;
use crate::state::{Flags, PacketState, PerDirection};

/// Why an authentic packet was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InboundRefusal {
    /// Its sequence number may not be received, or not any more.
    Replay(ReplayRefusal),
    /// A hard limit is reached.
    Expired,
    /// Its sequence number is above the [mark](crate::Sa::set_mark): were it accepted, it could be
    /// accepted again after a crash.
    AboveMark,
    /// The association was deleted.
    Deleted,
}

impl fmt::Display for InboundRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Replay(refusal) => refusal.fmt(f),
            Self::Expired => {
                f.write_str("a hard lifetime limit is reached; replace the association")
            }
            Self::AboveMark => f.write_str("the sequence number is above the durable mark"),
            Self::Deleted => f.write_str("the association was deleted"),
        }
    }
}

impl core::error::Error for InboundRefusal {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Replay(refusal) => Some(refusal),
            Self::Expired | Self::AboveMark | Self::Deleted => None,
        }
    }
}

/// What received packets of one association are checked against before authentication, read
/// once for a run of them; see [`Sa::precheck`](crate::Sa::precheck).
#[derive(Clone, Copy, Debug)]
pub struct Precheck<'a> {
    state: &'a PacketState,
    top: u64,
    /// The first number of the subspace of `top`.
    base: u64,
    /// From here on, so many low halves mean a number in that subspace ahead of `top`.
    ahead: u32,
    span: u32,
}

impl<'a> Precheck<'a> {
    #[inline]
    fn new(state: &'a PacketState) -> Self {
        let top = state.sequence.load(Ordering::Acquire);
        Self {
            state,
            top,
            base: top & !u64::from(u32::MAX),
            ahead: (top as u32).wrapping_add(1),
            span: match state.window() {
                Some(window) if !state.is_resync_due() && state.is_far() => {
                    window.ahead(top, state.esn)
                }
                _ => 0,
            },
        }
    }

    /// See [`Sa::check`](crate::Sa::check).
    #[inline]
    pub fn check(&self, sequence_low: u32) -> Result<u64, ReplayRefusal> {
        match self.check_ahead(sequence_low) {
            Some(sequence) => Ok(sequence),
            None => self.check_closely(sequence_low),
        }
    }

    /// As [`check`](Self::check) for most packets, which come in order to an association that
    /// is far from its limits and has not lost its sender; `None` asks for that one, and for a
    /// look at the association's state.
    #[inline]
    pub fn check_ahead(&self, sequence_low: u32) -> Option<u64> {
        (sequence_low.wrapping_sub(self.ahead) < self.span)
            .then(|| self.base | u64::from(sequence_low))
    }

    #[inline(never)]
    fn check_closely(&self, low: u32) -> Result<u64, ReplayRefusal> {
        let outcome = self.judge(low);
        if outcome.is_err() {
            self.state.count_replay();
        }
        outcome
    }

    fn judge(&self, low: u32) -> Result<u64, ReplayRefusal> {
        let window = self.state.window().ok_or(ReplayRefusal::Outbound)?;
        let sequence = if self.state.esn {
            window.infer(self.top, low)?
        } else {
            u64::from(low)
        };
        window.judge(self.top, sequence)?;
        Ok(sequence)
    }
}

/// The decision about a run of authentic packets of one association, taken under its lock.
///
/// What was accepted counts even if the value is dropped; [`Commit::finish`] also tells what
/// the key manager should know.
#[derive(Debug)]
#[must_use = "events are reported by `finish`"]
pub struct Commit<'a> {
    state: &'a PacketState,
    now: Timestamp,
    /// The highest number received.
    top: u64,
    usage: Usage,
    accepted: bool,
    events: Events,
    _held: Held<'a>,
}

impl Commit<'_> {
    /// Decides about the packet with the full sequence number `sequence`, as
    /// [`Sa::check`](crate::Sa::check) gave it, that has authenticated. `bytes` are what the
    /// cipher was applied to; they are charged to the lifetime.
    ///
    /// A refusal leaves window and lifetime as they were, except that a packet beyond a hard
    /// limit ends the association.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4303#section-3.4.3
    //# The receive window is updated only if the integrity verification
    //# succeeds.
    pub fn accept(&mut self, sequence: u64, bytes: u32) -> Result<(), InboundRefusal> {
        let outcome = self.decide(sequence, bytes);
        if let Err(refusal) = outcome {
            self.count(refusal);
        }
        outcome
    }

    /// Gives the lock back.
    #[inline]
    pub fn finish(mut self) -> Events {
        if self.accepted {
            self.events |= self.state.settle(self.usage);
        }
        self.events
    }

    fn decide(&mut self, sequence: u64, bytes: u32) -> Result<(), InboundRefusal> {
        let flags = self.state.flags();
        if flags.contains(Flags::DELETED) {
            return Err(InboundRefusal::Deleted);
        }
        if flags.contains(Flags::DEAD) {
            return Err(InboundRefusal::Expired);
        }
        let outbound = InboundRefusal::Replay(ReplayRefusal::Outbound);
        let window = self.state.window().ok_or(outbound)?;
        if sequence > self.state.stop.load(Ordering::Relaxed).min(self.end()) {
            self.pass_stop(sequence)?;
        }
        window
            .judge(self.top, sequence)
            .map_err(InboundRefusal::Replay)?;
        let budget = self.state.lifetime.hard.budget();
        let Some(charged) = budget.charge(self.usage, bytes) else {
            self.events |= self.state.raise(Flags::DEAD, Events::HARD_EXPIRE);
            return Err(InboundRefusal::Expired);
        };
        self.usage = charged;
        self.top = window.mark(self.top, sequence);
        self.accepted = true;
        Ok(())
    }

    /// The last number of the association's space.
    fn end(&self) -> u64 {
        end_of_space(self.state.esn)
    }

    /// Whether a number beyond the last stop may be accepted, and up to where the next ones
    /// may without asking.
    #[cold]
    fn pass_stop(&mut self, sequence: u64) -> Result<(), InboundRefusal> {
        let PerDirection::Inbound(_, marks) = &self.state.per_direction else {
            return Err(InboundRefusal::Replay(ReplayRefusal::Outbound));
        };
        if sequence > self.end() {
            return Err(InboundRefusal::Replay(ReplayRefusal::Beyond));
        }
        let stop = marks.stop_after(sequence);
        if stop != Some(marks.low()) {
            self.events |= self.state.raise(Flags::LEASE_LOW, Events::LEASE_LOW);
        }
        let stop = stop.ok_or(InboundRefusal::AboveMark)?;
        self.state.stop.store(stop, Ordering::Relaxed);
        Ok(())
    }

    #[cold]
    fn count(&self, refusal: InboundRefusal) {
        match refusal {
            InboundRefusal::Replay(_) => self.state.count_replay(),
            InboundRefusal::Expired | InboundRefusal::AboveMark | InboundRefusal::Deleted => {
                self.state.count_refused(1);
            }
        }
    }
}

impl Drop for Commit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.accepted {
            self.state.receive(self.top, self.usage, self.now);
        }
        self.state.look_ahead();
    }
}

/// After this many authentication failures in a row the sender may be in another subspace of
/// extended sequence numbers, or the key is wrong.
const FAILURES_IN_A_ROW: u8 = 16;

/// How many subspaces of 2^32 numbers ahead are tried to find the sender again.
const RESYNC_SUBSPACES: u32 = 16;

/// Failures are reported at most this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

impl PacketState {
    #[inline]
    pub(crate) fn is_resync_due(&self) -> bool {
        self.resync_due.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn precheck(&self) -> Precheck<'_> {
        Precheck::new(self)
    }

    /// Whether packets may pass without a closer look.
    #[inline]
    fn is_far(&self) -> bool {
        self.horizon.sequence.load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn window(&self) -> Option<&ReplayWindow> {
        match &self.per_direction {
            PerDirection::Inbound(window, _) => Some(window),
            PerDirection::Outbound(_) => None,
        }
    }

    /// Needs no lock.
    #[cold]
    fn count_replay(&self) {
        self.replays.fetch_add(1, Ordering::Relaxed);
    }

    /// Accepts packets, given by number and bytes, as long as each follows the one before, up
    /// to the horizon; how many.
    #[inline]
    pub(crate) fn accept_run(
        &self,
        now: Timestamp,
        packets: impl Iterator<Item = (u64, u32)>,
    ) -> usize {
        let _held = self.lock.acquire();
        let horizon = &self.horizon;
        let Some(ring) = self.window().and_then(ReplayWindow::ring) else {
            return 0;
        };
        if now.as_nanos() >= horizon.time.load(Ordering::Relaxed) {
            return 0;
        }
        let last = horizon.sequence.load(Ordering::Relaxed);
        let too_many = horizon.bytes.load(Ordering::Relaxed);
        let before = self.sequence.load(Ordering::Relaxed);
        let Usage {
            mut bytes,
            packets: packets_before,
        } = self.usage();
        let mut top = before;
        for (sequence, length) in packets {
            let charged = bytes.saturating_add(length.into());
            if top.checked_add(1) != Some(sequence) || sequence > last || charged >= too_many {
                break;
            }
            (top, bytes) = (sequence, charged);
        }
        let accepted = top - before;
        if accepted > 0 {
            ring.mark_after(before, accepted);
            let packets = packets_before.wrapping_add(accepted);
            self.receive(top, Usage { bytes, packets }, now);
        }
        accepted as usize
    }

    /// Whoever sees the new top sees the positions cleared for it.
    #[inline]
    fn receive(&self, top: u64, usage: Usage, now: Timestamp) {
        self.sequence.store(top, Ordering::Release);
        self.use_up(usage, now);
        self.failures_in_a_row.store(0, Ordering::Relaxed);
    }

    pub(crate) fn commit(&self, now: Timestamp) -> Commit<'_> {
        let held = self.lock.acquire();
        Commit {
            state: self,
            now,
            top: self.sequence.load(Ordering::Relaxed),
            usage: self.usage(),
            accepted: false,
            events: self.expire_held(now),
            _held: held,
        }
    }

    /// Sets the mark and returns it.
    pub(crate) fn set_mark(&self, mark: u64) -> Result<u64, LeaseError> {
        let PerDirection::Inbound(_, marks) = &self.per_direction else {
            return Err(LeaseError::Outbound);
        };
        let _held = self.lock.acquire();
        let mark = marks.set(mark, self.sequence.load(Ordering::Relaxed));
        self.ask_again();
        self.clear(Flags::LEASE_LOW);
        Ok(mark)
    }

    /// The highest number that a mark should cover.
    pub(crate) fn highest_wanted(&self) -> u64 {
        let sequence = self.sequence.load(Ordering::Relaxed);
        match &self.per_direction {
            PerDirection::Inbound(_, marks) => marks.wanted().max(sequence),
            PerDirection::Outbound(_) => sequence,
        }
    }

    pub(crate) fn authentication_failed(&self, now: Timestamp) -> Events {
        let _held = self.lock.acquire();
        let failures = self.authentication_failures.load(Ordering::Relaxed);
        self.authentication_failures
            .store(failures.saturating_add(1), Ordering::Relaxed);
        let in_a_row = self.failures_in_a_row.load(Ordering::Relaxed) + 1;
        if in_a_row < FAILURES_IN_A_ROW {
            self.failures_in_a_row.store(in_a_row, Ordering::Relaxed);
            return Events::NONE;
        }
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.resync_due.store(self.esn, Ordering::Relaxed);
        let reported = Timestamp::from_nanos(self.failures_reported.load(Ordering::Relaxed));
        if reported != Timestamp::ZERO && now.since(reported) < REPORT_INTERVAL {
            return Events::NONE;
        }
        self.failures_reported
            .store(now.as_nanos().max(1), Ordering::Relaxed);
        Events::AUTHENTICATION_FAILURES
    }

    pub(crate) fn resync_candidates(&self, low: u32) -> impl Iterator<Item = u64> + use<> {
        let due = self.resync_due.load(Ordering::Relaxed)
            && self.resync_due.swap(false, Ordering::Relaxed);
        let tried = match &self.per_direction {
            PerDirection::Inbound(window, _) if due => window
                .infer(self.sequence.load(Ordering::Relaxed), low)
                .ok(),
            _ => None,
        };
        tried.into_iter().flat_map(|tried| {
            (1..=RESYNC_SUBSPACES)
                .map_while(move |ahead| tried.checked_add(u64::from(ahead) << u32::BITS))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Direction, Mode, ReplayProtection, Sa, SaParams, Spi, WindowSize};

    /// The short way of `check` says what the long way says, on both sides of every bound.
    #[test]
    fn both_ways_of_checking_agree() {
        let windows = [32, 1024, 65_536].map(|size| WindowSize::new(size).unwrap());
        let protections = windows.map(ReplayProtection::Window);
        let near = |value: u64| {
            (0..4).flat_map(move |by| [value.wrapping_sub(by), value.wrapping_add(by)])
        };
        let mut accepted = 0;
        for replay in protections.into_iter().chain([ReplayProtection::Off]) {
            for esn in [false, true] {
                let tops = [
                    1,
                    31,
                    1023,
                    65_535,
                    1 << 31,
                    u64::from(u32::MAX) - 3,
                    7 << 32,
                ];
                for top in tops.into_iter().flat_map(near) {
                    if !esn && top > u64::from(u32::MAX) || top > 8 << 32 {
                        continue;
                    }
                    let sa = Sa::new(
                        SaParams {
                            esn,
                            replay,
                            sequence: top,
                            ..SaParams::new(
                                Spi::MIN,
                                Direction::Inbound,
                                Mode::Tunnel,
                                "192.0.2.1".parse().unwrap(),
                                "192.0.2.2".parse().unwrap(),
                            )
                        },
                        (),
                        Timestamp::ZERO,
                    )
                    .unwrap();
                    let precheck = sa.precheck();
                    let windows = [0, 32, 1024, 65_536].map(|size| top.wrapping_sub(size));
                    for low in windows.into_iter().flat_map(near) {
                        let outcome = precheck.check(low as u32);
                        assert_eq!(outcome, precheck.judge(low as u32), "{low} after {top}");
                        accepted += u32::from(outcome.is_ok());
                    }
                }
            }
        }
        assert!(accepted > 1000);
    }
}
