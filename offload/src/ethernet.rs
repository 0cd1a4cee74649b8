//! Ethernet addresses, VLANs, and the header in front of an IP packet.

use core::fmt;
use core::num::NonZeroU16;

use vesper_esp::Buffer;

use crate::unit::Rewrite;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address of everybody.
    pub const BROADCAST: MacAddress = MacAddress([0xff; 6]);

    /// Whether the address names a group, of which broadcast is one.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A VLAN identifier, 1 to 4094 (IEEE 802.1Q).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VlanId(NonZeroU16);

impl VlanId {
    /// `None` for 0, which marks a frame as untagged, and for what 802.1Q reserves.
    pub const fn new(id: u16) -> Option<Self> {
        match NonZeroU16::new(id) {
            Some(id) if id.get() <= 4094 => Some(Self(id)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Payload types that the adapter tells apart.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// An 802.1Q tag.
    pub const VLAN: u16 = 0x8100;
}

/// Bytes of an untagged Ethernet header.
pub(crate) const HEADER_LEN: usize = 14;

/// Bytes of an 802.1Q tag.
pub(crate) const TAG_LEN: usize = 4;

/// The Ethernet header of a frame whose tag, if any, is kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Who is to receive the frame.
    pub destination: MacAddress,
    /// Who sent it.
    pub source: MacAddress,
    /// What follows, see [`ethertype`].
    pub ethertype: u16,
}

/// An Ethernet header as it is on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    bytes: [u8; HEADER_LEN + TAG_LEN],
    is_tagged: bool,
}

impl Header {
    #[inline(always)]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self.is_tagged {
            false => &self.bytes[..HEADER_LEN],
            true => &self.bytes,
        }
    }

    /// Puts the header in front of a payload; `false`, and nothing happened, if the buffer has
    /// no room for it.
    #[inline(always)]
    pub(crate) fn put_before<B: Buffer>(&self, payload: &mut B) -> bool {
        let Self { bytes, is_tagged } = self;
        let len = HEADER_LEN + usize::from(*is_tagged) * TAG_LEN;
        if !payload.grow_front(len) {
            return false;
        }
        let data = payload.data_mut();
        match is_tagged {
            false => {
                if let (Some(place), Some(bytes)) = (data.first_chunk_mut(), bytes.first_chunk()) {
                    *place = *bytes as [u8; HEADER_LEN];
                }
            }
            true => {
                if let Some(place) = data.first_chunk_mut() {
                    *place = *bytes;
                }
            }
        }
        true
    }
}

impl Link {
    /// Whether the header says that an IP packet follows.
    pub(crate) const fn is_ip(&self) -> bool {
        matches!(self.ethertype, ethertype::IPV4 | ethertype::IPV6)
    }

    /// Of a frame that holds this IP packet now, with other addresses if there are any.
    #[inline(always)]
    pub(crate) fn of_packet(self, packet: &[u8], rewrite: Option<&Rewrite>) -> Self {
        Self {
            destination: rewrite.map_or(self.destination, |rewrite| rewrite.destination),
            source: rewrite.map_or(self.source, |rewrite| rewrite.source),
            ethertype: match packet.first() {
                Some(first) if first >> 4 == 6 => ethertype::IPV6,
                _ => ethertype::IPV4,
            },
        }
    }

    /// The header of a frame on this VLAN.
    #[inline]
    pub(crate) fn header(&self, vlan: Option<VlanId>) -> Header {
        let ethertype = match vlan {
            None => self.ethertype,
            Some(_) => ethertype::VLAN,
        };
        let mut bytes = [0; HEADER_LEN + TAG_LEN];
        bytes[..6].copy_from_slice(&self.destination.0);
        bytes[6..12].copy_from_slice(&self.source.0);
        bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        bytes[14..16].copy_from_slice(&vlan.map_or(0, VlanId::get).to_be_bytes());
        bytes[16..].copy_from_slice(&self.ethertype.to_be_bytes());
        Header {
            bytes,
            is_tagged: vlan.is_some(),
        }
    }
}

