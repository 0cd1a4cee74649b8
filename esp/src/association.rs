//! What the data path keeps beside an association: the expanded key and the headers made
//! ready.

use core::fmt;
use core::net::IpAddr;

use vesper_sa::{Df, Dscp, Ecn, Mode, Sa, SaParams, SaParamsError, Timestamp, UdpEncapsulation};

use crate::aead::{self, Cipher, CipherError};
use crate::suite::Suite;
use crate::wire::{Checksum, DONT_FRAGMENT, IpVersion, protocol};

/// An association with everything that is needed to seal or open its packets.
pub type EspSa = Sa<EspContext>;

/// The expanded key of an association, its lengths, and its outer headers made ready.
#[derive(Debug)]
#[repr(C)]
pub struct EspContext {
    framing: Framing,
    cipher: Cipher,
    mode: Mode,
    tfc_pad: u16,
}

/// Why an association could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AssociationError {
    /// Source and destination are of different IP versions.
    MixedAddresses,
    /// The parameters contradict each other.
    Params(SaParamsError),
    /// The key does not fit the suite.
    Cipher(CipherError),
    /// The path MTU leaves no room for a payload.
    Mtu(u32),
}

/// All that framing a packet has to know of its association, in one cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Framing {
    /// Outer IP, UDP and SPI as they are written in front of every packet; what varies is
    /// patched afterwards.
    bytes: [u8; 52],
    /// Sum of the words of the outer IPv4 header that never vary.
    sum: u16,
    /// Where in `bytes` the SPI is.
    spi_at: u8,
    /// Bytes before the payload, the IP header of transport mode not counted.
    front_len: u8,
    iv_len: u8,
    icv_len: u8,
    /// Bytes around a packet in a tunnel, without its padding.
    around: u8,
    /// Bits that are not set in the length of a text.
    misaligned: u8,
    /// Bits of the inner traffic class that the outer one repeats.
    class_kept: u8,
    /// Bits of the outer traffic class that are always the same.
    class_set: u8,
    /// Bits of the flags in an inner IPv4 header that the outer one repeats and, one bit to the
    /// right, those that it always has.
    flags: u8,
    plain: Plain,
}

/// Whether packets go out in a tunnel over IPv4, with the sequence number as their IV of 8
/// bytes, less than four bytes of padding, and the inner header as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlainOut {
    /// They do not.
    No,
    /// They do, right behind the IP header.
    Ip,
    /// They do, in UDP.
    Udp,
}

/// Which packets go the short way: outbound as [`PlainOut`] says, inbound in the lowest bit.
#[derive(Clone, Copy, Debug)]
struct Plain(u8);

/// Makes an association ready for the engine.
///
/// `now` starts its lifetimes.
pub fn association(
    params: SaParams,
    cipher: Cipher,
    now: Timestamp,
) -> Result<EspSa, AssociationError> {
    let context = EspContext::new(&params, cipher)?;
    Sa::new(params, context, now).map_err(AssociationError::Params)
}

impl EspContext {
    /// The part of an association that ESP needs; [`association`] makes the whole.
    pub fn new(params: &SaParams, cipher: Cipher) -> Result<Self, AssociationError> {
        let context = Self {
            framing: Framing::new(params, cipher.suite())?,
            mode: params.mode,
            tfc_pad: params.tfc_pad,
            cipher,
        };
        match params.mtu {
            Some(mtu)
                if context
                    .max_packet(mtu as usize, 20)
                    .is_none_or(|max| max < 28) =>
            {
                Err(AssociationError::Mtu(mtu))
            }
            _ => Ok(context),
        }
    }

    /// The key.
    pub const fn cipher(&self) -> &Cipher {
        &self.cipher
    }

    /// Bytes that encapsulation adds to a packet with `payload` bytes of ESP payload: outer IP
    /// header (tunnel mode), UDP header, ESP header, IV, padding, trailer and ICV, but not the
    /// padding for traffic flow confidentiality.
    ///
    /// The payload is the whole inner packet in tunnel mode, and what follows the IP header in
    /// transport mode.
    pub fn overhead(&self, payload: usize) -> usize {
        let framing = &self.framing;
        framing.front_len() + framing.padding(payload) + 2 + framing.icv_len()
    }

    /// The largest packet in bytes, IP header included, that fits into an outer packet of
    /// `mtu` bytes; `header` is the length of its own IP header with options and extension
    /// headers, of effect in transport mode only. `None` if not even an empty payload fits.
    pub fn max_packet(&self, mtu: usize, header: usize) -> Option<usize> {
        let header = match self.mode {
            Mode::Tunnel => 0,
            Mode::Transport => header,
        };
        let fixed = header + self.framing.front_len() + self.framing.icv_len();
        let text = mtu.checked_sub(fixed)? & !self.framing.misaligned();
        Some(header + text.checked_sub(2)?)
    }

    /// Asks for the memory of the key.
    #[inline]
    pub(crate) fn prefetch_key(&self) {
        for line in 1..9 {
            aead::prefetch(self, 64 * line);
        }
    }

