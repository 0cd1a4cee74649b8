//! Known answers, before a kernel is used for the first time in a process.

use super::{Form, GcmKey, Kernel};

/// Whether a kernel seals and opens what it should.
///
/// A CPU that is broken, or a hypervisor that announces instructions it does not carry out
/// correctly, is found here rather than by peers that drop every packet.
pub(super) fn passes(kernel: Kernel) -> bool {
    ANSWERS.iter().all(|answer| answer.holds(kernel))
}

/// The tag of a text of so many bytes, with a key, nonce, data and text that count upwards.
pub(super) struct Answer {
    pub(super) key_len: usize,
    pub(super) text_len: usize,
    pub(super) tag: [u8; 16],
}

impl Answer {
    fn holds(&self, kernel: Kernel) -> bool {
        let bytes: [u8; 1024] = core::array::from_fn(|i| i as u8);
        let clear = &bytes[..self.text_len];
        let Some(key) = GcmKey::new(kernel, &bytes[..self.key_len], [0; 4], Form::Gcm, 16) else {
            return false;
        };
        let nonce = core::array::from_fn(|i| i as u8);
        let mut text = bytes;
        let text = &mut text[..self.text_len];
        let mut tag = [0; 16];
        let mut wrong = self.tag;
        wrong[15] ^= 1;
        key.seal_raw(&nonce, &bytes[..20], text, &mut tag)
            && tag == self.tag
            && key.open_raw(&nonce, &bytes[..20], text, &tag)
            && text == clear
            && !key.open_raw(&nonce, &bytes[..20], text, &wrong)
    }
}

/// One small packet and a large one for each key length; computed with `ring` and `aes-gcm`.
pub(super) const ANSWERS: [Answer; 6] = [
    Answer {
        key_len: 16,
        text_len: 68,
        tag: 0x0655d7a710d35832d530b64d46584aa0_u128.to_be_bytes(),
    },
    Answer {
        key_len: 16,
        text_len: 1000,
        tag: 0x6fa814e5b3fb481c128e7c4d5536c834_u128.to_be_bytes(),
    },
    Answer {
        key_len: 24,
        text_len: 68,
        tag: 0x9c9a88c55e2e365dec714a2e7c5bf788_u128.to_be_bytes(),
    },
    Answer {
        key_len: 24,
        text_len: 1000,
        tag: 0x600ad0dee4efa3c3270c1759881ad3a6_u128.to_be_bytes(),
    },
    Answer {
        key_len: 32,
        text_len: 68,
        tag: 0x85e35160b5eb04072b37a18bc6727fab_u128.to_be_bytes(),
    },
    Answer {
        key_len: 32,
        text_len: 1000,
        tag: 0x62424ed618cc9ca3b9592e8878017a60_u128.to_be_bytes(),
    },
];
