//! Memory of a front-end: the regions that it shares, and checked copies out of and into them.
//!
//! The guest writes to this memory while we read it. So nothing here hands out a reference to
//! its bytes: they are copied, each once, and what is checked is the copy.

use std::fmt;
use std::fs::File;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use crate::port::sys::{prefetch_to_read, prefetch_to_write};

/// Regions that a front-end may share, as many as one message of the protocol can name.
pub(super) const REGIONS: usize = 8;

/// Bytes of a cache line.
pub(super) const CACHE_LINE: usize = 64;

/// Lines of a buffer that are asked for ahead. For longer frames the processor does the rest.
const LINES: usize = 2;

/// What a front-end says about one of its regions.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegionSpec {
    /// Where the guest sees it.
    pub(super) guest: u64,
    /// Where the front-end itself sees it; rings are named by this address.
    pub(super) user: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Where it begins in its file.
    pub(super) offset: u64,
}

/// The memory that a front-end shares. Empty until it says what.
#[derive(Debug, Default)]
pub(super) struct Memory {
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    spec: RegionSpec,
    mapping: MmapRegion,
}

/// Why a region was refused.
#[derive(Debug)]
pub(super) enum RegionError {
    /// There are as many as are possible.
    TooMany,
    /// It overlaps another one, or the end of the address space.
    Overlap,
    /// Its file is shorter than it, of which an access would be a fatal signal.
    Short,
    /// Its file can be made shorter at any time (`F_SEAL_SHRINK` is not set).
    Unsealed,
    /// There is no such region.
    Unknown,
    /// It can not be mapped.
    Map(std::io::Error),
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooMany => write!(f, "more than {REGIONS} memory regions"),
            Self::Overlap => f.write_str("memory regions overlap"),
            Self::Short => f.write_str("a memory region is longer than its file"),
            Self::Unsealed => f.write_str(
                "the file of a memory region is not sealed against shrinking; use \
                 memory-backend-memfd with seal=on, or allow it with sealed = false",
            ),
            Self::Unknown => f.write_str("no such memory region"),
            Self::Map(error) => write!(f, "a memory region can not be mapped: {error}"),
        }
    }
}

