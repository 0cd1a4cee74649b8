//! Packet captures: pcap and pcapng, one record at a time, and pcap written.
//!
//! Own readers, because the errors of a verifier must name the byte where a file goes wrong,
//! and because captures of the field (snap lengths that packets exceed, packets cut short)
//! have to be read, which `pcap-file` 2.0 refuses; it serves as the second opinion in tests.

mod pcap;
mod pcapng;
mod write;

use core::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use pcap::PcapReader;
use pcapng::PcapngReader;
pub use write::CaptureWriter;

/// The largest record that is read, in bytes; the limit of libpcap.
const LONGEST_RECORD: u32 = 262_144;

/// What a captured frame begins with, by the numbers of the tcpdump.org registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkType {
    /// BSD loopback: the address family in the byte order of the capturing machine (0), or in
    /// network byte order (108).
    Loopback,
    /// Ethernet (1).
    Ethernet,
    /// IPv4 or IPv6 without any link header (101, and 12 or 14 by older systems).
    Raw,
    /// Linux cooked (113).
    LinuxCooked,
    /// IPv4 without any link header (228).
    Ipv4,
    /// IPv6 without any link header (229).
    Ipv6,
    /// Linux cooked, version 2 (276).
    LinuxCooked2,
}

impl LinkType {
    /// `None` for link types that this crate knows nothing about.
    pub const fn new(number: u32) -> Option<Self> {
        Some(match number {
            0 | 108 => Self::Loopback,
            1 => Self::Ethernet,
            12 | 14 | 101 => Self::Raw,
            113 => Self::LinuxCooked,
            228 => Self::Ipv4,
            229 => Self::Ipv6,
            276 => Self::LinuxCooked2,
            _ => return None,
        })
    }
}

/// One captured frame.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its place in the file, counted from 1, as Wireshark counts.
    pub number: u64,
    /// Nanoseconds since 1970.
    pub timestamp: u64,
    /// What the frame begins with.
    pub link: LinkType,
    /// Bytes on the wire; more than `data` has if the capture cut it short.
    pub original_len: u32,
    /// The frame.
    pub data: &'a [u8],
}

/// Reads a capture record by record, in memory that does not grow with the file.
#[derive(Debug)]
pub struct CaptureReader<R> {
    file: String,
    format: Format<R>,
}

#[derive(Debug)]
enum Format<R> {
    Pcap(PcapReader<R>),
    Pcapng(PcapngReader<R>),
}

impl CaptureReader<BufReader<File>> {
    /// Opens a capture file.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let file = path.display().to_string();
        match File::open(path) {
            Ok(opened) => Self::new(BufReader::with_capacity(1 << 18, opened), file),
            Err(error) => Err(CaptureError {
                file,
                offset: 0,
                reason: CaptureFault::Io(error),
            }),
        }
    }
}

impl<R: Read> CaptureReader<R> {
    /// Reads a capture from any source; `file` is its name for messages.
    pub fn new(input: R, file: String) -> Result<Self, CaptureError> {
        let mut input = Input { input, offset: 0 };
        let mut magic = [0; 4];
        let format = input
            .exactly(&mut magic, "the magic number")
            .and_then(|()| match magic {
                [0x0a, 0x0d, 0x0d, 0x0a] => PcapngReader::new(input).map(Format::Pcapng),
                _ => PcapReader::new(input, magic).map(Format::Pcap),
            });
        match format {
            Ok(format) => Ok(Self { file, format }),
            Err((offset, reason)) => Err(CaptureError {
                file,
                offset,
                reason,
            }),
        }
    }

    /// The next record, or `None` at the end of the file.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, CaptureError> {
        let Self { file, format } = self;
        let next = match format {
            Format::Pcap(reader) => reader.next_record(),
            Format::Pcapng(reader) => reader.next_record(),
        };
        next.map_err(|(offset, reason)| CaptureError {
            file: file.clone(),
            offset,
            reason,
        })
    }

    /// Bytes of the file that have been read.
    pub const fn position(&self) -> u64 {
        match &self.format {
            Format::Pcap(reader) => reader.position(),
            Format::Pcapng(reader) => reader.position(),
        }
    }
}

