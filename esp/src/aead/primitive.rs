//! The algorithms under the suites, bare: so that published vectors, which know nothing of ESP,
//! run through the very code and keys that packets go through.

use core::fmt;

use super::implementation::Implementation;
#[cfg(target_arch = "x86_64")]
use super::kernel;
use super::transform::{Spec, Transform};
use super::{ring, rustcrypto};

pub use super::transform::Unsupported;

/// An algorithm that suites are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Primitive {
    /// AES-GCM (NIST SP 800-38D), keys of 16, 24 or 32 bytes.
    AesGcm,
    /// AES-GCM that encrypts nothing; the message is the additional data.
    AesGmac,
    /// AES-CCM (RFC 3610), keys of 16, 24 or 32 bytes.
    AesCcm,
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
    /// AES-CBC (NIST SP 800-38A) without padding; the nonce is the IV, the tag empty.
    AesCbc,
    /// AES-CTR (NIST SP 800-38A); the nonce is the first counter block, of which the last 32
    /// bits count; the tag is empty.
    AesCtr,
    /// HMAC-SHA-1 (RFC 2104); the message is the additional data, the nonce empty.
    HmacSha1,
    /// HMAC-SHA-256 (RFC 4231); like [`Primitive::HmacSha1`].
    HmacSha256,
    /// HMAC-SHA-384 (RFC 4231); like [`Primitive::HmacSha1`].
    HmacSha384,
    /// HMAC-SHA-512 (RFC 4231); like [`Primitive::HmacSha1`].
    HmacSha512,
}

/// A key for one algorithm with fixed lengths of nonce and tag.
///
/// Wiped when it is dropped and never shown.
pub struct PrimitiveKey {
    spec: Spec,
    inner: Inner,
}

enum Inner {
    #[cfg(target_arch = "x86_64")]
    Kernel(Box<kernel::GcmKey>),
    Ring(Box<ring::Key>),
    RustCrypto(Box<rustcrypto::Key>),
}

impl Primitive {
    /// All of them.
    pub const ALL: &'static [Primitive] = &[
        Self::AesGcm,
        Self::AesGmac,
        Self::AesCcm,
        Self::ChaCha20Poly1305,
        Self::AesCbc,
        Self::AesCtr,
        Self::HmacSha1,
        Self::HmacSha256,
        Self::HmacSha384,
        Self::HmacSha512,
    ];

    /// A key for this algorithm, with nonces of `nonce_len` and tags of `tag_len` bytes.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] if the implementation lacks the algorithm or one of the lengths.
    pub fn key(
        self,
        implementation: Implementation,
        key: &[u8],
        nonce_len: usize,
        tag_len: usize,
    ) -> Result<PrimitiveKey, Unsupported> {
        let spec = Spec {
            primitive: self,
            nonce_len,
            tag_len,
        };
        let inner = match implementation {
            #[cfg(target_arch = "x86_64")]
            Implementation::Vaes512 | Implementation::Vaes256 | Implementation::AesNi => {
                Inner::Kernel(Box::new(kernel_key(spec, key, implementation)?))
            }
            #[cfg(not(target_arch = "x86_64"))]
            Implementation::Vaes512 | Implementation::Vaes256 | Implementation::AesNi => {
                return Err(Unsupported::Primitive(self));
            }
            Implementation::Ring => Inner::Ring(Box::new(ring::Key::new(spec, key)?)),
            Implementation::RustCrypto => {
                Inner::RustCrypto(Box::new(rustcrypto::Key::new(spec, key)?))
            }
        };
        Ok(PrimitiveKey { spec, inner })
    }
}

impl PrimitiveKey {
    /// Encrypts `text` in place and writes the tag.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] if a length is not that of the key or not possible.
    pub fn seal(
        &self,
        nonce: &[u8],
        aad: &[u8],
        text: &mut [u8],
        tag: &mut [u8],
    ) -> Result<(), Unsupported> {
        self.check(nonce, aad, text, tag)?;
        let text_len = text.len();
        let sealed = match &self.inner {
            #[cfg(target_arch = "x86_64")]
            Inner::Kernel(key) => key.seal_raw(&twelve(nonce)?, aad, text, tag),
            Inner::Ring(key) => key.seal(nonce, [aad, &[]], text, tag),
            Inner::RustCrypto(key) => key.seal(nonce, [aad, &[]], text, tag),
        };
        match sealed {
            true => Ok(()),
            false => Err(Unsupported::TextLength(text_len)),
        }
    }

