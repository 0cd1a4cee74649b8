//! The SAD against a naive model, its limits, and its size.

mod common;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::thread;

use common::{Random, params};
use vesper_sa::{
    AddError, ChangeError, DEFAULT_SA_LIMIT, Direction, NotFound, ReceiveKey, Receiver,
    RestoreError, Sa, SaHandle, SaParams, SaState, SaUpdate, Sad, Scope, Spi, SpiError, Timestamp,
    VmId,
};

fn sa(params: SaParams) -> Arc<Sa<()>> {
    Arc::new(Sa::new(params, (), Timestamp::ZERO).unwrap())
}

fn address(last: u64) -> IpAddr {
    [192, 0, 2, last as u8].into()
}

fn spi(value: u32) -> Spi {
    Spi::new(value).unwrap()
}

/// What the database should contain: everything in one list.
#[derive(Default)]
struct Model {
    live: BTreeMap<SaHandle, SaParams>,
    reserved: HashSet<(ReceiveKey, VmId)>,
    limits: BTreeMap<VmId, u32>,
}

impl Model {
    fn limit(&self, owner: VmId) -> u32 {
        self.limits.get(&owner).copied().unwrap_or(DEFAULT_SA_LIMIT)
    }

    fn used(&self, owner: VmId) -> usize {
        self.live.values().filter(|sa| sa.owner == owner).count()
            + self
                .reserved
                .iter()
                .filter(|(_, who)| *who == owner)
                .count()
    }

    fn is_live(&self, key: &ReceiveKey) -> bool {
        self.live
            .values()
            .any(|sa| sa.direction == Direction::Inbound && ReceiveKey::of(sa) == *key)
    }

    fn add(&self, params: &SaParams) -> Result<(), AddError> {
        let key = ReceiveKey::of(params);
        let inbound = params.direction == Direction::Inbound;
        let has_reserved = inbound && self.reserved.contains(&(key, params.owner));
        let limit = self.limit(params.owner);
        if !has_reserved && self.used(params.owner) >= limit as usize {
            return Err(AddError::QuotaExceeded {
                owner: params.owner,
                limit,
            });
        }
        let taken = if inbound {
            self.is_live(&key)
                || self
                    .reserved
                    .iter()
                    .any(|(other, who)| *other == key && *who != params.owner)
        } else {
            self.live.values().any(|sa| {
                sa.direction == Direction::Outbound
                    && (sa.owner, sa.destination, sa.spi)
                        == (params.owner, params.destination, params.spi)
            })
        };
        if taken {
            return Err(AddError::SpiInUse {
                spi: params.spi,
                destination: params.destination,
            });
        }
        Ok(())
    }
}

fn random_params(random: &mut Random) -> SaParams {
    SaParams {
        spi: spi(256 + random.below(12) as u32),
        owner: VmId(1 + random.below(3) as u32),
        scope: random.pick(&[Scope::Host, Scope::Vm]),
        destination: address(random.below(2)),
        reqid: random.below(3) as u32,
        ..params(random.pick(&[Direction::Inbound, Direction::Outbound]))
    }
}

#[test]
fn random_operations_of_several_machines_equal_the_model() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut sad = Sad::new();
        let mut model = Model::default();
        let mut old = Vec::new();
        for _ in 0..400 {
            let owner = VmId(1 + random.below(3) as u32);
            match random.below(12) {
                0..=4 => {
                    let params = random_params(&mut random);
                    let expected = model.add(&params);
                    let added = sad.add(sa(params.clone()));
                    assert_eq!(added.map(drop), expected);
                    if let Ok(handle) = added {
                        assert!(!old.contains(&handle), "a handle was used again");
                        old.push(handle);
                        if params.direction == Direction::Inbound {
                            model
                                .reserved
                                .remove(&(ReceiveKey::of(&params), params.owner));
                        }
                        model.live.insert(handle, params);
                    }
                }
                5..=6 if !old.is_empty() => {
                    let handle = random.pick(&old);
                    let is_owners = model.live.get(&handle).is_some_and(|sa| sa.owner == owner);
                    let expected = is_owners.then_some(()).ok_or(NotFound { handle });
                    assert_eq!(sad.get(owner, handle).map(drop), expected);
                    let update = sad.update(owner, handle, &SaUpdate::default());
                    assert_eq!(update.map(drop), expected.map_err(ChangeError::from));
                    assert_eq!(sad.delete(owner, handle), expected);
                    if is_owners {
                        model.live.remove(&handle);
                    }
                }
                7 => {
                    let limit = random.below(12) as u32;
                    sad.set_limit(owner, limit);
                    model.limits.insert(owner, limit);
                }
                8..=9 => {
                    let scope = random.pick(&[Scope::Host, Scope::Vm]);
                    let destination = address(random.below(2));
                    let range = spi(256)..=spi(256 + random.below(12) as u32);
                    let start = random.next() as u32;
                    let key = |spi| ReceiveKey {
                        receiver: Receiver::of(scope, owner),
                        destination,
                        spi,
                    };
                    let is_free = |key: &ReceiveKey| {
                        !model.is_live(key) && !model.reserved.iter().any(|(other, _)| other == key)
                    };
                    let free = (256..=range.end().get()).filter(|&n| is_free(&key(spi(n))));
                    let full = model.used(owner) >= model.limit(owner) as usize;
                    let expected = !full && free.count() > 0;
                    let allocated = sad.allocate_spi(owner, scope, destination, range, start);
                    assert_eq!(allocated.is_ok(), expected, "{allocated:?}");
                    if let Ok(spi) = allocated {
                        assert!(is_free(&key(spi)));
                        model.reserved.insert((key(spi), owner));
                    }
                }
                10 => {
                    let spi = spi(256 + random.below(12) as u32);
                    let destination = address(random.below(2));
                    let key = ReceiveKey {
                        receiver: Receiver::Host,
                        destination,
                        spi,
                    };
                    let released = sad.release_spi(owner, Scope::Host, destination, spi);
                    assert_eq!(released, model.reserved.remove(&(key, owner)));
                }
                _ => drop(sad.reap()),
            }
            assert_eq!(sad.len(), model.live.len());
        }
        compare(&sad, &model);
    }
}

