//! Lifetimes against a model that charges packet by packet, and the limits to the packet, the
//! byte and the nanosecond.

mod common;

use std::time::Duration;

use common::{Random, params};
use proptest::prelude::*;
use vesper_sa::{
    ChangeError, Direction, Events, InboundRefusal, Lease, Lifetime, Limits, OutboundRefusal, Sa,
    SaParams, SaState, SaUpdate, Timestamp, UpdateError,
};

const NOW: Timestamp = Timestamp::from_secs(1000);

fn sa(direction: Direction, lifetime: Lifetime) -> Sa<()> {
    let params = SaParams {
        lifetime,
        ..params(direction)
    };
    Sa::new(params, (), NOW).unwrap()
}

fn after(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(NOW.as_nanos() + nanos)
}

/// Packets accepted or granted one by one until the limits say no.
struct Model {
    lifetime: Lifetime,
    bytes: u64,
    packets: u64,
    dead: bool,
    dying: bool,
}

impl Model {
    fn packet(&mut self, length: u32) -> (bool, Events) {
        let over = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value > limit);
        let reached = |limit: Option<u64>, value: u64| limit.is_some_and(|limit| value >= limit);
        if self.dead {
            return (false, Events::NONE);
        }
        let hard = self.lifetime.hard;
        let soft = self.lifetime.soft;
        let (bytes, packets) = (self.bytes + u64::from(length), self.packets + 1);
        let is_used_up = reached(hard.bytes, self.bytes);
        if over(hard.bytes, bytes) || over(hard.packets, packets) || is_used_up {
            self.dead = true;
            return (false, Events::HARD_EXPIRE);
        }
        (self.bytes, self.packets) = (bytes, packets);
        let mut events = Events::NONE;
        if !self.dying && (reached(soft.bytes, bytes) || reached(soft.packets, packets)) {
            self.dying = true;
            events |= Events::SOFT_EXPIRE;
        }
        if reached(hard.bytes, bytes) || reached(hard.packets, packets) {
            self.dead = true;
            events |= Events::HARD_EXPIRE;
        }
        (true, events)
    }

    fn state(&self) -> SaState {
        match (self.dead, self.dying) {
            (true, _) => SaState::Dead,
            (false, true) => SaState::Dying,
            (false, false) => SaState::Mature,
        }
    }
}

