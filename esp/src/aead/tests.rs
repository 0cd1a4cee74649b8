//! What every implementation owes for every suite.

mod model;
mod vectors;

use proptest::prelude::*;

use super::*;
use crate::suite::Integrity;

/// A key of the suite in the implementation, different for every `seed`.
fn cipher(suite: &'static Suite, implementation: Implementation, seed: u8) -> Cipher {
    let (key, auth_key) = key_bytes(suite, seed);
    Cipher::with_implementation(suite, &key, &auth_key, implementation)
        .unwrap_or_else(|error| panic!("{suite} by {implementation}: {error}"))
}

fn key_bytes(suite: &Suite, seed: u8) -> (Vec<u8>, Vec<u8>) {
    let byte = |index: usize| (index as u8).wrapping_mul(29).wrapping_add(seed);
    (
        (0..suite.key_len + suite.salt_len).map(byte).collect(),
        (100..100 + suite.auth_key_len).map(byte).collect(),
    )
}

/// Every suite with every implementation that has it and that this CPU can run.
fn everything() -> impl Iterator<Item = (&'static Suite, Implementation)> {
    Suite::ALL.iter().flat_map(|suite| {
        Implementation::available()
            .filter(|implementation| implementation.supports(suite))
            .map(move |implementation| (suite, implementation))
    })
}

/// A packet with its text still clear.
fn clear(cipher: &Cipher, sequence: u64, text: &[u8]) -> Vec<u8> {
    let suite = cipher.suite();
    let mut esp = vec![0x01, 0x02, 0x03, 0x04];
    esp.extend_from_slice(&(sequence as u32).to_be_bytes());
    esp.resize(8 + suite.iv_len, 0);
    cipher.write_iv(sequence, &mut esp[8..]);
    esp.extend_from_slice(text);
    esp.resize(esp.len() + suite.icv_len, 0xee);
    esp
}

fn seal(cipher: &Cipher, sequence: u64, esn: bool, esp: &mut [u8]) {
    seal_batch(&mut [Job {
        cipher,
        sequence,
        esn,
        esp,
        authentic: false,
    }]);
}

fn open(cipher: &Cipher, sequence: u64, esn: bool, esp: &mut [u8]) -> bool {
    let mut jobs = [Job {
        cipher,
        sequence,
        esn,
        esp,
        authentic: !esn,
    }];
    open_batch(&mut jobs);
    jobs[0].authentic
}

fn text_of<'a>(suite: &Suite, esp: &'a [u8]) -> &'a [u8] {
    &esp[8 + suite.iv_len..esp.len() - suite.icv_len]
}

#[test]
fn what_is_sealed_opens_and_nothing_is_left_in_clear() {
    for (suite, implementation) in everything() {
        let cipher = cipher(suite, implementation, 1);
        for esn in [false, true] {
            let sequence = if esn {
                0x0000_0007_ffff_fffe
            } else {
                0xffff_fffe
            };
            for blocks in [0, 1, 2, 3, 8, 90] {
                let text: Vec<u8> = (0..blocks * 16).map(|index| index as u8).collect();
                let sent = clear(&cipher, sequence, &text);
                let mut esp = sent.clone();
                seal(&cipher, sequence, esn, &mut esp);
                let header = 8 + suite.iv_len;
                assert_eq!(esp[..header], sent[..header], "{suite} by {implementation}");
                let hides = !matches!(
                    suite.encryption,
                    crate::suite::Encryption::Null | crate::suite::Encryption::AesGmac
                );
                assert!(blocks == 0 || hides == (text_of(suite, &esp) != text));
                assert!(open(&cipher, sequence, esn, &mut esp));
                assert_eq!(text_of(suite, &esp), text);
            }
        }
    }
}

#[test]
fn any_flipped_bit_fails_and_wipes_the_text() {
    for (suite, implementation) in everything() {
        let cipher = cipher(suite, implementation, 2);
        for esn in [false, true] {
            let sequence = 0x0000_0001_0000_0003;
            let mut sealed = clear(&cipher, sequence, &[0x5a; 16]);
            seal(&cipher, sequence, esn, &mut sealed);
            for bit in 0..sealed.len() * 8 {
                let mut esp = sealed.clone();
                esp[bit / 8] ^= 0x80 >> (bit % 8);
                assert!(
                    !open(&cipher, sequence, esn, &mut esp),
                    "{suite} by {implementation}: bit {bit} does not matter"
                );
                assert!(
                    text_of(suite, &esp).iter().all(|byte| *byte == 0),
                    "{suite} by {implementation}: text left after bit {bit}"
                );
            }
        }
    }
}

