//! Frames out of the kernel, finished: checksums, large packets, VLAN tags that it keeps apart.

use std::collections::VecDeque;

use vesper_esp::{Buffer, PacketBuf};

use super::virtio_net::{Allowed, HEADER_LEN, HEADERS, Header, MOST_SEGMENTS, Segmentation, Work};
use super::{Incoming, Pool, PortStatus};

/// The longest frame that the kernel hands over: 64 KiB with an Ethernet header and two tags.
pub(super) const LARGEST: usize = 65_535 + 22;

/// What the kernel says about a frame that it has copied into a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived<'a> {
    /// The virtio-net header.
    pub(super) header: &'a [u8; HEADER_LEN],
    /// Bytes of the frame.
    pub(super) len: usize,
    /// Where the frame goes on that fills its buffer.
    pub(super) spill: &'a [u8],
    /// The VLAN tag: type and contents.
    pub(super) tag: Option<(u16, u16)>,
}

/// Frames that are finished and wait for the worker to take them.
#[derive(Debug)]
pub(super) struct Intake {
    ready: VecDeque<Incoming>,
    /// A large packet in one piece.
    whole: Vec<u8>,
}

impl Intake {
    pub(super) fn new() -> Self {
        Self {
            ready: VecDeque::with_capacity(MOST_SEGMENTS * 2),
            whole: Vec::with_capacity(LARGEST),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// Hands frames over, at most `most`. Returns how many.
    pub(super) fn hand_over(&mut self, most: usize, into: &mut Vec<Incoming>) -> usize {
        let count = self.ready.len().min(most);
        into.extend(self.ready.drain(..count));
        count
    }

    /// Finishes the frame that `buffer` begins with; the rest of the buffer's data is free.
    pub(super) fn finish(
        &mut self,
        mut buffer: PacketBuf,
        arrived: Arrived<'_>,
        pool: &mut Pool,
        status: &mut PortStatus,
    ) {
        let header = Header::parse(arrived.header);
        let capacity = buffer.data().len();
        let done = match header.work(Allowed::ALL) {
            Some(Work::Segments) => {
                let done = self.segment(&header, &buffer, arrived, pool, status);
                pool.give(buffer);
                done
            }
            Some(work) if (14..=capacity).contains(&arrived.len) => {
                buffer.trim_back(capacity - arrived.len);
                let good = work == Work::None || header.finish_checksum(buffer.data_mut());
                if good && tag(&mut buffer, arrived.tag) {
                    status.received += 1;
                    status.received_bytes += buffer.data().len() as u64;
                    self.ready.push_back(Incoming::new(buffer));
                    true
                } else {
                    pool.give(buffer);
                    false
                }
            }
            _ => {
                pool.give(buffer);
                false
            }
        };
        if !done {
            status.malformed += 1;
        }
    }

    /// False if it is no large packet that could be cut.
    fn segment(
        &mut self,
        header: &Header,
        buffer: &PacketBuf,
        arrived: Arrived<'_>,
        pool: &mut Pool,
        status: &mut PortStatus,
    ) -> bool {
        let (data, len) = (buffer.data(), arrived.len);
        let frame = if len <= data.len() {
            data.get(..len)
        } else {
            self.whole.clear();
            self.whole.extend_from_slice(data);
            let rest = arrived.spill.get(..len - data.len()).unwrap_or(&[]);
            self.whole.extend_from_slice(rest);
            Some(&*self.whole).filter(|whole| whole.len() == len)
        };
        let Some(frame) = frame else { return false };
        let head = frame.get(..HEADERS).unwrap_or(frame);
        let Some(plan) = Segmentation::plan(header, head, len) else {
            return false;
        };
        if plan.longest() > pool.frame_capacity() {
            return false;
        }
        for index in 0..plan.count {
            let payload = &frame[plan.header_len..][plan.payload(index)];
            let Some(mut segment) = pool.take_for(plan.header_len + payload.len()) else {
                // It is out of the kernel already: what has no buffer is lost.
                status.dropped += (plan.count - index) as u64;
                break;
            };
            let (headers, room) = segment.data_mut().split_at_mut(plan.header_len);
            headers.copy_from_slice(&frame[..plan.header_len]);
            room.copy_from_slice(payload);
            plan.finish(index, segment.data_mut());
            if tag(&mut segment, arrived.tag) {
                status.received += 1;
                status.received_bytes += segment.data().len() as u64;
                self.ready.push_back(Incoming::new(segment));
            }
        }
        true
    }
}

/// A free buffer whose data is the room for a frame.
pub(super) fn room(pool: &mut Pool) -> Option<PacketBuf> {
    pool.take_for(pool.frame_capacity())
}

/// Puts the VLAN tag back behind the addresses.
fn tag(buffer: &mut PacketBuf, tag: Option<(u16, u16)>) -> bool {
    let Some((kind, contents)) = tag else {
        return true;
    };
    if !buffer.grow_front(4) {
        return false;
    }
    let data = buffer.data_mut();
    data.copy_within(4..16, 0);
    data[12..14].copy_from_slice(&kind.to_be_bytes());
    data[14..16].copy_from_slice(&contents.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn finish(
        frame: &[u8],
        header: [u8; HEADER_LEN],
        tag: Option<(u16, u16)>,
    ) -> (Vec<Vec<u8>>, PortStatus) {
        let mut pool = Pool::new(64, 1518);
        let mut intake = Intake::new();
        let mut status = PortStatus::default();
        let mut buffer = room(&mut pool).unwrap();
        assert_eq!(buffer.data().len(), 1518);
        let inside = frame.len().min(1518);
        buffer.data_mut()[..inside].copy_from_slice(&frame[..inside]);
        let arrived = Arrived {
            header: &header,
            len: frame.len(),
            spill: &frame[inside..],
            tag,
        };
        intake.finish(buffer, arrived, &mut pool, &mut status);
        let mut out = Vec::new();
        assert_eq!(intake.hand_over(100, &mut out) as u64, status.received);
        let frames = out.iter().map(|incoming| incoming.frame.data().to_vec());
        let frames = frames.collect();
        out.into_iter()
            .for_each(|incoming| pool.give(incoming.frame));
        assert_eq!(pool.free(), 64);
        (frames, status)
    }

    #[test]
    fn tags_that_the_kernel_took_off_are_put_back() {
        let frame: Vec<u8> = (0..60).collect();
        let (frames, status) = finish(&frame, [0; HEADER_LEN], Some((0x8100, 0x2007)));
        assert_eq!(frames[0][..12], frame[..12]);
        assert_eq!(frames[0][12..16], [0x81, 0, 0x20, 7]);
        assert_eq!(frames[0][16..], frame[12..]);
        assert_eq!((status.received, status.received_bytes), (1, 64));
    }

    #[test]
    fn a_packet_larger_than_a_buffer_is_cut() {
        let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let tcp = link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 0, 9);
        let mut frame = Vec::new();
        tcp.write(&mut frame, &[7; 20_000]).unwrap();
        let header = [1, 1, 54, 0, 0xb4, 0x05, 34, 0, 16, 0];
        let (frames, status) = finish(&frame, header, Some((0x8100, 9)));
        assert_eq!(frames.len(), 20_000usize.div_ceil(1460));
        assert!(frames.iter().all(|frame| frame[12..16] == [0x81, 0, 0, 9]));
        assert_eq!((status.malformed, status.dropped), (0, 0));
        // Without being a large packet it is too long, and so is a segment.
        assert_eq!(finish(&frame, [0; HEADER_LEN], None).1.malformed, 1);
        let long = [1, 1, 54, 0, 0, 0x10, 34, 0, 16, 0];
        assert_eq!(finish(&frame, long, None).1.malformed, 1);
        assert_eq!(finish(&frame[..13], [0; HEADER_LEN], None).1.malformed, 1);
    }
}
