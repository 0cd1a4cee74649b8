//! Every kernel of this CPU against `ring` and `aes-gcm`.
//!
//! `VESPER_LONG=1` runs a million packets instead of some ten thousand.

use aes_gcm::aead::array::typenum::U12;
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::aes::Aes192;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use ring::aead as ring_aead;

use super::*;
use crate::aead::{Cipher, Implementation, open_batch, seal_batch};
use crate::suite::{Encryption, Suite};

/// SplitMix64: the same cases in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.next() as u8;
        }
    }

    fn one_in(&mut self, odds: usize) -> bool {
        self.below(odds) == 0
    }
}

/// AES-GCM by another implementation: encrypts `text`, returns the tag of 16 bytes.
fn reference(ring: bool, key: &[u8], nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> [u8; 16] {
    let algorithm = match key.len() {
        16 => Some(&ring_aead::AES_128_GCM),
        32 => Some(&ring_aead::AES_256_GCM),
        _ => None,
    };
    if let (true, Some(algorithm)) = (ring, algorithm) {
        let key = ring_aead::LessSafeKey::new(ring_aead::UnboundKey::new(algorithm, key).unwrap());
        let nonce = ring_aead::Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, ring_aead::Aad::from(aad), text);
        return tag.unwrap().as_ref().try_into().unwrap();
    }
    fn with<A: AeadInOut + KeyInit>(
        key: &[u8],
        nonce: [u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> [u8; 16] {
        let cipher = A::new_from_slice(key).unwrap();
        let nonce = nonce.as_slice().try_into().unwrap();
        let tag = cipher.encrypt_inout_detached(&nonce, aad, text.into());
        tag.unwrap().as_slice().try_into().unwrap()
    }
    match key.len() {
        16 => with::<Aes128Gcm>(key, nonce, aad, text),
        24 => with::<AesGcm<Aes192, U12>>(key, nonce, aad, text),
        _ => with::<Aes256Gcm>(key, nonce, aad, text),
    }
}

struct Sa {
    cipher: Cipher,
    key: Vec<u8>,
    salt: [u8; 4],
}

impl Sa {
    fn new(random: &mut Random, suite: &'static Suite, implementation: Implementation) -> Self {
        let mut key = vec![0; suite.key_len + 4];
        random.fill(&mut key);
        Self {
            cipher: Cipher::with_implementation(suite, &key, &[], implementation).unwrap(),
            salt: key[suite.key_len..].try_into().unwrap(),
            key: key[..suite.key_len].to_vec(),
        }
    }

    /// What sealing makes of a packet, put together from the text of the RFCs.
    fn sealed(&self, ring: bool, sequence: u64, esn: bool, clear: &[u8]) -> Vec<u8> {
        let suite = self.cipher.suite();
        let mut packet = clear.to_vec();
        let text_end = packet.len() - suite.icv_len;
        let mut aad = packet[..4].to_vec();
        if esn {
            aad.extend(((sequence >> 32) as u32).to_be_bytes());
        }
        aad.extend(&packet[4..8]);
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        let tag = match suite.encryption {
            Encryption::AesGcm => {
                nonce[4..].copy_from_slice(&packet[8..16]);
                reference(ring, &self.key, nonce, &aad, &mut packet[16..text_end])
            }
            Encryption::AesGmac => {
                nonce[4..].copy_from_slice(&packet[8..16]);
                aad.extend(&packet[8..text_end]);
                reference(ring, &self.key, nonce, &aad, &mut [])
            }
            _ => {
                let number = if esn {
                    sequence
                } else {
                    sequence & 0xffff_ffff
                };
                nonce[4..].copy_from_slice(&number.to_be_bytes());
                reference(ring, &self.key, nonce, &aad, &mut packet[8..text_end])
            }
        };
        packet[text_end..].copy_from_slice(&tag[..suite.icv_len]);
        packet
    }
}

fn implementation(kernel: Kernel) -> Implementation {
    match kernel {
        Kernel::Vaes512(_) => Implementation::Vaes512,
        Kernel::Vaes256(_) => Implementation::Vaes256,
        Kernel::AesNi(_) => Implementation::AesNi,
    }
}

/// Suites that the kernels have.
fn suites() -> impl Iterator<Item = &'static Suite> + Clone {
    use Encryption::{AesGcm, AesGcmImplicitIv, AesGmac};
    Suite::ALL
        .iter()
        .filter(|suite| matches!(suite.encryption, AesGcm | AesGmac | AesGcmImplicitIv))
}

/// One packet in memory of its own, with bytes around it that must not change.
struct Placed {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    sequence: u64,
    esn: bool,
}

const CANARY: usize = 80;

impl Placed {
    fn new(random: &mut Random, len: usize, align: usize) -> Self {
        let mut memory = vec![0; len + 2 * CANARY + 64];
        random.fill(&mut memory);
        let offset = memory.as_ptr().align_offset(64);
        let sequence = random.next();
        let mut placed = Self {
            start: offset % 64 + align,
            memory,
            len,
            sequence,
            esn: random.one_in(2),
        };
        // The wire has the low half of the number, and often the whole as IV.
        let packet = placed.packet_mut();
        packet[4..8].copy_from_slice(&(sequence as u32).to_be_bytes());
        placed
    }

    fn packet(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    fn packet_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// Everything but the packet.
    fn surroundings(&self) -> (Vec<u8>, Vec<u8>) {
        let end = self.start + self.len;
        (
            self.memory[..self.start].to_vec(),
            self.memory[end..].to_vec(),
        )
    }
}

fn jobs<'a>(placed: &'a mut [Placed], sas: &[&'a Sa]) -> Vec<Job<'a>> {
    let mut jobs = Vec::new();
    for (placed, sa) in placed.iter_mut().zip(sas) {
        let (sequence, esn) = (placed.sequence, placed.esn);
        jobs.push(Job {
            cipher: &sa.cipher,
            sequence,
            esn,
            esp: placed.packet_mut(),
            authentic: false,
        });
    }
    jobs
}

/// Seals and opens one batch, some packets tampered with, and compares every byte.
fn check_batch(random: &mut Random, sas: &[&Sa], lens: &[usize]) {
    let mut placed: Vec<Placed> = sas
        .iter()
        .zip(lens)
        .map(|(sa, len)| {
            let suite = sa.cipher.suite();
            let align = random.below(64);
            Placed::new(random, 8 + suite.iv_len + len + suite.icv_len, align)
        })
        .collect();
    if random.one_in(2) {
        let esn = random.one_in(2);
        placed.iter_mut().for_each(|placed| placed.esn = esn);
    }
    let around: Vec<_> = placed.iter().map(Placed::surroundings).collect();
    let clear: Vec<Vec<u8>> = placed.iter().map(|p| p.packet().to_vec()).collect();
    let describe = |i: usize| {
        let suite = sas[i].cipher.suite();
        let implementation = sas[i].cipher.implementation();
        format!(
            "packet {i} of {}, {suite}, {implementation:?}, {} bytes of text, all {lens:?}",
            lens.len(),
            lens[i]
        )
    };

    seal_batch(&mut jobs(&mut placed, sas));
    for (i, packet) in placed.iter().enumerate() {
        let ring = random.one_in(2);
        let expected = sas[i].sealed(ring, packet.sequence, packet.esn, &clear[i]);
        assert!(packet.packet() == expected, "sealed: {}", describe(i));
        assert!(
            packet.surroundings() == around[i],
            "around: {}",
            describe(i)
        );
    }

    let mut spoilt = vec![false; placed.len()];
    for (i, packet) in placed.iter_mut().enumerate() {
        if random.one_in(6) {
            spoilt[i] = true;
            let suite = sas[i].cipher.suite();
            if packet.esn && random.one_in(8) {
                packet.sequence ^= 1 << (32 + random.below(32));
            } else {
                // A flipped sequence number would be another packet for implicit IVs.
                let from = random.below(2) * (packet.len - suite.icv_len);
                let at = from + random.below(packet.len - from);
                let at = if (4..8).contains(&at) { 0 } else { at };
                packet.packet_mut()[at] ^= 1 << random.below(8);
            }
        }
    }
    let sealed: Vec<Vec<u8>> = placed.iter().map(|p| p.packet().to_vec()).collect();
    let verdicts: Vec<bool> = {
        let mut jobs = jobs(&mut placed, sas);
        open_batch(&mut jobs);
        jobs.iter().map(|job| job.authentic).collect()
    };
    for (i, packet) in placed.iter().enumerate() {
        let suite = sas[i].cipher.suite();
        let text = 8 + suite.iv_len..packet.len - suite.icv_len;
        let mut expected = sealed[i].clone();
        if spoilt[i] {
            expected[text].fill(0);
        } else {
            expected[text.clone()].copy_from_slice(&clear[i][text]);
        }
        assert_eq!(verdicts[i], !spoilt[i], "verdict: {}", describe(i));
        assert!(packet.packet() == expected, "opened: {}", describe(i));
        assert!(
            packet.surroundings() == around[i],
            "around: {}",
            describe(i)
        );
    }
}

/// A length, often next to a boundary of blocks, vectors or chunks.
fn random_len(random: &mut Random) -> usize {
    let near = [16, 64, 128, 256, 512][random.below(5)];
    let len = match random.below(8) {
        0..=2 => random.below(200),
        3 => random.below(700),
        4 | 5 => near * random.below(12) + random.below(5),
        6 => random.below(1600),
        _ => random.below(9217),
    };
    len.saturating_sub(random.below(3))
}

fn long() -> bool {
    std::env::var_os("VESPER_LONG").is_some_and(|value| value == "1")
}

#[test]
fn batches_match_other_implementations() {
    let mut random = Random(1);
    let kernels = Kernel::available();
    let packets = if long() { 1_000_000 } else { 12_000 };
    for kernel in kernels {
        let sas: Vec<Sa> = suites()
            .cycle()
            .take(60)
            .map(|suite| Sa::new(&mut random, suite, implementation(*kernel)))
            .collect();
        let mut done = 0;
        while done < packets / kernels.len() {
            let most = if random.one_in(16) { 150 } else { 64 };
            let count = 1 + random.below(most);
            let first = random.below(sas.len());
            let keys = [1, 1, 2, 5, 60][random.below(5)];
            let sas: Vec<&Sa> = (0..count)
                .map(|_| &sas[(first + random.below(keys)) % sas.len()])
                .collect();
            let same = random.one_in(2).then(|| random_len(&mut random));
            let lens: Vec<usize> = (0..count)
                .map(|_| match same {
                    Some(len) if !random.one_in(16) => len,
                    _ => random_len(&mut random),
                })
                .collect();
            check_batch(&mut random, &sas, &lens);
            done += count;
        }
    }
}

#[test]
fn every_length_alone_and_in_groups() {
    let mut random = Random(2);
    for kernel in Kernel::available() {
        for name in ["aes128gcm16", "aes256gcm16"] {
            let suite = Suite::by_name(name).unwrap();
            let sas: Vec<Sa> = (0..4)
                .map(|_| Sa::new(&mut random, suite, implementation(*kernel)))
                .collect();
            let last = if long() { 9216 } else { 1400 };
            for len in 0..=last {
                check_batch(&mut random, &[&sas[0]], &[len]);
                check_batch(&mut random, &[&sas[0]; 4], &[len; 4]);
                let different = [&sas[0], &sas[1], &sas[2], &sas[3]];
                check_batch(&mut random, &different, &[len; 4]);
            }
        }
    }
}

/// Texts of nearly the same length, so that groups go together, and with keys that change between
/// groups or within.
#[test]
fn packets_in_runs() {
    let step = if long() { 1 } else { 23 };
    let mut random = Random(5);
    for kernel in Kernel::available() {
        for name in ["aes128gcm16", "aes192gcm16", "aes256gcm16"] {
            let suite = Suite::by_name(name).unwrap();
            let sas: Vec<Sa> = (0..16)
                .map(|_| Sa::new(&mut random, suite, implementation(*kernel)))
                .collect();
            for len in (0..=300).chain((301..2700).step_by(step)) {
                for run in [1, 4, 8, 64] {
                    let count = 8 + random.below(57);
                    let more = [1, 1, 4, 16][random.below(4)];
                    let lens: Vec<usize> = (0..count).map(|_| len + random.below(more)).collect();
                    let sas: Vec<&Sa> = (0..count).map(|i| &sas[i / run % sas.len()]).collect();
                    check_batch(&mut random, &sas, &lens);
                }
            }
        }
    }
}

#[test]
fn kernels_mix_in_one_batch() {
    let mut random = Random(3);
    let sas: Vec<Sa> = suites()
        .flat_map(|suite| {
            let kernels = Kernel::available().iter();
            kernels.map(move |kernel| (suite, implementation(*kernel)))
        })
        .map(|(suite, implementation)| Sa::new(&mut random, suite, implementation))
        .collect();
    for _ in 0..20 {
        let sas: Vec<&Sa> = (0..64).map(|_| &sas[random.below(sas.len())]).collect();
        let lens: Vec<usize> = (0..64).map(|_| random_len(&mut random)).collect();
        check_batch(&mut random, &sas, &lens);
    }
}

#[test]
fn any_data_and_tag_length() {
    let mut random = Random(4);
    for kernel in Kernel::available() {
        for _ in 0..if long() { 20_000 } else { 600 } {
            let mut key = vec![0; [16, 24, 32][random.below(3)]];
            random.fill(&mut key);
            let gcm = GcmKey::new(*kernel, &key, [0; 4], Form::Gcm, 16).unwrap();
            let mut nonce = [0; 12];
            random.fill(&mut nonce);
            let mut aad = vec![0; random_len(&mut random)];
            random.fill(&mut aad);
            let mut text = vec![0; random.below(400)];
            random.fill(&mut text);
            let clear = text.clone();
            let mut expected = clear.clone();
            let expected_tag = reference(true, &key, nonce, &aad, &mut expected);
            let mut tag = vec![0; 4 + random.below(13)];
            assert!(gcm.seal_raw(&nonce, &aad, &mut text, &mut tag));
            assert!(text == expected && tag == expected_tag[..tag.len()]);
            assert!(gcm.open_raw(&nonce, &aad, &mut text, &tag));
            assert!(text == clear);
            let at = random.below(tag.len());
            tag[at] ^= 1 << random.below(8);
            assert!(!gcm.open_raw(&nonce, &aad, &mut text, &tag));
            assert!(text.iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn counter_passes_every_byte() {
    // 65,536 blocks and more: the counter carries into its third byte.
    let mut random = Random(5);
    for kernel in Kernel::available() {
        let suite = Suite::by_name("aes128gcm16").unwrap();
        let sa = Sa::new(&mut random, suite, implementation(*kernel));
        check_batch(&mut random, &[&sa], &[(1 << 20) + 300]);
    }
}

#[test]
fn nonsense_is_not_authentic() {
    let mut random = Random(6);
    for kernel in Kernel::available() {
        for suite in suites() {
            let sa = Sa::new(&mut random, suite, implementation(*kernel));
            for len in 0..80 {
                let mut packet = vec![0; len];
                random.fill(&mut packet);
                let mut job = Job {
                    cipher: &sa.cipher,
                    sequence: 1,
                    esn: true,
                    esp: &mut packet,
                    authentic: true,
                };
                open_batch(core::slice::from_mut(&mut job));
                assert!(!job.authentic);
                if len < 8 + suite.iv_len + suite.icv_len {
                    seal_batch(core::slice::from_mut(&mut job));
                    assert_eq!(packet, vec![0; len], "it must not leave in clear");
                }
            }
        }
    }
}

#[test]
fn known_answers_are_right() {
    for answer in &selftest::ANSWERS {
        let bytes: [u8; 1024] = core::array::from_fn(|i| i as u8);
        let nonce = core::array::from_fn(|i| i as u8);
        for ring in [false, true] {
            let mut text = bytes[..answer.text_len].to_vec();
            let key = &bytes[..answer.key_len];
            let tag = reference(ring, key, nonce, &bytes[..20], &mut text);
            assert_eq!(
                answer.tag,
                tag,
                "{} {} {:032x}",
                answer.key_len,
                answer.text_len,
                u128::from_be_bytes(tag)
            );
        }
    }
}

#[test]
fn what_is_detected_passes_its_test() {
    let available = |name| Kernel::by_name(name).is_some();
    assert_eq!(available("vaes512"), Vaes512::detect().is_some());
    assert_eq!(available("vaes256"), Vaes256::detect().is_some());
    assert_eq!(available("aesni"), AesNi::detect().is_some());
}

#[test]
fn names_and_debug_show_no_key() {
    for kernel in Kernel::available() {
        assert_eq!(Kernel::by_name(kernel.name()), Some(*kernel));
        let key = GcmKey::new(*kernel, &[0x5a; 32], [0x5a; 4], Form::Gcm, 16).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains(kernel.name()) && !shown.contains("5a") && !shown.contains("90"));
        assert!(GcmKey::new(*kernel, &[0; 17], [0; 4], Form::Gcm, 16).is_none());
        assert!(GcmKey::new(*kernel, &[0; 16], [0; 4], Form::Gcm, 17).is_none());
    }
    assert_eq!(Kernel::by_name("sse2"), None);
    assert!(size_of::<GcmKey>() <= 640);
}

#[test]
fn aesni_without_avx_agrees() {
    let Some(AesNi(())) = AesNi::detect() else {
        return;
    };
    let kernel = Kernel::AesNi(AesNi(()));
    let mut random = Random(11);
    for len in 0..600 {
        let mut key = vec![0; [16, 24, 32][len % 3]];
        let mut text = vec![0; len];
        let mut nonce = [0; 12];
        random.fill(&mut key);
        random.fill(&mut text);
        random.fill(&mut nonce);
        let aad = &[7; 12][..len % 13];
        let clear = text.clone();
        let mut expected = text.clone();
        let expected_tag = reference(false, &key, nonce, aad, &mut expected);

        let expanded = GcmKey::new(kernel, &key, [0; 4], Form::Gcm, 16).unwrap();
        let mut tag = [0; 16];
        let mut packet = Packet::raw(&expanded, &nonce, aad, &mut text, &mut tag).unwrap();
        // SAFETY: the CPU has what the kernel needs.
        unsafe { narrow::aesni::<true>(core::slice::from_mut(&mut packet)) };
        assert_eq!((&text, tag), (&expected, expected_tag), "{len} bytes");

        let mut packet = Packet::raw(&expanded, &nonce, aad, &mut text, &mut tag).unwrap();
        // SAFETY: the CPU has what the kernel needs.
        unsafe { narrow::aesni::<false>(core::slice::from_mut(&mut packet)) };
        assert!(packet.authentic, "{len} bytes");
        assert_eq!(text, clear, "{len} bytes");
    }
}
