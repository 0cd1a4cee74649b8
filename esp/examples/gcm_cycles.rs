//! Core cycles per packet of AES-GCM, each implementation in turn in the same run.
//!
//! `gcm_cycles [SUITE] [SIZE,...] [IMPLEMENTATION,...]`, for example
//! `taskset -c 1 gcm_cycles aes256gcm16 64,1420 vaes512,ring`. Sizes are bytes of text.
//!
//! Cycles are counted against a loop of dependent additions, one cycle each, before and after
//! every repetition. A loop of independent instructions shows whether the core was shared at
//! that moment; then the repetition is not counted.

#[cfg(target_arch = "x86_64")]
fn main() {
    imp::main();
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    println!("there are kernels for x86-64 only");
}

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::arch::asm;
    use std::arch::x86_64::{_mm_lfence, _rdtsc};

    use ring::aead as ring_aead;
    use vesper_esp::aead::{Cipher, Implementation, Job, open_batch, seal_batch};
    use vesper_esp::{Encryption, Suite};

    /// Packets that are handed over at once.
    const BATCH: usize = 64;
    /// Repetitions that count.
    const WANTED: usize = 31;
    const MOST: usize = 600;
    /// Cycles per instruction of the independent loop on a core of our own: 0.205.
    const ALONE: f64 = 0.213;

    pub fn main() {
        let mut arguments = std::env::args().skip(1);
        let suite = arguments.next().unwrap_or_else(|| "aes256gcm16".into());
        let suite = Suite::by_name(&suite).expect("the first argument is the name of a suite");
        let sizes = arguments.next();
        let sizes = sizes.unwrap_or_else(|| "64,68,128,256,512,1024,1420,4096,9000,imix".into());
        let names = arguments.next();
        let names = names.unwrap_or_else(|| "vaes512,vaes256,aesni,ring".into());
        dependent(20_000_000);
        println!("suite size keys who: seal open (cycles per packet, clean repetitions)");
        for size in sizes.split(',') {
            let packets = std::env::var("PACKETS").map_or(1024, |n| n.parse().expect("a number"));
            let lens: Vec<usize> = (0..packets)
                .map(|i| match size {
                    // 7 of 64 bytes, 4 of 570, 1 of 1420, in a fixed disorder.
                    "imix" => [64, 570, 64, 64, 1420, 570, 64, 570, 64, 64, 570, 64][i * 5 % 12],
                    "random" => 40 + (i * 7919) % 1400,
                    size => size.parse().expect("a size in bytes, imix or random"),
                })
                .collect();
            for keys in [1, 1024] {
                for name in names.split(',') {
                    let subject = match name {
                        "ring" => Subject::Ring(ring_keys(suite, keys)),
                        name => {
                            let implementation = implementation(name);
                            match kernel_keys(suite, keys, implementation) {
                                Some(ciphers) => Subject::Ours(ciphers),
                                None => continue,
                            }
                        }
                    };
                    let (seal, open, clean) = measure(&subject, suite, &lens);
                    println!(
                        "{} {size} {keys} {name}: {seal:.1} {open:.1} ({clean})",
                        suite.name
                    );
                }
            }
        }
    }

    enum Subject {
        Ours(Vec<Cipher>),
        Ring(Vec<ring_aead::LessSafeKey>),
    }

    fn implementation(name: &str) -> Implementation {
        match name {
            "vaes512" => Implementation::Vaes512,
            "vaes256" => Implementation::Vaes256,
            "aesni" => Implementation::AesNi,
            _ => panic!("{name} is not vaes512, vaes256, aesni or ring"),
        }
    }

    fn key_bytes(suite: &Suite, number: usize) -> Vec<u8> {
        let mut seed = number as u64 + 1;
        (0..suite.key_len + suite.salt_len)
            .map(|_| xorshift(&mut seed) as u8)
            .collect()
    }

    fn kernel_keys(suite: &'static Suite, keys: usize, i: Implementation) -> Option<Vec<Cipher>> {
        let key = |n| Cipher::with_implementation(suite, &key_bytes(suite, n), &[], i);
        (0..keys).map(|n| key(n).ok()).collect()
    }

    fn ring_keys(suite: &Suite, keys: usize) -> Vec<ring_aead::LessSafeKey> {
        assert_eq!(suite.encryption, Encryption::AesGcm);
        let algorithm = match suite.key_len {
            16 => &ring_aead::AES_128_GCM,
            _ => &ring_aead::AES_256_GCM,
        };
        (0..keys)
            .map(|n| {
                let key = &key_bytes(suite, n)[..suite.key_len];
                ring_aead::LessSafeKey::new(ring_aead::UnboundKey::new(algorithm, key).unwrap())
            })
            .collect()
    }

    /// Median cycles to seal and to open a packet, and repetitions that counted.
    fn measure(subject: &Subject, suite: &Suite, lens: &[usize]) -> (f64, f64, usize) {
        let overhead = 16 + suite.icv_len;
        let stride = (lens.iter().max().unwrap() + overhead + 127) / 64 * 64;
        let mut memory = vec![0u8; stride * lens.len() + 64];
        let mut seed = 7;
        memory.fill_with(|| xorshift(&mut seed) as u8);
        let start = memory.as_ptr().align_offset(64);
        let mut order: Vec<usize> = (0..lens.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, xorshift(&mut seed) as usize % (i + 1));
        }
        let (mut sealing, mut opening) = (Vec::new(), Vec::new());
        let mut before = probe();
        for _ in 0..MOST {
            let mut packets = packets(&mut memory[start..], stride, lens, overhead);
            let (seal, open);
            match subject {
                Subject::Ours(ciphers) => {
                    let mut jobs: Vec<Job<'_>> = packets
                        .iter_mut()
                        .enumerate()
                        .map(|(i, esp)| Job {
                            cipher: &ciphers[order[i] % ciphers.len()],
                            sequence: i as u64,
                            esn: false,
                            esp,
                            authentic: false,
                        })
                        .collect();
                    seal = timed(|| jobs.chunks_mut(BATCH).for_each(seal_batch));
                    open = timed(|| jobs.chunks_mut(BATCH).for_each(open_batch));
                    assert!(jobs.iter().all(|job| job.authentic));
                }
                Subject::Ring(keys) => {
                    seal = timed(|| {
                        for (i, esp) in packets.iter_mut().enumerate() {
                            ring_seal(&keys[order[i] % keys.len()], esp);
                        }
                    });
                    open = timed(|| {
                        for (i, esp) in packets.iter_mut().enumerate() {
                            assert!(ring_open(&keys[order[i] % keys.len()], esp));
                        }
                    });
                }
            }
            let after = probe();
            let ratio = (before.0 + after.0) / 2.0;
            if before.1 && after.1 && (before.0 / after.0 - 1.0).abs() < 0.02 {
                sealing.push(seal as f64 * ratio / lens.len() as f64);
                opening.push(open as f64 * ratio / lens.len() as f64);
                if sealing.len() == WANTED {
                    break;
                }
            }
            before = after;
        }
        (median(&mut sealing), median(&mut opening), sealing.len())
    }

    fn packets<'a>(
        memory: &'a mut [u8],
        stride: usize,
        lens: &[usize],
        overhead: usize,
    ) -> Vec<&'a mut [u8]> {
        memory
            .chunks_mut(stride)
            .zip(lens)
            .map(|(chunk, len)| &mut chunk[..len + overhead])
            .collect()
    }

    fn ring_seal(key: &ring_aead::LessSafeKey, esp: &mut [u8]) {
        let (header, body) = esp.split_at_mut(16);
        let (text, icv) = body.split_at_mut(body.len() - 16);
        let aad = ring_aead::Aad::from(<[u8; 8]>::try_from(&header[..8]).unwrap());
        let tag = key.seal_in_place_separate_tag(nonce(header), aad, text);
        icv.copy_from_slice(tag.unwrap().as_ref());
    }

    fn ring_open(key: &ring_aead::LessSafeKey, esp: &mut [u8]) -> bool {
        let (header, body) = esp.split_at_mut(16);
        let aad = ring_aead::Aad::from(<[u8; 8]>::try_from(&header[..8]).unwrap());
        key.open_in_place(nonce(header), aad, body).is_ok()
    }

    fn nonce(header: &[u8]) -> ring_aead::Nonce {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&header[8..16]);
        ring_aead::Nonce::assume_unique_for_key(nonce)
    }

    fn median(values: &mut [f64]) -> f64 {
        values.sort_by(f64::total_cmp);
        let part = if std::env::var_os("LOW").is_some() { 8 } else { 2 };
        values.get(values.len() / part).copied().unwrap_or(f64::NAN)
    }

    fn xorshift(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    fn ticks() -> u64 {
        // SAFETY: every x86-64 CPU has these instructions.
        unsafe {
            _mm_lfence();
            let ticks = _rdtsc();
            _mm_lfence();
            ticks
        }
    }

    fn timed(work: impl FnOnce()) -> u64 {
        let start = ticks();
        work();
        ticks() - start
    }

    /// Core cycles per tick, and whether the core was ours alone.
    fn probe() -> (f64, bool) {
        let ticks = (0..3).map(|_| dependent(300)).min().unwrap_or(1);
        let ratio = 300.0 * 64.0 / ticks as f64;
        (
            ratio,
            independent(400) as f64 * ratio / (400.0 * 80.0) < ALONE,
        )
    }

    /// Ticks of 64 dependent additions `n` times.
    #[inline(never)]
    fn dependent(n: u64) -> u64 {
        timed(|| {
            // SAFETY: only the named registers change.
            unsafe {
                asm!(".p2align 6", "2:", ".rept 64", "add {a}, 1", ".endr", "dec {n}", "jnz 2b",
                    a = inout(reg) 0u64 => _, n = inout(reg) n => _, options(nomem, nostack));
            }
        })
    }

    /// Ticks of 80 independent instructions `n` times.
    #[inline(never)]
    fn independent(n: u64) -> u64 {
        timed(|| {
            // SAFETY: only the named registers change.
            unsafe {
                asm!(".p2align 6", "2:", ".rept 16", "add {a}, 1", "add {b}, 1", "add {c}, 1",
                    "add {d}, 1", "nop", ".endr", "dec {n}", "jnz 2b",
                    a = inout(reg) 0u64 => _, b = inout(reg) 0u64 => _, c = inout(reg) 0u64 => _,
                    d = inout(reg) 0u64 => _, n = inout(reg) n => _, options(nomem, nostack));
            }
        })
    }
}
