//! What the tests of the store need: associations from their words, and stores in a directory.
#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod child;
pub(crate) mod faulty;

use std::path::Path;
use std::sync::Arc;

use vesper_daemon::store::{
    Change, Files, Kek, Origin, Recovered, Refill, SaName, Standing, Store, StoreError, StoredSa,
    Watched,
};
use vesper_esp::EspSa;
use vesper_sa::{Direction, SaParams, SaState, Timestamp, VmId};
use vesper_verify::xfrm::{Entry, State, parse};
use zeroize::Zeroizing;

pub(crate) const NODE: &str = "left";
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1);

/// The words of association `number`, with a key of its own.
pub(crate) fn words(number: u32, direction: Direction, key: u32) -> String {
    let (src, dst, dir) = match direction {
        Direction::Outbound => ("192.0.2.1", "192.0.2.2", "out"),
        Direction::Inbound => ("192.0.2.2", "192.0.2.1", "in"),
    };
    format!(
        "src {src} dst {dst} proto esp spi 0x{:x} reqid {number} mode tunnel replay-window 128 \
         flag esn aead 'rfc4106(gcm(aes))' 0x{} 128 dir {dir}",
        0x1000 + number,
        key_text(key),
    )
}

/// A key with its salt in hexadecimal, which is easy to find.
pub(crate) fn key_text(key: u32) -> String {
    format!("{key:08x}").repeat(9)
}

pub(crate) fn state(words: &str) -> State {
    let Ok([Entry::State(state)]) = <[Entry; 1]>::try_from(parse(words, "test").unwrap()) else {
        panic!("{words}");
    };
    *state
}

pub(crate) fn params(state: &State) -> SaParams {
    let mut params = state.params(state.direction.unwrap());
    params.owner = VmId(1);
    params
}

/// What the store is to keep of these words.
pub(crate) fn stored(store: &Store, words: &str) -> StoredSa {
    let state = state(words);
    let params = params(&state);
    let sa = EspSaName::of(&params);
    StoredSa {
        name: SaName {
            node: NODE.to_owned(),
            sa: sa.0,
        },
        key: store.fingerprint(&state.keys),
        sequence: params.sequence,
        origin: Origin::Request,
        configured: false,
        words: Zeroizing::new(words.to_owned()),
    }
}

struct EspSaName(vesper_sa::SaIdentity);

impl EspSaName {
    fn of(params: &SaParams) -> Self {
        Self(vesper_sa::SaIdentity {
            owner: params.owner,
            direction: params.direction,
            destination: params.destination,
            spi: params.spi,
        })
    }
}

pub(crate) fn put(store: &Store, words: &str) -> Result<Standing, StoreError> {
    let change = Change::PutSa(stored(store, words));
    let mut standings = store.apply(&[change])?;
    Ok(standings.remove(0))
}

/// The association of these words, if its standing allows one.
pub(crate) fn resume(words: &str, standing: &Standing) -> Option<Arc<EspSa>> {
    let state = state(words);
    let cipher = state.keys.fastest_cipher().unwrap();
    let sa = standing.resume(params(&state), cipher, NOW).unwrap();
    (sa.state() != SaState::Deleted).then(|| Arc::new(sa))
}

/// The association of these words, with its first lease or mark in force.
pub(crate) fn begin(refill: &Refill, words: &str, standing: &Standing) -> Arc<EspSa> {
    let sa = resume(words, standing).expect("a standing to go on");
    let watched = Watched::new(NODE, Arc::clone(&sa), standing);
    refill.watch(vec![watched]).expect("a disk that works");
    sa
}

pub(crate) fn open(directory: &Path) -> (Store, Recovered) {
    let kek = Kek::read_or_create(&directory.join("kek")).unwrap();
    Store::open(Files::in_directory(directory), &kek).unwrap()
}

/// SplitMix64: not random enough for keys, but for walks that a failure can repeat.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// Whether the tests should take the time that a release is worth.
pub(crate) fn is_long() -> bool {
    std::env::var_os("VESPER_LONG").is_some()
}
