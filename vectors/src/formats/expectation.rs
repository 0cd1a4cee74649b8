//! `NAME.expect.json`: what `NAME.pcap`, opened with the associations of `NAME.sa`, holds.

use serde::Deserialize;

use super::{Format, FormatFault, Hex, TestFile, Tests, deserialize};

/// The expected outcome of a capture; fields that are not named here are for people.
#[derive(Clone, Debug, Deserialize)]
pub struct Expectation {
    /// Who sent the packets.
    #[serde(default)]
    pub source: String,
    /// ESP packets that must be accepted.
    pub packets: u64,
    /// Frames of the capture.
    pub frames: u64,
    /// The decapsulated IP packets in capture order.
    pub inner: Vec<Hex>,
}

pub(super) fn parse(text: &str) -> Result<TestFile, (usize, FormatFault)> {
    let expectation: Expectation = deserialize(text)?;
    if expectation.inner.len() as u64 != expectation.packets {
        return Err((
            0,
            FormatFault::Value("as many inner packets as \"packets\" says"),
        ));
    }
    Ok(TestFile {
        format: Format::Expectation,
        tests: Tests::Expectation(expectation),
    })
}