/// A frame taken apart: header and tag as values, the buffer holding what follows them.
#[derive(Clone, Debug)]
pub struct Frame<B> {
    /// The payload, in most cases an IP packet.
    pub payload: B,
    /// The header.
    pub link: Link,
    /// The tag's VLAN; `None` is untagged, or tagged for priority only.
    pub vlan: Option<VlanId>,
}

/// The bytes are no Ethernet frame that the adapter can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than its header.
    Truncated,
    /// The VLAN identifier 4095, which is reserved.
    Vlan,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "frame is shorter than its Ethernet header",
            Self::Vlan => "frame has the reserved VLAN identifier 4095",
        })
    }
}

impl core::error::Error for FrameError {}

impl<B: Buffer> Frame<B> {
    /// Takes the header off a whole frame; on error the buffer comes back as it was.
    #[inline]
    pub fn open(mut buffer: B) -> Result<Self, (B, FrameError)> {
        let (link, vlan, len) = match parse(buffer.data()) {
            Ok(parsed) => parsed,
            Err(error) => return Err((buffer, error)),
        };
        buffer.trim_front(len);
        Ok(Self {
            payload: buffer,
            link,
            vlan,
        })
    }

    /// Puts the header back, with the tag if the frame is of a VLAN; the frame itself if the
    /// buffer has no room for it.
    #[inline]
    pub fn close(self) -> Result<B, Self> {
        let header = self.link.header(self.vlan);
        self.close_with(&header)
    }

    /// As [`close`](Self::close), with a header that was [made](Link::header) before.
    #[inline(always)]
    pub(crate) fn close_with(mut self, header: &Header) -> Result<B, Self> {
        match header.put_before(&mut self.payload) {
            true => Ok(self.payload),
            false => Err(self),
        }
    }

    /// Gives the frame of a packet that was protected, or opened, its VLAN and addresses.
    #[inline]
    pub(crate) fn dress(&mut self, vlan: Option<VlanId>, rewrite: Option<&Rewrite>) {
        self.vlan = vlan;
        self.link = self.link.of_packet(self.payload.data(), rewrite);
    }

    /// The whole frame without a tag, as its sender had it; just the payload if something has
    /// taken the room.
    pub(crate) fn give_back(self) -> B {
        let untagged = Self { vlan: None, ..self };
        untagged.close().unwrap_or_else(|frame| frame.payload)
    }

    /// Whether the payload says that it is an IP packet.
    pub const fn is_ip(&self) -> bool {
        self.link.is_ip()
    }
}

/// The header of a whole frame, its VLAN, and the bytes of both.
#[inline]
pub(crate) fn parse(data: &[u8]) -> Result<(Link, Option<VlanId>, usize), FrameError> {
    let header: &[u8; HEADER_LEN] = data.first_chunk().ok_or(FrameError::Truncated)?;
    let [a, b, c, d, e, g, h, i, j, k, l, m, kind @ ..] = *header;
    let mut link = Link {
        destination: MacAddress([a, b, c, d, e, g]),
        source: MacAddress([h, i, j, k, l, m]),
        ethertype: u16::from_be_bytes(kind),
    };
    if link.ethertype != ethertype::VLAN {
        return Ok((link, None, HEADER_LEN));
    }
    let tag: &[u8; TAG_LEN] = data
        .get(HEADER_LEN..)
        .and_then(<[u8]>::first_chunk)
        .ok_or(FrameError::Truncated)?;
    link.ethertype = u16::from_be_bytes([tag[2], tag[3]]);
    let vlan = match u16::from_be_bytes([tag[0], tag[1]]) & 0xfff {
        0 => None,
        id => Some(VlanId::new(id).ok_or(FrameError::Vlan)?),
    };
    Ok((link, vlan, HEADER_LEN + TAG_LEN))
}