/// Every lookup there is.
fn compare(sad: &Sad<()>, model: &Model) {
    let listed: BTreeMap<_, _> = sad
        .iter()
        .map(|(at, sa)| (at, sa.params().clone()))
        .collect();
    assert_eq!(listed, model.live);
    for owner in (1..4).map(VmId) {
        let usage = sad.usage(owner);
        let used = usage.associations + usage.reserved;
        assert_eq!(
            (used as usize, usage.limit),
            (model.used(owner), model.limit(owner))
        );
        for handle in model.live.keys() {
            let is_owners = model.live[handle].owner == owner;
            assert_eq!(sad.get(owner, *handle).is_ok(), is_owners);
        }
        for destination in (0..2).map(address) {
            for value in 256..268 {
                for receiver in [Receiver::Host, Receiver::Vm(owner)] {
                    let key = ReceiveKey {
                        receiver,
                        destination,
                        spi: spi(value),
                    };
                    let found = sad.inbound(&key).map(|(handle, _)| handle);
                    let expected = model.live.iter().find(|(_, sa)| {
                        sa.direction == Direction::Inbound && ReceiveKey::of(sa) == key
                    });
                    assert_eq!(found, expected.map(|(handle, _)| *handle));
                }
            }
            for reqid in 1..3 {
                let found = sad.outbound(owner, reqid, destination);
                let any = model.live.values().any(|sa| {
                    (sa.direction, sa.owner, sa.reqid, sa.destination)
                        == (Direction::Outbound, owner, reqid, destination)
                });
                assert_eq!(found.is_some(), any);
                if let Some((handle, sa)) = found {
                    assert_eq!(model.live[&handle], *sa.params());
                }
            }
        }
    }
}

#[test]
fn the_newest_live_association_serves_a_policy() {
    let mut sad = Sad::new();
    let outbound = |value| {
        sa(SaParams {
            spi: spi(value),
            reqid: 9,
            ..params(Direction::Outbound)
        })
    };
    let serving = |sad: &Sad<()>| {
        sad.outbound(VmId::HOST, 9, address(2))
            .map(|(_, sa)| sa.spi().get())
    };
    assert_eq!(serving(&sad), None);
    let first = sad.add(outbound(300)).unwrap();
    sad.add(outbound(301)).unwrap();
    assert_eq!(serving(&sad), Some(301));
    sad.delete(VmId::HOST, first).unwrap();
    // The slot is used again, by a newer association.
    let third = sad.add(outbound(302)).unwrap();
    assert_eq!(serving(&sad), Some(302));
    sad.get(VmId::HOST, third).unwrap().close();
    assert_eq!(serving(&sad), Some(301));
}

#[test]
fn deletion_waits_for_packets_in_flight() {
    let mut sad = Sad::new();
    let handle = sad.add(sa(params(Direction::Inbound))).unwrap();
    let in_flight = Arc::clone(sad.get(VmId::HOST, handle).unwrap());
    sad.delete(VmId::HOST, handle).unwrap();
    assert_eq!(in_flight.state(), SaState::Deleted);
    assert!(sad.inbound(&ReceiveKey::of(in_flight.params())).is_none());
    assert_eq!((sad.reap(), sad.draining()), (vec![], 1));
    // Its SPI and its place are free at once.
    sad.add(sa(params(Direction::Inbound))).unwrap();
    let identity = in_flight.identity();
    drop(in_flight);
    assert_eq!(sad.reap(), [(handle, identity)]);
    assert_eq!(sad.draining(), 0);
}