#[test]
fn the_high_half_of_the_sequence_number_is_authenticated() {
    for (suite, implementation) in everything() {
        let cipher = cipher(suite, implementation, 3);
        let sequence = 0x0000_0002_0000_0009;
        let mut sealed = clear(&cipher, sequence, &[7; 32]);
        seal(&cipher, sequence, true, &mut sealed);
        for (other, esn) in [
            (sequence ^ 1 << 32, true),
            (sequence ^ 1 << 63, true),
            (sequence & 0xffff_ffff, true),
            (sequence, false),
        ] {
            let mut esp = sealed.clone();
            assert!(
                !open(&cipher, other, esn, &mut esp),
                "{suite} by {implementation}: opens as {other:#x}, ESN {esn}"
            );
        }
        assert!(open(&cipher, sequence, true, &mut sealed));
    }
}

#[test]
fn garbage_of_any_length_is_not_authentic() {
    for (suite, implementation) in everything() {
        let cipher = cipher(suite, implementation, 4);
        for esn in [false, true] {
            for len in 0..=120_usize {
                let garbage: Vec<u8> = (0..len).map(|index| (index * 77 + len) as u8).collect();
                let mut esp = garbage.clone();
                assert!(!open(&cipher, 5, esn, &mut esp), "{suite}: {len} bytes");
                if let Some(text_len) = len.checked_sub(8 + suite.iv_len + suite.icv_len) {
                    let start = 8 + suite.iv_len;
                    assert_eq!(esp[start..start + text_len], vec![0; text_len]);
                } else {
                    assert_eq!(esp, garbage, "{suite}: too short for a text, yet changed");
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_sealed_is_wiped() {
    for (suite, implementation) in everything() {
        let cipher = cipher(suite, implementation, 5);
        for len in 0..=120_usize {
            let mut esp = vec![0x5a; len];
            seal(&cipher, 6, false, &mut esp);
            let fits = len
                .checked_sub(8 + suite.iv_len + suite.icv_len)
                .is_some_and(|text| suite.alignment != 16 || text.is_multiple_of(16));
            let wiped = esp.iter().all(|byte| *byte == 0);
            assert_eq!(fits, !wiped, "{suite} by {implementation}: {len} bytes");
        }
    }
}

#[test]
fn one_batch_takes_any_mix_and_a_bad_packet_spoils_no_other() {
    let ciphers: Vec<Cipher> = everything()
        .map(|(suite, implementation)| cipher(suite, implementation, 6))
        .collect();
    let texts: Vec<Vec<u8>> = (0..ciphers.len())
        .map(|index| vec![index as u8; index % 5 * 16])
        .collect();
    let mut packets: Vec<Vec<u8>> = ciphers
        .iter()
        .zip(&texts)
        .map(|(cipher, text)| clear(cipher, 11, text))
        .collect();
    let mut jobs = jobs(&ciphers, &mut packets);
    seal_batch(&mut jobs);
    for job in jobs.iter_mut().step_by(3) {
        job.esp[0] ^= 1;
    }
    open_batch(&mut jobs);
    for (index, job) in jobs.iter().enumerate() {
        assert_eq!(job.authentic, index % 3 != 0);
        let text = text_of(job.cipher.suite(), job.esp);
        match job.authentic {
            true => assert_eq!(text, texts[index]),
            false => assert!(text.iter().all(|byte| *byte == 0)),
        }
    }
}

fn jobs<'a>(ciphers: &'a [Cipher], packets: &'a mut [Vec<u8>]) -> Vec<Job<'a>> {
    ciphers
        .iter()
        .zip(packets)
        .map(|(cipher, esp)| Job {
            cipher,
            sequence: 11,
            esn: false,
            esp,
            authentic: false,
        })
        .collect()
}

proptest! {
    #[test]
    fn implementations_agree(
        suite in 0..Suite::ALL.len(),
        seed: u8,
        sequence: u64,
        esn: bool,
        mut text in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        let suite = &Suite::ALL[suite];
        if suite.alignment == 16 {
            text.truncate(text.len() / 16 * 16);
        }
        let ciphers: Vec<Cipher> = Implementation::available()
            .filter(|implementation| implementation.supports(suite))
            .map(|implementation| cipher(suite, implementation, seed))
            .collect();
        let unsealed = clear(&ciphers[0], sequence, &text);
        for one in &ciphers {
            let mut sealed = unsealed.clone();
            seal(one, sequence, esn, &mut sealed);
            for other in &ciphers {
                let mut esp = sealed.clone();
                prop_assert!(open(other, sequence, esn, &mut esp));
                prop_assert_eq!(text_of(suite, &esp), &text);
            }
        }
    }
}

#[test]
fn common_suites_have_two_implementations() {
    for suite in Suite::ALL {
        assert!(Implementation::RustCrypto.supports(suite), "{suite}");
    }
    for name in [
        "aes128gcm16",
        "aes256gcm16",
        "aes128gmac",
        "aes256gmac",
        "chacha20poly1305",
        "aes128gcm16iiv",
        "aes256gcm16iiv",
        "chacha20poly1305iiv",
        "null-sha1",
        "null-sha256",
        "null-sha384",
        "null-sha512",
    ] {
        let suite = Suite::by_name(name).unwrap();
        assert!(Implementation::Ring.supports(suite), "{suite}");
    }
    let ring = everything().filter(|(_, implementation)| *implementation == Implementation::Ring);
    assert_eq!(ring.count(), 12);
}

#[test]
fn what_an_implementation_lacks_is_an_error() {
    for suite in Suite::ALL {
        let (key, auth_key) = key_bytes(suite, 0);
        for &implementation in Implementation::ALL {
            let made = Cipher::with_implementation(suite, &key, &auth_key, implementation);
            assert_eq!(
                made.err(),
                (!implementation.supports(suite)).then_some(CipherError::Unsupported),
                "{suite} by {implementation}"
            );
        }
        let fastest = Cipher::new(suite, &key, &auth_key).unwrap();
        assert!(fastest.implementation().supports(suite));
    }
}

#[test]
fn keys_of_the_wrong_length_are_refused() {
    let suite = Suite::by_name("aes256-sha256").unwrap();
    let error = Cipher::new(suite, &[0; 31], &[0; 32]).unwrap_err();
    assert_eq!(
        error,
        CipherError::KeyLength {
            expected: 32,
            given: 31
        }
    );
    assert_eq!(
        error.to_string(),
        "the encryption key with its salt has 31 bytes, the suite takes 32"
    );
    assert_eq!(
        Cipher::new(suite, &[0; 32], &[0; 20]).unwrap_err(),
        CipherError::AuthKeyLength {
            expected: 32,
            given: 20
        }
    );
}

#[test]
fn implementations_are_found_by_name() {
    for &implementation in Implementation::ALL {
        assert_eq!(
            Implementation::by_name(implementation.name()),
            Some(implementation)
        );
    }
    assert_eq!(Implementation::by_name("openssl"), None);
}

#[test]
fn counter_suites_send_the_sequence_number_as_iv() {
    for suite in Suite::ALL.iter().filter(|suite| suite.iv_len == 8) {
        let cipher = cipher(suite, Implementation::RustCrypto, 0);
        let mut iv = [0; 8];
        cipher.write_iv(0x0102_0304_0506_0708, &mut iv);
        assert_eq!(iv, [1, 2, 3, 4, 5, 6, 7, 8], "{suite}");
    }
}

#[test]
fn ivs_of_cbc_are_neither_repeated_nor_predictable() {
    let suite = Suite::by_name("aes128-sha256").unwrap();
    let iv_of = |cipher: &Cipher, sequence| {
        let mut iv = [0; 16];
        cipher.write_iv(sequence, &mut iv);
        u128::from_be_bytes(iv)
    };
    let one = cipher(suite, Implementation::RustCrypto, 0);
    let twin = cipher(suite, Implementation::RustCrypto, 0);
    let ivs: Vec<u128> = (0..10_000).map(|sequence| iv_of(&one, sequence)).collect();
    let unique: std::collections::HashSet<u128> = ivs.iter().copied().collect();
    assert_eq!(unique.len(), ivs.len());
    let steps: std::collections::HashSet<u128> = ivs
        .windows(2)
        .map(|pair| pair[1].wrapping_sub(pair[0]))
        .collect();
    assert_eq!(steps.len(), ivs.len() - 1, "a counter has equal steps");
    // Each bit is set about half of the time: 5,000 times, with a standard deviation of 50.
    for bit in 0..128 {
        let set = ivs.iter().filter(|iv| *iv >> bit & 1 == 1).count();
        assert!(
            (4_500..5_500).contains(&set),
            "bit {bit} is set {set} times"
        );
    }
    // The key of the IVs is drawn anew for each cipher, so the traffic key does not give it.
    assert_ne!(iv_of(&one, 1), iv_of(&twin, 1));
}

#[test]
fn debug_shows_no_key() {
    let suite = Suite::by_name("aes256gcm16").unwrap();
    let cipher = cipher(suite, Implementation::RustCrypto, 0);
    assert_eq!(
        format!("{cipher:?}"),
        "Cipher { suite: \"aes256gcm16\", implementation: RustCrypto, .. }"
    );
    let key = primitive::Primitive::HmacSha1
        .key(Implementation::Ring, &[0x77; 20], 0, 12)
        .unwrap();
    assert_eq!(
        format!("{key:?}"),
        "PrimitiveKey { spec: Spec { primitive: HmacSha1, nonce_len: 0, tag_len: 12 }, .. }"
    );
}

/// Many associations mean many of these; the keys themselves are boxed.
#[test]
fn a_cipher_is_small_and_shareable() {
    fn shareable<T: Send + Sync>() {}
    shareable::<Cipher>();
    // The key of the kernels lies within, those of the libraries in a box.
    assert!(size_of::<Cipher>() <= 704, "{}", size_of::<Cipher>());
}