    /// Checks the tag and decrypts `text` in place; if the tag is wrong, the answer is `false`
    /// and `text` has been overwritten with zeroes.
    ///
    /// # Errors
    ///
    /// [`Unsupported`] if a length is not that of the key or not possible.
    pub fn open(
        &self,
        nonce: &[u8],
        aad: &[u8],
        text: &mut [u8],
        tag: &[u8],
    ) -> Result<bool, Unsupported> {
        self.check(nonce, aad, text, tag)?;
        let authentic = match &self.inner {
            #[cfg(target_arch = "x86_64")]
            Inner::Kernel(key) => key.open_raw(&twelve(nonce)?, aad, text, tag),
            Inner::Ring(key) => key.open(nonce, [aad, &[]], text, tag),
            Inner::RustCrypto(key) => key.open(nonce, [aad, &[]], text, tag),
        };
        if !authentic {
            text.fill(0);
        }
        Ok(authentic)
    }

    fn check(&self, nonce: &[u8], aad: &[u8], text: &[u8], tag: &[u8]) -> Result<(), Unsupported> {
        if nonce.len() != self.spec.nonce_len {
            return Err(Unsupported::NonceLength(nonce.len()));
        }
        if tag.len() != self.spec.tag_len {
            return Err(Unsupported::TagLength(tag.len()));
        }
        let text_fits = match self.spec.primitive {
            Primitive::AesGcm
            | Primitive::AesCcm
            | Primitive::ChaCha20Poly1305
            | Primitive::AesCtr => true,
            Primitive::AesCbc => text.len().is_multiple_of(16),
            Primitive::AesGmac
            | Primitive::HmacSha1
            | Primitive::HmacSha256
            | Primitive::HmacSha384
            | Primitive::HmacSha512 => text.is_empty(),
        };
        if !text_fits {
            return Err(Unsupported::TextLength(text.len()));
        }
        if matches!(self.spec.primitive, Primitive::AesCbc | Primitive::AesCtr) && !aad.is_empty() {
            return Err(Unsupported::AadLength(aad.len()));
        }
        Ok(())
    }
}

#[cfg(target_arch = "x86_64")]
fn kernel_key(
    spec: Spec,
    key: &[u8],
    implementation: Implementation,
) -> Result<kernel::GcmKey, Unsupported> {
    if !matches!(spec.primitive, Primitive::AesGcm | Primitive::AesGmac) {
        return Err(Unsupported::Primitive(spec.primitive));
    }
    if spec.nonce_len != 12 {
        return Err(Unsupported::NonceLength(spec.nonce_len));
    }
    let kernel = kernel::Kernel::by_name(implementation.name())
        .ok_or(Unsupported::Primitive(spec.primitive))?;
    if !matches!(key.len(), 16 | 24 | 32) {
        return Err(Unsupported::KeyLength(key.len()));
    }
    kernel::GcmKey::new(kernel, key, [0; 4], kernel::Form::Gcm, spec.tag_len)
        .ok_or(Unsupported::TagLength(spec.tag_len))
}

#[cfg(target_arch = "x86_64")]
fn twelve(nonce: &[u8]) -> Result<[u8; 12], Unsupported> {
    nonce
        .try_into()
        .map_err(|_| Unsupported::NonceLength(nonce.len()))
}

