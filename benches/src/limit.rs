//! What this core can do at all: the throughput of the instructions that the cryptography is
//! made of, and the bound on cycles per packet that follows from it.
//!
//! AES-GCM: a packet of `t` bytes of text takes `t/16 + 1` AES blocks (the one more encrypts
//! the tag), so many rounds each, and `t/16 + 2` products in GHASH (additional data and
//! lengths), four carry-less multiplications each in schoolbook form. Packed over packets
//! without a gap, the widest registers do several blocks in one instruction. The two kinds
//! compete for the same execution ports on some cores and not on others, so a mixture in the
//! proportion of AES-GCM is measured beside the pure loops, and the slowest of the three
//! binds. ChaCha20-Poly1305: whole 64-byte blocks and one more for the one-time key, 16 of
//! them at a time, with the products of Poly1305 in between.
//!
//! Framing is not in the bound: it can overlap with the cryptography.

use std::fmt;

use vesper_esp::Encryption;

use crate::case::{Case, Level};
use crate::clock::Clock;
use crate::samples::Samples;
use crate::sys::{LOOPS, Loop, Scratch};

/// Clean repetitions of each loop.
const REPETITIONS: usize = 21;
/// Tries for each.
const TRIES: usize = 20;
/// Turns of a loop in one repetition.
const TURNS: u64 = 2000;
/// The time that the last final reduction of a batch is late, in cycles.
const TAIL: f64 = 0.5;

/// Blocks in one register, by the names of the widths.
const WIDTHS: [(&str, f64); 3] = [("zmm", 4.0), ("ymm", 2.0), ("xmm", 1.0)];

/// Measured throughputs.
#[derive(Debug)]
pub(crate) struct Limit {
    /// Core cycles for one turn of each loop; `None` where the CPU lacks an instruction.
    turns: Vec<(&'static Loop, Option<f64>)>,
}

impl Limit {
    /// Measures every loop. Takes a second on a quiet core.
    pub(crate) fn measure(clock: &Clock) -> Self {
        let mut scratch = Scratch::new();
        let turns = LOOPS
            .iter()
            .map(|entry| (entry, turn(clock, entry, &mut scratch)))
            .collect();
        Self { turns }
    }

    /// The least number of core cycles per packet of a case; `None` where no bound is known:
    /// for other suites, or if the CPU has none of the instructions.
    pub(crate) fn cycles(&self, case: &Case) -> Option<f64> {
        let lengths = case.size.lengths();
        let total = lengths
            .iter()
            .try_fold(0.0, |total, &size| Some(total + self.packet(case, size)?))?;
        Some(total / lengths.len() as f64)
    }

    fn packet(&self, case: &Case, size: usize) -> Option<f64> {
        let text = match case.level {
            Level::Aead => case.text_len(size),
            // Pad length and next header, then padding (RFC 4303 section 2.4).
            Level::Esp => (size + 2).next_multiple_of(case.suite.alignment),
        };
        match case.suite.encryption {
            Encryption::AesGcm | Encryption::AesGcmImplicitIv => {
                self.gcm(case.suite.key_len, text, 4.0)
            }
            Encryption::ChaCha20Poly1305 | Encryption::ChaCha20Poly1305ImplicitIv => {
                self.chacha20_poly1305(text)
            }
            _ => None,
        }
    }

    /// AES-GCM with so many multiplications for each product: 4 in schoolbook form, 3 by
    /// Karatsuba's.
    fn gcm(&self, key_len: usize, text: usize, multiplications: f64) -> Option<f64> {
        let rounds = match key_len {
            16 => 10,
            24 => 12,
            _ => 14,
        };
        let blocks = text.div_ceil(16) as f64;
        WIDTHS
            .iter()
            .filter_map(|(width, lanes)| {
                let per = |name: &str| self.per_instruction(name);
                let aes = per(&format!("vaesenc {width}"))?;
                let clmul = per(&format!("vpclmulqdq {width}"))?;
                let mixture = per(&format!("{rounds} vaesenc + 4 vpclmulqdq {width}"))?;
                let aes_count = (blocks + 1.0) * f64::from(rounds) / lanes;
                let clmul_count = (blocks + 2.0) * multiplications / lanes;
                let bound = (aes_count * aes)
                    .max(clmul_count * clmul)
                    .max((aes_count + clmul_count) * mixture);
                Some(bound + TAIL)
            })
            .min_by(f64::total_cmp)
    }

    fn chacha20_poly1305(&self, text: usize) -> Option<f64> {
        let double_round = self
            .per_instruction("ChaCha20 double round of 16 blocks, Poly1305 products")
            .or_else(|| self.per_instruction("ChaCha20 double round of 16 blocks"))?;
        let blocks = text.div_ceil(64) as f64 + 1.0;
        Some(blocks * 10.0 * double_round / 16.0)
    }

