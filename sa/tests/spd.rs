//! Policies against a scan from the first to the last.

mod common;

use std::net::IpAddr;

use common::Random;
use vesper_sa::{Action, AddressRange, Direction, Flow, Policy, Ports, Protection, Selector, Spd};

fn address(random: &mut Random) -> IpAddr {
    // Few enough values that ranges nest, meet and overlap; the ends of the space included.
    match random.below(4) {
        0 => IpAddr::from([10, 0, random.below(4) as u8, random.next() as u8]),
        1 => IpAddr::from([255, 255, 255, 250 + random.below(6) as u8]),
        2 => IpAddr::from((u128::MAX - u128::from(random.below(6))).to_be_bytes()),
        _ => IpAddr::from((0xfd00_u128 << 112 | u128::from(random.below(500))).to_be_bytes()),
    }
}

fn range(random: &mut Random) -> Option<AddressRange> {
    let (one, other) = (address(random), address(random));
    match random.below(5) {
        0 => None,
        1 => Some(AddressRange::single(one)),
        2 => AddressRange::prefix(one, random.below(33) as u8),
        3 => AddressRange::prefix(one, 24 + random.below(9) as u8),
        _ => AddressRange::new(one.min(other), one.max(other)),
    }
}

fn policy(random: &mut Random, reqid: u32) -> Policy {
    let protect = Action::Protect(Protection {
        reqid,
        tunnel: None,
    });
    Policy {
        direction: random.pick(&[Direction::Inbound, Direction::Outbound]),
        selector: Selector {
            source: range(random),
            destination: range(random),
            protocol: random.pick(&[None, None, Some(6), Some(17)]),
            source_port: None,
            destination_port: (random.below(3) == 0).then(|| 0..=random.below(100) as u16),
        },
        action: random.pick(&[protect, protect, Action::Bypass, Action::Discard]),
    }
}

fn flow(random: &mut Random) -> Flow {
    let source = address(random);
    let destination = loop {
        let destination = address(random);
        if destination.is_ipv4() == source.is_ipv4() {
            break destination;
        }
    };
    let known = Ports::Known(4000, random.below(120) as u16);
    Flow {
        source,
        destination,
        protocol: random.pick(&[1, 6, 17]),
        ports: random.pick(&[known, known, Ports::None, Ports::Opaque]),
    }
}

#[test]
fn the_first_matching_policy_decides() {
    let mut matched = 0;
    for seed in 0..300 {
        let mut random = Random(seed);
        let length = random.pick(&[0, 1, 2, 10, 100, 500]);
        let policies: Vec<_> = (0..length)
            .map(|reqid| policy(&mut random, reqid))
            .collect();
        let spd = Spd::with_default(policies.clone(), Action::Bypass);
        let strict = Spd::new(policies.clone());
        for _ in 0..300 {
            let flow = flow(&mut random);
            for direction in [Direction::Inbound, Direction::Outbound] {
                let expected = policies
                    .iter()
                    .find(|policy| policy.direction == direction && policy.selector.matches(&flow));
                assert_eq!(spd.policy(direction, &flow), expected);
                matched += u32::from(expected.is_some());
                let decision = |otherwise| expected.map_or(otherwise, |policy| policy.action);
                assert_eq!(spd.lookup(direction, &flow), decision(Action::Bypass));
                assert_eq!(strict.lookup(direction, &flow), decision(Action::Discard));
            }
        }
    }
    assert!((30_000..150_000).contains(&matched), "{matched} of 180,000");
}

#[test]
fn where_ports_are_ignored_they_make_no_difference() {
    let mut counts = [0, 0];
    for seed in 0..300 {
        let mut random = Random(seed);
        let length = random.pick(&[1, 2, 3, 8]);
        let policies: Vec<_> = (0..length)
            .map(|reqid| policy(&mut random, reqid))
            .collect();
        let spd = Spd::new(policies.clone());
        for direction in [Direction::Inbound, Direction::Outbound] {
            let ignores = spd.ignores_ports(direction);
            counts[usize::from(ignores)] += 1;
            let mut of_direction = policies.iter().filter(|one| one.direction == direction);
            assert_eq!(
                ignores,
                of_direction.all(|one| one.selector.destination_port.is_none())
            );
            for _ in 0..100 * u32::from(ignores) {
                let one = flow(&mut random);
                let other = Flow {
                    ports: Ports::Known(random.next() as u16, random.next() as u16),
                    ..one
                };
                assert_eq!(spd.policy(direction, &one), spd.policy(direction, &other));
            }
        }
    }
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    let mut source = policy(&mut Random(1), 1);
    source.selector.source_port = Some(1..=2);
    assert!(!Spd::new(vec![source.clone()]).ignores_ports(source.direction));
}

#[test]
fn without_policies_everything_is_discarded() {
    let mut random = Random(1);
    let flow = flow(&mut random);
    assert_eq!(
        Spd::default().lookup(Direction::Inbound, &flow),
        Action::Discard
    );
    assert_eq!(
        Spd::default().lookup(Direction::Outbound, &flow),
        Action::Discard
    );
}

#[test]
fn a_tunnel_names_its_end_and_transport_the_flow() {
    let flow = flow(&mut Random(2));
    let mut protection = Protection {
        reqid: 1,
        tunnel: None,
    };
    assert_eq!(protection.destination(&flow), flow.destination);
    protection.tunnel = Some([192, 0, 2, 1].into());
    assert_eq!(protection.destination(&flow), IpAddr::from([192, 0, 2, 1]));
}
