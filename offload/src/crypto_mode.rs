//! Crypto mode: finding what is to be encrypted or decrypted in an ESP packet, in place.

use vesper_esp::EspSa;
use vesper_esp::aead::Job;
use vesper_esp::wire::{EncapsulationPorts, Located, locate};
use vesper_sa::{Direction, SaState};

use crate::crypto_status::{CryptoInfo, CryptoStatus};
use crate::unit::Offloaded;

/// What there is to encrypt in a packet that the host has made, if it is an ESP packet of this
/// association; `infer` tells its number by the low half.
pub(crate) fn to_encrypt<'a>(
    sa: &'a EspSa,
    infer: impl FnOnce(u32) -> u64,
    packet: &'a mut [u8],
    ports: &EncapsulationPorts,
) -> Option<Job<'a>> {
    let Located::Esp(esp) = locate(packet, ports) else {
        return None;
    };
    let suite = sa.context().cipher().suite();
    let text = esp.esp_len.checked_sub(8 + suite.iv_len + suite.icv_len);
    let is_framed = esp.spi == sa.spi().get()
        && esp.destination == sa.params().destination
        && sa.direction() == Direction::Outbound
        && text.is_some_and(|text| text >= 2 && text.is_multiple_of(suite.alignment));
    let bytes = packet.get_mut(esp.esp_at..esp.esp_at + esp.esp_len)?;
    is_framed.then(|| Job {
        cipher: sa.context().cipher(),
        sequence: infer(esp.sequence),
        esn: sa.esn(),
        esp: bytes,
        authentic: false,
    })
}

/// What there is to say about an ESP packet before its cryptography, and what there is to decrypt
/// where it is; the status is that of success if anything. Nothing if it is not ESP after all.
pub(crate) fn to_decrypt<'a>(
    offloaded: &'a Offloaded,
    located: Located,
    packet: &'a mut [u8],
) -> (Option<CryptoInfo>, Option<Job<'a>>) {
    let Located::Esp(esp) = located else {
        return (None, None);
    };
    let sa = &offloaded.sa;
    let cipher = sa.context().cipher();
    let suite = cipher.suite();
    let sequence = offloaded.infer(esp.sequence);
    let mut info = CryptoInfo {
        handle: offloaded.handle,
        status: CryptoStatus::InvalidPacketSyntax,
        sequence,
        esp_offset: esp.esp_at as u16,
        next_header: 0,
        pad_length: 0,
        sa_delete_req: sa.state() >= SaState::Dead,
    };
    let text = esp.esp_len.checked_sub(8 + suite.iv_len + suite.icv_len);
    let is_whole = text.is_some_and(|text| text >= 2 && text.is_multiple_of(suite.alignment));
    let bytes = packet.get_mut(esp.esp_at..esp.esp_at + esp.esp_len);
    let job = bytes.filter(|_| is_whole).map(|bytes| Job {
        cipher,
        sequence,
        esn: sa.esn(),
        esp: bytes,
        authentic: false,
    });
    if job.is_some() {
        info.status = CryptoStatus::Success;
    }
    (Some(info), job)
}

/// What the cryptography has found.
pub(crate) fn finish_decrypted(
    offloaded: &Offloaded,
    info: &mut CryptoInfo,
    job: Option<&Job<'_>>,
) {
    let Some(job) = job.filter(|job| job.authentic) else {
        info.status = CryptoStatus::authentication_failed(offloaded.sa.mode());
        return;
    };
    let end = job.esp.len() - offloaded.sa.context().cipher().suite().icv_len;
    if let Some([pad_length, next_header]) = job.esp.get(end - 2..end) {
        (info.pad_length, info.next_header) = (*pad_length, *next_header);
    }
}
