use vesper_esp::Suite;
use vesper_esp::aead::{Cipher, Implementation, Job, open_batch, seal_batch};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let len: usize = a[1].parse().unwrap();
    let keys: usize = a[2].parse().unwrap();
    let reps: usize = a[3].parse().unwrap();
    let imp = match a.get(4).map(|s| s.as_str()) { Some("vaes256") => Implementation::Vaes256, Some("aesni") => Implementation::AesNi, _ => Implementation::Vaes512 };
    let suite = Suite::by_name("aes256gcm16").unwrap();
    let ciphers: Vec<Cipher> = (0..keys).map(|i| Cipher::with_implementation(suite, &[i as u8; 36], &[], imp).unwrap()).collect();
    let np: usize = std::env::var("NP").map(|s| s.parse().unwrap()).unwrap_or(if len > 4000 { 64 } else { 1024 });
    let stride = (len + 32 + 127) / 64 * 64;
    let mut mem = vec![1u8; stride * np + 64];
    let off = mem.as_ptr().align_offset(64);
    let mut jobs: Vec<Job> = mem[off..].chunks_mut(stride).take(np).enumerate().map(|(i, c)| Job { cipher: &ciphers[i * 7919 % keys], sequence: i as u64, esn: false, esp: &mut c[..len + 32], authentic: false }).collect();
    let t = std::time::Instant::now();
    for _ in 0..reps {
        if a.len() > 5 { jobs.chunks_mut(64).for_each(open_batch); } else { jobs.chunks_mut(64).for_each(seal_batch); }
    }
    println!("{} ns/packet", t.elapsed().as_nanos() as f64 / (reps * np) as f64);
}
