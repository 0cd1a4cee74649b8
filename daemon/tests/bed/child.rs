//! A small daemon in a process of its own: one association out, one in, a store. It is made to
//! be killed.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Bound;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};
use vesper_daemon::store::{
    AnchorFile, Files, Kek, Medium, Refill, RefillSettings, Standing, Store, StoreError,
};
use vesper_esp::{Buffer, DropReason, Engine, EspSa, Inbound, Outbound, PacketBuf, Verdict};
use vesper_sa::{Direction, Timestamp};

use super::{NODE, NOW, begin, put, resume, words};

/// What stands in every inner packet, and must never be on the wire.
pub(crate) const CLEAR_TEXT: &[u8] = b"never on the wire as it is here!";

/// What the child tells beside the numbers that it has accepted.
///
/// The whole capture was replayed.
pub(crate) const REPLAYED: u64 = u64::MAX;
/// A packet was refused because its number may have been accepted before.
pub(crate) const OLD: u64 = u64::MAX - 1;
/// A packet was refused because the next mark was not durable in time.
pub(crate) const ABOVE_MARK: u64 = u64::MAX - 2;

/// Where the process may be made to die: before or after each step towards the wire.
pub(crate) const POINTS: [&str; 8] = [
    "store before write",
    "store before sync",
    "store after sync",
    "anchor before write",
    "anchor before sync",
    "anchor after sync",
    "encrypted",
    "accepted",
];

/// How a child is told what to do.
pub(crate) const DIRECTORY: &str = "VESPER_TEST_DIRECTORY";
pub(crate) const POINT: &str = "VESPER_TEST_POINT";
pub(crate) const AFTER_USE: &str = "VESPER_TEST_PERSIST_AFTER_USE";

pub(crate) fn outbound_words() -> String {
    words(1, Direction::Outbound, 1)
}

pub(crate) fn inbound_words() -> String {
    words(2, Direction::Inbound, 2)
}

/// Dies at the moment that the parent has chosen.
#[derive(Clone, Debug)]
struct Fate {
    point: Option<String>,
    left: Arc<AtomicI64>,
}

impl Fate {
    /// `POINT=NUMBER:NAME` in the environment: dies at the so manyth visit of the point.
    fn from_environment() -> Self {
        let text = std::env::var(POINT).ok();
        let (number, point) = match text.as_deref().and_then(|text| text.split_once(':')) {
            Some((number, point)) => (number.parse().unwrap(), Some(point.to_owned())),
            None => (0, None),
        };
        Self {
            point,
            left: Arc::new(AtomicI64::new(number)),
        }
    }

    fn visit(&self, point: &str) {
        if self.point.as_deref() == Some(point) && self.left.fetch_sub(1, Ordering::Relaxed) <= 1 {
            std::process::abort();
        }
    }
}

/// The child. Ends only by being killed, or when the parent has ended.
pub(crate) fn run() {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let fate = Fate::from_environment();
    let kek = Kek::read_or_create(&directory.join("kek")).unwrap();
    let medium = Hooked {
        files: Files::in_directory(&directory),
        fate: fate.clone(),
    };
    let (store, recovered) = Store::open(medium, &kek).unwrap();
    assert_eq!(recovered.loss, None, "{}", recovered.detail);
    let standing = |words: &str| -> Standing {
        match recovered.sas.iter().find(|sa| &**sa.sa.words == words) {
            Some(found) => found.standing.clone(),
            None => put(&store, words).unwrap(),
        }
    };
    let after_use = std::env::var_os(AFTER_USE).is_some();
    let settings = RefillSettings::default();
    let (refill, _) = Refill::start(store.clone(), settings, |alarm| panic!("{alarm:?}")).unwrap();
    let sender_standing = standing(&outbound_words());
    let sender = if after_use {
        resume(&outbound_words(), &sender_standing).unwrap()
    } else {
        begin(&refill, &outbound_words(), &sender_standing)
    };
    let receiver = begin(&refill, &inbound_words(), &standing(&inbound_words()));
    let receiving = {
        let (refill, fate, directory) = (refill.clone(), fate.clone(), directory.clone());
        move || receive(&directory, &receiver, &refill, &fate)
    };
    std::thread::spawn(receiving);
    send(
        &directory,
        &sender,
        &refill,
        &fate,
        after_use.then_some(&store),
    );
}

