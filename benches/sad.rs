//! Finding associations among many: inbound by destination and SPI, outbound by handle.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vesper_sa::{
    Direction, Mode, ReceiveKey, Receiver, Sa, SaHandle, SaParams, Sad, Spi, Timestamp, VmId,
};

/// Look-ups in one iteration, so many that consecutive ones share no cache line.
const LOOKUPS: usize = 4096;

const SIZES: [u32; 4] = [1_000, 10_000, 100_000, 1_000_000];

fn destination(index: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | index & 0xff))
}

fn spi(index: u32) -> Spi {
    Spi::new(0x1_0000 + index).expect("not reserved")
}

/// A database of so many inbound associations to 256 destinations, and their handles.
fn database(size: u32) -> (Sad<()>, Vec<SaHandle>) {
    let mut sad = Sad::new();
    let handles = (0..size).map(|index| {
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let destination = destination(index);
        let params = SaParams::new(
            spi(index),
            Direction::Inbound,
            Mode::Tunnel,
            source,
            destination,
        );
        let sa = Sa::new(params, (), Timestamp::ZERO).expect("sound parameters");
        sad.add(Arc::new(sa)).expect("the host has no limit")
    });
    let handles = handles.collect();
    (sad, handles)
}

/// Places in the order in which they are looked up: not regular enough for a prefetcher.
fn places(size: u32) -> Vec<u32> {
    (0..LOOKUPS as u32)
        .map(|index| index.wrapping_mul(2_654_435_761) % size)
        .collect()
}

fn lookups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sad");
    group.throughput(Throughput::Elements(LOOKUPS as u64));
    for size in SIZES {
        let (sad, handles) = database(size);
        let places = places(size);
        let keys: Vec<_> = places
            .iter()
            .map(|&place| ReceiveKey {
                receiver: Receiver::Host,
                destination: destination(place),
                spi: spi(place),
            })
            .collect();
        group.bench_function(BenchmarkId::new("inbound", size), |bencher| {
            bencher.iter(|| {
                let found = keys.iter().filter_map(|key| sad.inbound(black_box(key)));
                assert_eq!(found.inspect(|(_, sa)| _ = black_box(sa)).count(), LOOKUPS);
            });
        });
        let unknown: Vec<_> = keys
            .iter()
            .map(|key| ReceiveKey {
                spi: Spi::new(key.spi.get() | 1 << 31).expect("not reserved"),
                ..*key
            })
            .collect();
        group.bench_function(BenchmarkId::new("unknown", size), |bencher| {
            bencher.iter(|| {
                let found = unknown.iter().filter_map(|key| sad.inbound(black_box(key)));
                assert_eq!(found.count(), 0);
            });
        });
        let handles: Vec<_> = places
            .iter()
            .map(|&place| handles[place as usize])
            .collect();
        group.bench_function(BenchmarkId::new("handle", size), |bencher| {
            bencher.iter(|| {
                let found = handles
                    .iter()
                    .filter_map(|&handle| sad.get(VmId::HOST, black_box(handle)).ok());
                assert_eq!(found.inspect(|sa| _ = black_box(sa)).count(), LOOKUPS);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lookups);
criterion_main!(benches);
