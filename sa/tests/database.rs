//! Epochs: packet threads see all of a change or nothing of it.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use common::params;
use vesper_sa::{
    Action, AddError, Database, Direction, Flow, OutboundRefusal, Policy, Ports, Protection,
    ReceiveKey, Sa, SaHandle, SaParams, SaState, Scope, Selector, Spd, Spi, Timestamp, VmId,
};

const VM: VmId = VmId(3);
const NOW: Timestamp = Timestamp::ZERO;

fn sa(direction: Direction, spi: u32) -> Arc<Sa<u32>> {
    let params = SaParams {
        spi: Spi::new(spi).unwrap(),
        owner: VM,
        reqid: spi,
        ..params(direction)
    };
    Arc::new(Sa::new(params, spi, NOW).unwrap())
}

fn flow() -> Flow {
    Flow {
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        protocol: 17,
        ports: Ports::Known(1, 2),
    }
}

fn protect(reqid: u32) -> Spd {
    Spd::new(vec![Policy {
        direction: Direction::Outbound,
        selector: Selector::default(),
        action: Action::Protect(Protection {
            reqid,
            tunnel: Some([192, 0, 2, 2].into()),
        }),
    }])
}

#[test]
fn a_change_is_published_whole_or_taken_back_whole() {
    let mut database = Database::new();
    let reader = database.readers().reader();
    let before = reader.enter().unwrap().number();
    let inbound = sa(Direction::Inbound, 500);
    let key = ReceiveKey::of(inbound.params());

    let mut change = database.change();
    let handle = change.add(Arc::clone(&inbound)).unwrap();
    change.set_policies(VM, Some(protect(7)));
    change.publish();
    let view = reader.enter().unwrap();
    assert_eq!(view.number(), before + 1);
    assert_eq!(view.inbound(&key).unwrap().0, handle);
    assert!(view.get(VM, handle).is_some() && view.get(VmId(4), handle).is_none());
    assert!(matches!(
        view.action(VM, Direction::Outbound, &flow()),
        Action::Protect(_)
    ));
    assert_eq!(
        view.action(VmId(4), Direction::Outbound, &flow()),
        Action::Discard
    );
    drop(view);

    // One refusal, and the caller gives the rest up too.
    let mut change = database.change();
    change.delete(VM, handle).unwrap();
    let new = change.add(sa(Direction::Outbound, 501)).unwrap();
    let again = change.add(Arc::clone(&inbound)).unwrap();
    assert_ne!(again, handle);
    assert!(matches!(
        change.add(sa(Direction::Inbound, 500)),
        Err(AddError::SpiInUse { .. })
    ));
    change.set_policies(VM, None);
    drop(change);
    assert_eq!(inbound.state(), SaState::Mature);
    assert_eq!(database.sad().len(), 1);
    assert_eq!(database.sad().usage(VM).associations, 1);
    assert!(database.sad().get(VM, new).is_err());
    assert!(database.sad().get(VM, again).is_err());
    assert_eq!(database.sad().inbound(&key).unwrap().0, handle);
    let view = reader.enter().unwrap();
    assert_eq!(view.number(), before + 1);
    assert!(view.policies(VM).is_some() && view.get(VM, handle).is_some());
    drop(view);

    // Later handles are none of those that were taken back.
    let mut change = database.change();
    let later: Vec<SaHandle> = (600..610)
        .map(|spi| change.add(sa(Direction::Outbound, spi)).unwrap())
        .collect();
    assert!(!later.contains(&new) && !later.contains(&again));
    let slots = later.iter().map(|handle| handle.to_bits() as u32);
    assert_eq!(
        slots.max(),
        Some(10),
        "places that were taken back are used"
    );
    change.publish();

    drop(database);
    assert!(reader.enter().is_none());
}

#[test]
fn a_taken_back_addition_leaves_its_spi_allocated() {
    let mut database = Database::new();
    let destination = params(Direction::Inbound).destination;
    let only = Spi::new(900).unwrap();
    let allocate = |database: &mut Database<u32>| {
        database.allocate_spi(VM, Scope::Host, destination, only..=only, 0)
    };
    assert_eq!(allocate(&mut database), Ok(only));
    let mut change = database.change();
    change.add(sa(Direction::Inbound, 900)).unwrap();
    drop(change);
    assert!(allocate(&mut database).is_err());
    let usage = database.sad().usage(VM);
    assert_eq!((usage.associations, usage.reserved), (0, 1));
    assert!(database.release_spi(VM, Scope::Host, destination, only));
    assert_eq!(allocate(&mut database), Ok(only));
}