impl fmt::Debug for PrimitiveKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrimitiveKey")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Primitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AesGcm => "AES-GCM",
            Self::AesGmac => "AES-GMAC",
            Self::AesCcm => "AES-CCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::AesCbc => "AES-CBC",
            Self::AesCtr => "AES-CTR",
            Self::HmacSha1 => "HMAC-SHA-1",
            Self::HmacSha256 => "HMAC-SHA-256",
            Self::HmacSha384 => "HMAC-SHA-384",
            Self::HmacSha512 => "HMAC-SHA-512",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
            .collect()
    }

    /// Seals and opens with every implementation that has the algorithm in these lengths.
    fn check(
        primitive: Primitive,
        key: &str,
        nonce: &str,
        aad: &str,
        clear: &str,
        sealed: &str,
        tag: &str,
    ) -> usize {
        let (key, nonce, aad) = (unhex(key), unhex(nonce), unhex(aad));
        let (clear, sealed, tag) = (unhex(clear), unhex(sealed), unhex(tag));
        let mut implementations = 0;
        for implementation in Implementation::available() {
            let Ok(key) = primitive.key(implementation, &key, nonce.len(), tag.len()) else {
                continue;
            };
            implementations += 1;
            let mut text = clear.clone();
            let mut made = vec![0; tag.len()];
            key.seal(&nonce, &aad, &mut text, &mut made).unwrap();
            assert_eq!(text, sealed, "{primitive} by {implementation}");
            assert_eq!(made, tag, "{primitive} by {implementation}");
            assert_eq!(key.open(&nonce, &aad, &mut text, &tag), Ok(true));
            assert_eq!(text, clear);
            if let Some(first) = made.first_mut() {
                *first ^= 1;
                text.copy_from_slice(&sealed);
                assert_eq!(key.open(&nonce, &aad, &mut text, &made), Ok(false));
                assert_eq!(text, vec![0; clear.len()]);
            }
        }
        implementations
    }

    /// gcmEncryptExtIV256.rsp of NIST's CAVP, Count 0 of three groups.
    #[test]
    fn gcm_with_nonces_and_tags_of_other_lengths() {
        let implementations = check(
            Primitive::AesGcm,
            "cd0169dc5fe8832b5cc9aba88229a4aa41edbb36d222e8cf0ffc6b85f2b63cc2",
            "6f",
            "384f43e5953c8b87f9c68c13ab10becb42af8163",
            "4615621e9a0d82f6acfcb6f6fa57bc42",
            "8067bc0a7576bf180739ef77ad6d5df0",
            "095ab3e7",
        ) + check(
            Primitive::AesGcm,
            "ba5647a35a7ddb737263d27f86d5b41171639c7fb1bb64e704cde057236dc016",
            "fa9a964a7533ff68c1848b8ff16f5a6661bc7540dffb18d5d9f4a20af4151a22\
             541ce0ddb58f715f94f44d5e6adc003ff887a41219170cb4152f3dfccd4aec63\
             bfb50af15a6a273829d6a1d2f154dff3baeafb9af18a413072778d9874bcbfef\
             01d4205002359d5b97073b398b8d8eab2f77e79af317e91aa700f6de4e721f3a",
            "b3d8101f9b152be4a366bfd944daaf4edd045da7",
            "46055cd4daea4e50cee164e8fb",
            "ec9eabd424074ca610d5b7f211",
            "e9c673bbfaa1dd75",
        ) + check(
            Primitive::AesGcm,
            "90219f2067a4951ec42c4a0f43f0cde9f64f9a459902a3ebb6545dc8c2dd2abf",
            "38afdfc54c81ba4de3315e8d",
            "5f41b44d7b23de298019c3cb1d71c564ae506fda3e2af14af9fd56b085abf207\
             a6ad13fb99b5f400dd0607b7f9d72662",
            "24a3e1c260230ce14fbb0a2c1b2c066244896bb0f71d816681b9ebdc7ed6ac2e\
             a4b9720310a274cd2cb225df0ba4dc3c246afc",
            "d1e97d3b52e3d3f696f6abf08b0329f723fa5a25482515e05870c1c02f93e94e\
             15b1c3bad9b69e1dbdf80994d878f529170fb2",
            "9d7caea02b4023d8d11e2d2d",
        );
        // RustCrypto has all three lengths, the kernels of this CPU the last one.
        let kernels = [
            Implementation::Vaes512,
            Implementation::Vaes256,
            Implementation::AesNi,
        ];
        let available = kernels.iter().filter(|kernel| kernel.is_available());
        assert_eq!(implementations, 3 + available.count());
    }

    /// RFC 3610 section 8, packet vector 1.
    #[test]
    fn ccm() {
        let implementations = check(
            Primitive::AesCcm,
            "c0c1c2c3c4c5c6c7c8c9cacbcccdcecf",
            "00000003020100a0a1a2a3a4a5",
            "0001020304050607",
            "08090a0b0c0d0e0f101112131415161718191a1b1c1d1e",
            "588c979a61c663d2f066d0c2c0f989806d5f6b61dac384",
            "17e8d12cfdf926e0",
        );
        assert_eq!(implementations, 1);
    }

    /// RFC 3602 section 4, case 5: the text of an ESP packet.
    #[test]
    fn cbc() {
        let implementations = check(
            Primitive::AesCbc,
            "90d382b410eeba7ad938c46cec1a82bf",
            "e96e8c08ab465763fd098d45dd3ff893",
            "",
            "08000ebda70a00008e9c083db95b070008090a0b0c0d0e0f1011121314151617\
             18191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637\
             0102030405060708090a0b0c0d0e0e01",
            "f663c25d325c18c6a9453e194e120849a4870b66cc6b9965330013b4898dc856\
             a4699e523a55db080b59ec3a8e4b7e52775b07d1db34ed9c538ab50c551b874a\
             a269add047ad2d5913ac19b7cfbad4a6",
            "",
        );
        assert_eq!(implementations, 1);
    }

    /// RFC 3686 section 6, test vector 1.
    #[test]
    fn ctr() {
        let implementations = check(
            Primitive::AesCtr,
            "ae6852f8121067cc4bf7a5765577f39e",
            "00000030000000000000000000000001",
            "",
            "53696e676c6520626c6f636b206d7367",
            "e4095d4fb7a7b3792d6175a3261311b8",
            "",
        );
        assert_eq!(implementations, 1);
    }

    /// RFC 2202 section 3 and RFC 4231 sections 4.2 and 4.6, test cases 1 and 5.
    #[test]
    fn hmac() {
        let key = "0b".repeat(20);
        let hi_there = "4869205468657265";
        for (primitive, tag) in [
            (
                Primitive::HmacSha1,
                "b617318655057264e28bc0b6fb378c8ef146be00",
            ),
            (
                Primitive::HmacSha256,
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                Primitive::HmacSha384,
                "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59c\
                 faea9ea9076ede7f4af152e8b2fa9cb6",
            ),
            (
                Primitive::HmacSha512,
                "87aa7cdea5ef619d4ff0b4241a1d6cb02379f4e2ce4ec2787ad0b30545e17cde\
                 daa833b7d6b8a702038b274eaea3f4e4be9d914eeb61f1702e696c203a126854",
            ),
        ] {
            assert_eq!(check(primitive, &key, "", hi_there, "", "", tag), 2);
        }
        let truncated = check(
            Primitive::HmacSha256,
            &"0c".repeat(20),
            "",
            "546573742057697468205472756e636174696f6e",
            "",
            "",
            "a3b6167473100ee06e0c796c2955552b",
        );
        assert_eq!(truncated, 2);
    }

    #[test]
    fn lengths_that_do_not_fit_are_named() {
        use Implementation::{Ring, RustCrypto};
        let key = |primitive: Primitive, implementation, key_len, nonce_len, tag_len| {
            primitive
                .key(implementation, &vec![1; key_len], nonce_len, tag_len)
                .err()
        };
        let gcm = Primitive::AesGcm;
        assert_eq!(key(gcm, Ring, 24, 12, 16), Some(Unsupported::KeyLength(24)));
        assert_eq!(key(gcm, Ring, 32, 8, 16), Some(Unsupported::NonceLength(8)));
        assert_eq!(key(gcm, Ring, 32, 12, 8), Some(Unsupported::TagLength(8)));
        assert_eq!(
            key(gcm, RustCrypto, 32, 0, 16),
            Some(Unsupported::NonceLength(0))
        );
        assert_eq!(
            key(gcm, RustCrypto, 32, 12, 17),
            Some(Unsupported::TagLength(17))
        );
        assert_eq!(
            key(Primitive::AesCcm, Ring, 16, 11, 16),
            Some(Unsupported::Primitive(Primitive::AesCcm))
        );
        // A tag of no bytes would make anything authentic.
        for &primitive in Primitive::ALL {
            let cipher = matches!(primitive, Primitive::AesCbc | Primitive::AesCtr);
            for &implementation in Implementation::ALL {
                for nonce_len in [0, 11, 12, 16] {
                    for key_len in [16, 32] {
                        let made = key(primitive, implementation, key_len, nonce_len, 0);
                        assert!(cipher || made.is_some(), "{primitive}");
                    }
                }
            }
        }
        let cbc = Primitive::AesCbc.key(RustCrypto, &[0; 16], 16, 0).unwrap();
        assert_eq!(
            cbc.seal(&[0; 16], &[], &mut [0; 17], &mut []),
            Err(Unsupported::TextLength(17))
        );
        assert_eq!(
            cbc.open(&[0; 16], &[0; 3], &mut [0; 16], &[]),
            Err(Unsupported::AadLength(3))
        );
        assert_eq!(
            cbc.open(&[0; 12], &[], &mut [0; 16], &[]),
            Err(Unsupported::NonceLength(12))
        );
    }
}
