//! The replay window against a model that remembers every number, on random walks that like
//! edges.

mod common;

use std::collections::HashSet;

use common::{Random, accept, inbound};
use vesper_sa::{InboundRefusal, ReplayRefusal, Timestamp};

const TWO_32: i128 = 1 << 32;

/// RFC 4303 section 3.4.3 in the words of sets.
struct Model {
    window: i128,
    esn: bool,
    top: i128,
    received: HashSet<i128>,
}

impl Model {
    /// The smallest number with these low bits that is not left of the window; if the window
    /// reaches below 0, of those that exist.
    fn infer(&self, low: u32) -> Result<i128, ReplayRefusal> {
        if !self.esn {
            return Ok(i128::from(low));
        }
        let left = self.top - self.window + 1;
        let number = left + (i128::from(low) - left).rem_euclid(TWO_32);
        let number = if number < 0 { number + TWO_32 } else { number };
        if number > i128::from(u64::MAX) {
            Err(ReplayRefusal::Beyond)
        } else {
            Ok(number)
        }
    }

    fn judge(&self, number: i128) -> Result<(), ReplayRefusal> {
        if number == 0 {
            Err(ReplayRefusal::Zero)
        } else if number <= self.top - self.window {
            Err(ReplayRefusal::Old)
        } else if self.received.contains(&number) {
            Err(ReplayRefusal::Seen)
        } else {
            Ok(())
        }
    }

    fn accept(&mut self, number: i128) {
        self.received.insert(number);
        self.top = self.top.max(number);
        if self.received.len() as i128 > 4 * self.window {
            let left = self.top - self.window;
            self.received.retain(|&number| number > left);
        }
    }
}

/// Walks `steps` packets and returns how many of them were accepted.
fn walk(random: &mut Random, window: u32, esn: bool, start: u64, steps: u32) -> u32 {
    let sa = inbound(window, esn, start);
    let mut model = Model {
        window: window.into(),
        esn,
        top: start.into(),
        received: HashSet::new(),
    };
    let w = i128::from(window);
    let end = if esn { u64::MAX } else { u64::from(u32::MAX) };
    let mut accepted = 0;
    let mut run = 0;
    for _ in 0..steps {
        if run == 0 && random.below(50) == 0 {
            run = random.below(2 * u64::from(window));
        }
        let distance = if run > 0 {
            run -= 1;
            1
        } else {
            match random.below(16) {
                0 => random.pick(&[0, 1, 2, w - 1, w, w + 1, 63, 64, 65, 2 * w]),
                1 => random.pick(&[TWO_32 / 2, TWO_32 - 1, TWO_32 - w, TWO_32 + w, TWO_32]),
                2..=5 => i128::from(random.below(8)) - 2,
                6 => -random.pick(&[w - 2, w - 1, w, w + 1, w / 2]),
                7..=9 => -i128::from(random.below(u64::from(window) + 3)),
                10 => i128::from(random.below(u64::from(window) * 2)),
                11 => i128::from(random.next() as i32),
                _ => 1,
            }
        };
        let sent = (model.top + distance).clamp(0, end.into());
        let low = sent as u32;

        let expected = model
            .infer(low)
            .and_then(|number| model.judge(number).map(|()| number));
        let checked = sa.check(low).map(i128::from);
        assert_eq!(checked, expected, "W {window}, top {}, {sent}", model.top);

        // A packet authenticates if its number was inferred right. One in eight is forged.
        if let Ok(number) = expected
            && number == sent
            && random.below(8) != 0
        {
            let mut commit = sa.commit(Timestamp::ZERO);
            assert_eq!(commit.accept(number as u64, 1), Ok(()));
            let twin = commit.accept(number as u64, 1);
            assert_eq!(twin, Err(InboundRefusal::Replay(ReplayRefusal::Seen)));
            commit.finish();
            model.accept(number);
            accepted += 1;
        }
        assert_eq!(i128::from(sa.sequence()), model.top);
    }
    accepted
}

