//! Asking policy about a packet, by the number of rules.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use vesper_sa::{Action, AddressRange, Direction, Flow, Policy, Ports, Protection, Selector, Spd};

const SIZES: [u32; 5] = [1, 10, 100, 1_000, 10_000];

/// The first address of the network of rule `index`.
fn network(index: u32) -> u32 {
    0x0a00_0000 + (index << 8)
}

fn address(bits: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(bits))
}

/// One rule for each of so many networks of 256 addresses.
fn policies(size: u32) -> Spd {
    let rules = (0..size).map(|index| Policy {
        direction: Direction::Outbound,
        selector: Selector {
            destination: AddressRange::prefix(address(network(index)), 24),
            protocol: Some(17),
            ..Selector::default()
        },
        action: Action::Protect(Protection {
            reqid: index + 1,
            tunnel: Some(address(0xc000_0201)),
        }),
    });
    Spd::new(rules.collect())
}

/// As many rules that all match the destination and none the source: the worst there is for
/// an index by the address of the far side.
fn overlapping(size: u32) -> Spd {
    let rules = (0..size).map(|index| Policy {
        direction: Direction::Outbound,
        selector: Selector {
            destination: AddressRange::prefix(address(network(0)), 8),
            source: AddressRange::prefix(address(0xac10_0000 + index), 32),
            ..Selector::default()
        },
        action: Action::Bypass,
    });
    Spd::new(rules.collect())
}

fn flow(destination: u32) -> Flow {
    Flow {
        source: address(0xc0a8_0001),
        destination: address(destination),
        protocol: 17,
        ports: Ports::Known(1024, 4789),
    }
}

fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spd");
    for size in SIZES {
        let spd = policies(size);
        let last = flow(network(size - 1) + 7);
        assert!(matches!(
            spd.lookup(Direction::Outbound, &last),
            Action::Protect(protection) if protection.reqid == size
        ));
        group.bench_function(BenchmarkId::new("last rule", size), |bencher| {
            bencher.iter(|| spd.lookup(Direction::Outbound, black_box(&last)));
        });
        let none = flow(network(size));
        assert_eq!(spd.lookup(Direction::Outbound, &none), Action::Discard);
        group.bench_function(BenchmarkId::new("no rule", size), |bencher| {
            bencher.iter(|| spd.lookup(Direction::Outbound, black_box(&none)));
        });
        let spd = overlapping(size);
        assert_eq!(spd.lookup(Direction::Outbound, &last), Action::Discard);
        group.bench_function(BenchmarkId::new("every rule overlaps", size), |bencher| {
            bencher.iter(|| spd.lookup(Direction::Outbound, black_box(&last)));
        });
    }
    group.finish();
}

criterion_group!(benches, lookups);
criterion_main!(benches);