    /// Asks for all of it, for a little later.
    #[inline]
    pub(crate) fn prefetch_soon(&self) {
        for line in 0..9 {
            aead::prefetch_soon(self, 64 * line);
        }
    }

    #[inline]
    pub(crate) const fn framing(&self) -> &Framing {
        &self.framing
    }

    #[inline]
    pub(crate) const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether sealed packets need a UDP checksum: none over IPv4 (RFC 3948 section 2.1), but
    /// IPv6 receivers drop packets without one unless they were told to expect them (RFC 6935).
    pub(crate) fn has_udp_checksum(&self) -> bool {
        self.framing.is_udp() && self.framing.version() == IpVersion::V6
    }

    /// Bytes of zeroes behind a payload of this length, so that traffic flow confidentiality
    /// hides it; never so many that the packet exceeds the path MTU.
    #[inline]
    pub(crate) fn tfc_padding(&self, payload: usize, mtu: Option<u32>) -> usize {
        if self.tfc_pad == 0 {
            return 0;
        }
        let most = mtu.map_or(usize::MAX, |mtu| {
            self.max_packet(mtu as usize, 0).unwrap_or_default()
        });
        usize::from(self.tfc_pad).min(most).saturating_sub(payload)
    }
}

impl Framing {
    fn new(params: &SaParams, suite: &Suite) -> Result<Self, AssociationError> {
        let mut bytes = [0; 52];
        let upper = match params.encapsulation {
            Some(_) => protocol::UDP,
            None => protocol::ESP,
        };
        let (version, ip_len) = match (params.source, params.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                bytes[0] = 0x45;
                bytes[8] = params.tunnel.hop_limit;
                bytes[9] = upper;
                bytes[12..16].copy_from_slice(&source.octets());
                bytes[16..20].copy_from_slice(&destination.octets());
                (IpVersion::V4, 20)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                bytes[0] = 0x60;
                bytes[6] = upper;
                bytes[7] = params.tunnel.hop_limit;
                bytes[8..24].copy_from_slice(&source.octets());
                bytes[24..40].copy_from_slice(&destination.octets());
                (IpVersion::V6, 40)
            }
            _ => return Err(AssociationError::MixedAddresses),
        };
        let mut spi_at = ip_len;
        if let Some(UdpEncapsulation {
            source_port,
            destination_port,
        }) = params.encapsulation
        {
            bytes[ip_len..ip_len + 2].copy_from_slice(&source_port.to_be_bytes());
            bytes[ip_len + 2..ip_len + 4].copy_from_slice(&destination_port.to_be_bytes());
            spi_at += 8;
        }
        bytes[spi_at..spi_at + 4].copy_from_slice(&params.spi.get().to_be_bytes());