#[test]
fn walks_equal_the_model() {
    let mut random = Random(1);
    for window in [32, 33, 64, 96, 128, 1000, 1024, 1025, 4096, 65_536] {
        for esn in [false, true] {
            let w = u64::from(window);
            let two_32 = 1_u64 << 32;
            let mut starts = vec![0, 1, w - 2, w - 1, w, w + 1, two_32 - 1, two_32 - w];
            starts.extend([two_32 - 2 * w, two_32 / 2]);
            if esn {
                starts.extend([two_32, two_32 + 1, two_32 + w - 2, two_32 + w - 1]);
                starts.extend([two_32 + w, 7 * two_32 - w / 2, u64::MAX - 3 * w, u64::MAX]);
            }
            let mut accepted = 0;
            let mut steps = 0;
            while steps < 200_000 {
                let start = random.pick(&starts);
                let length = 100 + random.below(4 * w) as u32;
                accepted += walk(&mut random, window, esn, start, length);
                steps += length;
            }
            assert!(accepted > steps / 20, "only {accepted} of {steps} accepted");
        }
    }
}

#[test]
fn an_initial_number_leaves_the_window_open() {
    let sa = inbound(64, false, 100);
    assert!(accept(&sa, 100) && accept(&sa, 37));
    assert!(!accept(&sa, 36) && !accept(&sa, 100));
}

#[test]
fn all_seen_accepts_only_what_follows() {
    for window in [32, 64, 1024, 4096] {
        let sa = inbound(window, false, 10_000).with_all_seen();
        for number in 1..=10_000 {
            assert!(!accept(&sa, number));
        }
        assert!(accept(&sa, 10_050) && accept(&sa, 10_049) && !accept(&sa, 10_000));
        for number in 10_001..10_049 {
            assert_eq!(accept(&sa, number), number + u64::from(window) > 10_050);
        }
    }
}

#[test]
fn without_replay_protection_everything_is_accepted() {
    let sa = inbound(0, false, 5);
    for low in [0, 7, 7, u32::MAX, 0] {
        assert_eq!(sa.check(low), Ok(low.into()));
        assert!(accept(&sa, low.into()));
    }
    let top = 5 << 32 | 10;
    let sa = inbound(0, true, top);
    assert_eq!(sa.check(10), Ok(top));
    assert_eq!(sa.check(9), Ok(top - 1));
    assert_eq!(sa.check(u32::MAX), Ok(top - 11));
    assert_eq!(sa.check(10 + (1 << 31) - 1), Ok(top + (1 << 31) - 1));
    assert_eq!(sa.check(10 + (1 << 31)), Ok(top - (1 << 31)));
}

#[test]
fn a_sender_many_subspaces_ahead_is_found_again() {
    let sa = inbound(64, true, 1000);
    let sent: u64 = 3 << 32 | 500;
    let now = Timestamp::from_secs(1);
    for _ in 0..15 {
        assert!(sa.authentication_failed(now).is_empty());
        assert_eq!(sa.resync_candidates(sent as u32).count(), 0);
    }
    let events = sa.authentication_failed(now);
    assert!(events.contains(vesper_sa::Events::AUTHENTICATION_FAILURES));
    // Left of the window, the number was first tried one subspace ahead.
    assert_eq!(sa.check(sent as u32), Ok(1 << 32 | 500));
    let candidates: Vec<_> = sa.resync_candidates(sent as u32).collect();
    let expected: Vec<_> = (2..=17).map(|high: u64| high << 32 | 500).collect();
    assert_eq!(candidates, expected);
    assert_eq!(sa.sequence(), 1000, "asking moves nothing");
    assert_eq!(sa.resync_candidates(sent as u32).count(), 0, "one attempt");
    assert!(accept(&sa, sent));
    assert_eq!(sa.check(501), Ok(sent + 1));
    assert_eq!(sa.statistics().authentication_failures, 16);

    // A packet that authenticates ends the row.
    for _ in 0..15 {
        sa.authentication_failed(Timestamp::from_secs(9));
    }
    assert!(accept(&sa, sent + 1));
    for _ in 0..15 {
        assert!(sa.authentication_failed(Timestamp::from_secs(9)).is_empty());
    }
    assert_eq!(sa.resync_candidates(7).count(), 0);

    // Without extended sequence numbers there is nothing to look for, and one report a second.
    let sa = inbound(64, false, 1000);
    let reports = (0..160)
        .filter(|_| !sa.authentication_failed(now).is_empty())
        .count();
    assert_eq!((reports, sa.resync_candidates(7).count()), (1, 0));
}
