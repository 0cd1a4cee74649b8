//! Our own formats: whole packets with their associations, and bare algorithms. Both are
//! described in `docs/verify.md`.

use serde::Deserialize;
use vesper_esp::DropReason;
use vesper_esp::aead::primitive::Primitive;

use super::{Format, FormatFault, Hex, PrimitiveTest, TestFile, Tests, Validity, deserialize};
use crate::opener::count_name;
use crate::xfrm::{self, Entry};

pub(super) const PACKETS: &str = "vesper-packets/1";
pub(super) const PRIMITIVES: &str = "vesper-primitives/1";

/// Packets that arrive one after the other.
#[derive(Clone, Debug)]
pub struct PacketTest {
    /// How the file calls the test.
    pub name: String,
    /// The associations that the receiver has.
    pub associations: Vec<Entry>,
    /// The packets, in order.
    pub steps: Vec<Step>,
}

/// One packet that arrives.
#[derive(Clone, Debug)]
pub struct Step {
    /// The outer IP packet.
    pub outer: Vec<u8>,
    /// What becomes of it.
    pub wanted: Wanted,
}

/// What must become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It is accepted, and this is the inner IP packet.
    Inner(Vec<u8>),
    /// It is dropped, and counted under this name.
    Drop(&'static str),
    /// It is none of ESP's business.
    NotEsp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PacketFile {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "origin")]
    _origin: String,
    #[serde(rename = "licence")]
    _licence: String,
    tests: Vec<RawPacketTest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPacketTest {
    name: String,
    #[serde(default, rename = "comment")]
    _comment: String,
    sa: Vec<String>,
    packets: Vec<RawStep>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    outer: Hex,
    inner: Option<Hex>,
    drop: Option<String>,
    not_esp: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrimitiveFile {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "origin")]
    _origin: String,
    #[serde(rename = "licence")]
    _licence: String,
    tests: Vec<RawPrimitiveTest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPrimitiveTest {
    name: String,
    primitive: String,
    key: Hex,
    #[serde(default)]
    nonce: Hex,
    #[serde(default)]
    aad: Hex,
    #[serde(default)]
    text: Hex,
    #[serde(default)]
    sealed: Hex,
    #[serde(default)]
    tag: Hex,
    #[serde(default = "valid")]
    valid: bool,
}

const fn valid() -> bool {
    true
}

pub(super) fn packets(text: &str) -> Result<TestFile, (usize, FormatFault)> {
    let file: PacketFile = deserialize(text)?;
    let tests: Result<Vec<PacketTest>, FormatFault> = file
        .tests
        .into_iter()
        .map(RawPacketTest::into_test)
        .collect();
    Ok(TestFile {
        format: Format::Packets,
        tests: Tests::Packets(tests.map_err(|reason| (0, reason))?),
    })
}

pub(super) fn primitives(text: &str) -> Result<TestFile, (usize, FormatFault)> {
    let file: PrimitiveFile = deserialize(text)?;
    let tests: Result<Vec<PrimitiveTest>, FormatFault> = file
        .tests
        .into_iter()
        .map(RawPrimitiveTest::into_test)
        .collect();
    Ok(TestFile {
        format: Format::Primitives,
        tests: Tests::Primitives(tests.map_err(|reason| (0, reason))?),
    })
}

impl RawPacketTest {
    fn into_test(self) -> Result<PacketTest, FormatFault> {
        let associations =
            xfrm::parse(&self.sa.join("\n"), "sa").map_err(|error| FormatFault::Sa {
                test: self.name.clone(),
                error: error.into(),
            })?;
        let steps: Option<Vec<Step>> = self.packets.into_iter().map(RawStep::into_step).collect();
        let steps = steps.ok_or(FormatFault::Value(
            "one of \"inner\", \"drop\": REASON and \"not_esp\": true for each packet",
        ))?;
        Ok(PacketTest {
            name: self.name,
            associations,
            steps,
        })
    }
}

impl RawStep {
    fn into_step(self) -> Option<Step> {
        let wanted = match (self.inner, self.drop, self.not_esp) {
            (Some(inner), None, None) => Wanted::Inner(inner.0),
            (None, Some(name), None) => {
                let mut names = DropReason::ALL.iter().map(|&reason| count_name(reason));
                Wanted::Drop(names.find(|&known| known == name)?)
            }
            (None, None, Some(true)) => Wanted::NotEsp,
            _ => return None,
        };
        Some(Step {
            outer: self.outer.0,
            wanted,
        })
    }
}

impl RawPrimitiveTest {
    fn into_test(self) -> Result<PrimitiveTest, FormatFault> {
        let primitive = Primitive::ALL
            .iter()
            .copied()
            .find(|primitive| primitive.to_string() == self.primitive)
            .ok_or(FormatFault::Primitive(self.primitive))?;
        Ok(PrimitiveTest {
            name: self.name,
            primitive,
            key: self.key.0,
            nonce: self.nonce.0,
            aad: self.aad.0,
            text: Some(self.text.0),
            sealed: self.sealed.0,
            tag: self.tag.0,
            validity: if self.valid {
                Validity::Valid
            } else {
                Validity::Forged
            },
        })
    }
}