        let tunnel = &params.tunnel;
        let (mut class_kept, class_set) = match tunnel.dscp {
            Dscp::Copy => (0xfc, 0),
            Dscp::Set(dscp) => (0, dscp << 2),
        };
        if tunnel.ecn == Ecn::Normal {
            class_kept |= 3;
        }
        let is_tunnel = params.mode == Mode::Tunnel;
        let front_len = if is_tunnel { spi_at } else { spi_at - ip_len } + 8 + suite.iv_len;
        let is_plain = is_tunnel
            && version == IpVersion::V4
            && suite.iv_len == 8
            && suite.icv_len >= 8
            && suite.alignment <= 4
            && params.tfc_pad == 0
            && !tunnel.decrement_hop_limit;
        Ok(Self {
            bytes,
            sum: !Checksum::new().bytes(&bytes[8..20]).finish(),
            spi_at: spi_at as u8,
            // The table of suites has no length beyond 32.
            front_len: front_len as u8,
            iv_len: suite.iv_len as u8,
            icv_len: suite.icv_len as u8,
            around: (front_len + 2 + suite.icv_len) as u8,
            // Every alignment is a power of two.
            misaligned: suite.alignment as u8 - 1,
            class_kept,
            class_set,
            flags: match tunnel.df {
                Df::Copy => DONT_FRAGMENT,
                Df::Set => DONT_FRAGMENT >> 1,
                Df::Clear => 0,
            },
            plain: Plain::new(
                match params.encapsulation {
                    _ if !is_plain => PlainOut::No,
                    None => PlainOut::Ip,
                    Some(_) => PlainOut::Udp,
                },
                is_tunnel && params.selectors.is_empty() && tunnel.ecn != Ecn::Off,
            ),
        })
    }

    /// See [`PlainOut`].
    #[inline]
    pub(crate) const fn plain_out(&self) -> PlainOut {
        self.plain.out()
    }

    /// Whether packets come in through a tunnel that takes every inner packet and passes
    /// congestion marks on.
    #[inline]
    pub(crate) const fn is_plain_in(&self) -> bool {
        self.plain.is_in()
    }

    #[inline]
    pub(crate) const fn version(&self) -> IpVersion {
        if self.bytes[0] == 0x45 {
            IpVersion::V4
        } else {
            IpVersion::V6
        }
    }

    pub(crate) const fn ip_len(&self) -> usize {
        match self.version() {
            IpVersion::V4 => 20,
            IpVersion::V6 => 40,
        }
    }

    #[inline]
    pub(crate) const fn is_udp(&self) -> bool {
        matches!(self.spi_at, 28 | 48)
    }

    /// Bytes before the payload, the IP header of transport mode not counted.
    #[inline]
    pub(crate) fn front_len(&self) -> usize {
        usize::from(self.front_len)
    }

    #[inline]
    pub(crate) fn iv_len(&self) -> usize {
        usize::from(self.iv_len)
    }

    #[inline]
    pub(crate) fn icv_len(&self) -> usize {
        usize::from(self.icv_len)
    }

    /// Bytes of an ESP packet without text.
    #[inline]
    pub(crate) fn esp_around(&self) -> u32 {
        8 + u32::from(self.iv_len) + u32::from(self.icv_len)
    }

    /// Bits that are not set in the length of a text.
    #[inline]
    pub(crate) fn misaligned(&self) -> usize {
        usize::from(self.misaligned)
    }

    /// Bytes of padding behind a payload.
    ///
    //= https://www.rfc-editor.org/rfc/rfc4303#section-2.4
    //# Padding also may be required, irrespective of encryption algorithm requirements, to
    //# ensure that the resulting ciphertext terminates on a 4-byte boundary.
    #[inline]
    pub(crate) fn padding(&self, payload: usize) -> usize {
        (payload + 2).wrapping_neg() & self.misaligned()
    }

    /// IP header, UDP header and SPI.
    #[inline]
    pub(crate) const fn bytes(&self) -> &[u8; 52] {
        &self.bytes
    }

    /// Writes IP header, UDP header and SPI to the beginning of `packet`, which is longer.
    pub(crate) fn write_with_ip(&self, packet: &mut [u8]) {
        // Copies of a length that the compiler knows are a few moves each.
        match self.spi_at {
            20 => packet[..24].copy_from_slice(&self.bytes[..24]),
            28 => packet[..32].copy_from_slice(&self.bytes[..32]),
            40 => packet[..44].copy_from_slice(&self.bytes[..44]),
            _ => packet[..52].copy_from_slice(&self.bytes[..52]),
        }
    }

    /// UDP header and SPI.
    pub(crate) fn without_ip(&self) -> &[u8] {
        &self.bytes[self.ip_len()..usize::from(self.spi_at) + 4]
    }

    /// DSCP and ECN of the outer header of a packet with these (RFC 4301 section 5.1.2.1,
    /// RFC 6040 section 4.1).
    #[inline]
    pub(crate) const fn outer_class(&self, inner: u8) -> u8 {
        inner & self.class_kept | self.class_set
    }

    /// The flags of the outer IPv4 header of a packet with these.
    #[inline]
    pub(crate) const fn outer_flags(&self, inner: u8) -> u8 {
        (inner & self.flags | self.flags << 1) & DONT_FRAGMENT
    }

    /// Bytes around a packet in a tunnel, without its padding.
    #[inline]
    pub(crate) fn around(&self) -> usize {
        usize::from(self.around)
    }

    /// The checksum of an outer IPv4 header with these first four words.
    #[inline]
    pub(crate) fn checksum(&self, words: [u16; 4]) -> u16 {
        let sum = words
            .iter()
            .fold(u32::from(self.sum), |sum, &word| sum + u32::from(word));
        // Five words carry at most once into the folded sum.
        let sum = (sum & 0xffff) + (sum >> 16);
        !((sum & 0xffff) + (sum >> 16)) as u16
    }
}

impl Plain {
    const fn new(out: PlainOut, is_in: bool) -> Self {
        Self((out as u8) << 1 | is_in as u8)
    }

    #[inline]
    const fn out(self) -> PlainOut {
        match self.0 >> 1 {
            0 => PlainOut::No,
            1 => PlainOut::Ip,
            _ => PlainOut::Udp,
        }
    }

    #[inline]
    const fn is_in(self) -> bool {
        self.0 & 1 != 0
    }
}

impl fmt::Display for AssociationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MixedAddresses => {
                f.write_str("source and destination are of different IP versions")
            }
            Self::Params(error) => error.fmt(f),
            Self::Cipher(error) => error.fmt(f),
            Self::Mtu(mtu) => write!(f, "a path MTU of {mtu} bytes leaves no room for a payload"),
        }
    }
}

impl core::error::Error for AssociationError {}

impl From<CipherError> for AssociationError {
    fn from(error: CipherError) -> Self {
        Self::Cipher(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the packet path touches of an AES-256-GCM association for a packet fits into 1 KiB:
    /// three cache lines of per-packet state (two outbound; inbound one more with the word of
    /// the window), and the context with its key.
    #[test]
    fn the_hot_state_fits_into_a_kibibyte() {
        const STATE: usize = 3 * 64;
        let context = size_of::<EspContext>();
        assert!(STATE + context <= 1024, "{context} bytes of context");
    }
}
