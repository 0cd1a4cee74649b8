//! The control interface under load from all sides, and what the packets feel of it.

mod process;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hyper::Method;
use process::{Daemon, generator, head, host, is_long, machine, sa};
use serde_json::json;
use vesper_daemon::control::types;
use vesper_verify::capture::CaptureReader;

/// Associations of the machine that is as full as its quota.
const FULL: u32 = 10_000;

/// Clients that connect, begin a request and do not end it.
const SLOW: usize = 1_000;

/// How the process of the slow clients is told where to connect.
const SLOW_SOCKET: &str = "VESPER_TEST_SLOW_SOCKET";

/// Where the generator's moment of sending is in a frame: behind Ethernet, IPv4, UDP, its mark,
/// flow and number.
const SENT: usize = 14 + 20 + 8 + 8 + 2 + 8;

/// How long the packets of a capture were on their way, in the order of their arrival, with the
/// moment of arrival. The clocks of sender and capture have different origins: the fastest packet
/// counts as 0.
fn latencies(path: &Path) -> Vec<(u64, u64)> {
    let mut capture = CaptureReader::open(path).unwrap();
    let mut found = Vec::new();
    while let Ok(Some(record)) = capture.next_record() {
        let sent = record.data[SENT..SENT + 8].try_into().unwrap();
        found.push((
            record.timestamp,
            record.timestamp.wrapping_sub(u64::from_be_bytes(sent)),
        ));
    }
    let least = found.iter().map(|(_, late)| *late).min().unwrap();
    found.iter_mut().for_each(|(_, late)| *late -= least);
    found
}

/// The 99th percentile of what arrived between two moments.
fn p99(latencies: &[(u64, u64)], [from, to]: [u64; 2]) -> Duration {
    let within = |(at, _): &&(u64, u64)| (from..to).contains(at);
    let mut late: Vec<u64> = (latencies.iter())
        .filter(within)
        .map(|(_, late)| *late)
        .collect();
    late.sort_unstable();
    Duration::from_nanos(late[late.len() * 99 / 100])
}

fn wall() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_nanos() as u64
}

/// A request that is answered on a connection of its own, or not at all.
fn raw(socket: &Path, request: &[u8]) -> String {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return String::new();
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(8)));
    let _ = stream.write_all(request);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// No test, but the process of the slow clients: who begins and never ends. Each new one takes the
