//! One association used by several threads at a time.

mod common;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use common::{Random, inbound, params};
use vesper_sa::{
    Database, Direction, Events, Lease, Lifetime, Limits, OutboundRefusal, Reader, Readers, Sa,
    SaParams, SaState, Timestamp,
};

const THREADS: u64 = 4;

/// What threads share, and what each has of its own.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    const fn is_sent<T: Send>() {}
    is_shared::<Sa<Vec<u8>>>();
    is_shared::<Readers<Vec<u8>>>();
    is_sent::<Reader<Vec<u8>>>();
    is_sent::<Database<Vec<u8>>>();
};

#[test]
fn a_number_that_all_threads_commit_is_accepted_once() {
    for round in 0..10 {
        commit_from_all_threads(round);
    }
}

fn commit_from_all_threads(round: u64) {
    const NUMBERS: u64 = 40_000;
    let sa = inbound(65_536, true, 0);
    let accepted: Vec<AtomicU32> = (0..=NUMBERS).map(|_| AtomicU32::new(0)).collect();
    let beyond = AtomicUsize::new(0);
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let (sa, accepted, beyond, start) = (&sa, &accepted, &beyond, &start);
            scope.spawn(move || {
                let mut random = Random(round * THREADS + seed);
                start.wait();
                // All numbers, in runs, beginning somewhere and going round.
                let mut next = random.below(NUMBERS);
                let mut left = NUMBERS;
                while left > 0 {
                    let run = left.min(1 + random.below(64));
                    let numbers: Vec<_> = (0..run).map(|i| 1 + (next + i) % NUMBERS).collect();
                    // What the check refuses another thread has accepted.
                    let checked: Vec<_> = numbers
                        .iter()
                        .filter_map(|&number| sa.check(number as u32).ok())
                        .collect();
                    let mut commit = sa.commit(Timestamp::ZERO);
                    for number in checked {
                        if random.below(256) == 0 {
                            // Lets the others try while this one decides.
                            thread::yield_now();
                        }
                        if commit.accept(number, 10).is_ok() {
                            match accepted.get(number as usize) {
                                Some(count) => count.fetch_add(1, Ordering::Relaxed),
                                None => beyond.fetch_add(1, Ordering::Relaxed) as u32,
                            };
                        }
                    }
                    commit.finish();
                    next += run;
                    left -= run;
                }
            });
        }
    });
    assert_eq!(beyond.into_inner(), 0);
    assert_eq!(accepted[0].load(Ordering::Relaxed), 0);
    assert!(
        accepted[1..]
            .iter()
            .all(|count| count.load(Ordering::Relaxed) == 1)
    );
    let statistics = sa.statistics();
    assert_eq!(
        (statistics.packets, statistics.bytes),
        (NUMBERS, NUMBERS * 10)
    );
    assert_eq!(statistics.replays, NUMBERS * (THREADS - 1));
}

#[test]
fn threads_get_disjoint_numbers_within_the_lease() {
    let sa = Sa::new(params(Direction::Outbound), (), Timestamp::ZERO).unwrap();
    sa.set_lease(Lease::new(101, 300_100).unwrap()).unwrap();
    let all = Mutex::new(Vec::new());
    let low = AtomicU32::new(0);
    let start = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for seed in 0..THREADS {
            let (sa, all, low, start) = (&sa, &all, &low, &start);
            scope.spawn(move || {
                let mut random = Random(seed);
                start.wait();
                let mut mine = Vec::new();
                loop {
                    let run = 1 + random.below(64) as usize;
                    // Lets the others try while this one counts.
                    let lengths = (0..run).inspect(|_| {
                        if random.below(256) == 0 {
                            thread::yield_now();
                        }
                    });
                    let granted = sa.reserve(Timestamp::ZERO, lengths.map(|_| 1));
                    mine.extend(granted.first..granted.first + u64::from(granted.count));
                    if granted.events.contains(Events::LEASE_LOW) {
                        low.fetch_add(1, Ordering::Relaxed);
                    }
                    if let Some(refusal) = granted.refused {
                        assert_eq!(refusal, OutboundRefusal::LeaseExhausted);
                        break;
                    }
                }
                all.lock().unwrap().extend(mine);
            });
        }
    });
    let mut all = all.into_inner().unwrap();
    all.sort_unstable();
    assert!(all.into_iter().eq(101..=300_100));
    assert_eq!(low.into_inner(), 1);
    assert_eq!(sa.state(), SaState::Mature);
}

#[test]
fn threads_share_a_hard_limit_exactly() {
    let limits = Limits {
        packets: Some(10_007),
        ..Limits::default()
    };
    let params = SaParams {
        lifetime: Lifetime {
            soft: Limits::default(),
            hard: limits,
        },
        ..params(Direction::Outbound)
    };
    let sa = Sa::new(params, (), Timestamp::ZERO).unwrap();
    let (packets, events) = (AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let granted = sa.reserve(Timestamp::ZERO, [100; 7].into_iter());
                    packets.fetch_add(granted.count, Ordering::Relaxed);
                    if granted.events.contains(Events::HARD_EXPIRE) {
                        events.fetch_add(1, Ordering::Relaxed);
                    }
                    if granted.refused == Some(OutboundRefusal::Expired) {
                        break;
                    }
                }
            });
        }
    });
    assert_eq!((packets.into_inner(), events.into_inner()), (10_007, 1));
}