/// Sends as fast as the wire takes it.
fn send(
    directory: &Path,
    sa: &EspSa,
    refill: &Refill,
    fate: &Fate,
    persist_after_use: Option<&Store>,
) {
    let mut wire = BufWriter::new(UnixStream::connect(directory.join("wire")).unwrap());
    let mut engine = Engine::default();
    let inner = inner_packet();
    let mut spare: Vec<PacketBuf> = Vec::new();
    loop {
        let mut batch: Vec<Outbound<'_, PacketBuf>> = (0..64)
            .map(|_| {
                let mut packet = spare
                    .pop()
                    .unwrap_or_else(|| PacketBuf::from_packet(&inner));
                assert!(packet.refill(&inner, PacketBuf::HEADROOM));
                Outbound::new(sa, packet)
            })
            .collect();
        engine.encapsulate(NOW, &mut batch);
        for event in engine.drain_events() {
            refill.notice(NODE, &event);
        }
        fate.visit("encrypted");
        let mut sent = false;
        for entry in batch {
            if let Verdict::Sealed { .. } = entry.verdict {
                write_packet(&mut wire, entry.packet.data());
                sent = true;
            }
            spare.push(entry.packet);
        }
        if wire.flush().is_err() {
            // The parent has ended.
            std::process::exit(0);
        }
        if let Some(store) = persist_after_use {
            // The mistake that the test has to find.
            let used = sa.sequence();
            put(store, &format!("{} replay-oseq {used}", outbound_words())).unwrap();
        }
        if !sent {
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

/// First everything that was ever sent to this association, then what comes.
fn receive(directory: &Path, sa: &EspSa, refill: &Refill, fate: &Fate) {
    let link = UnixStream::connect(directory.join("link")).unwrap();
    let mut report = BufWriter::new(link.try_clone().unwrap());
    let mut engine = Engine::default();
    let mut open = |from: &mut dyn Read, most: usize, report: &mut BufWriter<UnixStream>| {
        let packets: Vec<Vec<u8>> = std::iter::from_fn(|| read_packet(from))
            .take(most)
            .collect();
        let mut batch: Vec<Inbound<'_, PacketBuf>> = packets
            .iter()
            .map(|packet| Inbound::new(PacketBuf::from_packet(packet)))
            .collect();
        engine.decapsulate(NOW, &|_, _| Some(sa), &mut batch);
        for event in engine.drain_events() {
            refill.notice(NODE, &event);
        }
        for entry in &batch {
            let number = match entry.verdict {
                Verdict::Opened(opened) => {
                    fate.visit("accepted");
                    opened.sequence
                }
                // Numbers far behind are taken for ones of the next 2^32 (RFC 4303 appendix
                // A2), and then the ICV is wrong.
                Verdict::Drop(DropReason::Replay | DropReason::Icv) => OLD,
                Verdict::Drop(DropReason::Mark) => ABOVE_MARK,
                other => panic!("{other:?}"),
            };
            report.write_all(&number.to_be_bytes()).unwrap();
        }
        report.flush().unwrap();
        batch.len()
    };
    let mut capture =
        BufReader::with_capacity(1 << 20, File::open(directory.join("capture")).unwrap());
    while open(&mut capture, 64, &mut report) > 0 {}
    report.write_all(&REPLAYED.to_be_bytes()).unwrap();
    report.flush().unwrap();
    let mut link = BufReader::new(link);
    while open(&mut link, 16, &mut report) > 0 {}
}

/// A UDP packet with text that is easy to find.
pub(crate) fn inner_packet() -> Vec<u8> {
    let mut inner = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .udp(1000, 2000)
        .write(&mut inner, CLEAR_TEXT)
        .unwrap();
    inner
}

/// A packet with its length in front.
pub(crate) fn write_packet(to: &mut impl Write, packet: &[u8]) {
    let length = (packet.len() as u16).to_be_bytes();
    // A link that is gone takes nothing; its owner notices when it flushes.
    let _ = to.write_all(&length).and_then(|()| to.write_all(packet));
}

/// The next packet, unless the rest is none.
pub(crate) fn read_packet(from: &mut (impl Read + ?Sized)) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    from.read_exact(&mut length).ok()?;
    let mut packet = vec![0; u16::from_be_bytes(length).into()];
    from.read_exact(&mut packet).ok()?;
    Some(packet)
}

/// Files whose every step is a place to die.
#[derive(Debug)]
struct Hooked {
    files: Files,
    fate: Fate,
}

impl Medium for Hooked {
    fn database(&self, builder: &Builder) -> Result<Database, DatabaseError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.files.store)?;
        builder.create_with_backend(HookedBackend {
            file: FileBackend::new(file)?,
            fate: self.fate.clone(),
        })
    }

    fn anchor(&self) -> Result<Box<dyn AnchorFile>, StoreError> {
        Ok(Box::new(HookedAnchor {
            file: self.files.anchor()?,
            fate: self.fate.clone(),
        }))
    }

    fn file(&self) -> Result<u64, StoreError> {
        self.files.file()
    }

    fn machine(&self) -> [u8; 16] {
        self.files.machine()
    }

    fn set_aside(&self) -> Result<(), StoreError> {
        self.files.set_aside()
    }

    fn name(&self) -> PathBuf {
        self.files.name()
    }
}

struct HookedAnchor {
    file: Box<dyn AnchorFile>,
    fate: Fate,
}

impl AnchorFile for HookedAnchor {
    fn read(&mut self) -> Result<Vec<u8>, StoreError> {
        self.file.read()
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.fate.visit("anchor before write");
        self.file.write(offset, bytes)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.fate.visit("anchor before sync");
        self.file.sync()?;
        self.fate.visit("anchor after sync");
        Ok(())
    }
}

struct HookedBackend {
    file: FileBackend,
    fate: Fate,
}

impl fmt::Debug for HookedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookedBackend")
    }
}

type Range = Bound<u64>;

impl StorageBackend for HookedBackend {
    fn len(&self) -> std::io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.fate.visit("store before sync");
        self.file.sync_data()?;
        self.fate.visit("store after sync");
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.fate.visit("store before write");
        self.file.write(offset, data)
    }

    fn close(&self) -> std::io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Range, end: Range) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn unlock_range(&self, start: Range, end: Range) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

/// Makes the packets that the child is to receive.
pub(crate) struct Peer {
    sa: EspSa,
    engine: Engine,
    inner: Vec<u8>,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let state = super::state(&inbound_words());
        let params = state.params(Direction::Outbound);
        let cipher = state.keys.fastest_cipher().unwrap();
        Self {
            sa: vesper_esp::association(params, cipher, Timestamp::ZERO).unwrap(),
            engine: Engine::default(),
            inner: inner_packet(),
        }
    }

    /// The next packets.
    pub(crate) fn packets(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut batch: Vec<_> = (0..count)
            .map(|_| Outbound::new(&self.sa, PacketBuf::from_packet(&self.inner)))
            .collect();
        self.engine.encapsulate(NOW, &mut batch);
        batch
            .iter()
            .map(|entry| entry.packet.data().to_vec())
            .collect()
    }
}
