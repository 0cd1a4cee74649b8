//! A store on a disk in memory that loses and tears what was not synchronised when the power
//! goes, runs full, and fails.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::{fmt, io};

use redb::{Builder, Database, DatabaseError, StorageBackend};
use vesper_daemon::store::{AnchorFile, Medium, StoreError};

use super::Random;

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<Inner>>);

struct Inner {
    store: Image,
    anchor: Image,
    /// So many writes and synchronisations until the power goes.
    power: u64,
    /// No byte beyond this length.
    capacity: u64,
    failing: bool,
    /// Synchronisation is confirmed and not done.
    lying: bool,
    inode: u64,
}

/// A file: what is durable, and what was written since.
#[derive(Clone, Default)]
struct Image {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum Pending {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// What a disk writes in one go.
const SECTOR: u64 = 512;

impl Disk {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            store: Image::default(),
            anchor: Image::default(),
            power: u64::MAX,
            capacity: u64::MAX,
            failing: false,
            lying: false,
            inode: 1,
        })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(|error| error.into_inner())
    }

    /// The power goes after so many more writes and synchronisations.
    pub(crate) fn cut_after(&self, operations: u64) {
        self.inner().power = operations;
    }

    /// Whether the power went.
    pub(crate) fn is_off(&self) -> bool {
        self.inner().power == 0
    }

    /// The disk as it is found when the power is back.
    pub(crate) fn after_cut(&self, random: &mut Random) -> Self {
        let inner = self.inner();
        Self(Arc::new(Mutex::new(Inner {
            store: inner.store.after_cut(random),
            anchor: inner.anchor.after_cut(random),
            power: u64::MAX,
            capacity: inner.capacity,
            failing: false,
            lying: inner.lying,
            inode: inner.inode,
        })))
    }

    /// What a backup, or a clone of the machine, holds.
    pub(crate) fn copy(&self) -> Self {
        let inner = self.inner();
        Self(Arc::new(Mutex::new(Inner {
            store: inner.store.clone(),
            anchor: inner.anchor.clone(),
            power: u64::MAX,
            capacity: inner.capacity,
            failing: false,
            lying: inner.lying,
            inode: inner.inode,
        })))
    }

    /// From now on the disk confirms what it does not do.
    pub(crate) fn lie(&self) {
        self.inner().lying = true;
    }

    /// From now on every write fails, or none any more.
    pub(crate) fn fail(&self, failing: bool) {
        self.inner().failing = failing;
    }
}

impl Inner {
    /// Counts down to the moment when the power goes.
    fn use_power(&mut self) -> io::Result<()> {
        if self.power == 0 {
            return Err(io::Error::other("the power is off"));
        }
        self.power -= u64::from(self.power != u64::MAX);
        if self.power == 0 || self.failing {
            return Err(io::Error::other("the disk does not answer"));
        }
        Ok(())
    }

    fn file(&mut self, which: Which) -> &mut Image {
        match which {
            Which::Store => &mut self.store,
            Which::Anchor => &mut self.anchor,
        }
    }
}

impl Image {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        apply(&mut self.current, offset, bytes);
        self.pending.push(Pending::Write(offset, bytes.to_vec()));
    }

    fn set_len(&mut self, length: u64) {
        self.current.resize(length as usize, 0);
        self.pending.push(Pending::Length(length));
    }

    fn sync(&mut self) {
        self.durable.clone_from(&self.current);
        self.pending.clear();
    }

    /// Of what was not synchronised any part may have reached the disk, in any order, sector
    /// by sector.
    fn after_cut(&self, random: &mut Random) -> Self {
        let mut durable = self.durable.clone();
        let mode = random.below(3);
        for pending in &self.pending {
            let reached = match mode {
                0 => false,
                1 => random.below(2) == 0,
                _ => true,
            };
            match pending {
                Pending::Length(length) if reached => durable.resize(*length as usize, 0),
                Pending::Length(_) => {}
                Pending::Write(offset, bytes) => {
                    for (index, sector) in (0..).zip(bytes.chunks(SECTOR as usize)) {
                        if reached && (mode != 1 || random.below(4) > 0) {
                            apply(&mut durable, offset + index * SECTOR, sector);
                        }
                    }
                }
            }
        }
        Self {
            current: durable.clone(),
            durable,
            pending: Vec::new(),
        }
    }
}

fn apply(file: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let end = offset as usize + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset as usize..end].copy_from_slice(bytes);
}

#[derive(Clone, Copy)]
enum Which {
    Store,
    Anchor,
}

struct Handle(Disk, Which);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handle")
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.inner().file(self.1).current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.0.inner();
        let file = &inner.file(self.1).current;
        let range = offset as usize..offset as usize + out.len();
        let bytes = file
            .get(range)
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.0.inner();
        inner.use_power()?;
        if len > inner.capacity {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        inner.file(self.1).set_len(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.0.inner();
        inner.use_power()?;
        if !inner.lying {
            inner.file(self.1).sync();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.0.inner();
        // The power may go in the middle of it.
        let outcome = inner.use_power();
        if outcome.is_ok() || inner.power == 0 {
            inner.file(self.1).write(offset, data);
        }
        outcome
    }
}

impl AnchorFile for Handle {
    fn read(&mut self) -> Result<Vec<u8>, StoreError> {
        Ok(self.0.inner().anchor.current.clone())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        StorageBackend::write(self, offset, bytes).map_err(failed)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.sync_data().map_err(failed)
    }
}

fn failed(error: io::Error) -> StoreError {
    StoreError::File {
        file: PathBuf::from("anchor"),
        error,
    }
}

impl Medium for Disk {
    fn database(&self, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create_with_backend(Handle(self.clone(), Which::Store))
    }

    fn anchor(&self) -> Result<Box<dyn AnchorFile>, StoreError> {
        Ok(Box::new(Handle(self.clone(), Which::Anchor)))
    }

    fn file(&self) -> Result<u64, StoreError> {
        Ok(self.inner().inode)
    }

    fn machine(&self) -> [u8; 16] {
        [7; 16]
    }

    fn set_aside(&self) -> Result<(), StoreError> {
        let mut inner = self.inner();
        inner.store = Image::default();
        inner.inode += 1;
        Ok(())
    }

    fn name(&self) -> PathBuf {
        PathBuf::from("disk")
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}
