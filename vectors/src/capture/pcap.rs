//! Classic pcap (draft-ietf-opsawg-pcap): microseconds or nanoseconds, either byte order.

use std::io::Read;

use super::{CaptureFault, Endian, Input, LONGEST_RECORD, LinkType, Located, Record};

#[derive(Debug)]
pub(super) struct PcapReader<R> {
    input: Input<R>,
    endian: Endian,
    link: LinkType,
    /// Nanoseconds in a unit of the fraction.
    fraction: u64,
    number: u64,
    frame: Vec<u8>,
}

impl<R: Read> PcapReader<R> {
    /// Reads the rest of the file header.
    pub(super) fn new(mut input: Input<R>, magic: [u8; 4]) -> Located<Self> {
        let (endian, fraction) = match magic {
            [0xa1, 0xb2, 0xc3, 0xd4] => (Endian::Big, 1000),
            [0xd4, 0xc3, 0xb2, 0xa1] => (Endian::Little, 1000),
            [0xa1, 0xb2, 0x3c, 0x4d] => (Endian::Big, 1),
            [0x4d, 0x3c, 0xb2, 0xa1] => (Endian::Little, 1),
            [0xa1, 0xb2, 0xcd, 0x34] | [0x34, 0xcd, 0xb2, 0xa1] => {
                return Err((0, CaptureFault::ModifiedPcap));
            }
            _ => return Err((0, CaptureFault::NotACapture)),
        };
        let mut header = [0; 20];
        input.exactly(&mut header, "the file header")?;
        // The upper six bits say whether frames end with a checksum, which the length fields
        // inside of them tell from the rest anyway.
        let number = endian.u32(&header[16..]) & 0x03ff_ffff;
        let link = LinkType::new(number).ok_or((20, CaptureFault::LinkType(number)))?;
        Ok(Self {
            input,
            endian,
            link,
            fraction,
            number: 0,
            frame: Vec::new(),
        })
    }

    pub(super) fn next_record(&mut self) -> Located<Option<Record<'_>>> {
        let start = self.input.offset;
        let mut header = [0; 16];
        if !self.input.exactly_or_end(&mut header, "a record header")? {
            return Ok(None);
        }
        let field = |index: usize| self.endian.u32(&header[4 * index..]);
        let (seconds, fraction, length, original_len) = (field(0), field(1), field(2), field(3));
        if length > LONGEST_RECORD {
            return Err((
                start + 8,
                CaptureFault::Length {
                    what: "a record",
                    length: length.into(),
                },
            ));
        }
        self.input.bytes(&mut self.frame, length, "a record")?;
        self.number += 1;
        Ok(Some(Record {
            number: self.number,
            timestamp: u64::from(seconds) * 1_000_000_000 + u64::from(fraction) * self.fraction,
            link: self.link,
            original_len,
            data: &self.frame,
        }))
    }

    pub(super) const fn position(&self) -> u64 {
        self.input.offset
    }
}
