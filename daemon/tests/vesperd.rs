//! The program vesperd as a process: first run, checks, captures, reload, and state that
//! survives.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use vesper_daemon::config::{Config, DEFAULT};
use vesper_esp::aead::Implementation;
use vesper_verify::capture::{CaptureReader, CaptureWriter};
use vesper_verify::opener::Opener;
use vesper_verify::unseal::unseal;
use vesper_verify::xfrm;

/// Nobody.
const UNPRIVILEGED: u32 = 65534;

fn vesperd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vesperd"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(both).unwrap()
}

#[test]
fn the_first_run_accounts_for_every_packet() {
    let mut command = vesperd();
    if rustix::process::geteuid().is_root() {
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    }
    let began = Instant::now();
    let output = command.args(["--for", "2s"]).output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("every packet is accounted for"), "{text}");
    assert!(
        !text.contains('\x1b'),
        "no terminal, no control sequences: {text}"
    );
    assert!(began.elapsed() < Duration::from_secs(20), "{text}");
    for (machine, path) in [
        ("queue", "queue"),
        ("function", "function"),
        ("software", "software"),
    ] {
        assert_agreement(&text, machine, path);
    }
}

/// Received through the default queue of the adapter, which opens packets for several machines.
#[test]
fn what_the_adapter_opens_in_the_default_queue_is_the_machines() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vesperd.toml");
    fs::write(&file, DEFAULT.replace("ipsec_offload_limit = 0", "")).unwrap();
    let mut command = vesperd();
    let output = command
        .args(["--for", "1s", "--config"])
        .arg(&file)
        .output();
    let output = output.unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert_agreement(&text, "software", "synthetic");
}

/// The summaries of a machine on both hosts agree to the packet.
fn assert_agreement(text: &str, machine: &str, path: &str) {
    // machine, path, sent, sealed, opened, received, drops: in the summary, the last of each.
    let rows = |name: &str| -> Vec<u64> {
        let row = text.lines().rfind(|line| line.starts_with(name)).unwrap();
        let numbers = row.split_whitespace().skip(2);
        numbers.map(|number| number.parse().unwrap()).collect()
    };
    let (a, b) = (rows(&format!("a/{machine}")), rows(&format!("b/{machine}")));
    assert!(
        text.contains(&format!("a/{machine:<18} {path:<9}")),
        "{text}"
    );
    let ([sent, sealed, opened, received, drops], [peer_sent, peer_sealed, ..]) = (&a[..], &b[..])
    else {
        panic!("{text}");
    };
    assert!(*sent > 0 && *received > 0, "{text}");
    assert_eq!((sent, drops), (sealed, &0), "{text}");
    assert_eq!((opened, opened), (peer_sealed, received), "{text}");
    assert_eq!(peer_sent, peer_sealed, "{text}");
}

#[test]
fn a_signal_ends_it_in_order() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let child = vesperd().arg("--quiet").spawn().unwrap();
        thread::sleep(Duration::from_secs(1));
        let output = end(child, signal);
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("every packet is accounted for"), "{text}");
    }
}

#[test]
fn the_printed_configuration_is_the_embedded_one() {
    let output = vesperd().arg("--print-default").output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed, DEFAULT);
    assert_eq!(Config::parse(&printed, "x").unwrap(), Config::embedded());
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), printed).unwrap();
    let output = vesperd().arg("--check").arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("good; hosts: 2, machines: 6"));
}

#[test]
fn a_check_names_file_line_and_the_way_out() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display().to_string();
    for (old, new, expected) in [
        (
            "iov_weight = 100",
            "iov_wieght = 100",
            "did you mean `iov_weight`?",
        ),
        (
            "frame = 1600",
            "frame = 16",
            "frame is 16 bytes; use 1522 to 65600",
        ),
        (
            "suite = \"aes256gcm16\"",
            "suite = \"des\"",
            "suite `des` does not exist",
        ),
    ] {
        fs::write(file.path(), DEFAULT.replacen(old, new, 1)).unwrap();
        let output = vesperd().arg("--check").arg(file.path()).output().unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let line = 1 + DEFAULT[..DEFAULT.find(old).unwrap()].matches('\n').count();
        assert!(text.contains(&format!("{path}:{line}: ")), "{text}");
        assert!(text.contains(expected), "{text}");
    }
    let output = vesperd()
        .args(["--check", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("/nonexistent: can not be read: No such file"));
}

const KEY: &str = "0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223";

/// The association from one host to the other.
fn words() -> String {
    format!(
        "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 reqid 7 mode tunnel replay-window 64 \
         aead 'rfc4106(gcm(aes))' {KEY} 128"
    )
}

/// A host that protects, or opens, the packets of one capture and writes another.
struct Gateway<'a> {
    name: &'a str,
    directory: &'a Path,
    uplink: String,
    port: String,
    limit: u32,
    state: bool,
}

