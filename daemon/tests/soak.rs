//! A vesperd that runs for long, with traffic, rekeys, requests and readers of its status page:
//! memory and descriptors stay as they are, and no genuine packet fails.
//!
//! Half a minute by default; `VESPER_LONG` makes it ten, `VESPER_SOAK_MINUTES` as many as it says.

mod process;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hyper::Method;
use process::{Daemon, add, cabled, delete, head, is_long, sa, wait_until};
use vesper_daemon::control::types;

/// Machines of each host that have traffic.
const VMS: u8 = 3;

/// Associations that come and go before it is measured, so that what is kept of keys that were in
/// use has reached the memory that it may have.
const WARM_UP: u32 = 6_000;

/// Those of them that come and go one by one, so that the ring of events, 4,096, is full.
const ONE_BY_ONE: u32 = 2_400;

/// How long it runs at least before that: pages of the series and rings that grow to a bound are
/// touched for the first time then.
const WARMING: Duration = Duration::from_secs(20);

/// How often memory is looked at.
const SAMPLE: Duration = Duration::from_secs(1);

fn duration() -> Duration {
    let minutes = std::env::var("VESPER_SOAK_MINUTES");
    match minutes.map(|minutes| minutes.parse::<u64>().unwrap()) {
        Ok(minutes) => Duration::from_secs(60 * minutes),
        Err(_) if is_long() => Duration::from_secs(600),
        Err(_) => Duration::from_secs(30),
    }
}

/// What is read of the status page.
fn read(address: &str, path: &str) -> usize {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{path}");
    answer.len()
}

/// Kilobytes an hour, by the line through all samples that has the least squares.
fn slope(samples: &[(f64, f64)]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, size) = (mean(|sample| sample.0), mean(|sample| sample.1));
    let (mut above, mut below) = (0.0, 0.0);
    for (at, kilobytes) in samples {
        above += (at - time) * (kilobytes - size);
        below += (at - time) * (at - time);
    }
    above / below * 3600.0
}

