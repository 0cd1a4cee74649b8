//! Snapshots: what is restored behaves like the original, and hostile bytes do nothing.

mod common;

use std::time::Duration;

use common::{Random, accept, inbound, params};
use proptest::prelude::*;
use vesper_sa::{
    Direction, Events, Lease, Lifetime, Limits, OutboundRefusal, ReplayProtection, RestoreError,
    Sa, SaParams, SaSnapshot, SaState, SnapshotError, Timestamp, WindowSize,
};

/// An inbound association that has received something, and a moment later.
fn used_inbound(seed: u64) -> (Sa<()>, Timestamp) {
    let mut random = Random(seed);
    let window = random.pick(&[0, 32, 64, 100, 1024, 4096]);
    let esn = random.below(2) == 0;
    let sa = inbound(window, esn, random.pick(&[0, 1, 40, 5000, (1 << 32) - 20]));
    for _ in 0..random.below(300) {
        let low = (sa.sequence() as u32)
            .wrapping_add(random.below(200) as u32)
            .wrapping_sub(150);
        if let Ok(number) = sa.check(low) {
            accept(&sa, number);
        }
    }
    (sa, Timestamp::from_nanos(random.below(1 << 40)))
}

#[test]
fn restored_windows_accept_what_the_original_would() {
    for seed in 0..300 {
        let (original, now) = used_inbound(seed);
        let snapshot = original.snapshot(now);
        let decoded = SaSnapshot::decode(&snapshot.encode()).unwrap();
        assert_eq!(decoded, snapshot);
        let params = SaParams {
            sequence: 0,
            ..original.params().clone()
        };
        let restored = Sa::new(params, (), Timestamp::from_secs(5))
            .unwrap()
            .with_snapshot(&decoded, Timestamp::from_secs(5))
            .unwrap();
        assert_eq!(restored.statistics(), original.statistics());
        assert_eq!(restored.sequence(), original.sequence());
        let top = original.sequence();
        for number in top.saturating_sub(5000)..top + 10 {
            let low = number as u32;
            assert_eq!(
                restored.check(low),
                original.check(low),
                "{number}, top {top}"
            );
        }
        let later = restored.snapshot(Timestamp::from_secs(5));
        assert_eq!(later.sequence(), snapshot.sequence());
    }
}

#[test]
fn a_larger_window_treats_the_unknown_as_received() {
    let original = inbound(32, false, 1000);
    assert!(accept(&original, 999));
    let larger = SaParams {
        replay: ReplayProtection::Window(WindowSize::new(128).unwrap()),
        sequence: 0,
        ..original.params().clone()
    };
    let restored = Sa::new(larger, (), Timestamp::ZERO)
        .unwrap()
        .with_snapshot(&original.snapshot(Timestamp::ZERO), Timestamp::ZERO)
        .unwrap();
    for number in 800..=1000 {
        let unknown = number != 999 && number > 968;
        assert_eq!(restored.check(number).is_ok(), unknown, "{number}");
    }
}

#[test]
fn lifetimes_go_on_where_they_were() {
    let lifetime = Lifetime {
        soft: Limits::default(),
        hard: Limits {
            packets: Some(10),
            time: Some(Duration::from_secs(100)),
            ..Limits::default()
        },
    };
    let params = SaParams {
        lifetime,
        ..params(Direction::Outbound)
    };
    let original = Sa::new(params.clone(), (), Timestamp::from_secs(1000)).unwrap();
    assert_eq!(
        original
            .reserve(Timestamp::from_secs(1001), [1; 4].into_iter())
            .count,
        4
    );
    let snapshot = original.snapshot(Timestamp::from_secs(1070));
    assert_eq!(snapshot.age(), Duration::from_secs(70));

    // The other host's clock has just begun.
    let restore = || {
        Sa::new(params.clone(), (), Timestamp::from_secs(2))
            .unwrap()
            .with_snapshot(&snapshot, Timestamp::from_secs(2))
            .unwrap()
    };
    let restored = restore();
    let granted = restored.reserve(Timestamp::from_secs(3), [1; 9].into_iter());
    assert_eq!((granted.first, granted.count), (5, 6));
    assert_eq!(granted.events, Events::HARD_EXPIRE);
    let restored = restore();
    assert_eq!(restored.expire(Timestamp::from_secs(31)), Events::NONE);
    assert_eq!(
        restored.expire(Timestamp::from_secs(32)),
        Events::HARD_EXPIRE
    );
    // Twice moved, and dead.
    let moved = restored.snapshot(Timestamp::from_secs(32));
    assert_eq!(moved.age(), Duration::from_secs(100));
    let dead = Sa::new(params, (), Timestamp::ZERO)
        .unwrap()
        .with_snapshot(&moved, Timestamp::ZERO)
        .unwrap();
    assert_eq!(dead.state(), SaState::Dead);
    let refused = dead.reserve(Timestamp::ZERO, [1].into_iter()).refused;
    assert_eq!(refused, Some(OutboundRefusal::Expired));
}

