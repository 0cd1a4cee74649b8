//! Known answers of the kernels of whole suites, before one is used for the first time in a
//! process: as for AES-GCM, a CPU or hypervisor that announces instructions it does not carry
//! out correctly is found here.

use super::chacha20poly1305::{self, ChaChaKey};
use super::composed::{self, ComposedKey};
use crate::aead::iv::IvSource;
use crate::aead::{Cipher, Implementation, Inner, Job, open_batch, seal_batch};
use crate::suite::Suite;

/// Bytes of text in the packets.
const TEXTS: [usize; 3] = [0, 96, 1328];
/// Most that a packet has.
const LEN: usize = 1400;

/// A suite, and of a packet with each of [`TEXTS`] the first bytes of its ICV; computed with
/// OpenSSL.
struct Answers {
    suite: &'static str,
    icvs: [u64; 3],
}

const CHACHA: Answers = Answers {
    suite: "chacha20poly1305",
    icvs: [
        0x56ad_1bd6_f78c_01aa,
        0x34fe_5092_b48c_5540,
        0x6ab8_24f3_6fd2_379d,
    ],
};

/// Both hashes, all key lengths, and every mode.
const COMPOSED: [Answers; 4] = [
    Answers {
        suite: "aes128-sha1",
        icvs: [
            0xef11_f22d_c353_b660,
            0xf17c_8875_c8bc_2538,
            0x48c2_a6e6_d849_c04b,
        ],
    },
    Answers {
        suite: "aes192-sha256",
        icvs: [
            0xb855_305d_7f07_2d3a,
            0xdf5a_438a_9223_026a,
            0x9465_a41d_bf1c_56b6,
        ],
    },
    Answers {
        suite: "aes256-sha256",
        icvs: [
            0xb855_305d_7f07_2d3a,
            0xd199_08cd_7833_21ee,
            0x8388_1827_aae0_df3c,
        ],
    },
    Answers {
        suite: "aes256ctr-sha1",
        icvs: [
            0xc99b_f4f3_28b3_c86c,
            0xd6d5_2a61_bfa9_a6d5,
            0x5585_3268_3c8c_c847,
        ],
    },
];

/// Whether the kernel of ChaCha20-Poly1305 seals and opens what it should.
pub(super) fn chacha(token: chacha20poly1305::Token) -> bool {
    CHACHA.hold(|suite, key, _| {
        ChaChaKey::new(token, key, suite.iv_len).map(|key| Inner::ChaCha(Box::new(key)))
    })
}

/// Whether the kernels of AES-CBC, AES-CTR and HMAC seal and open what they should.
///
/// Suites for which there are not the instructions have no answers to give.
pub(super) fn composed(token: composed::Token) -> bool {
    COMPOSED.iter().all(|answers| {
        let supported = |suite| ComposedKey::supports(token, suite);
        !Suite::by_name(answers.suite).is_some_and(supported)
            || answers.hold(|suite, key, auth_key| {
                ComposedKey::new(token, suite, key, auth_key)
                    .map(|key| Inner::Composed(Box::new(key)))
            })
    })
}

impl Answers {
    fn hold(&self, key: impl FnOnce(&Suite, &[u8], &[u8]) -> Option<Inner>) -> bool {
        let Some(suite) = Suite::by_name(self.suite) else {
            return false;
        };
        let bytes = counting();
        let Some(inner) = key(
            suite,
            &bytes[..suite.key_len + suite.salt_len],
            &bytes[..suite.auth_key_len],
        ) else {
            return false;
        };
        let cipher = Cipher {
            suite,
            implementation: Implementation::Vaes512,
            iv: IvSource::Sequence,
            inner,
        };
        // All packets at once.
        let mut memory = TEXTS.map(|_| bytes);
        let mut jobs = jobs(&cipher, &mut memory);
        seal_batch(&mut jobs);
        let sealed = jobs.iter().zip(self.icvs).all(|(job, icv)| {
            let given = &job.esp[job.esp.len() - suite.icv_len..];
            given.first_chunk() == Some(&icv.to_be_bytes())
        });
        open_batch(&mut jobs);
        sealed
            && jobs.iter().all(|job| {
                let covered = job.esp.len() - suite.icv_len;
                job.authentic && job.esp[..covered] == bytes[..covered]
            })
    }
}

/// Bytes that count upwards.
fn counting() -> [u8; LEN] {
    core::array::from_fn(|index| index as u8)
}

fn jobs<'a>(cipher: &'a Cipher, memory: &'a mut [[u8; LEN]; 3]) -> [Job<'a>; 3] {
    let suite = cipher.suite;
    let mut texts = TEXTS.into_iter();
    memory.each_mut().map(|memory| Job {
        cipher,
        // The low half is what the packet has.
        sequence: 0x0102_0304_0405_0607,
        esn: true,
        esp: &mut memory[..8 + suite.iv_len + texts.next().unwrap_or(0) + suite.icv_len],
        authentic: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_crypto_gives_the_same_answers() {
        for answers in COMPOSED.iter().chain([&CHACHA]) {
            let suite = Suite::by_name(answers.suite).unwrap();
            let bytes = counting();
            let cipher = Cipher::with_implementation(
                suite,
                &bytes[..suite.key_len + suite.salt_len],
                &bytes[..suite.auth_key_len],
                Implementation::RustCrypto,
            )
            .unwrap();
            let mut memory = TEXTS.map(|_| bytes);
            let mut jobs = jobs(&cipher, &mut memory);
            seal_batch(&mut jobs);
            let icvs = jobs.map(|job| {
                let icv = &job.esp[job.esp.len() - suite.icv_len..];
                u64::from_be_bytes(*icv.first_chunk().unwrap())
            });
            assert_eq!(icvs, answers.icvs, "{suite}");
        }
    }

    #[test]
    fn kernels_that_the_cpu_can_run_give_the_answers() {
        for implementation in Implementation::ALL {
            assert_eq!(
                composed::Token::detect(*implementation),
                composed::Token::available(*implementation)
            );
            assert_eq!(
                chacha20poly1305::Token::detect(*implementation),
                chacha20poly1305::Token::available(*implementation)
            );
        }
    }

    #[test]
    fn a_wrong_answer_is_noticed() {
        let Some(token) = chacha20poly1305::Token::available(Implementation::Vaes512) else {
            return;
        };
        let mut wrong = CHACHA;
        wrong.icvs[2] ^= 1;
        assert!(!wrong.hold(|suite, key, _| {
            ChaChaKey::new(token, key, suite.iv_len).map(|key| Inner::ChaCha(Box::new(key)))
        }));
    }
}