/// Why a capture cannot be read. Displayed as `file: byte OFFSET: reason`.
#[derive(Debug)]
pub struct CaptureError {
    /// The name of the file.
    pub file: String,
    /// Where in the file.
    pub offset: u64,
    /// What is wrong there.
    pub reason: CaptureFault,
}

/// What is wrong with a capture file.
#[derive(Debug)]
#[non_exhaustive]
pub enum CaptureFault {
    /// The file could not be read.
    Io(io::Error),
    /// The file does not begin as pcap or pcapng does.
    NotACapture,
    /// The format with 24-byte record headers that some systems wrote around 1999.
    ModifiedPcap,
    /// The file ends inside this part.
    CutShort(&'static str),
    /// A length that its surroundings contradict.
    Length {
        /// Of what.
        what: &'static str,
        /// The length in the file.
        length: u64,
    },
    /// A frame of an interface that has not been described.
    Interface(u32),
    /// Frames of this link type cannot be read.
    LinkType(u32),
    /// A pcapng section with an unknown byte order or version.
    Section,
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            CaptureFault::Io(error) => write!(f, "{}: {error}", self.file),
            reason => write!(f, "{}: byte {}: {reason}", self.file, self.offset),
        }
    }
}

impl core::error::Error for CaptureError {}

impl fmt::Display for CaptureFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::NotACapture => f.write_str("neither pcap nor pcapng"),
            Self::ModifiedPcap => f.write_str(
                "pcap with the modified record headers of around 1999; convert it with `editcap -F pcap`",
            ),
            Self::CutShort(part) => write!(f, "the file ends inside {part}"),
            Self::Length { what, length } => write!(f, "{what} of {length} bytes cannot be"),
            Self::Interface(index) => {
                write!(f, "a packet of interface {index}, which is not described before it")
            }
            Self::LinkType(number) => write!(
                f,
                "link type {number} cannot be read, only Ethernet (1), raw IP (101, 228, 229), \
                 Linux cooked (113, 276) and loopback (0, 108)"
            ),
            Self::Section => f.write_str("a pcapng section of an unknown byte order or version"),
        }
    }
}

/// Where in the file, and what is wrong.
type Located<T> = Result<T, (u64, CaptureFault)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endian {
    Little,
    Big,
}

impl Endian {
    /// The number in the first four bytes; 0 if there are fewer.
    fn u32(self, bytes: &[u8]) -> u32 {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    /// The number in the first two bytes; 0 if there are fewer.
    fn u16(self, bytes: &[u8]) -> u16 {
        let bytes = bytes.first_chunk().copied().unwrap_or_default();
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }
}

/// A reader that knows how far it is.
#[derive(Debug)]
struct Input<R> {
    input: R,
    offset: u64,
}

impl<R: Read> Input<R> {
    /// Fills `buffer`, or says that the file ends inside `part`.
    fn exactly(&mut self, buffer: &mut [u8], part: &'static str) -> Located<()> {
        if self.fill(buffer)? == buffer.len() {
            Ok(())
        } else {
            Err((self.offset, CaptureFault::CutShort(part)))
        }
    }

    /// Like [`Self::exactly`], but `false` if the file ends right here.
    fn exactly_or_end(&mut self, buffer: &mut [u8], part: &'static str) -> Located<bool> {
        match self.fill(buffer)? {
            0 => Ok(false),
            read if read == buffer.len() => Ok(true),
            _ => Err((self.offset, CaptureFault::CutShort(part))),
        }
    }

    /// Replaces the contents of `buffer` by the next `length` bytes. Takes memory as the bytes
    /// come, not as the length promises.
    fn bytes(&mut self, buffer: &mut Vec<u8>, length: u32, part: &'static str) -> Located<()> {
        buffer.clear();
        let read = (&mut self.input)
            .take(length.into())
            .read_to_end(buffer)
            .map_err(|error| (self.offset, CaptureFault::Io(error)))?;
        self.offset += read as u64;
        if read as u64 == u64::from(length) {
            Ok(())
        } else {
            Err((self.offset, CaptureFault::CutShort(part)))
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Located<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((self.offset, CaptureFault::Io(error))),
            }
        }
        self.offset += filled as u64;
        Ok(filled)
    }
}