impl Gateway<'_> {
    fn write(&self) -> std::path::PathBuf {
        let Self {
            name,
            directory,
            uplink,
            port,
            limit,
            ..
        } = self;
        let (here, there) = match *name {
            "a" => (1, 2),
            _ => (2, 1),
        };
        let state = match self.state {
            true => format!("state = {:?}", directory.join("state")),
            false => String::new(),
        };
        let sa_file = directory.join("sa");
        fs::write(&sa_file, words()).unwrap();
        fs::set_permissions(&sa_file, fs::Permissions::from_mode(0o600)).unwrap();
        let (direction, from, to) = match *name {
            "a" => ("out", here, there),
            _ => ("in", there, here),
        };
        let file = directory.join(format!("{name}.toml"));
        let configuration = format!(
            "[daemon]\n{state}\n[[host]]\nname = \"{name}\"\nuplink = {{ pcap = {uplink} }}\n\
             tunnel = {{ address = \"192.0.2.{here}\", mac = \"02:00:00:00:00:{here:02x}\", \
             gateway_mac = \"02:00:00:00:00:{there:02x}\" }}\n[[host.vm]]\nname = \"vm\"\n\
             mac = \"02:00:00:00:01:{here:02x}\"\nport = {{ pcap = {port} }}\n\
             ipsec_offload_limit = {limit}\nsa_file = {sa_file:?}\n\
             policy = [\"dir {direction} tmpl src 192.0.2.{from} dst 192.0.2.{to} proto esp \
             reqid 7 mode tunnel\"]\n"
        );
        fs::write(&file, configuration).unwrap();
        file
    }

    fn run(&self, time: &str) -> String {
        let file = self.write();
        let output = vesperd()
            .arg("--config")
            .arg(file)
            .args(["--quiet", "--for", time])
            .output()
            .unwrap();
        let text = text(&output);
        assert!(output.status.success(), "{text}");
        text
    }
}

/// Frames of a machine of host `a`.
fn frames(count: u16) -> Vec<Vec<u8>> {
    let frame = |index: u16| {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 0, 1])
            .ipv4([10, 0, 1, 1], [10, 0, 2, 1], 64)
            .udp(1000 + index, 9)
            .write(
                &mut frame,
                &vec![index as u8; usize::from(index) * 7 % 1300],
            )
            .unwrap();
        frame
    };
    (0..count).map(frame).collect()
}

fn write_capture(path: &Path, frames: &[Vec<u8>]) {
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

fn read_capture(path: &Path) -> Vec<Vec<u8>> {
    let mut reader = CaptureReader::open(path).unwrap();
    let mut frames = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        frames.push(record.data.to_vec());
    }
    frames
}

/// Sequence numbers on the wire.
fn sequences(path: &Path) -> Vec<u32> {
    let frames = read_capture(path);
    let number = |frame: &Vec<u8>| u32::from_be_bytes(frame[38..42].try_into().unwrap());
    frames.iter().map(number).collect()
}

#[test]
fn what_a_capture_holds_goes_through_the_tunnel_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (inner, outer, back) = (path("inner.pcap"), path("outer.pcap"), path("back.pcap"));
    let sent = frames(100);
    write_capture(&inner, &sent);
    for limit in [512, 0] {
        let text = Gateway {
            name: "a",
            directory: directory.path(),
            uplink: format!("{{ write = {outer:?} }}"),
            port: format!("{{ read = {inner:?}, rate = 0 }}"),
            limit,
            state: false,
        }
        .run("2s");
        assert_eq!(sequences(&outer), (1..=100).collect::<Vec<u32>>(), "{text}");

        // What others make of it: the verifier, with the same words.
        let entries = xfrm::parse(&words(), "sa").unwrap();
        let mut opener = Opener::new(entries, &[Implementation::RustCrypto]).unwrap();
        let mut capture = CaptureReader::open(&outer).unwrap();
        let output = None::<&mut CaptureWriter<Vec<u8>>>;
        let summary = unseal(&mut capture, &mut opener, output, |_| {}, |_| {}).unwrap();
        assert!(summary.is_success(), "{summary:?}");
        assert_eq!(summary.accepted, 100);

        // What the other host makes of it.
        Gateway {
            name: "b",
            directory: directory.path(),
            uplink: format!("{{ read = {outer:?}, rate = 0 }}"),
            port: format!("{{ write = {back:?} }}"),
            limit,
            state: false,
        }
        .run("2s");
        let received = read_capture(&back);
        assert_eq!(received.len(), 100);
        for (sent, received) in sent.iter().zip(&received) {
            assert_eq!(sent[14..], received[14..]);
        }
    }
}

