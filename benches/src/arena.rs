//! Memory for the packets of a pass.

/// Where huge pages begin.
const HUGE_PAGE: usize = 2 << 20;

/// Where cache lines begin.
const LINE: usize = 64;

/// Equal slots for packets, in one piece that begins on a huge page's boundary (the
/// allocator has been asked to back large pieces with huge pages, see `main`).
#[derive(Debug)]
pub(crate) struct Arena {
    memory: Vec<u8>,
    begin: usize,
    stride: usize,
    lead: usize,
    lengths: Vec<usize>,
}

impl Arena {
    /// Slots for packets of these lengths, each beginning `header` bytes before a cache
    /// line, so that what follows the header is aligned. Slots are an odd number of lines
    /// apart, so that packets spread over all sets of the caches.
    pub(crate) fn new(header: usize, lengths: Vec<usize>) -> Self {
        let lead = header.next_multiple_of(LINE) - header;
        let longest = lengths.iter().max().copied().unwrap_or(0);
        let stride = ((lead + longest).div_ceil(LINE) | 1) * LINE;
        let memory = vec![0; stride * lengths.len() + HUGE_PAGE];
        let begin = memory.as_ptr().align_offset(HUGE_PAGE);
        Self {
            memory,
            begin,
            stride,
            lead,
            lengths,
        }
    }

    /// The packets.
    pub(crate) fn packets(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.memory[self.begin..]
            .chunks_exact_mut(self.stride)
            .zip(&self.lengths)
            .map(|(slot, &length)| &mut slot[self.lead..self.lead + length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_their_lengths_and_alignment() {
        let lengths = vec![96, 1500, 16, 130];
        let mut arena = Arena::new(24, lengths.clone());
        let found: Vec<_> = arena
            .packets()
            .map(|packet| {
                assert_eq!(packet.as_ptr().addr() % LINE, LINE - 24);
                packet.len()
            })
            .collect();
        assert_eq!(found, lengths);
    }
}
