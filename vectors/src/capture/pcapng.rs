//! pcapng (draft-ietf-opsawg-pcapng): sections of either byte order with several interfaces.

use std::io::Read;

use super::{CaptureFault, Endian, Input, LONGEST_RECORD, LinkType, Located, Record};

/// The largest block that is read, in bytes; the limit of Wireshark.
const LONGEST_BLOCK: u32 = 16 * 1024 * 1024;
/// The most interfaces of one section; a description is 20 bytes at least, and kept.
const MOST_INTERFACES: usize = 65_536;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

#[derive(Debug)]
pub(super) struct PcapngReader<R> {
    input: Input<R>,
    endian: Endian,
    interfaces: Vec<Interface>,
    number: u64,
    /// The body of the block that was read last.
    block: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u32,
    snap_len: u32,
    resolution: Resolution,
    /// Seconds to be added to every timestamp.
    offset: i64,
}

/// The unit of timestamps.
#[derive(Clone, Copy, Debug)]
enum Resolution {
    /// 10 to the minus this many seconds.
    Decimal(u8),
    /// 2 to the minus this many seconds.
    Binary(u8),
}

/// A frame inside of the block that holds it.
struct Frame {
    interface: u32,
    ticks: u64,
    start: usize,
    length: u32,
    original_len: u32,
}

impl<R: Read> PcapngReader<R> {
    /// Reads the first section header; its type has been read before.
    pub(super) fn new(input: Input<R>) -> Located<Self> {
        let mut reader = Self {
            input,
            endian: Endian::Little,
            interfaces: Vec::new(),
            number: 0,
            block: Vec::new(),
        };
        reader.section(0)?;
        Ok(reader)
    }