    /// Cycles for each counted instruction of a loop.
    fn per_instruction(&self, name: &str) -> Option<f64> {
        let wanted = Loop::by_name(name)?;
        let (_, cycles) = self
            .turns
            .iter()
            .find(|(entry, _)| entry.name == wanted.name)?;
        Some((*cycles)? / wanted.per_turn as f64)
    }
}

/// Median core cycles of one turn.
fn turn(clock: &Clock, entry: &Loop, scratch: &mut Scratch) -> Option<f64> {
    entry.ticks(TURNS, scratch)?;
    let mut samples = Samples::default();
    let mut before = clock.probe();
    for _ in 0..REPETITIONS * TRIES {
        let ticks = entry.ticks(TURNS, scratch)?;
        let after = clock.probe();
        samples.add(clock.span(&before, ticks, &after, false));
        if samples.clean() == REPETITIONS {
            break;
        }
        before = after;
    }
    let [_, median, _] = samples.quartiles();
    Some(median / TURNS as f64)
}

impl fmt::Display for Limit {
    /// The throughputs, and the bounds of the usual sizes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:58} {:>10} {:>10}", "loop", "cycles", "per cycle")?;
        for (entry, cycles) in &self.turns {
            match cycles {
                Some(cycles) => {
                    let throughput = entry.per_turn as f64 / cycles;
                    writeln!(f, "{:58} {cycles:10.2} {throughput:10.2}", entry.name)?;
                }
                None => writeln!(f, "{:58} {:>10}", entry.name, "absent")?,
            }
        }
        let sizes = [64, 128, 256, 512, 1024, 1420, 4096, 9000];
        write!(f, "\n{:36}", "bound, cycles per packet of text")?;
        sizes.iter().try_for_each(|size| write!(f, " {size:>7}"))?;
        let gcm =
            |key_len, multiplications| sizes.map(|text| self.gcm(key_len, text, multiplications));
        let rows = [
            ("AES-128-GCM", gcm(16, 4.0)),
            ("AES-128-GCM, Karatsuba", gcm(16, 3.0)),
            ("AES-256-GCM", gcm(32, 4.0)),
            ("AES-256-GCM, Karatsuba", gcm(32, 3.0)),
            (
                "ChaCha20-Poly1305",
                sizes.map(|text| self.chacha20_poly1305(text)),
            ),
        ];
        for (name, bounds) in rows {
            write!(f, "\n{name:36}")?;
            for bound in bounds {
                match bound {
                    Some(cycles) => write!(f, " {cycles:7.0}")?,
                    None => write!(f, " {:>7}", "-")?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Size;
    use vesper_esp::Suite;

    /// A core with one 512-bit pipe for both kinds of instruction, as Zen 4 has.
    fn zen4() -> Limit {
        let turns = LOOPS
            .iter()
            .map(|entry| {
                let each = match entry.name {
                    "vpclmulqdq zmm" => 2.0,
                    name if name.ends_with("zmm") => 1.0,
                    name if name.starts_with("ChaCha20") => 61.0,
                    _ => 2.0,
                };
                (entry, Some(each * entry.per_turn as f64))
            })
            .collect();
        Limit { turns }
    }

    fn bound(level: Level, suite: &str, bytes: usize) -> Option<f64> {
        zen4().cycles(&Case {
            level,
            suite: Suite::by_name(suite).unwrap(),
            size: Size::Bytes(bytes),
            sas: 1,
        })
    }

    #[test]
    fn bounds_of_a_known_core() {
        // Counted by hand: 5 blocks of 14 rounds and 6 products of 4 multiplications, in
        // quarters: 17.5 + 6 + 0.5.
        assert_eq!(bound(Level::Aead, "aes256gcm16", 64), Some(24.0));
        // 90 blocks and 91 products.
        assert_eq!(bound(Level::Aead, "aes256gcm16", 1420), Some(406.5));
        assert_eq!(bound(Level::Aead, "aes128gcm16", 64), Some(19.0));
        // 64 and 2 bytes, padded to 68: one block more.
        assert_eq!(bound(Level::Esp, "aes256gcm16", 64), Some(28.5));
        assert_eq!(bound(Level::Aead, "aes256-sha256", 64), None);
        // 2 blocks of 10 double rounds, 16 at a time.
        assert_eq!(
            bound(Level::Aead, "chacha20poly1305", 64),
            Some(2.0 * 610.0 / 16.0)
        );
    }

    #[test]
    fn a_core_without_wide_registers_is_bound_by_narrow_ones() {
        let mut limit = zen4();
        for (entry, cycles) in &mut limit.turns {
            if !entry.name.ends_with("xmm") {
                *cycles = None;
            }
        }
        // 5 x 14 rounds and 6 x 4 multiplications, 2 cycles each.
        assert_eq!(limit.gcm(32, 64, 4.0), Some(188.5));
    }

    #[test]
    fn every_loop_that_is_asked_for_exists() {
        for (width, _) in WIDTHS {
            for name in [
                format!("vaesenc {width}"),
                format!("vpclmulqdq {width}"),
                format!("10 vaesenc + 4 vpclmulqdq {width}"),
                format!("12 vaesenc + 4 vpclmulqdq {width}"),
                format!("14 vaesenc + 4 vpclmulqdq {width}"),
            ] {
                assert!(Loop::by_name(&name).is_some(), "{name}");
            }
        }
    }
}