#[test]
fn a_replacement_keeps_handle_and_state() {
    let mut sad = Sad::new();
    let handle = sad.add(sa(params(Direction::Inbound))).unwrap();
    assert!(common::accept(sad.get(VmId::HOST, handle).unwrap(), 77));
    let moved = |direction| {
        let destination = address(200);
        let params = SaParams {
            destination,
            ..params(direction)
        };
        Sa::new(params, (), Timestamp::ZERO).unwrap()
    };
    let before = ReceiveKey::of(&params(Direction::Inbound));
    let now = Timestamp::ZERO;
    let refused = sad.replace(VmId::HOST, handle, moved(Direction::Outbound), now);
    assert_eq!(refused, Err(RestoreError::OtherAssociation.into()));
    let foreign = sad.replace(VmId(1), handle, moved(Direction::Inbound), now);
    assert_eq!(foreign, Err(NotFound { handle }.into()));
    sad.replace(VmId::HOST, handle, moved(Direction::Inbound), now)
        .unwrap();
    let sa = Arc::clone(sad.get(VmId::HOST, handle).unwrap());
    assert!(!common::accept(&sa, 77) && common::accept(&sa, 78));
    assert!(sad.inbound(&before).is_none());
    let (found, _) = sad.inbound(&ReceiveKey::of(sa.params())).unwrap();
    assert_eq!(found, handle);
    // Another one is where a third wants to go.
    let third = sad.add(self::sa(params(Direction::Inbound))).unwrap();
    let refused = sad.replace(VmId::HOST, third, moved(Direction::Inbound), now);
    assert!(matches!(refused, Err(ChangeError::SpiInUse { .. })));
}

#[test]
fn four_spis_for_eight_threads() {
    for round in 0..50 {
        let sad = Mutex::new(Sad::<()>::new());
        let got = Mutex::new(Vec::new());
        let range = spi(0xffff_fffc)..=spi(0xffff_ffff);
        thread::scope(|scope| {
            for seed in 0..8 {
                let (sad, got, range) = (&sad, &got, range.clone());
                scope.spawn(move || {
                    let start = Random(round * 8 + seed).next() as u32;
                    let outcome = sad.lock().unwrap().allocate_spi(
                        VmId(seed as u32),
                        Scope::Host,
                        address(2),
                        range,
                        start,
                    );
                    if let Ok(spi) = outcome {
                        // Between allocation and use, others try theirs.
                        thread::yield_now();
                        let params = SaParams {
                            spi,
                            owner: VmId(seed as u32),
                            ..params(Direction::Inbound)
                        };
                        sad.lock().unwrap().add(sa(params)).unwrap();
                    }
                    got.lock().unwrap().push(outcome);
                });
            }
        });
        let got = got.into_inner().unwrap();
        let spis: HashSet<_> = got.iter().flatten().map(|spi| spi.get()).collect();
        assert_eq!(spis, HashSet::from_iter(0xffff_fffc..=0xffff_ffff));
        let exhausted = SpiError::Exhausted {
            first: *range.start(),
            last: *range.end(),
            destination: address(2),
        };
        assert_eq!(got.iter().filter(|&out| *out == Err(exhausted)).count(), 4);
    }
}

#[test]
fn no_allowance_is_none() {
    let mut sad = Sad::<()>::new();
    let mine = SaParams {
        owner: VmId(5),
        ..params(Direction::Inbound)
    };
    sad.set_limit(VmId(5), 0);
    let quota = AddError::QuotaExceeded {
        owner: VmId(5),
        limit: 0,
    };
    assert_eq!(sad.add(sa(mine.clone())), Err(quota));
    let range = Spi::MIN..=spi(u32::MAX);
    let refused = sad.allocate_spi(VmId(5), Scope::Host, address(2), range, 0);
    assert!(matches!(
        refused,
        Err(SpiError::QuotaExceeded { limit: 0, .. })
    ));
    sad.set_limit(VmId(5), 1);
    sad.add(sa(mine)).unwrap();
    assert_eq!(sad.usage(VmId(6)).limit, 512);
    assert_eq!(sad.usage(VmId::HOST).limit, u32::MAX);
}

/// A withdrawn association is not found any more, frees its place, and goes on elsewhere; the
/// owner alone may withdraw it.
#[test]
fn a_withdrawn_association_goes_on() {
    let mut sad = Sad::new();
    let owner = VmId(7);
    sad.set_limit(owner, 1);
    let params = SaParams {
        owner,
        ..params(Direction::Inbound)
    };
    let sa = sa(params);
    let handle = sad.add(Arc::clone(&sa)).unwrap();
    let foreign = sad.withdraw(VmId(8), handle).unwrap_err();
    assert_eq!(foreign, NotFound { handle });
    let withdrawn = sad.withdraw(owner, handle).unwrap();
    assert!(Arc::ptr_eq(&withdrawn, &sa));
    assert_eq!(sa.state(), SaState::Mature);
    assert!(sad.get(owner, handle).is_err());
    assert_eq!((sad.len(), sad.draining()), (0, 0));
    let again = sad.add(sa).unwrap();
    assert_ne!(again, handle);
}