    pub(super) fn next_record(&mut self) -> Located<Option<Record<'_>>> {
        loop {
            let start = self.input.offset;
            let mut kind = [0; 4];
            if !self.input.exactly_or_end(&mut kind, "a block")? {
                return Ok(None);
            }
            let kind = self.endian.u32(&kind);
            if kind == SECTION_HEADER {
                self.section(start)?;
                continue;
            }
            self.block(start)?;
            let frame = match kind {
                INTERFACE_DESCRIPTION => {
                    let interface = self.interface(start)?;
                    if self.interfaces.len() == MOST_INTERFACES {
                        return Err(length(start, "a list of interfaces", MOST_INTERFACES + 1));
                    }
                    self.interfaces.push(interface);
                    continue;
                }
                ENHANCED_PACKET => self.enhanced(start)?,
                SIMPLE_PACKET => self.simple(start)?,
                OBSOLETE_PACKET => self.obsolete(start)?,
                _ => continue,
            };
            return self.record(start, &frame).map(Some);
        }
    }

    pub(super) const fn position(&self) -> u64 {
        self.input.offset
    }

    fn record(&mut self, start: u64, frame: &Frame) -> Located<Record<'_>> {
        let interface = *self
            .interfaces
            .get(frame.interface as usize)
            .ok_or((start, CaptureFault::Interface(frame.interface)))?;
        let link =
            LinkType::new(interface.link).ok_or((start, CaptureFault::LinkType(interface.link)))?;
        let data = self
            .block
            .get(frame.start..)
            .and_then(|rest| rest.get(..frame.length as usize))
            .filter(|_| frame.length <= LONGEST_RECORD)
            .ok_or_else(|| length(start, "a packet", frame.length as usize))?;
        self.number += 1;
        Ok(Record {
            number: self.number,
            timestamp: interface.nanoseconds(frame.ticks),
            link,
            original_len: frame.original_len,
            data,
        })
    }

    /// Reads a section header after its type: the byte order, and interfaces anew.
    fn section(&mut self, start: u64) -> Located<()> {
        let mut head = [0; 8];
        self.input.exactly(&mut head, "a section header")?;
        self.endian = match &head[4..] {
            [0x1a, 0x2b, 0x3c, 0x4d] => Endian::Big,
            [0x4d, 0x3c, 0x2b, 0x1a] => Endian::Little,
            _ => return Err((start + 8, CaptureFault::Section)),
        };
        let total = self.endian.u32(&head);
        if total < 28 {
            return Err(length(start + 4, "a section header", total as usize));
        }
        self.body(start, total, 12)?;
        if self.endian.u16(&self.block) != 1 {
            return Err((start + 12, CaptureFault::Section));
        }
        self.interfaces.clear();
        Ok(())
    }

    /// Reads a block after its type.
    fn block(&mut self, start: u64) -> Located<()> {
        let mut total = [0; 4];
        self.input.exactly(&mut total, "a block")?;
        self.body(start, self.endian.u32(&total), 8)
    }

    /// Reads what is left of a block of `total` bytes after the first `done` of them, and
    /// checks that it ends as it begins.
    fn body(&mut self, start: u64, total: u32, done: u32) -> Located<()> {
        if total < done + 4 || total > LONGEST_BLOCK || !total.is_multiple_of(4) {
            return Err(length(start + 4, "a block", total as usize));
        }
        let left = total - done - 4;
        self.input.bytes(&mut self.block, left, "a block")?;
        let mut trailer = [0; 4];
        self.input.exactly(&mut trailer, "a block")?;
        let trailer = self.endian.u32(&trailer);
        if trailer != total {
            let at = self.input.offset - 4;
            return Err(length(at, "a block's second length", trailer as usize));
        }
        Ok(())
    }

    fn interface(&self, start: u64) -> Located<Interface> {
        let body = self.fixed(start, 8, "an interface description")?;
        let mut interface = Interface {
            link: self.endian.u16(body).into(),
            snap_len: self.endian.u32(&body[4..]),
            resolution: Resolution::Decimal(6),
            offset: 0,
        };
        let mut options = &body[8..];
        while let Some(head) = options.get(..4) {
            let (code, size) = (self.endian.u16(head), self.endian.u16(&head[2..]));
            let size = usize::from(size);
            let Some(value) = options[4..].get(..size) else {
                return Err(length(start, "an option", size));
            };
            match (code, value) {
                (0, _) => break,
                (9, &[unit]) => {
                    interface.resolution = if unit & 0x80 == 0 {
                        Resolution::Decimal(unit)
                    } else {
                        Resolution::Binary(unit & 0x7f)
                    };
                }
                (14, &[_, _, _, _, _, _, _, _]) => {
                    let halves = [self.endian.u32(value), self.endian.u32(&value[4..])];
                    let [low, high] = match self.endian {
                        Endian::Little => halves,
                        Endian::Big => [halves[1], halves[0]],
                    };
                    interface.offset = (u64::from(high) << 32 | u64::from(low)).cast_signed();
                }
                _ => {}
            }
            options = options[4..]
                .get(size.next_multiple_of(4)..)
                .unwrap_or_default();
        }
        Ok(interface)
    }

    fn enhanced(&self, start: u64) -> Located<Frame> {
        let body = self.fixed(start, 20, "an enhanced packet block")?;
        let field = |index: usize| self.endian.u32(&body[4 * index..]);
        Ok(Frame {
            interface: field(0),
            ticks: u64::from(field(1)) << 32 | u64::from(field(2)),
            start: 20,
            length: field(3),
            original_len: field(4),
        })
    }

    /// A simple packet is of the first interface, has no time, and its captured length follows
    /// from the snap length.
    fn simple(&self, start: u64) -> Located<Frame> {
        let body = self.fixed(start, 4, "a simple packet block")?;
        let original_len = self.endian.u32(body);
        let snap_len = match self.interfaces.first() {
            None => return Err((start, CaptureFault::Interface(0))),
            Some(Interface { snap_len: 0, .. }) => u32::MAX,
            Some(interface) => interface.snap_len,
        };
        Ok(Frame {
            interface: 0,
            ticks: 0,
            start: 4,
            length: original_len.min(snap_len),
            original_len,
        })
    }

    fn obsolete(&self, start: u64) -> Located<Frame> {
        let body = self.fixed(start, 20, "a packet block")?;
        let field = |index: usize| self.endian.u32(&body[4 * index..]);
        Ok(Frame {
            interface: self.endian.u16(body).into(),
            ticks: u64::from(field(1)) << 32 | u64::from(field(2)),
            start: 20,
            length: field(3),
            original_len: field(4),
        })
    }

    /// The body of the block, if it is as long as the fixed part of its kind.
    fn fixed(&self, start: u64, least: usize, what: &'static str) -> Located<&[u8]> {
        if self.block.len() >= least {
            Ok(&self.block)
        } else {
            Err(length(start + 4, what, self.block.len() + 12))
        }
    }
}

impl Interface {
    fn nanoseconds(&self, ticks: u64) -> u64 {
        let ticks = u128::from(ticks);
        let scaled = match self.resolution {
            Resolution::Decimal(digits @ 0..=9) => {
                ticks.saturating_mul(10_u128.pow(u32::from(9 - digits)))
            }
            // 10^19 already exceeds what 64 bits can count.
            Resolution::Decimal(digits) => ticks / 10_u128.pow(u32::from(digits.min(29) - 9)),
            Resolution::Binary(bits) => (ticks * 1_000_000_000) >> bits.min(127),
        };
        let offset = i128::from(self.offset) * 1_000_000_000;
        let total = i128::try_from(scaled)
            .unwrap_or(i128::MAX)
            .saturating_add(offset);
        u64::try_from(total.max(0)).unwrap_or(u64::MAX)
    }
}

fn length(offset: u64, what: &'static str, length: usize) -> (u64, CaptureFault) {
    let length = length as u64;
    (offset, CaptureFault::Length { what, length })
}
