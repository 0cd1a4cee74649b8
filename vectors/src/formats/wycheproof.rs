//! JSON of the Wycheproof project (schemas `aead_test_schema_v1`, `mac_test_schema_v1` and
//! `mac_with_iv_test_schema_v1`).

use serde::Deserialize;
use vesper_esp::aead::primitive::Primitive;

use super::{Format, FormatFault, Hex, PrimitiveTest, TestFile, Tests, Validity, deserialize};

#[derive(Deserialize)]
struct File {
    #[serde(rename = "testGroups")]
    groups: Vec<Group>,
}

/// The file, if only its algorithm and the number of tests matter.
#[derive(Deserialize)]
struct Outline {
    algorithm: String,
    #[serde(rename = "testGroups")]
    groups: Vec<GroupOutline>,
}

#[derive(Deserialize)]
struct GroupOutline {
    tests: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Group {
    /// Bits; a MAC is truncated to them.
    #[serde(rename = "tagSize")]
    tag_size: usize,
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    #[serde(rename = "tcId")]
    id: u64,
    #[serde(default)]
    flags: Vec<String>,
    key: Hex,
    #[serde(default)]
    iv: Hex,
    #[serde(default)]
    aad: Hex,
    msg: Hex,
    #[serde(default)]
    ct: Hex,
    tag: Hex,
    result: Verdict,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Valid,
    /// Right, but of a kind that an implementation may refuse.
    Acceptable,
    Invalid,
}

pub(super) fn parse(text: &str) -> Result<TestFile, (usize, FormatFault)> {
    let outline: Outline = deserialize(text)?;
    let Some(primitive) = primitive(&outline.algorithm) else {
        let tests = outline.groups.iter().map(|group| group.tests.len() as u64);
        return Ok(TestFile {
            format: Format::Wycheproof,
            tests: Tests::Foreign {
                tests: tests.sum(),
                algorithm: outline.algorithm,
            },
        });
    };
    let file: File = deserialize(text)?;
    let tests = file.groups.into_iter().flat_map(|group| {
        let tag_len = group.tag_size / 8;
        group
            .tests
            .into_iter()
            .map(move |test| test.into_primitive(primitive, tag_len))
    });
    Ok(TestFile {
        format: Format::Wycheproof,
        tests: Tests::Primitives(tests.collect()),
    })
}

impl Test {
    fn into_primitive(self, primitive: Primitive, tag_len: usize) -> PrimitiveTest {
        let encrypts = matches!(
            primitive,
            Primitive::AesGcm | Primitive::AesCcm | Primitive::ChaCha20Poly1305
        );
        let sized = |flag: &String| {
            [
                "InvalidNonceSize",
                "InvalidTagSize",
                "InsecureTagSize",
                "ZeroLengthIv",
            ]
            .contains(&flag.as_str())
        };
        let validity = match self.result {
            Verdict::Valid | Verdict::Acceptable => Validity::Valid,
            Verdict::Invalid if self.flags.iter().any(sized) => Validity::InvalidParameters,
            Verdict::Invalid if self.tag.0.len() != tag_len => Validity::InvalidParameters,
            Verdict::Invalid => Validity::Forged,
        };
        let (aad, text) = if encrypts {
            (self.aad.0, self.msg.0)
        } else {
            (self.msg.0, Vec::new())
        };
        PrimitiveTest {
            name: format!("tcId {}", self.id),
            primitive,
            key: self.key.0,
            nonce: self.iv.0,
            aad,
            text: Some(text),
            sealed: self.ct.0,
            tag: self.tag.0,
            validity,
        }
    }
}

fn primitive(algorithm: &str) -> Option<Primitive> {
    Some(match algorithm {
        "AES-GCM" => Primitive::AesGcm,
        "AES-GMAC" => Primitive::AesGmac,
        "AES-CCM" => Primitive::AesCcm,
        "CHACHA20-POLY1305" => Primitive::ChaCha20Poly1305,
        "HMACSHA1" => Primitive::HmacSha1,
        "HMACSHA256" => Primitive::HmacSha256,
        "HMACSHA384" => Primitive::HmacSha384,
        "HMACSHA512" => Primitive::HmacSha512,
        _ => return None,
    })
}