/// place of an older one.
#[test]
fn slow_clients() {
    let Some(socket) = std::env::var_os(SLOW_SOCKET) else {
        return;
    };
    let mut slow = Vec::new();
    loop {
        slow.retain_mut(|stream: &mut UnixStream| stream.write_all(b"x").is_ok());
        while slow.len() < SLOW {
            let Ok(mut stream) = UnixStream::connect(&socket) else {
                break;
            };
            let _ = stream.set_nonblocking(true);
            let _ = stream.write_all(b"GET /v1/sas HTTP/1.1\r\nhost: ");
            slow.push(stream);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn packets_feel_nothing_of_the_control_interface() {
    let (malformed, creations, calm) = match is_long() {
        true => (10_000, 1_000_000, Duration::from_secs(10)),
        false => (300, 2_000, Duration::from_secs(1)),
    };
    let directory = tempfile::tempdir().unwrap();
    let arrived = directory.path().join("arrived.pcap");
    let mut configuration = head(directory.path());
    // The packets have a processor of their own, if there are two.
    let mut others = rustix::thread::sched_getaffinity(None).unwrap();
    let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| others.is_set(*cpu));
    let mut pinned = String::new();
    if let Some(cpu) = first.filter(|_| others.count() > 1) {
        others.unset(cpu);
        pinned = format!("cpus = [{cpu}]\n");
    }
    for number in [1, 2] {
        let direction = if number == 1 { "out" } else { "in" };
        let path = directory.path().join(format!("{number}.sa"));
        process::secret_file(&path, &sa(1, 1, direction, 0x1000, ""));
        let port = match number {
            1 => generator(1, 1, 5_000),
            _ => format!("{{ pcap = {{ write = {arrived:?} }} }}"),
        };
        let mut machines = machine(number, 1, &port, &format!("sa_file = {path:?}"));
        if number == 1 {
            machines += &machine(1, 2, "\"sink\"", &format!("sa_limit = {FULL}"));
        }
        let cable = "{ cable = { name = \"wire\" } }";
        configuration += &host(number, cable, &(pinned.clone() + &machines));
    }
    let daemon = Daemon::start(directory.path(), &configuration);
    // Who asks is elsewhere, as the virtual machines of a host are that keeps processors for its
    // adapter.
    let _ = rustix::thread::sched_setaffinity(None, &others);
    let client = daemon.client();
    let many: Vec<String> = (0..FULL)
        .map(|number| sa(1, 2, "out", 0x10_0000 + number, ""))
        .collect();
    client
        .ask(Method::POST, "/v1/sas/import", many.join("\n").as_bytes())
        .unwrap();
    thread::sleep(Duration::from_millis(500));
    let before = daemon.size();
    let calm_from = wall();
    thread::sleep(calm);
    let calm_to = wall();

    let socket = daemon.socket();
    let (is_over, refused, slowest) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let lists = AtomicU64::new(0);
    let mut most = before.0;
    let loaded_from = wall();
    // In a process of its own, as others would be.
    // Who asks may be anywhere, and takes no processor from the packets; vesperd has begun and
    // is not concerned.
    let _ = rustix::process::setpriority_process(None, 19);
    let mut slow = Command::new(std::env::current_exe().unwrap())
        .args(["slow_clients", "--exact"])
        .env(SLOW_SOCKET, socket)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    thread::scope(|scope| {
        let malformed = scope.spawn(|| {
            for round in 0..malformed {
                let request = match round % 5 {
                    0 => "POST /v1/sas HTTP/1.1\r\nhost: v\r\ncontent-length: 9\r\n\r\n{\"words\":",
                    1 => "GET /v1/sas?spi=0xzz HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n",
                    2 => "BREW /v1/vms HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n",
                    3 => "GET /v1/sas/-1 HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n",
                    _ => "\0\x01\x02 rubbish\r\n\r\n",
                };
                let answer = raw(socket, request.as_bytes());
                assert!(
                    !answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"),
                    "{answer}"
                );
            }
        });
        let creations = scope.spawn(|| {
            let mut stream = UnixStream::connect(socket).unwrap();
            let mut answer = vec![0; 4096];
            for number in 0..creations {
                let body = json!({ "words": sa(1, 2, "out", 0x100_0000 + number, "") }).to_string();
                let head = format!(
                    "POST /v1/sas HTTP/1.1\r\nhost: v\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let asked = stream.write_all((head + &body).as_bytes());
                match asked.and_then(|()| stream.read(&mut answer)) {
                    Ok(length) if answer[..length].starts_with(b"HTTP/1.1 409") => {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(length) if length > 0 => {
                        panic!("{}", String::from_utf8_lossy(&answer[..length]))
                    }
                    // It had to make room, or came too late for a place.
                    _ => stream = UnixStream::connect(socket).unwrap(),
                }
            }
        });
        let listing = scope.spawn(|| {
            let client = daemon.client();
            while !is_over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let answer = client.ask(Method::GET, "/v1/sas", &[]).unwrap();
                slowest.fetch_max(began.elapsed().as_micros() as u64, Ordering::Relaxed);
                lists.fetch_add(1, Ordering::Relaxed);
                let sas: types::Sas = serde_json::from_slice(&answer).unwrap();
                assert_eq!(sas.sas.len(), FULL as usize + 2);
                thread::sleep(Duration::from_millis(250));
            }
        });
        // A stranger whom the file system lets in, and the kernel names.
        if rustix::process::geteuid().is_root() {
            let mode = |path: &Path, mode| {
                fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            };
            mode(directory.path(), 0o755);
            mode(socket, 0o666);
            for _ in 0..5 {
                let mut stranger = Command::new(env!("CARGO_BIN_EXE_vesper"));
                stranger.arg("--socket").arg(socket).args(["sa", "list"]);
                let output = stranger.uid(65534).gid(65534).output().unwrap();
                // docs/control.md: not permitted.
                assert_eq!(output.status.code(), Some(5), "{}", process::text(&output));
            }
            mode(socket, 0o660);
        }
        while !(malformed.is_finished() && creations.is_finished()) {
            most = most.max(daemon.size().0);
            thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
        listing.join().unwrap();
    });
    slow.kill().unwrap();
    slow.wait().unwrap();
    let loaded_to = wall();
    thread::sleep(Duration::from_secs(1));
    let after = daemon.size();
    let (is_accounted_for, said) = daemon.stop();
    assert!(is_accounted_for, "{said}");
    let latencies = latencies(&arrived);
    let (calm, loaded) = (
        p99(&latencies, [calm_from, calm_to]),
        p99(&latencies, [loaded_from, loaded_to]),
    );
    println!(
        "{malformed} malformed requests, {refused:?} of {creations} creations refused by the quota, \
         {SLOW} slow clients: {lists:?} lists of {FULL} SAs, the slowest {} us; memory {} kB, at \
         most {most} kB, then {} kB; descriptors {}, then {}; 99th percentile of {} packets' \
         latency {calm:?}, under load {loaded:?}",
        slowest.load(Ordering::Relaxed),
        before.0,
        after.0,
        before.1,
        after.1,
        latencies.len()
    );
    // A disk that others use as well may be late with marks; nothing else may be lost.
    let by_disk = ["refused by ESP", "not marked durably"];
    let mut lost = said.lines().filter(|line| line.contains(" dropped"));
    let all_by_disk = lost.all(|line| by_disk.iter().any(|reason| line.contains(reason)));
    assert!(all_by_disk, "{said}");
    // What answers need, not what asked.
    assert!(most < before.0 + 64 * 1024, "{before:?} {most}");
    assert!(after.1 <= before.1 + 100, "{before:?} {after:?}");
}
