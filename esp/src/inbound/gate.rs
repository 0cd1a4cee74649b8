//! What inbound packets are checked against before the cryptography.

use vesper_sa::{Direction, Precheck, SaState};

use super::Candidate;
use crate::aead::{Cipher, Job, open_batch};
use crate::association::EspSa;
use crate::fate::DropReason;

/// What the packets of a run are checked against before authentication; changes nothing.
pub(crate) struct Gate<'a> {
    pub(super) sa: &'a EspSa,
    cipher: &'a Cipher,
    esn: bool,
    precheck: Precheck<'a>,
    /// Bytes of an ESP packet without text.
    around: u32,
    /// Bits that are not set in the length of a text.
    misaligned: u32,
}

impl<'a> Gate<'a> {
    /// The work that an admitted packet is for the cipher.
    #[inline(always)]
    pub(crate) fn job<'p>(&self, candidate: &Candidate<'_>, packet: &'p mut [u8]) -> Job<'p>
    where
        'a: 'p,
    {
        Job {
            cipher: self.cipher,
            sequence: candidate.sequence,
            esn: self.esn,
            esp: candidate.esp_mut(packet),
            authentic: false,
        }
    }

    /// That of an association at this moment.
    #[inline]
    pub(crate) fn of(sa: &'a EspSa) -> Self {
        let framing = sa.context().framing();
        Self {
            sa,
            cipher: sa.context().cipher(),
            esn: sa.esn(),
            precheck: sa.precheck(),
            around: framing.esp_around(),
            misaligned: framing.misaligned() as u32,
        }
    }

    /// [`admit`](Self::admit) for most packets; `None` asks for that one.
    #[inline(always)]
    pub(super) fn admit_plain(&self, esp_len: u32, sequence_low: u32) -> Option<u64> {
        let text_len = esp_len.wrapping_sub(self.around);
        if text_len.wrapping_sub(2) >= u16::MAX.into() || text_len & self.misaligned != 0 {
            return None;
        }
        self.precheck.check_ahead(sequence_low)
    }

    /// The full sequence number of a packet that may be authentic.
    pub(super) fn admit(
        &self,
        candidate: &Candidate<'_>,
        packet: &[u8],
        scratch: &mut Option<Vec<u8>>,
    ) -> Result<u64, DropReason> {
        self.admit_at_all(candidate.esp_len)?;
        let low = candidate.sequence as u32;
        if self.sa.is_resync_due()
            && let Some(scratch) = scratch
            && let Some(sequence) = resynchronise(self.sa, low, candidate.esp(packet), scratch)
        {
            return Ok(sequence);
        }
        self.precheck.check(low).map_err(|_| DropReason::Replay)
    }

    /// As [`admit`](Self::admit), of a packet that an adapter has opened with the number
    /// `authenticated`.
    pub(super) fn admit_opened(
        &self,
        candidate: &Candidate<'_>,
        authenticated: u64,
    ) -> Result<(), DropReason> {
        self.admit_at_all(candidate.esp_len)?;
        match self.precheck.check(candidate.sequence as u32) {
            Ok(sequence) if sequence == authenticated => Ok(()),
            _ => Err(DropReason::Replay),
        }
    }

    fn admit_at_all(&self, esp_len: u32) -> Result<(), DropReason> {
        let reason = match (self.sa.direction(), self.sa.state()) {
            (Direction::Outbound, _) => Some(DropReason::Direction),
            (_, SaState::Mature | SaState::Dying) => None,
            (_, SaState::Dead) => Some(DropReason::Expired),
            (_, SaState::Deleted) => Some(DropReason::Deleted),
        };
        if let Some(reason) = reason {
            return Err(reason);
        }
        let text_len = esp_len.saturating_sub(self.around);
        if text_len < 2 || text_len & self.misaligned != 0 {
            return Err(DropReason::Malformed);
        }
        Ok(())
    }
}

/// After long silence the high half of an extended sequence number may be guessed wrong for
/// every packet: when the association says that it might be so, tries the few numbers that it
/// offers on a copy, the usual guess first (RFC 4303 appendix A3).
fn resynchronise(sa: &EspSa, sequence_low: u32, esp: &[u8], scratch: &mut Vec<u8>) -> Option<u64> {
    let mut candidates = sa.resync_candidates(sequence_low).peekable();
    candidates.peek()?;
    let usual = sa.check(sequence_low).ok();
    let mut authentic = |sequence| {
        scratch.clear();
        scratch.extend_from_slice(esp);
        let mut jobs = [Job {
            cipher: sa.context().cipher(),
            sequence,
            esn: true,
            esp: scratch,
            authentic: false,
        }];
        open_batch(&mut jobs);
        let authentic = jobs[0].authentic;
        scratch.fill(0);
        authentic
    };
    if usual.is_some_and(&mut authentic) {
        return usual;
    }
    candidates.find(|&sequence| authentic(sequence))
}
