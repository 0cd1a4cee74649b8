//! Kernels against RustCrypto and `ring`, in batches of any mix of suites, keys, lengths, places
//! and damage.

use std::ops::Range;

use crate::aead::{Cipher, Implementation, Job, open_batch, seal_batch};
use crate::suite::{Encryption, Suite};

/// Bytes around each packet that nobody may touch.
const MARGIN: usize = 80;
const CANARY: u8 = 0xc5;

/// Numbers that look random and are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Most are near the ends of blocks and of what the lanes take at once.
    fn len(&mut self) -> usize {
        let multiple = [16, 64, 128, 256, 1024][self.below(5)];
        match self.below(16) {
            0..6 => self.below(300),
            6..13 => (multiple * self.below(1 + 1536 / multiple) + self.below(5)).saturating_sub(2),
            13..15 => self.below(1500),
            _ => self.below(9217),
        }
    }
}

/// One key in the kernel and in the libraries.
struct Keys {
    kernel: Cipher,
    others: Vec<Cipher>,
}

impl Keys {
    fn new((kernel, suite): Kernel, numbers: &mut Numbers) -> Self {
        let key = numbers.bytes(suite.key_len + suite.salt_len);
        let auth_key = numbers.bytes(suite.auth_key_len);
        let cipher = |implementation| {
            Cipher::with_implementation(suite, &key, &auth_key, implementation).unwrap()
        };
        let others = [Implementation::RustCrypto, Implementation::Ring];
        Self {
            kernel: cipher(kernel),
            others: others
                .into_iter()
                .filter(|other| other.supports(suite))
                .map(cipher)
                .collect(),
        }
    }
}

/// A packet somewhere in memory of its own.
struct Packet<'a> {
    keys: &'a Keys,
    memory: Vec<u8>,
    place: Range<usize>,
    sequence: u64,
    esn: bool,
}

impl<'a> Packet<'a> {
    fn new(keys: &'a Keys, text_len: usize, numbers: &mut Numbers) -> Self {
        let suite = keys.kernel.suite();
        let text_len = match suite.alignment {
            16 => text_len / 16 * 16,
            _ => text_len,
        };
        let len = 8 + suite.iv_len + text_len + suite.icv_len;
        let start = MARGIN + numbers.below(64);
        let mut memory = vec![CANARY; start + len + MARGIN];
        let sequence = numbers.next() << 20 ^ numbers.next();
        let esp = &mut memory[start..start + len];
        esp.copy_from_slice(&numbers.bytes(len));
        esp[4..8].copy_from_slice(&(sequence as u32).to_be_bytes());
        Self {
            keys,
            memory,
            place: start..start + len,
            sequence,
            esn: numbers.below(2) == 0,
        }
    }

    fn esp(&self) -> &[u8] {
        &self.memory[self.place.clone()]
    }

    fn text(&self) -> Range<usize> {
        let suite = self.keys.kernel.suite();
        8 + suite.iv_len..self.place.len() - suite.icv_len
    }

    fn job(&mut self) -> Job<'_> {
        Job {
            cipher: &self.keys.kernel,
            sequence: self.sequence,
            esn: self.esn,
            esp: &mut self.memory[self.place.clone()],
            authentic: !self.esn,
        }
    }

    /// What the libraries make of it.
    fn sealed_elsewhere(&self) -> Vec<u8> {
        let mut results = self.keys.others.iter().map(|cipher| {
            let mut esp = self.esp().to_vec();
            seal_batch(&mut [Job {
                cipher,
                sequence: self.sequence,
                esn: self.esn,
                esp: &mut esp,
                authentic: false,
            }]);
            esp
        });
        let first = results.next().unwrap();
        assert!(results.all(|other| other == first));
        first
    }

    fn canaries_live(&self) -> bool {
        let (before, after) = (
            &self.memory[..self.place.start],
            &self.memory[self.place.end..],
        );
        before.iter().chain(after).all(|byte| *byte == CANARY)
    }
}