/// Copies the parts of a payload into a buffer that is lent in full (all of its memory is its
/// data), leaving `headroom` bytes in front; `false`, and nothing happened, if it is too small.
///
/// The one place where the adapter or the software switch copies a packet.
pub(crate) fn fill<B: Buffer>(buffer: &mut B, headroom: usize, parts: &[&[u8]]) -> bool {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    let Some(behind) = buffer.data().len().checked_sub(headroom + payload) else {
        return false;
    };
    buffer.trim_front(headroom);
    buffer.trim_back(behind);
    let mut rest = buffer.data_mut();
    for part in parts {
        let (place, behind) = rest.split_at_mut(part.len());
        place.copy_from_slice(part);
        rest = behind;
    }
    true
}

/// Makes all of the memory of a buffer its data, as it was when it was lent.
pub(crate) fn lend<B: Buffer>(buffer: &mut B) {
    for bytes in (0..16).rev().map(|bits| 1 << bits) {
        while buffer.grow_front(bytes) {}
        while buffer.grow_back(bytes) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vesper_esp::PacketBuf;

    const UNTAGGED: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 8, 0, 0x45, 0];

    #[test]
    fn frames_come_apart_and_together() {
        let frame = Frame::open(PacketBuf::from_packet(&UNTAGGED)).unwrap();
        assert_eq!(frame.link.destination.to_string(), "01:02:03:04:05:06");
        assert_eq!(frame.link.source, MacAddress([7, 8, 9, 10, 11, 12]));
        assert!(frame.is_ip() && frame.vlan.is_none());
        assert_eq!(frame.payload.data(), [0x45, 0]);
        assert_eq!(frame.close().unwrap().data(), UNTAGGED);
    }

    #[test]
    fn tags_are_kept_apart() {
        let mut tagged = UNTAGGED[..12].to_vec();
        tagged.extend([0x81, 0, 0x60, 7, 0x86, 0xdd, 0x60]);
        let frame = Frame::open(PacketBuf::from_packet(&tagged)).unwrap();
        assert_eq!(frame.vlan, VlanId::new(7));
        assert_eq!(frame.link.ethertype, ethertype::IPV6);
        let back = frame.close().unwrap();
        // The priority bits do not survive.
        tagged[14] = 0;
        assert_eq!(back.data(), tagged);

        // Identifier 0 is no VLAN, 4095 is none either.
        tagged[15] = 0;
        let frame = Frame::open(PacketBuf::from_packet(&tagged)).unwrap();
        assert_eq!(frame.vlan, None);
        (tagged[14], tagged[15]) = (0x0f, 0xff);
        let (buffer, error) = Frame::open(PacketBuf::from_packet(&tagged)).unwrap_err();
        assert_eq!((buffer.data(), error), (&tagged[..], FrameError::Vlan));
    }

    #[test]
    fn short_frames_and_full_buffers_are_refused() {
        for len in 0..14 {
            let (buffer, error) =
                Frame::open(PacketBuf::from_packet(&UNTAGGED[..len])).unwrap_err();
            assert_eq!((buffer.data().len(), error), (len, FrameError::Truncated));
        }
        let frame = Frame {
            payload: PacketBuf::with_room(&[1], 13, 0),
            link: Link::default(),
            vlan: None,
        };
        assert!(frame.close().is_err());
        assert_eq!(VlanId::new(4095), None);
        assert_eq!(VlanId::new(4094).map(VlanId::get), Some(4094));
    }

    #[test]
    fn a_lent_buffer_is_filled_behind_its_headroom() {
        let mut buffer = PacketBuf::with_room(&[0; 10], 0, 0);
        assert!(!fill(&mut buffer, 8, &[&[1, 2, 3]]));
        assert_eq!(buffer.data(), [0; 10]);
        assert!(fill(&mut buffer, 4, &[&[1], &[2, 3]]));
        assert_eq!(buffer.data(), [1, 2, 3]);
        lend(&mut buffer);
        assert_eq!(buffer.data().len(), 10);
        assert!(!buffer.grow_front(1) && !buffer.grow_back(1));
    }
}
