//! The short ways of runs far from every bound against the way that looks at each packet: two
//! associations live through the same, one by the short ways where they go, one without.

mod common;

use std::time::Duration;

use common::{Random, params};
use vesper_sa::{
    Direction, Events, InboundRefusal, Lease, Lifetime, Limits, ReplayProtection, Sa, SaParams,
    SaUpdate, Timestamp, WindowSize,
};

const LIVES: u64 = 4_000;
const STEPS: u64 = 150;

/// Limits that come soon, late, or never.
fn limits(random: &mut Random, now: Timestamp) -> Limits {
    let mut some = |most: u64| (random.below(4) == 0).then(|| random.below(most));
    Limits {
        // Lengths are such multiples too, so that limits are met to the byte.
        bytes: some(6_000).map(|tens| 10 * tens),
        packets: some(600),
        time: some(2_000).map(|more| Duration::from_nanos(now.as_nanos() + more)),
        idle: some(400).map(Duration::from_nanos),
    }
}

fn lifetime(random: &mut Random, now: Timestamp) -> Lifetime {
    Lifetime {
        soft: limits(random, now),
        hard: limits(random, now),
    }
}

fn twins(random: &mut Random, direction: Direction) -> [Sa<()>; 2] {
    let sizes = [0, 32, 64, 96, 1024, 2048];
    let replay = match WindowSize::new(sizes[random.below(6) as usize]) {
        Some(size) => ReplayProtection::Window(size),
        None => ReplayProtection::Off,
    };
    let esn = random.below(2) == 0;
    let last = if esn { u64::MAX } else { (1 << 32) - 1 };
    let params = SaParams {
        esn,
        replay,
        lifetime: lifetime(random, Timestamp::ZERO),
        sequence: random.pick(&[0, 30, (1 << 32) - 300, last - 300]),
        ..params(direction)
    };
    [(); 2].map(|()| Sa::new(params.clone(), (), Timestamp::ZERO).unwrap())
}

/// Something other than packets happens to both.
fn disturb(random: &mut Random, now: Timestamp, twins: &[Sa<()>; 2]) {
    let [a, b] = twins;
    let next = a.sequence().saturating_add(random.below(3));
    let last = next.saturating_add(1 + random.below(80));
    match random.below(16) {
        0 => assert_eq!(a.expire(now), b.expire(now)),
        1 => {
            let update = SaUpdate {
                lifetime: Some(lifetime(random, now)),
                ..SaUpdate::default()
            };
            assert_eq!(a.update(&update), b.update(&update));
        }
        2 | 3 => {
            if let Some(lease) = Lease::new(next, last) {
                assert_eq!(a.set_lease(lease).is_ok(), b.set_lease(lease).is_ok());
            }
        }
        4 => assert_eq!(a.set_mark(last).ok(), b.set_mark(last).ok()),
        5 => assert_eq!(a.authentication_failed(now), b.authentication_failed(now)),
        6 if random.below(20) == 0 => twins.iter().for_each(Sa::close),
        _ => {}
    }
}

fn assert_equal([a, b]: &[Sa<()>; 2]) {
    assert_eq!(a.state(), b.state());
    assert_eq!(a.sequence(), b.sequence());
    assert_eq!(a.statistics(), b.statistics());
}

#[test]
fn numbers_are_reserved_alike() {
    let mut random = Random(17);
    let (mut by_short_way, mut refused) = (0, 0);
    for _ in 0..LIVES {
        let twins = twins(&mut random, Direction::Outbound);
        let [a, b] = &twins;
        let mut now = Timestamp::ZERO;
        for _ in 0..STEPS {
            now = Timestamp::from_nanos(now.as_nanos() + random.below(100));
            disturb(&mut random, now, &twins);
            let lengths: Vec<u32> = (0..1 + random.below(12))
                .map(|_| 10 * random.below(20) as u32)
                .collect();
            let long = b.reserve(now, lengths.iter().copied());
            let total = lengths.iter().map(|&length| u64::from(length)).sum();
            match a.reserve_run(now, lengths.len() as u32, total) {
                Some(first) => {
                    assert_eq!((first, lengths.len() as u32), (long.first, long.count));
                    assert_eq!((long.refused, long.events), (None, Events::NONE));
                    by_short_way += 1;
                }
                None => {
                    let granted = a.reserve(now, lengths.iter().copied());
                    assert_eq!(granted, long);
                    refused += u32::from(granted.refused.is_some());
                }
            }
            assert_equal(&twins);
            if long.count == 0 && random.below(4) == 0 {
                break;
            }
        }
    }
    println!("{by_short_way} runs by the short way, {refused} with refusals");
    assert!(by_short_way > 2_000 && refused > 2_000);
}

#[test]
fn packets_are_accepted_alike() {
    let mut random = Random(23);
    let (mut by_short_way, mut refused) = (0, 0);
    for _ in 0..LIVES {
        let twins = twins(&mut random, Direction::Inbound);
        let [a, b] = &twins;
        let mut now = Timestamp::ZERO;
        for _ in 0..STEPS {
            now = Timestamp::from_nanos(now.as_nanos() + random.below(100));
            disturb(&mut random, now, &twins);
            let mut next = a.sequence();
            let most = random.pick(&[1, 70]);
            let packets: Vec<(u64, u32)> = (0..1 + random.below(most))
                .map(|_| {
                    next = match random.below(60) {
                        0 => next.saturating_sub(random.below(100)),
                        1 => next.saturating_add(random.below(100)),
                        // Also what no check before would let through.
                        _ => next.wrapping_add(1),
                    };
                    (next, 10 * random.below(20) as u32)
                })
                .collect();
            let long = commit(b, now, &packets);
            let accepted = a.accept_run(now, packets.iter().copied());
            by_short_way += accepted;
            let mut short = vec![Ok(()); accepted];
            let mut events = Events::NONE;
            if accepted < packets.len() {
                let (rest, raised) = commit(a, now, &packets[accepted..]);
                short.extend(rest);
                events = raised;
            }
            refused += short.iter().filter(|outcome| outcome.is_err()).count();
            let is_over = long.0.iter().all(Result::is_err);
            assert_eq!((short, events), long);
            assert_equal(&twins);
            for back in 0..150 {
                let low = (a.sequence().wrapping_add(3) as u32).wrapping_sub(back);
                assert_eq!(a.check(low), b.check(low));
            }
            if is_over && random.below(4) == 0 {
                break;
            }
        }
    }
    println!("{by_short_way} packets by the short way, {refused} refused");
    assert!(by_short_way > 20_000 && refused > 20_000);
}

fn commit(
    sa: &Sa<()>,
    now: Timestamp,
    packets: &[(u64, u32)],
) -> (Vec<Result<(), InboundRefusal>>, Events) {
    let mut commit = sa.commit(now);
    let outcomes = packets
        .iter()
        .map(|&(sequence, bytes)| commit.accept(sequence, bytes))
        .collect();
    (outcomes, commit.finish())
}
