//! Leases: no sequence number is used twice, whatever crashes and whoever takes over.

mod common;

use std::collections::{HashMap, HashSet};

use common::{Random, params};
use vesper_sa::{
    Direction, Events, Lease, LeaseError, LeaseHolder, LeaseRecord, LeaseRequest, LeaseStore,
    MAX_SKIP, MemoryLeaseStore, OutboundRefusal, Sa, SaParams, Timestamp,
};

const NOW: Timestamp = Timestamp::ZERO;

fn outbound(sequence: u64, esn: bool) -> Sa<()> {
    let params = SaParams {
        sequence,
        esn,
        ..params(Direction::Outbound)
    };
    Sa::new(params, (), NOW).unwrap()
}

fn holder(host: u64, epoch: u64) -> LeaseHolder {
    LeaseHolder { host, epoch }
}

/// Hosts that crash, forget, come back and take over from each other at random: every number
/// is used at most once, and a fenced host uses up at most what it was granted.
#[test]
fn no_number_is_used_twice() {
    let mut random = Random(7);
    for _ in 0..200 {
        let store = MemoryLeaseStore::default();
        let mut used = HashSet::new();
        let mut epoch = 0;
        let mut running: HashMap<u64, (Sa<()>, LeaseHolder)> = HashMap::new();
        for _ in 0..200 {
            let host = random.below(3);
            if random.below(10) == 0 || !running.contains_key(&host) {
                // A start, after a crash or as a take-over: nothing is known.
                epoch += 1;
                let me = holder(host, epoch);
                let sa = outbound(0, true);
                sa.renew_lease(&store, me, 1 + random.below(100) as u32)
                    .unwrap();
                running.insert(host, (sa, me));
            }
            let (sa, me) = &running[&host];
            let run = random.below(40) as usize;
            let granted = sa.reserve(NOW, vec![1; run].into_iter());
            for number in granted.first..granted.first + u64::from(granted.count) {
                assert!(used.insert(number), "number {number} used twice");
            }
            let refused = granted.refused.is_some();
            if granted.events.contains(Events::LEASE_LOW) || refused {
                match sa.renew_lease(&store, *me, 50) {
                    Ok(lease) => assert_eq!(lease.last() - lease.first(), 49),
                    Err(LeaseError::Fenced { by }) => assert!(by.epoch > me.epoch),
                    Err(other) => panic!("{other}"),
                }
            }
        }
        assert!(used.len() > 500);
    }
}

#[test]
fn outside_the_lease_nothing_is_sent() {
    let store = MemoryLeaseStore::default();
    let sa = outbound(0, false);
    let lease = sa.renew_lease(&store, holder(1, 1), 10).unwrap();
    assert_eq!((lease.first(), lease.last()), (1, 10));
    let granted = sa.reserve(NOW, [1; 5].into_iter());
    assert_eq!((granted.count, granted.events), (5, Events::NONE));
    let granted = sa.reserve(NOW, [1; 1].into_iter());
    assert_eq!(
        granted.events,
        Events::LEASE_LOW,
        "half is used, another wanted"
    );
    let granted = sa.reserve(NOW, [1; 9].into_iter());
    assert_eq!((granted.first, granted.count), (7, 4));
    assert_eq!(granted.refused, Some(OutboundRefusal::LeaseExhausted));
    // The next block continues the first without a gap.
    sa.renew_lease(&store, holder(1, 1), 10).unwrap();
    assert_eq!(sa.reserve(NOW, [1].into_iter()).first, 11);
    // A restart knows nothing and skips what might have been used.
    let restarted = outbound(0, false);
    restarted.renew_lease(&store, holder(1, 2), 10).unwrap();
    assert_eq!(restarted.reserve(NOW, [1].into_iter()).first, 21);
    assert!(matches!(
        sa.renew_lease(&store, holder(1, 1), 10),
        Err(LeaseError::Fenced { by }) if by == holder(1, 2)
    ));
    // A lease that was used before is not taken again.
    assert!(matches!(
        restarted.set_lease(Lease::new(21, 30).unwrap()),
        Err(LeaseError::Overlap {
            first: 21,
            used: 21
        })
    ));
}

#[test]
fn leases_end_with_the_number_space() {
    let store = MemoryLeaseStore::default();
    let end = u64::from(u32::MAX);
    let sa = outbound(end - 6, false);
    let lease = sa.renew_lease(&store, holder(1, 1), 10).unwrap();
    assert_eq!((lease.first(), lease.last()), (end - 5, end));
    let granted = sa.reserve(NOW, [1; 7].into_iter());
    assert_eq!(granted.count, 6);
    assert_eq!(granted.refused, Some(OutboundRefusal::SequenceExhausted));
    assert!(matches!(
        sa.renew_lease(&store, holder(1, 1), 10),
        Err(LeaseError::SequenceExhausted)
    ));
    assert!(matches!(
        sa.set_lease(Lease::new(end + 1, end + 2).unwrap()),
        Err(LeaseError::BeyondEnd { .. })
    ));
    let inbound = common::inbound(64, false, 0);
    assert!(matches!(
        inbound.renew_lease(&store, holder(1, 1), 10),
        Err(LeaseError::Inbound)
    ));
}

#[test]
fn restarts_without_traffic_may_not_skip_half_a_subspace() {
    let store = MemoryLeaseStore::default();
    let size = 1 << 29;
    for epoch in 1..=4 {
        let sa = outbound(0, true);
        sa.renew_lease(&store, holder(1, epoch), size).unwrap();
    }
    let sa = outbound(0, true);
    assert!(matches!(
        sa.renew_lease(&store, holder(1, 5), size),
        Err(LeaseError::SkippedTooMany { used: 0, last }) if last > MAX_SKIP
    ));
    // Forgotten with its key, the association begins anew.
    assert!(store.forget(&sa.identity(), holder(2, 3)).is_err());
    store.forget(&sa.identity(), holder(1, 5)).unwrap();
    assert_eq!(sa.renew_lease(&store, holder(1, 5), 5).unwrap().first(), 1);
}

#[test]
fn a_store_that_lost_its_memory_is_noticed() {
    let request = |used, size| LeaseRequest {
        sa: outbound(0, true).identity(),
        holder: holder(1, 1),
        used,
        size,
        end: u64::MAX,
    };
    let (old, _) = LeaseRecord::grant(None, &request(0, 10)).unwrap();
    let (new, lease) = LeaseRecord::grant(Some(&old), &request(10, 10)).unwrap();
    assert_eq!((lease.first(), new.granted, new.used), (11, 20, 10));
    // The old record is restored after number 15 was used.
    assert!(matches!(
        LeaseRecord::grant(Some(&old), &request(15, 10)),
        Err(LeaseError::StoreBehind {
            granted: 10,
            used: 15
        })
    ));
    assert!(matches!(
        LeaseRecord::grant(Some(&new), &request(15, 0)),
        Err(LeaseError::Empty)
    ));
    // Two hosts in one epoch are one too many.
    let twin = LeaseRequest {
        holder: holder(2, 1),
        ..request(15, 10)
    };
    assert!(matches!(
        LeaseRecord::grant(Some(&new), &twin),
        Err(LeaseError::Fenced { .. })
    ));
}
