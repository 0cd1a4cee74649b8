//! Marks: an inbound association accepts no number twice, whatever crashes.

mod common;

use std::collections::HashSet;

use common::{Random, inbound};
use vesper_sa::{Direction, Events, InboundRefusal, LeaseError, Sa, SaParams, Timestamp};

const NOW: Timestamp = Timestamp::ZERO;

fn accept(sa: &Sa<()>, sequence: u64) -> (Result<(), InboundRefusal>, Events) {
    let mut commit = sa.commit(NOW);
    let outcome = commit.accept(sequence, 100);
    (outcome, commit.finish())
}

#[test]
fn above_the_mark_nothing_is_accepted() {
    let sa = inbound(64, true, 0);
    assert_eq!(accept(&sa, 1), (Ok(()), Events::NONE), "no mark yet");
    assert_eq!(sa.set_mark(21).unwrap(), 21);
    for sequence in 2..=11 {
        assert_eq!(accept(&sa, sequence), (Ok(()), Events::NONE));
    }
    assert_eq!(
        accept(&sa, 12),
        (Ok(()), Events::LEASE_LOW),
        "half of the way"
    );
    assert_eq!(accept(&sa, 21), (Ok(()), Events::NONE), "told once");
    let above = Err(InboundRefusal::AboveMark);
    assert_eq!(accept(&sa, 22), (above, Events::NONE));
    assert_eq!(accept(&sa, 5000), (above, Events::NONE));
    assert_eq!((sa.sequence(), sa.highest_wanted()), (21, 5000));
    let statistics = sa.statistics();
    assert_eq!((statistics.refused, statistics.replays), (2, 0));
    assert_eq!(sa.set_mark(6000).unwrap(), 6000);
    assert_eq!(accept(&sa, 22), (Ok(()), Events::NONE), "still in time");
    assert_eq!(
        accept(&sa, 6001),
        (above, Events::LEASE_LOW),
        "a sender that has jumped"
    );
    // Taken back while few packets come, but not behind what was accepted.
    assert_eq!(sa.set_mark(10).unwrap(), 22);
    assert_eq!(accept(&sa, 23).0, above);
    // A replay is a replay, not a number above the mark.
    assert!(matches!(accept(&sa, 22).0, Err(InboundRefusal::Replay(_))));
}

#[test]
fn another_incarnation_keeps_the_mark() {
    let old = inbound(64, false, 0);
    old.set_mark(10).unwrap();
    let new = inbound(64, false, 0).continuing(&old, NOW).unwrap();
    assert_eq!(accept(&new, 10).0, Ok(()));
    assert_eq!(accept(&new, 11).0, Err(InboundRefusal::AboveMark));
    let outbound = common::params(Direction::Outbound);
    let outbound = Sa::new(outbound, (), NOW).unwrap();
    assert!(matches!(outbound.set_mark(1), Err(LeaseError::Outbound)));
}

/// A receiver that crashes at random and comes back with the last durable mark accepts nothing
/// twice, though everything that was ever sent comes again, and loses no more than a block.
#[test]
fn crashes_accept_no_replay() {
    const BLOCK: u64 = 100;
    let mut random = Random(3);
    let mut durable = BLOCK;
    let mut sa = inbound(64, false, 0);
    sa.set_mark(durable).unwrap();
    let mut accepted = HashSet::new();
    let mut sent = 0;
    let mut lost = 0;
    for _ in 0..20_000 {
        if random.below(500) == 0 {
            let params = SaParams {
                sequence: durable,
                ..sa.params().clone()
            };
            sa = Sa::new(params, (), NOW).unwrap().with_all_seen();
            durable += BLOCK;
            sa.set_mark(durable).unwrap();
            for replayed in 1..=sent {
                assert!(accept(&sa, replayed).0.is_err(), "{replayed} again");
            }
            lost = 0;
        }
        sent += 1;
        let (outcome, events) = accept(&sa, sent);
        if outcome.is_ok() {
            assert!(accepted.insert(sent));
        } else {
            lost += 1;
            assert!(lost <= 2 * BLOCK, "{outcome:?} {sent}");
        }
        if events.contains(Events::LEASE_LOW) {
            durable = sa.highest_wanted() + BLOCK;
            sa.set_mark(durable).unwrap();
        }
    }
    assert!(accepted.len() > 10_000);
}
