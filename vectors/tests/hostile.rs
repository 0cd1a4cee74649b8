//! Capture files altered at random: whatever the bytes say, the verifier answers.

use std::fs;
use std::path::Path;

use vesper_esp::aead::Implementation;
use vesper_verify::capture::{CaptureReader, CaptureWriter};
use vesper_verify::opener::Opener;
use vesper_verify::seal::{self, Sealer};
use vesper_verify::unseal;
use vesper_verify::xfrm;

/// Altered copies of each built-in capture.
const COPIES: u64 = 60;

#[test]
fn altered_captures_never_panic() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/captures");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut captures = 0;
    let (mut refused, mut packets, mut accepted) = (0, 0, 0);
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "pcap") {
            continue;
        }
        captures += 1;
        let original = fs::read(&path).unwrap();
        let text = fs::read_to_string(path.with_extension("sa")).unwrap();
        let entries = xfrm::parse(&text, "sa").unwrap();
        for _ in 0..COPIES {
            let mut file = original.clone();
            for _ in 0..=random() % 40 {
                let at = random() as usize % file.len();
                match random() % 8 {
                    0 => file.truncate(at.max(1)),
                    1 => file[at] = 0xff,
                    2 => file[at] = 0,
                    3 => file.insert(at, random() as u8),
                    _ => file[at] ^= 1 << (random() % 8),
                }
            }
            let mut opener = Opener::new(entries.clone(), &[Implementation::RustCrypto]).unwrap();
            let Ok(mut reader) = CaptureReader::new(&file[..], "c".to_owned()) else {
                refused += 1;
                continue;
            };
            let output: Option<&mut CaptureWriter<Vec<u8>>> = None;
            match unseal::unseal(&mut reader, &mut opener, output, |_| {}, |_| {}) {
                Ok(summary) => {
                    let dropped: u64 = summary.dropped.values().sum();
                    assert_eq!(summary.packets, summary.accepted + dropped);
                    packets += summary.packets;
                    accepted += summary.accepted;
                }
                Err(_) => refused += 1,
            }
            let mut sealer = Sealer::new(entries.clone()).unwrap();
            let mut reader = CaptureReader::new(&file[..], "c".to_owned()).unwrap();
            let mut output = CaptureWriter::new(Vec::new()).unwrap();
            let _ = seal::seal(&mut reader, &mut sealer, &mut output, |_| {}, |_| {});
        }
    }
    println!(
        "{captures} captures: {refused} files refused, {accepted} of {packets} packets accepted"
    );
    assert!(captures >= 44 && refused > 0 && accepted > 0 && accepted < packets);
}
