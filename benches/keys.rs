//! Making an association ready: the key alone, by implementation, and the whole.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vesper_esp::aead::{Cipher, Implementation};
use vesper_esp::{Suite, association};
use vesper_sa::{Direction, Mode, SaParams, Spi, Timestamp};

const SUITES: [&str; 5] = [
    "aes128gcm16",
    "aes256gcm16",
    "chacha20poly1305",
    "aes256-sha256",
    "null-sha256",
];

fn suites() -> impl Iterator<Item = &'static Suite> {
    SUITES.into_iter().filter_map(Suite::by_name)
}

fn keys(suite: &Suite) -> (Vec<u8>, Vec<u8>) {
    let key = vec![0x5a; suite.key_len + suite.salt_len];
    (key, vec![0xa5; suite.auth_key_len])
}

fn expansion(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("key");
    for suite in suites() {
        let (key, auth_key) = keys(suite);
        for implementation in Implementation::available().filter(|it| it.supports(suite)) {
            let name = BenchmarkId::new(suite.name, implementation);
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let (key, auth_key) = (black_box(&key), black_box(&auth_key));
                    Cipher::with_implementation(suite, key, auth_key, implementation)
                });
            });
        }
    }
    group.finish();
}

fn associations(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("association");
    group.throughput(Throughput::Elements(1));
    let source = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let destination = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    let spi = Spi::new(0x1000).expect("not reserved");
    for suite in suites() {
        let (key, auth_key) = keys(suite);
        for direction in [Direction::Outbound, Direction::Inbound] {
            let params = SaParams::new(spi, direction, Mode::Tunnel, source, destination);
            let name = BenchmarkId::new(suite.name, format!("{direction:?}"));
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    let cipher = Cipher::new(suite, black_box(&key), black_box(&auth_key))
                        .expect("a key of the right length");
                    association(params.clone(), cipher, Timestamp::ZERO)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, expansion, associations);
criterion_main!(benches);