impl Memory {
    /// Maps one more region. With `sealed`, a file that can still be cut is refused.
    pub(super) fn add(
        &mut self,
        spec: RegionSpec,
        file: File,
        sealed: bool,
    ) -> Result<(), RegionError> {
        if self.regions.len() >= REGIONS {
            return Err(RegionError::TooMany);
        }
        let ends = [spec.guest, spec.user, spec.offset].map(|start| start.checked_add(spec.size));
        let [Some(_), Some(_), Some(end)] = ends else {
            return Err(RegionError::Overlap);
        };
        let overlaps = |a: u64, b: u64, other: u64| a < b + other && b < a + spec.size;
        let taken = self.regions.iter().any(|region| {
            overlaps(spec.guest, region.spec.guest, region.spec.size)
                || overlaps(spec.user, region.spec.user, region.spec.size)
        });
        if taken || spec.size == 0 {
            return Err(RegionError::Overlap);
        }
        let stat = fstat(&file).map_err(|error| RegionError::Map(error.into()))?;
        if u64::try_from(stat.st_size).is_ok_and(|size| size < end) {
            return Err(RegionError::Short);
        }
        let shrinks = || !fcntl_get_seals(&file).is_ok_and(|s| s.contains(SealFlags::SHRINK));
        if sealed && shrinks() {
            return Err(RegionError::Unsealed);
        }
        let size = usize::try_from(spec.size).map_err(|_| RegionError::Overlap)?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, spec.offset), size)
            .map_err(|error| RegionError::Map(std::io::Error::other(error.to_string())))?;
        self.regions.push(Region { spec, mapping });
        Ok(())
    }

    /// Unmaps the region that begins there.
    pub(super) fn remove(&mut self, guest: u64, user: u64, size: u64) -> Result<(), RegionError> {
        let at = self.regions.iter().position(|region| {
            (region.spec.guest, region.spec.user, region.spec.size) == (guest, user, size)
        });
        self.regions.swap_remove(at.ok_or(RegionError::Unknown)?);
        Ok(())
    }

    /// `len` bytes at a guest's address; `None` unless all of them are in one region.
    #[inline]
    pub(super) fn slice(&self, guest: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.regions.iter().find_map(|region| {
            let offset = guest.wrapping_sub(region.spec.guest);
            let inside = offset < region.spec.size && region.spec.size - offset >= len as u64;
            let slice = || region.mapping.get_slice(offset as usize, len).ok();
            inside.then(slice)?
        })
    }

    /// `len` bytes at an address of the front-end, aligned to a multiple of `align`.
    pub(super) fn user_slice(
        &self,
        user: u64,
        len: usize,
        align: u64,
    ) -> Option<VolatileSlice<'_>> {
        let region = self.regions.iter().find(|region| {
            user.checked_sub(region.spec.user)
                .is_some_and(|offset| offset < region.spec.size)
        })?;
        // The mapping begins at a page, so only the offset counts.
        let offset = user - region.spec.user;
        let aligned = offset.is_multiple_of(align);
        let slice = || region.mapping.get_slice(offset as usize, len).ok();
        aligned.then(slice)?
    }

    /// Asks for the first bytes at a guest's address, to be read or written soon. A hint: the
    /// address is checked when its turn comes.
    #[inline]
    pub(super) fn prefetch(&self, guest: u64, writes: bool) {
        let Some(slice) = self.slice(guest, 1) else {
            return;
        };
        let first = slice.ptr_guard().as_ptr();
        for line in 0..LINES {
            let line = first.wrapping_add(line * CACHE_LINE);
            match writes {
                true => prefetch_to_write(line),
                false => prefetch_to_read(line),
            }
        }
    }

    /// Copies from a guest's address; `false` if not all of it is shared.
    #[must_use]
    pub(super) fn read(&self, mut guest: u64, mut into: &mut [u8]) -> bool {
        if let Some(slice) = self.slice(guest, into.len()) {
            slice.copy_to(into);
            return true;
        }
        while !into.is_empty() {
            let Some(piece) = self.up_to(guest, into.len()) else {
                return false;
            };
            let (now, later) = into.split_at_mut(piece.len());
            piece.copy_to(now);
            guest += now.len() as u64;
            into = later;
        }
        true
    }

    /// Copies to a guest's address; `false` if not all of it is shared.
    #[must_use]
    pub(super) fn write(&self, mut guest: u64, mut from: &[u8]) -> bool {
        if let Some(slice) = self.slice(guest, from.len()) {
            slice.copy_from(from);
            return true;
        }
        while !from.is_empty() {
            let Some(piece) = self.up_to(guest, from.len()) else {
                return false;
            };
            let (now, later) = from.split_at(piece.len());
            piece.copy_from(now);
            guest += now.len() as u64;
            from = later;
        }
        true
    }

    /// What one region has of the `len` bytes at a guest's address: a buffer may lie across
    /// neighbouring regions.
    #[inline]
    pub(super) fn up_to(&self, guest: u64, len: usize) -> Option<VolatileSlice<'_>> {
        self.regions.iter().find_map(|region| {
            let offset = guest.checked_sub(region.spec.guest)?;
            let left = region.spec.size.checked_sub(offset)?;
            let len = len.min(usize::try_from(left).ok()?);
            let slice = || region.mapping.get_slice(offset as usize, len).ok();
            (len > 0).then(slice)?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    fn file(size: u64) -> File {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, size).unwrap();
        fd.into()
    }

    fn spec(guest: u64, user: u64, size: u64, offset: u64) -> RegionSpec {
        RegionSpec {
            guest,
            user,
            size,
            offset,
        }
    }

    #[test]
    fn copies_stay_inside_of_what_is_shared() {
        let mut memory = Memory::default();
        let file = file(0x3000);
        let clone = file.try_clone().unwrap();
        memory
            .add(spec(0x1000, 0x7000, 0x1000, 0), clone, false)
            .unwrap();
        memory
            .add(spec(0x2000, 0xf000, 0x1000, 0x2000), file, false)
            .unwrap();
        let mut buffer = [0; 8];
        // Across the two regions, which are neighbours for the guest only.
        assert!(memory.write(0x1ffc, b"abcdefgh"));
        assert!(memory.read(0x1ffc, &mut buffer));
        assert_eq!(&buffer, b"abcdefgh");
        assert!(memory.slice(0x1ffc, 8).is_none());
        assert!(memory.slice(0x1ff8, 8).is_some());
        for outside in [0, 0xff9, 0xfff, 0x2ff9, 0x3000, u64::MAX - 3, u64::MAX] {
            assert!(!memory.read(outside, &mut buffer), "{outside:x}");
            assert!(!memory.write(outside, &buffer), "{outside:x}");
        }
        assert!(memory.user_slice(0x7ff0, 16, 16).is_some());
        assert!(memory.user_slice(0x7ff8, 16, 2).is_none());
        assert!(memory.user_slice(0x7001, 2, 2).is_none());

        memory.remove(0x1000, 0x7000, 0x1000).unwrap();
        assert!(!memory.read(0x1000, &mut buffer));
        assert!(matches!(
            memory.remove(0x1000, 0x7000, 0x1000),
            Err(RegionError::Unknown)
        ));
    }

    #[test]
    fn regions_that_can_not_be_are_refused() {
        let mut memory = Memory::default();
        let add = |memory: &mut Memory, spec| memory.add(spec, file(0x2000), false);
        assert!(matches!(
            add(&mut memory, spec(0, 0, 0x3000, 0)),
            Err(RegionError::Short)
        ));
        assert!(matches!(
            add(&mut memory, spec(0, 0, 0x2000, 0x1000)),
            Err(RegionError::Short)
        ));
        for (guest, user, size, offset) in [
            (u64::MAX, 0, 0x1000, 0),
            (0, u64::MAX, 0x1000, 0),
            (0, 0, 0x1000, u64::MAX),
            (0, 0, 0, 0),
        ] {
            let refused = add(&mut memory, spec(guest, user, size, offset));
            assert!(matches!(refused, Err(RegionError::Overlap)));
        }
        add(&mut memory, spec(0x1000, 0x1000, 0x1000, 0)).unwrap();
        for overlap in [spec(0x1fff, 0, 0x1000, 0), spec(0x5000, 0x800, 0x1000, 0)] {
            assert!(matches!(
                add(&mut memory, overlap),
                Err(RegionError::Overlap)
            ));
        }
        for index in 1..REGIONS as u64 {
            let at = 0x1000 + index * 0x1000;
            add(&mut memory, spec(at, at, 0x1000, 0)).unwrap();
        }
        assert!(matches!(
            add(&mut memory, spec(0x10_0000, 0x10_0000, 0x1000, 0)),
            Err(RegionError::TooMany)
        ));
    }

    #[test]
    fn sealed_means_that_the_file_can_not_shrink() {
        let mut memory = Memory::default();
        let refused = memory.add(spec(0, 0, 0x1000, 0), file(0x1000), true);
        assert!(matches!(refused, Err(RegionError::Unsealed)));
        let sealed = file(0x1000);
        fcntl_add_seals(&sealed, SealFlags::SHRINK).unwrap();
        memory.add(spec(0, 0, 0x1000, 0), sealed, true).unwrap();
    }
}
