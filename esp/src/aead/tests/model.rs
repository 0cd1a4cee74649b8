//! A second writing of every ESP format, plain and slow: it concatenates what the RFCs say and
//! knows nothing of the code under test but the bare algorithms.

use super::*;
use crate::aead::primitive::Primitive;
use crate::suite::Encryption;

/// The sealed packet, for a packet whose text is clear.
fn model(
    suite: &Suite,
    key: &[u8],
    auth_key: &[u8],
    sequence: u64,
    esn: bool,
    clear: &[u8],
) -> Vec<u8> {
    let (key, salt) = key.split_at(suite.key_len);
    let (spi, sequence_low) = (&clear[..4], &clear[4..8]);
    let sequence_high = &sequence.to_be_bytes()[..4];
    let iv = &clear[8..8 + suite.iv_len];
    let mut text = text_of(suite, clear).to_vec();
    let bare = |primitive: Primitive, key: &[u8], nonce: &[u8], tag_len: usize| {
        let nonce = nonce.to_vec();
        let key = primitive
            .key(Implementation::RustCrypto, key, nonce.len(), tag_len)
            .unwrap();
        move |aad: &[u8], text: &mut [u8]| {
            let mut tag = vec![0; tag_len];
            key.seal(&nonce, aad, text, &mut tag).unwrap();
            tag
        }
    };
    let aad = match esn {
        true => [spi, sequence_high, sequence_low].concat(),
        false => [spi, sequence_low].concat(),
    };
    let implicit = match esn {
        true => sequence.to_be_bytes().to_vec(),
        false => [&[0; 4], sequence_low].concat(),
    };
    let explicit = [salt, iv].concat();
    let implicit = [salt, &implicit].concat();
    let icv = match suite.encryption {
        Encryption::AesGcm => {
            bare(Primitive::AesGcm, key, &explicit, suite.icv_len)(&aad, &mut text)
        }
        Encryption::AesCcm => {
            bare(Primitive::AesCcm, key, &explicit, suite.icv_len)(&aad, &mut text)
        }
        Encryption::ChaCha20Poly1305 => {
            bare(Primitive::ChaCha20Poly1305, key, &explicit, 16)(&aad, &mut text)
        }
        Encryption::AesGcmImplicitIv => {
            bare(Primitive::AesGcm, key, &implicit, 16)(&aad, &mut text)
        }
        Encryption::AesCcmImplicitIv => bare(Primitive::AesCcm, key, &implicit, 8)(&aad, &mut text),
        Encryption::ChaCha20Poly1305ImplicitIv => {
            bare(Primitive::ChaCha20Poly1305, key, &implicit, 16)(&aad, &mut text)
        }
        Encryption::AesGmac => {
            let message = [&aad, iv, &text].concat();
            bare(Primitive::AesGmac, key, &explicit, 16)(&message, &mut [])
        }
        Encryption::Null | Encryption::AesCbc | Encryption::AesCtr => {
            match suite.encryption {
                Encryption::AesCbc => {
                    bare(Primitive::AesCbc, key, iv, 0)(&[], &mut text);
                }
                Encryption::AesCtr => {
                    let block = [salt, iv, &[0, 0, 0, 1]].concat();
                    bare(Primitive::AesCtr, key, &block, 0)(&[], &mut text);
                }
                _ => {}
            }
            let mut message = [spi, sequence_low, iv, &text].concat();
            if esn {
                message.extend_from_slice(sequence_high);
            }
            let hash = match suite.integrity.unwrap() {
                Integrity::HmacSha1_96 => Primitive::HmacSha1,
                Integrity::HmacSha256_128 => Primitive::HmacSha256,
                Integrity::HmacSha384_192 => Primitive::HmacSha384,
                Integrity::HmacSha512_256 => Primitive::HmacSha512,
            };
            bare(hash, auth_key, &[], suite.icv_len)(&message, &mut [])
        }
    };
    [&clear[..8], iv, &text, &icv].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_suite_is_the_model(
        seed: u8,
        sequence: u64,
        esn: bool,
        text in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        for (suite, implementation) in everything() {
            let whole_blocks = match suite.alignment {
                16 => text.len() / 16 * 16,
                _ => text.len(),
            };
            let (key, auth_key) = key_bytes(suite, seed);
            let cipher = cipher(suite, implementation, seed);
            let mut esp = clear(&cipher, sequence, &text[..whole_blocks]);
            let expected = model(suite, &key, &auth_key, sequence, esn, &esp);
            seal(&cipher, sequence, esn, &mut esp);
            prop_assert_eq!(esp, expected, "{} by {}", suite, implementation);
        }
    }
}
