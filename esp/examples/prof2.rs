use vesper_esp::Suite;
use vesper_esp::aead::{Cipher, Implementation, Job};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let keys: usize = a[1].parse().unwrap();
    let np: usize = a[2].parse().unwrap();
    let suite = Suite::by_name("aes256gcm16").unwrap();
    let ciphers: Vec<Cipher> = (0..keys).map(|i| Cipher::with_implementation(suite, &[i as u8; 36], &[], Implementation::Vaes512).unwrap()).collect();
    for len in a[3].split(',') {
        let len: usize = len.parse().unwrap();
    let stride = (len + 32 + 127) / 64 * 64;
    let mut mem = vec![1u8; stride * np + 64];
    let off = mem.as_ptr().align_offset(64);
    let mut jobs: Vec<Job> = mem[off..].chunks_mut(stride).take(np).enumerate().map(|(i, c)| Job { cipher: &ciphers[i * 7919 % keys], sequence: i as u64, esn: false, esp: &mut c[..len + 32], authentic: false }).collect();
    let t = vesper_esp::aead::bench(&mut jobs, 20000);
    println!("{len}: {:.1} cycles/packet (min, at 1.418)", t as f64 * 1.418 / np as f64);
    }
}