#[test]
fn a_long_run_needs_no_more_than_a_short_one() {
    let directory = tempfile::tempdir().unwrap();
    // A port that is free right now.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let mut configuration = head(directory.path());
    writeln!(configuration, "status = {address:?}").unwrap();
    configuration += &cabled(directory.path(), VMS, 1_000, |vm| {
        // One in the adapter, one with the host's software, one with a queue of its own.
        let path = match vm {
            1 => "vmq_weight = 0",
            2 => "ipsec_offload_limit = 0",
            _ => "vmq_weight = 50",
        };
        format!("{path}\nsa_limit = 10000")
    });
    let daemon = Daemon::start(directory.path(), &configuration);
    let client = daemon.client();
    for from in [0x10_0000, 0x20_0000] {
        let lines: Vec<String> = (from..from + WARM_UP)
            .map(|spi| sa(1, 2, "out", spi, "").replace("reqid 8 ", "reqid 777 "))
            .collect();
        client
            .ask(Method::POST, "/v1/sas/import", lines.join("\n").as_bytes())
            .unwrap();
        let all: types::Sas = client.get("/v1/sas").unwrap();
        assert!(all.sas.len() > WARM_UP as usize);
        client
            .ask(Method::DELETE, "/v1/sas?reqid=777&all=true", &[])
            .unwrap();
    }
    thread::scope(|scope| {
        for first in 0..8 {
            let client = daemon.client();
            scope.spawn(move || {
                for number in (first..ONE_BY_ONE).step_by(8) {
                    let words = sa(1, 2, "out", 0x40_0000 + number, "");
                    delete(
                        &client,
                        add(&client, &words.replace("reqid 8 ", "reqid 777 ")),
                    );
                }
            });
        }
    });
    let sas: types::Sas = client.get("/v1/sas").unwrap();
    let mut old: HashMap<(String, Option<String>, String), u64> = (sas.sas.into_iter())
        .map(|sa| ((sa.host, sa.vm, sa.dir), sa.id))
        .collect();
    assert_eq!(old.len(), 4 * usize::from(VMS));

    let duration = duration();
    let (is_over, rekeys) = (AtomicBool::new(false), AtomicU64::new(0));
    // Who waits for events is given some.
    let follows = AtomicBool::new(true);
    let (mut samples, mut descriptors) = (Vec::new(), Vec::new());
    thread::scope(|scope| {
        scope.spawn(|| {
            let client = daemon.client();
            for round in 0.. {
                if is_over.load(Ordering::Relaxed) && !follows.load(Ordering::Relaxed) {
                    return;
                }
                let (vm, spi) = ((round % 3) as u8 + 1, 0x30_0000 + round);
                let inward = add(&client, &sa(1, vm, "in", spi, ""));
                let outward = add(&client, &sa(1, vm, "out", spi, ""));
                let name =
                    |host: &str, dir: &str| (host.into(), Some(format!("vm{vm}")), dir.into());
                delete(&client, old.insert(name("a", "out"), outward).unwrap());
                wait_until("the new association is used", || {
                    let sa: types::Sa = client.get(&format!("/v1/sas/{inward}")).unwrap();
                    sa.packets > 0
                });
                delete(&client, old.insert(name("b", "in"), inward).unwrap());
                rekeys.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(300));
            }
        });
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                for path in ["/", "/status.json", "/metrics"] {
                    assert!(read(&address, path) > 1000);
                }
                thread::sleep(Duration::from_millis(500));
            }
        });
        scope.spawn(|| {
            let client = daemon.client();
            while !is_over.load(Ordering::Relaxed) {
                // A reader of events comes and goes.
                let mut left = 8;
                client
                    .follow("/v1/events", |_| {
                        left -= 1;
                        left > 0
                    })
                    .unwrap();
            }
            follows.store(false, Ordering::Relaxed);
        });
        // What is touched at first is no growth.
        thread::sleep(WARMING.max(duration / 6));
        let began = Instant::now();
        while began.elapsed() < duration * 5 / 6 {
            let (kilobytes, open) = daemon.size();
            samples.push((began.elapsed().as_secs_f64(), kilobytes as f64));
            descriptors.push(open);
            thread::sleep(SAMPLE);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let stats: types::Stats = client.get("/v1/stats").unwrap();
    let failures: u64 = (stats.hosts.iter())
        .flat_map(|host| host.esp_drops.get("icv"))
        .sum();
    let (is_accounted_for, said) = daemon.stop();
    assert!(is_accounted_for, "{said}");
    let third = samples.len() / 3;
    let least = |samples: &[(f64, f64)]| samples.iter().map(|s| s.1).fold(f64::MAX, f64::min);
    let (early, late) = (least(&samples[..third]), least(&samples[2 * third..]));
    // A connection of the reader of the status page may be open at the moment of a sample, or not.
    let opened = |some: &[usize]| {
        let mut some = some.to_vec();
        some.sort_unstable();
        some[some.len() / 2]
    };
    let (few, few_later) = (
        opened(&descriptors[..third]),
        opened(&descriptors[2 * third..]),
    );
    println!(
        "{duration:?}, {rekeys:?} rekeys: {:.0} kB at first, {:.0} kB at last, slope {:.0} kB an \
         hour; descriptors {few}, then {few_later}; {failures} packets failed authentication",
        samples[0].1,
        samples[samples.len() - 1].1,
        slope(&samples),
    );
    assert_eq!(failures, 0);
    // A disk that others use as well may be late with marks; nothing else may be lost.
    let by_disk = ["refused by ESP", "not marked durably"];
    let mut lost = said.lines().filter(|line| line.contains(" dropped"));
    assert!(
        lost.all(|line| by_disk.iter().any(|reason| line.contains(reason))),
        "{said}"
    );
    assert_eq!(few, few_later, "{descriptors:?}");
    // 1 MiB an hour, and a few pages that are touched late.
    let hours = duration.as_secs_f64() / 3600.0;
    assert!(late <= early + 1024.0 * hours + 256.0, "{early} {late}");
}