fn limits() -> impl Strategy<Value = Limits> {
    let bytes = prop::option::of(prop_oneof![
        0..5_000_u64,
        Just(u64::MAX),
        (0..20_u64).prop_map(|n| n * 100)
    ]);
    let packets = prop::option::of(prop_oneof![0..40_u64, Just(u64::MAX)]);
    (bytes, packets).prop_map(|(bytes, packets)| Limits {
        bytes,
        packets,
        ..Limits::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_are_charged_as_single_packets(
        soft in limits(),
        hard in limits(),
        batches in prop::collection::vec(prop::collection::vec(prop_oneof![0..400_u32, Just(100), Just(0)], 0..9), 1..12),
    ) {
        let lifetime = Lifetime { soft, hard };
        let outbound = sa(Direction::Outbound, lifetime);
        let inbound = sa(Direction::Inbound, lifetime);
        let mut model =
            Model { lifetime, bytes: 0, packets: 0, dead: false, dying: false };
        let mut number = 0;
        for batch in batches {
            let before = model.packets;
            let mut expected = Events::NONE;
            let mut commit = inbound.commit(NOW);
            for &length in &batch {
                let (passes, events) = model.packet(length);
                expected |= events;
                number += 1;
                let outcome = if passes { Ok(()) } else { Err(InboundRefusal::Expired) };
                prop_assert_eq!(commit.accept(number, length), outcome);
            }
            prop_assert_eq!(commit.finish(), expected);
            let granted = outbound.reserve(NOW, batch.iter().copied());
            let count = model.packets - before;
            prop_assert_eq!(u64::from(granted.count), count);
            prop_assert_eq!(granted.first, before + 1);
            prop_assert_eq!(granted.events, expected);
            let is_short = count < batch.len() as u64;
            prop_assert_eq!(granted.refused, is_short.then_some(OutboundRefusal::Expired));
            for sa in [&outbound, &inbound] {
                prop_assert_eq!(sa.state(), model.state());
                let statistics = sa.statistics();
                prop_assert_eq!(statistics.packets, model.packets);
                prop_assert_eq!(statistics.bytes, model.bytes);
                prop_assert_eq!(statistics.packets + statistics.refused, number);
            }
        }
    }
}

#[test]
fn the_last_byte_is_carried() {
    let bytes = |bytes| Limits {
        bytes: Some(bytes),
        ..Limits::default()
    };
    let lifetime = Lifetime {
        soft: bytes(200),
        hard: bytes(300),
    };
    let sa = sa(Direction::Outbound, lifetime);
    assert_eq!(sa.reserve(NOW, [199].into_iter()).events, Events::NONE);
    assert_eq!(sa.reserve(NOW, [1].into_iter()).events, Events::SOFT_EXPIRE);
    let last = sa.reserve(NOW, [100, 0].into_iter());
    assert_eq!((last.count, last.events), (1, Events::HARD_EXPIRE));
    assert_eq!(sa.reserve(NOW, [0].into_iter()).count, 0);
}

#[test]
fn time_runs_out_at_the_nanosecond() {
    let lifetime = Lifetime {
        soft: Limits {
            time: Some(Duration::from_secs(10)),
            ..Limits::default()
        },
        hard: Limits {
            time: Some(Duration::from_secs(20)),
            ..Limits::default()
        },
    };
    let (soft, hard) = (10_000_000_000, 20_000_000_000);
    let sa = sa(Direction::Outbound, lifetime);
    assert_eq!(sa.expire(after(soft - 1)), Events::NONE);
    assert_eq!(sa.state(), SaState::Mature);
    assert_eq!(sa.expire(after(soft)), Events::SOFT_EXPIRE);
    assert_eq!(sa.expire(after(soft + 1)), Events::NONE, "only once");
    assert_eq!(sa.state(), SaState::Dying);
    assert_eq!(sa.reserve(after(hard - 1), [1].into_iter()).count, 1);
    let late = sa.reserve(after(hard), [1].into_iter());
    assert_eq!((late.count, late.events), (0, Events::HARD_EXPIRE));
    assert_eq!(late.refused, Some(OutboundRefusal::Expired));
    assert_eq!(sa.state(), SaState::Dead);
    // A clock that goes back does not bring it back to life.
    assert_eq!(sa.reserve(NOW, [1].into_iter()).count, 0);
}

#[test]
fn idle_time_counts_from_the_last_packet() {
    let lifetime = Lifetime {
        soft: Limits::default(),
        hard: Limits {
            idle: Some(Duration::from_nanos(100)),
            ..Limits::default()
        },
    };
    let sa = sa(Direction::Inbound, lifetime);
    let mut number = 0;
    let mut accept = |at| {
        number += 1;
        let mut commit = sa.commit(after(at));
        let outcome = commit.accept(number, 1);
        (outcome, commit.finish())
    };
    assert_eq!(accept(99), (Ok(()), Events::NONE));
    assert_eq!(accept(198), (Ok(()), Events::NONE));
    assert_eq!(sa.expire(after(297)), Events::NONE);
    let refused = (Err(InboundRefusal::Expired), Events::HARD_EXPIRE);
    assert_eq!(accept(298), refused);
}

#[test]
fn new_limits_arm_the_soft_event_again() {
    let packets = |soft, hard| Lifetime {
        soft: Limits {
            packets: Some(soft),
            ..Limits::default()
        },
        hard: Limits {
            packets: Some(hard),
            ..Limits::default()
        },
    };
    let sa = sa(Direction::Outbound, packets(2, 10));
    let update = |lifetime| SaUpdate {
        lifetime: Some(lifetime),
        ..SaUpdate::default()
    };
    assert_eq!(
        sa.reserve(NOW, [1; 3].into_iter()).events,
        Events::SOFT_EXPIRE
    );
    assert_eq!(sa.update(&update(packets(5, 10))), Ok(Events::NONE));
    assert_eq!(sa.state(), SaState::Mature);
    assert_eq!(
        sa.reserve(NOW, [1; 2].into_iter()).events,
        Events::SOFT_EXPIRE
    );
    // Limits that are passed already take effect at once, and for good.
    let both = Events::SOFT_EXPIRE | Events::HARD_EXPIRE;
    assert_eq!(sa.update(&update(packets(1, 5))), Ok(both));
    assert_eq!(sa.update(&update(packets(50, 100))), Ok(Events::NONE));
    assert_eq!(sa.state(), SaState::Dead);
    assert_eq!(sa.reserve(NOW, [1].into_iter()).count, 0);
}

#[test]
fn the_high_half_only_goes_up() {
    let high = |high| SaUpdate {
        sequence_high: Some(high),
        mtu: Some(1400),
        ..SaUpdate::default()
    };
    let short = sa(Direction::Inbound, Lifetime::default());
    assert_eq!(short.update(&high(0)), Err(UpdateError::NotExtended));
    assert_eq!(short.mtu(), None, "all or nothing");

    let params = SaParams {
        esn: true,
        sequence: 5 << 32 | 700,
        ..params(Direction::Inbound)
    };
    let inbound = Sa::new(params.clone(), (), NOW).unwrap();
    assert!(common::accept(&inbound, 5 << 32 | 690));
    let back = UpdateError::SequenceGoesBack {
        current: 5,
        requested: 4,
    };
    assert_eq!(inbound.update(&high(4)), Err(back));
    assert_eq!(inbound.update(&high(6)), Ok(Events::NONE));
    assert_eq!(inbound.mtu(), Some(1400));
    assert_eq!(inbound.check(690), Ok(6 << 32 | 690));
    assert!(!common::accept(&inbound, 5 << 32 | 701));

    let params = SaParams {
        direction: Direction::Outbound,
        ..params
    };
    let outbound = Sa::new(params, (), NOW).unwrap();
    assert_eq!(outbound.update(&high(6)), Ok(Events::NONE));
    assert_eq!(outbound.reserve(NOW, [1].into_iter()).first, 6 << 32 | 701);
    let next = outbound.sequence() + 1;
    outbound
        .set_lease(Lease::new(next, next + 100).unwrap())
        .unwrap();
    let outside = UpdateError::OutsideLease { requested: 7 };
    assert_eq!(outbound.update(&high(7)), Err(outside));
    assert_eq!(outbound.reserve(NOW, [1].into_iter()).first, next);
    let error: &dyn std::error::Error = &ChangeError::Update(back);
    assert!(error.source().is_some());
}

#[test]
fn a_closed_association_carries_nothing() {
    let mut random = Random(3);
    for direction in [Direction::Inbound, Direction::Outbound] {
        let sa = sa(direction, Lifetime::default());
        let granted = sa.reserve(NOW, [1; 3].into_iter());
        sa.close();
        assert_eq!(sa.state(), SaState::Deleted);
        let next = sa.reserve(NOW, [1; 3].into_iter());
        let mut commit = sa.commit(NOW);
        let outcome = commit.accept(1 + random.below(100), 1);
        commit.finish();
        assert_eq!(outcome, Err(InboundRefusal::Deleted));
        let is_outbound = direction == Direction::Outbound;
        assert_eq!(granted.count, if is_outbound { 3 } else { 0 });
        assert_eq!(
            next.refused,
            Some(if is_outbound {
                OutboundRefusal::Deleted
            } else {
                OutboundRefusal::Inbound
            })
        );
    }
}