#[test]
fn a_deleted_association_is_closed_when_nobody_sees_it() {
    let mut database = Database::new();
    let outbound = sa(Direction::Outbound, 500);
    let mut change = database.change();
    let handle = change.add(Arc::clone(&outbound)).unwrap();
    change.publish();
    let mut change = database.change();
    change.delete(VM, handle).unwrap();
    assert_eq!(
        outbound.state(),
        SaState::Mature,
        "not before it is published"
    );
    change.publish();
    assert_eq!(outbound.state(), SaState::Deleted);
    assert!(database.reap().is_empty(), "still in use here");
    assert_eq!(Arc::strong_count(&outbound), 2, "this and the draining one");
    drop(outbound);
    assert_eq!(database.reap().len(), 1);
}

#[test]
fn a_replacement_is_published() {
    let mut database = Database::new();
    let reader = database.readers().reader();
    let old = sa(Direction::Outbound, 500);
    let mut change = database.change();
    let handle = change.add(Arc::clone(&old)).unwrap();
    change.publish();
    assert_eq!(old.reserve(NOW, [1; 5].into_iter()).count, 5);
    let params = old.params().clone();
    let new = Sa::new(params, 77, NOW).unwrap();
    database.replace(VM, handle, new, NOW).unwrap();
    let view = reader.enter().unwrap();
    let now = view.get(VM, handle).unwrap();
    assert_eq!(*now.context(), 77);
    assert_eq!(now.reserve(NOW, [1].into_iter()).first, 6);
    let refused = old.reserve(NOW, [1].into_iter()).refused;
    assert_eq!(refused, Some(OutboundRefusal::Deleted));
    let (found, _) = view.outbound(VM, 500, now.params().destination).unwrap();
    assert_eq!(found, handle);
}

/// Ends the readers even if the writer panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A writer replaces association and policy together, again and again. Each view agrees with
/// itself, and no packet is refused although every association is deleted soon.
#[test]
fn views_are_consistent_while_the_writer_writes() {
    const EPOCHS: u32 = 100;
    let mut database = Database::new();
    let install = |database: &mut Database<u32>, spi: u32, old: Option<SaHandle>| {
        let mut change = database.change();
        let handle = change.add(sa(Direction::Outbound, spi)).unwrap();
        if let Some(old) = old {
            change.delete(VM, old).unwrap();
        }
        change.set_policies(VM, Some(protect(spi)));
        change.publish();
        handle
    };
    let mut handle = install(&mut database, 1000, None);
    let done = AtomicBool::new(false);
    let start = Barrier::new(3);
    thread::scope(|scope| {
        let finished = SetOnDrop(&done);
        for _ in 0..2 {
            let (readers, done, start) = (database.readers().clone(), &done, &start);
            scope.spawn(move || {
                let reader = readers.reader();
                let mut last = 0;
                start.wait();
                while !done.load(Ordering::Relaxed) {
                    let view = reader.enter().unwrap();
                    assert!(view.number() >= last, "epochs go forward");
                    last = view.number();
                    let action = view.action(VM, Direction::Outbound, &flow());
                    let Action::Protect(protection) = action else {
                        panic!("{action:?}");
                    };
                    let destination = protection.destination(&flow());
                    for _ in 0..10 {
                        let found = view.outbound(VM, protection.reqid, destination);
                        let (_, sa) = found.expect("what the policy names exists");
                        assert_eq!(*sa.context(), protection.reqid);
                        let granted = sa.reserve(NOW, [1; 4].into_iter());
                        assert_eq!(granted.refused, None);
                    }
                    for other in [protection.reqid - 1, protection.reqid + 1] {
                        assert!(view.outbound(VM, other, destination).is_none());
                    }
                }
            });
        }
        start.wait();
        for spi in 1001..1000 + EPOCHS {
            handle = install(&mut database, spi, Some(handle));
            database.reap();
        }
        drop(finished);
    });
    database.reap();
    assert_eq!((database.sad().len(), database.sad().draining()), (1, 0));
}