#[test]
fn numbers_go_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let inner = path("inner.pcap");
    write_capture(&inner, &frames(100));
    let run = |name: &str| {
        let outer = path(name);
        Gateway {
            name: "a",
            directory: directory.path(),
            uplink: format!("{{ write = {outer:?} }}"),
            port: format!("{{ read = {inner:?}, rate = 0 }}"),
            limit: 512,
            state: true,
        }
        .run("2s");
        sequences(&outer)
    };
    assert_eq!(run("first.pcap"), (1..=100).collect::<Vec<u32>>());
    // Stopped in order: no number is skipped, none is used again.
    assert_eq!(run("second.pcap"), (101..=200).collect::<Vec<u32>>());

    // Killed: numbers that were leased are skipped.
    let gateway = Gateway {
        name: "a",
        directory: directory.path(),
        uplink: format!("{{ write = {:?} }}", path("third.pcap")),
        port: format!("{{ read = {inner:?}, rate = 0 }}"),
        limit: 512,
        state: true,
    };
    let file = gateway.write();
    let mut child = vesperd()
        .arg("--config")
        .arg(file)
        .arg("--quiet")
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::metadata(path("third.pcap")).map_or(0, |file| file.len()) < 10_000 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let third = read_until_cut(&path("third.pcap"));
    assert_eq!(third[..10], (201..=210).collect::<Vec<u32>>());
    let fourth = run("fourth.pcap");
    assert_eq!(fourth.len(), 100);
    assert!(fourth[0] > 300, "{fourth:?}");

    // The memory of the store is gone: nothing is sent with this key any more.
    fs::remove_file(path("state").join("store.redb")).unwrap();
    assert_eq!(run("fifth.pcap"), [0_u32; 0]);
}

/// What a killed process has written may end in the middle of a frame.
fn read_until_cut(path: &Path) -> Vec<u32> {
    let mut reader = CaptureReader::open(path).unwrap();
    let mut numbers = Vec::new();
    while let Ok(Some(record)) = reader.next_record() {
        numbers.push(u32::from_be_bytes(record.data[38..42].try_into().unwrap()));
    }
    numbers
}

#[test]
fn a_reload_is_all_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vesperd.toml");
    fs::write(&file, DEFAULT).unwrap();
    let child = vesperd()
        .arg("--config")
        .arg(&file)
        .arg("--quiet")
        .spawn()
        .unwrap();
    let hang_up = || {
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        thread::sleep(Duration::from_secs(1));
    };
    thread::sleep(Duration::from_secs(2));
    hang_up();
    fs::write(
        &file,
        DEFAULT.replacen("ipsec_offload_limit = 0", "ipsec_offload_limit = 9", 1),
    )
    .unwrap();
    hang_up();
    fs::write(
        &file,
        DEFAULT.replacen("buffers = 4096", "buffers = 8192", 1),
    )
    .unwrap();
    hang_up();
    fs::write(&file, format!("{DEFAULT}\nrubbish")).unwrap();
    hang_up();
    let output = end(child, rustix::process::Signal::TERM);
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let said: Vec<&str> = text
        .lines()
        .filter_map(|line| line.split_once("vesperd::running: "))
        .map(|(_, said)| said)
        .collect();
    assert_eq!(said[0], "reloaded: nothing has changed", "{text}");
    assert_eq!(said[1], "reloaded:", "{text}");
    assert!(text.contains("\n~ vm a/software"), "{text}");
    assert!(
        said[2].contains("nothing has changed") && said[2].contains("buffers"),
        "{text}"
    );
    assert!(said[3].contains("nothing has changed"), "{text}");
}

/// A terminal that is closed, or a disk that is full of logs, is no reason to leave the machines
/// without encryption.
#[test]
fn packets_pass_whoever_reads_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vesperd.toml");
    let state = directory.path().join("state");
    let stateful = DEFAULT.replacen("[daemon]", &format!("[daemon]\nstate = {state:?}"), 1);
    fs::write(&file, stateful).unwrap();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = vesperd();
    command.args(["--for", "2s", "--config"]).arg(&file);

    // Nobody reads the table any more.
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let closed = child.wait_with_output().unwrap();
    assert!(closed.status.success(), "{}", text(&closed));
    let errors = text(&closed);
    assert_eq!(
        errors.matches("nothing more is shown").count(),
        1,
        "{errors}"
    );

    // The log has no room; a reload has something to say as well.
    let mut child = command.stderr(full().unwrap()).spawn().unwrap();
    thread::sleep(Duration::from_secs(1));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    assert!(child.wait().unwrap().success());

    // The summary has no room: that is told, and nothing panics.
    let output = vesperd()
        .args(["--for", "1s"])
        .stdout(full().unwrap())
        .output()
        .unwrap();
    let errors = text(&output);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("vesperd: standard output: No space left"),
        "{errors}"
    );
}

#[test]
fn logs_are_json_on_request_to_the_last_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vesperd.toml");
    let text = DEFAULT.replacen("log_format = \"text\"", "log_format = \"json\"", 1);
    fs::write(&file, &text).unwrap();
    let child = vesperd()
        .arg("--config")
        .arg(&file)
        .arg("--quiet")
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_secs(1));
    fs::write(&file, text + "rubbish").unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    thread::sleep(Duration::from_secs(1));
    let output = end(child, rustix::process::Signal::TERM);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("not reloaded, nothing has changed"),
        "{errors}"
    );
    for line in errors.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "{line}");
    }
}

fn end(child: Child, signal: rustix::process::Signal) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, signal).unwrap();
    child.wait_with_output().unwrap()
}