/// Seals a batch, damages some packets and opens it.
fn check(packets: &mut [Packet<'_>], numbers: &mut Numbers) {
    let clear: Vec<Vec<u8>> = packets.iter().map(|packet| packet.esp().to_vec()).collect();
    let expected: Vec<Vec<u8>> = packets.iter().map(Packet::sealed_elsewhere).collect();
    seal_batch(&mut packets.iter_mut().map(Packet::job).collect::<Vec<_>>());
    for (packet, expected) in packets.iter().zip(&expected) {
        let suite = packet.keys.kernel.suite();
        let len = packet.text().len();
        assert!(
            packet.esp() == expected,
            "{suite}: {len} bytes of text, sealed"
        );
        assert!(
            packet.canaries_live(),
            "{suite}: {len} bytes of text, sealed"
        );
    }

    let damaged: Vec<Vec<u8>> = packets
        .iter_mut()
        .map(|packet| {
            let esp = &mut packet.memory[packet.place.clone()];
            if numbers.below(4) == 0 {
                let bit = numbers.below(8 * esp.len());
                esp[bit / 8] ^= 1 << (bit % 8);
            }
            esp.to_vec()
        })
        .collect();
    let mut jobs: Vec<Job<'_>> = packets.iter_mut().map(Packet::job).collect();
    open_batch(&mut jobs);
    let verdicts: Vec<bool> = jobs.iter().map(|job| job.authentic).collect();
    for (index, packet) in packets.iter().enumerate() {
        let suite = packet.keys.kernel.suite();
        let len = packet.text().len();
        let intact = damaged[index] == expected[index];
        assert_eq!(verdicts[index], intact, "{suite}: {len} bytes of text");
        let mut opened = damaged[index].clone();
        match intact {
            true => opened[packet.text()].copy_from_slice(&clear[index][packet.text()]),
            false => opened[packet.text()].fill(0),
        }
        assert!(
            packet.esp() == opened,
            "{suite}: {len} bytes of text, opened"
        );
        assert!(
            packet.canaries_live(),
            "{suite}: {len} bytes of text, opened"
        );
    }
}

/// A suite in one of the kernels that have it.
type Kernel = (Implementation, &'static Suite);

/// All that this CPU can run, but those for AES-GCM, which have tests of their own.
fn kernels() -> Vec<Kernel> {
    use Encryption::{AesGcm, AesGcmImplicitIv, AesGmac};
    let suites = Suite::ALL
        .iter()
        .filter(|suite| !matches!(suite.encryption, AesGcm | AesGcmImplicitIv | AesGmac));
    let implementations = [
        Implementation::Vaes512,
        Implementation::Vaes256,
        Implementation::AesNi,
    ];
    let kernels = suites.flat_map(|suite| implementations.map(|kernel| (kernel, suite)));
    kernels
        .filter(|(kernel, suite)| kernel.is_available() && kernel.supports(suite))
        .collect()
}

fn random_batches(seed: u64, packets: usize) {
    let mut numbers = Numbers(seed);
    let kernels = kernels();
    if kernels.is_empty() {
        return;
    }
    let mut done = 0;
    while done < packets {
        // Batches of one kernel as well as of several, of one key as well as of many.
        let kinds = [1, 1, 2, kernels.len()][numbers.below(4)];
        let first = numbers.below(kernels.len());
        let keys: Vec<Keys> = (0..kinds * (1 + numbers.below(3)))
            .map(|key| Keys::new(kernels[(first + key % kinds) % kernels.len()], &mut numbers))
            .collect();
        let same = (numbers.below(3) == 0).then(|| numbers.len());
        let mut batch: Vec<Packet<'_>> = (0..1 + numbers.below(70))
            .map(|_| {
                let keys = &keys[numbers.below(keys.len())];
                let len = same.unwrap_or_else(|| numbers.len());
                Packet::new(keys, len, &mut numbers)
            })
            .collect();
        check(&mut batch, &mut numbers);
        done += batch.len();
    }
}

/// `VESPER_LONG=1` makes it a million packets: a minute in a release build.
#[test]
fn random_batches_agree_with_the_libraries() {
    let long = std::env::var_os("VESPER_LONG").is_some_and(|value| value == "1");
    random_batches(0x5eed_0001, if long { 1_000_000 } else { 6_000 });
}

#[test]
fn every_length_up_to_a_thousand_agrees_with_the_libraries() {
    let mut numbers = Numbers(0x5eed_0003);
    for kernel in kernels() {
        let keys = Keys::new(kernel, &mut numbers);
        let step = if kernel.1.alignment == 16 { 16 } else { 1 };
        let mut lens = (0..1_040).step_by(step).peekable();
        // 1, 2, 3, ... packets at once.
        let mut together = 1;
        while lens.peek().is_some() {
            let mut batch: Vec<Packet<'_>> = lens
                .by_ref()
                .take(together)
                .map(|len| Packet::new(&keys, len, &mut numbers))
                .collect();
            check(&mut batch, &mut numbers);
            together = together % 40 + 1;
        }
    }
}

#[test]
fn long_packets_agree_with_the_libraries() {
    let mut numbers = Numbers(0x5eed_0004);
    for kernel in kernels() {
        let keys = Keys::new(kernel, &mut numbers);
        for len in [9_216, 9_215, 4_097, 65_472] {
            let mut batch = [
                Packet::new(&keys, len, &mut numbers),
                Packet::new(&keys, 40, &mut numbers),
            ];
            check(&mut batch, &mut numbers);
            check(&mut batch[..1], &mut numbers);
        }
    }
}
