//! Response files of NIST's validation program for AES-GCM (`gcmEncryptExtIV*.rsp`,
//! `gcmDecrypt*.rsp`): records of `Field = hexadecimal` lines; a forgery has `FAIL` in place
//! of its clear text.

use vesper_esp::aead::primitive::Primitive;

use super::{Format, FormatFault, Hex, PrimitiveTest, TestFile, Tests, Validity};

/// Whether the text is a response file of GCM: it says so in a comment, or is a list of such
/// records.
pub(super) fn is_gcm(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let comments: Vec<&str> = lines
        .by_ref()
        .take(20)
        .take_while(|line| line.starts_with('#'))
        .collect();
    if comments.iter().any(|line| line.contains("GCM")) {
        return true;
    }
    let mut fields = text.lines().take(200).filter_map(|line| field(line.trim()));
    fields.any(|(name, _)| name == "Taglen" || name == "Tag")
}

#[derive(Default)]
struct Record {
    line: usize,
    count: String,
    key: Option<Vec<u8>>,
    nonce: Option<Vec<u8>>,
    aad: Option<Vec<u8>>,
    text: Option<Vec<u8>>,
    sealed: Option<Vec<u8>>,
    tag: Option<Vec<u8>>,
    fails: bool,
}

pub(super) fn parse(text: &str) -> Result<TestFile, (usize, FormatFault)> {
    let mut tests = Vec::new();
    let mut group = [""; 5];
    let mut record: Option<Record> = None;
    for (index, line) in text.lines().enumerate() {
        let at = index + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line == "FAIL" {
            let record = record
                .as_mut()
                .ok_or((at, FormatFault::Value("Count before FAIL")))?;
            record.fails = true;
            continue;
        }
        let (name, value) = field(line).ok_or((
            at,
            FormatFault::Value("`Field = value`, `[Field = value]` or FAIL"),
        ))?;
        let length = ["Keylen", "IVlen", "PTlen", "AADlen", "Taglen"]
            .iter()
            .position(|&length| length == name);
        if let Some(index) = length {
            group[index] = value;
            continue;
        }
        if name == "Count" {
            if let Some(done) = record.take() {
                tests.push(done.finish(&group)?);
            }
            record = Some(Record {
                line: at,
                count: value.to_owned(),
                ..Record::default()
            });
            continue;
        }
        let record = record.as_mut().ok_or((
            at,
            FormatFault::Value("Count before the fields of a record"),
        ))?;
        let slot = match name {
            "Key" => &mut record.key,
            "IV" => &mut record.nonce,
            "AAD" => &mut record.aad,
            "PT" => &mut record.text,
            "CT" => &mut record.sealed,
            "Tag" => &mut record.tag,
            _ => return Err((at, FormatFault::Value("Key, IV, AAD, PT, CT or Tag"))),
        };
        let bytes = Hex::parse(value).ok_or((
            at,
            FormatFault::Value("an even number of hexadecimal digits"),
        ))?;
        if slot.replace(bytes.0).is_some() {
            return Err((at, FormatFault::Value("each field of a record once")));
        }
    }
    if let Some(done) = record {
        tests.push(done.finish(&group)?);
    }
    Ok(TestFile {
        format: Format::Cavp,
        tests: Tests::Primitives(tests),
    })
}

/// `Name = value`, with or without brackets.
fn field(line: &str) -> Option<(&str, &str)> {
    let line = line
        .strip_prefix('[')
        .and_then(|line| line.strip_suffix(']'))
        .unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    Some((name.trim(), value.trim()))
}

impl Record {
    fn finish(self, group: &[&str; 5]) -> Result<PrimitiveTest, (usize, FormatFault)> {
        let line = self.line;
        let need = |field: Option<Vec<u8>>, name| field.ok_or((line, FormatFault::Missing(name)));
        let [_, iv, pt, aad, tag] = group;
        if !self.fails && self.text.is_none() {
            return Err((line, FormatFault::Missing("PT or FAIL")));
        }
        Ok(PrimitiveTest {
            name: format!(
                "IV {iv} PT {pt} AAD {aad} tag {tag} bits, count {}",
                self.count
            ),
            primitive: Primitive::AesGcm,
            key: need(self.key, "Key")?,
            nonce: need(self.nonce, "IV")?,
            aad: need(self.aad, "AAD")?,
            text: self.text.filter(|_| !self.fails),
            sealed: need(self.sealed, "CT")?,
            tag: need(self.tag, "Tag")?,
            validity: if self.fails {
                Validity::Forged
            } else {
                Validity::Valid
            },
        })
    }
}
