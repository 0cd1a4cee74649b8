//! Floods of replays and of wrong ICVs at the genuine rate: the genuine packets arrive, each bad
//! one is counted once, and the log stays short.

mod process;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use process::{Daemon, generator, host, is_long, machine, sa, wait_until};
use vesper_daemon::control::types;
use vesper_verify::capture::CaptureReader;

/// A replay comes so many packets after the original, well within the window.
const BEHIND: usize = 100;

fn configuration(directory: &Path, host: &str) -> String {
    let socket = directory.join("control.sock");
    format!("[daemon]\ncontrol = {socket:?}\nstatus = \"127.0.0.1:0\"\n{host}")
}

/// So many genuine packets on the wire from host `a`.
fn genuine(directory: &Path, count: usize) -> Vec<Vec<u8>> {
    let path = directory.join("genuine.pcap");
    let words = directory.join("a.sa");
    process::secret_file(&words, &sa(1, 1, "out", 0x1000, ""));
    let machine = machine(
        1,
        1,
        &generator(1, 1, 200_000),
        &format!("sa_file = {words:?}"),
    );
    let uplink = format!("{{ pcap = {{ write = {path:?} }} }}");
    let daemon = Daemon::start(
        directory,
        &configuration(directory, &host(1, &uplink, &machine)),
    );
    let client = daemon.client();
    wait_until("packets are sealed", || {
        let stats: types::Stats = client.get("/v1/stats").unwrap();
        stats.hosts[0].sealed_packets >= count as u64
    });
    assert!(daemon.stop().0);
    let mut capture = CaptureReader::open(&path).unwrap();
    let mut frames = Vec::with_capacity(count);
    while let Some(record) = capture.next_record().unwrap() {
        if frames.len() < count {
            frames.push(record.data.to_vec());
        }
    }
    assert_eq!(frames.len(), count);
    frames
}

fn write_capture<'a>(path: &Path, frames: impl Iterator<Item = &'a [u8]>) {
    let mut bytes = vec![0; 24];
    bytes[..4].copy_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
    (bytes[4], bytes[6], bytes[18], bytes[20]) = (2, 4, 4, 1);
    for frame in frames {
        let length = (frame.len() as u32).to_le_bytes();
        bytes.extend([[0; 4], [0; 4], length, length].concat());
        bytes.extend(frame);
    }
    fs::write(path, bytes).unwrap();
}

/// What became of a capture at host `b`.
struct Outcome {
    received: u64,
    drops: Vec<(String, u64)>,
    /// From the first genuine packet to the last.
    took: Duration,
    /// Lines of the audit log, and how long the daemon ran.
    lines: Vec<String>,
    ran: Duration,
}

fn receive(directory: &Path, frames: &[&[u8]], count: u64, rate: u64) -> Outcome {
    let path = directory.join("flood.pcap");
    write_capture(&path, frames.iter().copied());
    let words = directory.join("b.sa");
    process::secret_file(&words, &sa(1, 1, "in", 0x1000, ""));
    let machine = machine(2, 1, "\"sink\"", &format!("sa_file = {words:?}"));
    let uplink = format!("{{ pcap = {{ read = {path:?}, rate = {rate} }} }}");
    let began = Instant::now();
    let daemon = Daemon::start(
        directory,
        &configuration(directory, &host(2, &uplink, &machine)),
    );
    let client = daemon.client();
    let received = || {
        let stats: types::Stats = client.get("/v1/stats").unwrap();
        stats.hosts[0].vms[0].rx_packets
    };
    wait_until("the first packet arrives", || received() > 0);
    let (first, at) = (received(), Instant::now());
    wait_until("the last packet arrives", || {
        thread::sleep(Duration::from_millis(5));
        received() >= count
    });
    let took = at
        .elapsed()
        .mul_f64(count as f64 / (count - first).max(1) as f64);
    // A second for the audit log.
    thread::sleep(Duration::from_millis(1500));
    let stats = daemon.settled();
    let said = daemon.stop().1;
    let lines = said.lines().filter(|line| line.contains("vesper::audit"));
    Outcome {
        received: stats.hosts[0].vms[0].rx_packets,
        drops: (stats.hosts[0].esp_drops.clone().into_iter())
            .filter(|(_, count)| *count > 0)
            .collect(),
        took,
        lines: lines.map(str::to_owned).collect(),
        ran: began.elapsed(),
    }
}

#[test]
fn genuine_packets_pass_through_floods() {
    // Packets, and genuine ones a second.
    let (count, rates): (usize, &[u64]) = match is_long() {
        true => (1_000_000, &[100_000]),
        false => (10_000, &[10_000]),
    };
    let directory = tempfile::tempdir().unwrap();
    let genuine = genuine(directory.path(), count);
    let mut alone: Vec<&[u8]> = Vec::new();
    let mut replays: Vec<&[u8]> = Vec::new();
    let mut forged: Vec<Vec<u8>> = Vec::new();
    for (index, frame) in genuine.iter().enumerate() {
        alone.push(frame);
        replays.push(frame);
        if let Some(before) = index.checked_sub(BEHIND) {
            replays.push(&genuine[before]);
        }
        // It has the number of the genuine one that follows, so that only the ICV tells.
        let mut wrong = frame.clone();
        *wrong.last_mut().unwrap() ^= 1;
        forged.push(wrong);
        forged.push(frame.clone());
    }
    let forged: Vec<&[u8]> = forged.iter().map(Vec::as_slice).collect();
    let count = count as u64;
    for rate in rates {
        let base = receive(directory.path(), &alone, count, *rate);
        assert_eq!(
            (base.received, base.drops.len()),
            (count, 0),
            "{:?}",
            base.drops
        );
        for (name, reason, what, frames, bad, least) in [
            (
                "replays",
                "replay",
                "is a replay",
                &replays,
                count - BEHIND as u64,
                0.9,
            ),
            (
                "wrong ICVs",
                "icv",
                "fails its integrity check",
                &forged,
                count,
                0.4,
            ),
        ] {
            let flood = receive(directory.path(), frames, count, 2 * rate);
            let kept = base.took.as_secs_f64() / flood.took.as_secs_f64();
            println!(
                "{name} at {rate} a second: {} of {count} genuine arrive, at {:.0} % of their rate \
                 alone ({:.0} a second); dropped {:?}; {} audit lines in {:?}",
                flood.received,
                kept * 100.0,
                count as f64 / base.took.as_secs_f64(),
                flood.drops,
                flood.lines.len(),
                flood.ran
            );
            assert_eq!(flood.received, count);
            assert_eq!(flood.drops, [(reason.to_owned(), bad)]);
            let lines = flood.lines.len() as u64;
            assert!(lines > 0 && lines <= 10 * (flood.ran.as_secs() + 1));
            // What RFC 4303 section 4 wants told of one of them.
            let packet = "SPI 0x00001000, 192.0.2.1 to 192.0.2.2, sequence number ";
            let told =
                (flood.lines.iter()).filter(|line| line.contains(what) && line.contains(packet));
            assert!(told.count() > 0, "{:#?}", flood.lines);
            if is_long() {
                assert!(kept >= least, "{kept}");
            }
        }
    }
}
