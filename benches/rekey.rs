//! Replacing associations while others stay: publish the new one, take the old one away, free
//! it, by the number that are there and the number that is changed at once.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vesper_esp::aead::Cipher;
use vesper_esp::{EspContext, EspSa, Suite, association};
use vesper_sa::{Database, Direction, Mode, SaHandle, SaParams, Spi, Timestamp, VmId};

const SIZES: [u32; 2] = [1_000, 100_000];

fn sa(index: u32) -> Arc<EspSa> {
    let suite = Suite::by_name("aes256gcm16").expect("a suite of ours");
    let cipher = Cipher::new(suite, &[index as u8; 36], &[]).expect("a key of the right length");
    let params = SaParams::new(
        Spi::new(0x1000 + index).expect("not reserved"),
        Direction::Inbound,
        Mode::Tunnel,
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
    );
    Arc::new(association(params, cipher, Timestamp::ZERO).expect("sound parameters"))
}

/// A database, and the handles in it from the oldest to the youngest.
struct Churn {
    database: Database<EspContext>,
    handles: VecDeque<SaHandle>,
    next: u32,
}

impl Churn {
    fn new(size: u32) -> Self {
        let mut churn = Self {
            database: Database::new(),
            handles: VecDeque::new(),
            next: 0,
        };
        churn.change(size, 0);
        churn
    }

    /// Adds and deletes so many in one epoch.
    fn change(&mut self, added: u32, deleted: u32) {
        let mut change = self.database.change();
        for _ in 0..added {
            let handle = change.add(sa(self.next)).expect("the host has no limit");
            self.handles.push_back(handle);
            self.next = self.next.wrapping_add(1) % 0x7fff_0000;
        }
        for _ in 0..deleted {
            if let Some(oldest) = self.handles.pop_front() {
                change.delete(VmId::HOST, oldest).expect("it is there");
            }
        }
        change.publish();
        self.database.reap();
    }
}

fn rekey(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rekey");
    for size in SIZES {
        let mut churn = Churn::new(size);
        for at_once in [1, 64] {
            group.throughput(Throughput::Elements(u64::from(at_once)));
            let name = BenchmarkId::new(format!("{at_once} at once"), size);
            group.bench_function(name, |bencher| {
                bencher.iter(|| churn.change(at_once, at_once));
            });
        }
        assert_eq!(churn.database.sad().len(), size as usize);
    }
    group.finish();
}

criterion_group!(benches, rekey);
criterion_main!(benches);