#[test]
fn a_successor_continues_and_the_original_stops() {
    let original = Sa::new(params(Direction::Outbound), "old", Timestamp::ZERO).unwrap();
    original.set_lease(Lease::new(11, 20).unwrap()).unwrap();
    assert_eq!(
        original.reserve(Timestamp::ZERO, [1; 3].into_iter()).first,
        11
    );
    let moved = SaParams {
        destination: "198.51.100.9".parse().unwrap(),
        ..params(Direction::Outbound)
    };
    let successor = Sa::new(moved, "new", Timestamp::ZERO)
        .unwrap()
        .continuing(&original, Timestamp::ZERO)
        .unwrap();
    assert_eq!(original.reserve(Timestamp::ZERO, [1].into_iter()).count, 0);
    let granted = successor.reserve(Timestamp::ZERO, [1; 10].into_iter());
    assert_eq!((granted.first, granted.count), (14, 7));
    assert_eq!(granted.refused, Some(OutboundRefusal::LeaseExhausted));

    let other = Sa::new(params(Direction::Inbound), "in", Timestamp::ZERO).unwrap();
    let refused = other.continuing(&successor, Timestamp::ZERO);
    assert_eq!(refused.unwrap_err(), RestoreError::OtherAssociation);
    assert_eq!(
        successor.state(),
        SaState::Mature,
        "a refusal closes nothing"
    );
}

#[test]
fn an_old_snapshot_is_not_restored() {
    let original = inbound(64, false, 100);
    let snapshot = original.snapshot(Timestamp::ZERO);
    let ahead = inbound(64, false, 101).with_snapshot(&snapshot, Timestamp::ZERO);
    let behind = RestoreError::Behind {
        snapshot: 100,
        params: 101,
    };
    assert_eq!(ahead.unwrap_err(), behind);
    let extended = inbound(64, true, 0).with_snapshot(&snapshot, Timestamp::ZERO);
    assert_eq!(extended.unwrap_err(), RestoreError::OtherAssociation);
}

#[test]
fn impossible_fields_are_named() {
    let sa = inbound(64, false, 5);
    assert!(accept(&sa, 3));
    let good = sa.snapshot(Timestamp::ZERO).encode();
    assert_eq!(good.len(), 88);
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        SaSnapshot::decode(&bytes)
    };
    let field = |name, value| Err(SnapshotError::Field { name, value });
    assert_eq!(with(0, b'X'), Err(SnapshotError::NotASnapshot));
    assert_eq!(with(3, 2), Err(SnapshotError::Version(2)));
    assert_eq!(with(6, 0), field("SPI", 0));
    assert_eq!(with(8, 2), field("direction", 2));
    assert_eq!(with(8, 1), field("window", 64));
    assert_eq!(with(9, 7), field("ESN", 7));
    assert_eq!(with(11, 4), field("flags", 4));
    assert_eq!(with(15, 31), field("window", 31));
    assert_eq!(with(19, 1), field("sequence", (1 << 32) + 5));
    assert_eq!(with(55, 1), field("idle", 1));
    // Number 0, five back from 5, can not have been received.
    assert_eq!(with(87, 1 << 5), field("received", 1 << 5));
    assert_eq!(
        with(15, 65),
        Err(SnapshotError::Length {
            expected: 96,
            found: 88
        })
    );
    for length in 0..good.len() {
        assert!(SaSnapshot::decode(&good[..length]).is_err());
    }
    assert!(SaSnapshot::decode(&[&good[..], &[0]].concat()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_bytes_are_refused_or_mean_what_they_say(
        seed in 0..300_u64,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (original, now) = used_inbound(seed);
        let mut bytes = original.snapshot(now).encode();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(snapshot) = SaSnapshot::decode(&bytes) {
            prop_assert_eq!(snapshot.encode(), bytes);
            let params = SaParams { sequence: 0, ..original.params().clone() };
            let restored = Sa::new(params, (), now).unwrap().with_snapshot(&snapshot, now);
            if let Ok(restored) = restored {
                let _ = restored.check(7);
                prop_assert_eq!(restored.sequence(), snapshot.sequence());
            }
        }
    }

    #[test]
    fn noise_is_no_snapshot(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SaSnapshot::decode(&bytes);
        let prefixed = [b"VSA\x01", &bytes[..]].concat();
        if let Ok(snapshot) = SaSnapshot::decode(&prefixed) {
            prop_assert_eq!(snapshot.encode(), prefixed);
        }
    }
}
