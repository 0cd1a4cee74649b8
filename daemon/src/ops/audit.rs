//! The audit log that RFC 4303 asks for, at most ten lines a second whatever comes in.
//!
//! What an association or an adapter reports becomes a line of its own; packets that were
//! refused become one line for each reason and second, with their number. Lines have the
//! target `vesper::audit`, so that `log` can switch them off (`vesper::audit=off`).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use vesper_esp::DropReason;

use crate::node::Statistics;

/// Lines a second, that about suppressed ones included.
const LINES: u32 = 10;

/// Lines a second of one kind: a flood of one does not hide the others.
const OF_A_KIND: u32 = 3;

/// Writes the audit log.
#[derive(Debug, Default)]
pub(super) struct Audit {
    limiter: Limiter,
    before: HashMap<(String, DropReason), u64>,
}

/// What RFC 4303 calls an auditable event among the packets that were refused.
const AUDITABLE: [DropReason; 7] = [
    DropReason::NoSa,
    DropReason::Fragment,
    DropReason::Replay,
    DropReason::Icv,
    DropReason::Selector,
    DropReason::OutSequence,
    DropReason::OutLease,
];

impl Audit {
    /// Something was reported.
    pub(super) fn event(&mut self, now: Instant, kind: &str, host: &str, text: &str) {
        if self.admits(now, kind) {
            tracing::warn!(target: "vesper::audit", kind, host, "{text}");
        }
    }

    /// So many packets were refused so far.
    pub(super) fn drops(&mut self, now: Instant, statistics: &Statistics) {
        for node in &statistics.nodes {
            for reason in AUDITABLE {
                let count = node.esp.drops(reason);
                let name = (node.name.to_string(), reason);
                let before = self.before.insert(name, count).unwrap_or(0);
                if count > before && self.admits(now, reason.name()) {
                    tracing::warn!(
                        target: "vesper::audit",
                        kind = reason.name(),
                        host = &*node.name,
                        packets = count - before,
                        "packets refused: {reason}"
                    );
                }
            }
        }
    }

    fn admits(&mut self, now: Instant, kind: &str) -> bool {
        let admission = self.limiter.admit(now, kind);
        if let Some(suppressed) = admission.suppressed {
            tracing::warn!(target: "vesper::audit", "suppressed {suppressed} audit events");
        }
        admission.admitted
    }
}

/// Admits so many lines a second, and tells in one of them how many it did not.
#[derive(Debug, Default)]
struct Limiter {
    begun: Option<Instant>,
    lines: u32,
    of_kind: HashMap<String, u32>,
    suppressed: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Admission {
    /// So many were suppressed in the seconds before, which is to be said now.
    suppressed: Option<u64>,
    admitted: bool,
}

impl Limiter {
    fn admit(&mut self, now: Instant, kind: &str) -> Admission {
        let mut suppressed = None;
        let is_over = self
            .begun
            .is_none_or(|begun| now.saturating_duration_since(begun) >= Duration::from_secs(1));
        if is_over {
            self.begun = Some(now);
            self.lines = 0;
            self.of_kind.clear();
            if self.suppressed > 0 {
                suppressed = Some(self.suppressed);
                self.suppressed = 0;
                self.lines = 1;
            }
        }
        let of_kind = self.of_kind.entry(kind.to_owned()).or_default();
        let admitted = self.lines < LINES && *of_kind < OF_A_KIND;
        if admitted {
            self.lines += 1;
            *of_kind += 1;
        } else {
            self.suppressed += 1;
        }
        Admission {
            suppressed,
            admitted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_second_and_nothing_uncounted() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let mut lines = [0_u64; 5];
        let (mut admitted, mut suppressed) = (0, 0);
        for event in 0..1_000_000_u64 {
            let micros = event * 4;
            let kind = ["a", "b", "c", "d"][event as usize % 4];
            let admission = limiter.admit(start + Duration::from_micros(micros), kind);
            let second = (micros / 1_000_000) as usize;
            lines[second] += u64::from(admission.admitted);
            lines[second] += u64::from(admission.suppressed.is_some());
            admitted += u64::from(admission.admitted);
            suppressed += admission.suppressed.unwrap_or(0);
        }
        let last = limiter.admit(start + Duration::from_secs(60), "a");
        suppressed += last.suppressed.unwrap();
        assert_eq!(lines, [10, 10, 10, 10, 0]);
        assert_eq!(admitted + suppressed, 1_000_000);
    }

    #[test]
    fn a_flood_of_one_kind_does_not_hide_another() {
        let mut limiter = Limiter::default();
        let now = Instant::now();
        let flood = (0..1000).filter(|_| limiter.admit(now, "bad-spi").admitted);
        assert_eq!(flood.count(), 3);
        assert!(limiter.admit(now, "sequence-overflow").admitted);
    }
}
