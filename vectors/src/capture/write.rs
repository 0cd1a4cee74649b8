//! Writing pcap.

use std::io::{self, Write};

/// The snap length in the header: longer than any IP packet, and what libpcap writes.
const SNAP_LEN: u32 = 262_144;
/// LINKTYPE_RAW.
const RAW: u32 = 101;

/// Writes IP packets as pcap of the form that every tool reads: microseconds, little-endian,
/// LINKTYPE_RAW.
#[derive(Debug)]
pub struct CaptureWriter<W> {
    output: W,
}

impl<W: Write> CaptureWriter<W> {
    /// Writes the file header.
    pub fn new(mut output: W) -> io::Result<Self> {
        let mut header = [0; 24];
        header[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
        header[4..6].copy_from_slice(&2_u16.to_le_bytes());
        header[6..8].copy_from_slice(&4_u16.to_le_bytes());
        header[16..20].copy_from_slice(&SNAP_LEN.to_le_bytes());
        header[20..].copy_from_slice(&RAW.to_le_bytes());
        output.write_all(&header)?;
        Ok(Self { output })
    }

    /// Writes one IP packet; `timestamp` is in nanoseconds since 1970.
    ///
    /// # Errors
    /// Those of the output, and [`io::ErrorKind::InvalidInput`] for a packet that no IP header
    /// can describe (over 65,575 bytes).
    pub fn packet(&mut self, timestamp: u64, packet: &[u8]) -> io::Result<()> {
        let length = u32::try_from(packet.len())
            .ok()
            .filter(|&length| length <= 65_575)
            .ok_or(io::ErrorKind::InvalidInput)?;
        // The format counts seconds in 32 bits, which end in 2106.
        let seconds = u32::try_from(timestamp / 1_000_000_000).unwrap_or(u32::MAX);
        let fraction = (timestamp % 1_000_000_000 / 1000) as u32;
        for field in [seconds, fraction, length, length] {
            self.output.write_all(&field.to_le_bytes())?;
        }
        self.output.write_all(packet)
    }

    /// Writes out what is still buffered.
    pub fn finish(mut self) -> io::Result<()> {
        self.output.flush()
    }
}
