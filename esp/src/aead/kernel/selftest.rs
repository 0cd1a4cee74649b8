//! Known answers, before a kernel is used for the first time in a process.

use super::{Form, GcmKey, Kernel};
use crate::aead::iv::IvSource;
use crate::aead::{Cipher, Implementation, Inner, Job, open_batch, seal_batch};
use crate::suite::Suite;

/// Whether a kernel seals and opens what it should.
///
/// A CPU that is broken, or a hypervisor that announces instructions it does not carry out
/// correctly, is found here rather than by peers that drop every packet.
pub(super) fn passes(kernel: Kernel) -> bool {
    ANSWERS.iter().all(|answer| answer.holds(kernel))
        && SUITES.iter().all(|s| together(kernel, s) == Some(true))
}

const SUITES: [&str; 3] = ["aes128gcm16", "aes192gcm16", "aes256gcm16"];

/// Whether small packets, which may be worked on together, with one key or with two, become what each
/// becomes alone, which is known to be right.
fn together(kernel: Kernel, suite: &str) -> Option<bool> {
    const SEQUENCE: u64 = 0x1011_1213_0405_0607;
    let suite = Suite::by_name(suite)?;
    let implementation = Implementation::by_name(kernel.name())?;
    let bytes: [u8; 320] = core::array::from_fn(|i| i as u8);
    let keys = [0, 1].map(|from| &bytes[from..from + suite.key_len]);
    let key = |key| GcmKey::new(kernel, key, [0; 4], Form::Gcm, 16);
    let ciphers = [key(keys[0])?, key(keys[1])?].map(|key| Cipher {
        suite,
        implementation,
        iv: IvSource::Sequence,
        inner: Inner::Kernel(key),
    });
    let mut right = true;
    // One part, two parts; one key, two keys.
    for (text_len, other) in [(68, 0), (260, 0), (68, 1), (260, 1)] {
        let end = 16 + text_len;
        let mut memory = [bytes; 4];
        let mut jobs = [0, 1, 2, 3].into_iter().zip(&mut memory).map(|(n, esp)| {
            esp[8] = n;
            Job {
                cipher: &ciphers[if n == 3 { other } else { 0 }],
                sequence: SEQUENCE,
                esn: true,
                esp: &mut esp[..end + 16],
                authentic: false,
            }
        });
        let mut jobs = [jobs.next()?, jobs.next()?, jobs.next()?, jobs.next()?];
        seal_batch(&mut jobs);
        for job in &jobs {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&job.esp[8..16]);
            let mut aad = [0; 12];
            aad[..4].copy_from_slice(&bytes[..4]);
            aad[4..].copy_from_slice(&SEQUENCE.to_be_bytes());
            let mut alone = bytes;
            let (text, tag) = alone[16..end + 16].split_at_mut(text_len);
            right &= job.cipher.gcm_key()?.seal_raw(&nonce, &aad, text, tag);
            right &= job.esp[16..] == alone[16..end + 16];
        }
        // The last one is not authentic.
        jobs[3].esp[end] ^= 1;
        open_batch(&mut jobs);
        for (n, job) in jobs.iter().enumerate() {
            right &= job.authentic == (n < 3);
            right &= n == 3 || job.esp[16..end] == bytes[16..end];
        }
    }
    Some(right)
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
