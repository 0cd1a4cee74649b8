//! What associations cost in memory; `--nocapture` shows the figures.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::sync::Arc;

use common::params;
use vesper_sa::{Database, Direction, ReceiveKey, Sa, SaParams, Spi, Timestamp, VmId};

/// Half inbound, half outbound.
const ASSOCIATIONS: u32 = if cfg!(debug_assertions) {
    200_000
} else {
    1_000_000
};

/// Memory of this process that is in use, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    kilobytes.unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn a_million_associations_fit() {
    let mut database = Database::<()>::new();
    let before = resident();
    let mut change = database.change();
    for number in 0..ASSOCIATIONS {
        if number % 1000 == 0 {
            change.publish();
            change = database.change();
        }
        let params = SaParams {
            spi: Spi::new(256 + number).unwrap(),
            owner: VmId(1 + number / 512),
            reqid: 1 + number % 512,
            ..params(match number % 2 {
                0 => Direction::Inbound,
                _ => Direction::Outbound,
            })
        };
        let sa = Sa::new(params, (), Timestamp::ZERO).unwrap();
        change.add(Arc::new(sa)).unwrap();
    }
    change.publish();
    let each = (resident() - before) / ASSOCIATIONS as usize;
    println!(
        "{ASSOCIATIONS} associations: {each} bytes each, of which {} in the association itself",
        size_of::<Sa<()>>()
    );
    // Of 2 KiB per association in all, tables and allocator included, a quarter is left for
    // what the data path keeps beside it: keys and prepared headers.
    assert!(each <= 1536, "{each} bytes each");

    let reader = database.readers().reader();
    let view = reader.enter().unwrap();
    for (handle, sa) in database.sad().iter() {
        let found = match sa.direction() {
            Direction::Inbound => view.inbound(&ReceiveKey::of(sa.params())),
            Direction::Outbound => {
                let params = sa.params();
                view.outbound(params.owner, params.reqid, params.destination)
            }
        };
        assert_eq!(found.map(|(found, _)| found), Some(handle));
    }
}
