//! vesperd as a process, with its control socket, for tests under load.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::json;
use vesper_daemon::control::client::Client;
use vesper_daemon::control::types;

/// How long anything may take that is waited for.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the long forms of the tests are asked for.
pub fn is_long() -> bool {
    std::env::var_os("VESPER_LONG").is_some()
}

/// A running vesperd. What it says on its error output is read all the time.
pub struct Daemon {
    child: Child,
    errors: Option<JoinHandle<String>>,
    socket: PathBuf,
}

impl Daemon {
    /// Starts one with a configuration that has its control socket in this directory, and waits
    /// until it answers.
    pub fn start(directory: &Path, configuration: &str) -> Self {
        let socket = directory.join("control.sock");
        let file = directory.join("vesperd.toml");
        fs::write(&file, configuration).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_vesperd"))
            .args(["--quiet", "--config"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = child.stderr.take().unwrap();
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = errors.read_to_string(&mut text);
            text
        });
        let mut daemon = Self {
            child,
            errors: Some(errors),
            socket,
        };
        let deadline = Instant::now() + PATIENCE;
        while daemon.client().ask(Method::GET, "/v1/vms", &[]).is_err() {
            let ended = daemon.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                panic!("{}", daemon.end().1);
            }
            thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    pub fn client(&self) -> Client {
        Client::new(&self.socket).unwrap()
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Counters that do not change any more.
    pub fn settled(&self) -> types::Stats {
        let client = self.client();
        let sum = |stats: &types::Stats| -> Vec<u64> {
            let vms = stats.hosts.iter().flat_map(|host| &host.vms);
            vms.flat_map(|vm| [vm.tx_packets, vm.rx_packets]).collect()
        };
        let mut before = Vec::new();
        loop {
            let stats: types::Stats = client.get("/v1/stats").unwrap();
            let now = sum(&stats);
            if now == before {
                return stats;
            }
            before = now;
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Kilobytes of memory in use, and open descriptors.
    pub fn size(&self) -> (u64, usize) {
        let process = format!("/proc/{}", self.child.id());
        let status = fs::read_to_string(format!("{process}/status")).unwrap();
        let rss = (status.lines()).find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.unwrap().split_whitespace().next().unwrap();
        let descriptors = fs::read_dir(format!("{process}/fd")).unwrap().count();
        (rss.parse().unwrap(), descriptors)
    }

    /// Stops it in order: whether every packet is accounted for, and all that it has said.
    pub fn stop(mut self) -> (bool, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.end()
    }

    fn end(&mut self) -> (bool, String) {
        let mut out = String::new();
        let mut stdout = self.child.stdout.take().unwrap();
        stdout.read_to_string(&mut out).unwrap();
        let status = self.child.wait().unwrap();
        let errors = self.errors.take().unwrap().join().unwrap();
        (status.success(), out + &errors)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Adds an association; its number.
pub fn add(client: &Client, words: &str) -> u64 {
    let body = json!({ "words": words }).to_string();
    let added: types::Added = client
        .send_for(Method::POST, "/v1/sas", body.as_bytes())
        .unwrap_or_else(|error| panic!("{words}: {error}"));
    added.ids[0]
}

/// Deletes an association.
pub fn delete(client: &Client, id: u64) {
    client
        .ask(Method::DELETE, &format!("/v1/sas/{id}"), &[])
        .unwrap();
}

/// Waits until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_micros(200));
    }
}

/// `[daemon]` with state and control socket in a directory.
pub fn head(directory: &Path) -> String {
    let state = directory.join("state");
    let socket = directory.join("control.sock");
    format!("[daemon]\nstate = {state:?}\ncontrol = {socket:?}\n")
}

/// The host with this number, 1 or 2, and an uplink.
pub fn host(number: u8, uplink: &str, more: &str) -> String {
    let peer = 3 - number;
    format!(
        "[[host]]\nname = \"{}\"\nuplink = {uplink}\ntunnel = {{ address = \"192.0.2.{number}\", \
         mac = \"02:00:00:00:00:{number:02x}\", gateway_mac = \"02:00:00:00:00:{peer:02x}\" }}\n\
         {more}\n",
        name(number)
    )
}

/// What a host with this number is called.
pub const fn name(number: u8) -> &'static str {
    if number == 1 { "a" } else { "b" }
}

/// A machine of a host, everything of which goes through tunnels with `reqid` 7.
pub fn machine(number: u8, vm: u8, port: &str, more: &str) -> String {
    let peer = 3 - number;
    let policy = |direction, from, to| {
        format!(
            "\"dir {direction} tmpl src 192.0.2.{from} dst 192.0.2.{to} proto esp reqid {} mode \
             tunnel\"",
            reqid(vm)
        )
    };
    format!(
        "[[host.vm]]\nname = \"vm{vm}\"\nmac = \"02:00:00:00:{number:02x}:{vm:02x}\"\n\
         port = {port}\npolicy = [{}, {}]\n{more}\n",
        policy("out", number, peer),
        policy("in", peer, number)
    )
    .replace("02:00:00:00:01:", "02:00:00:01:01:")
    .replace("02:00:00:00:02:", "02:00:00:01:02:")
}

/// A generator of packets of 100 bytes towards the same machine of the other host.
pub fn generator(number: u8, vm: u8, rate: u32) -> String {
    let peer = 3 - number;
    format!(
        "{{ generator = {{ source = \"10.{vm}.{number}.1\", destination = \"10.{vm}.{peer}.1\", \
         sizes = {{ fixed = 100 }}, rate = {rate} }} }}"
    )
}

/// What the policies of a machine refer to.
pub const fn reqid(vm: u8) -> u32 {
    6 + vm as u32
}

/// An association of a machine from a host to the other one, as that host (`out`) or the other
/// one (`in`) needs it.
pub fn sa(from: u8, vm: u8, direction: &str, spi: u32, more: &str) -> String {
    let to = 3 - from;
    let owner = if direction == "out" { from } else { to };
    let mut key = String::new();
    write!(key, "0x{from:02x}{vm:02x}{spi:08x}").unwrap();
    key.push_str(&"5a".repeat(30));
    format!(
        "host {} vm vm{vm} src 192.0.2.{from} dst 192.0.2.{to} proto esp spi {spi:#x} reqid {} \
         mode tunnel replay-window 1024 aead 'rfc4106(gcm(aes))' {key} 128 dir {direction} {more}",
        name(owner),
        reqid(vm)
    )
}

/// The uplink of two hosts that are joined by a cable.
pub const CABLE: &str = "{ cable = { name = \"wire\" } }";

/// Two hosts joined by a cable, each with machines up to this number, which talk to those of the
/// same number on the other host at a rate, through associations with the SPIs 0x1001 and on.
/// `more` says what else there is to each machine.
pub fn cabled(directory: &Path, vms: u8, rate: u32, more: impl Fn(u8) -> String) -> String {
    let mut hosts = String::new();
    for number in [1, 2] {
        let mut machines = String::new();
        for vm in 1..=vms {
            let path = directory.join(format!("{number}-{vm}.sa"));
            let spi = 0x1000 + u32::from(vm);
            let (out, inward) = (
                sa(number, vm, "out", spi, ""),
                sa(3 - number, vm, "in", spi, ""),
            );
            secret_file(&path, &format!("{out}\n{inward}\n"));
            let more = format!("{}\nsa_file = {path:?}", more(vm));
            machines += &machine(number, vm, &generator(number, vm, rate), &more);
        }
        hosts += &host(number, CABLE, &machines);
    }
    hosts
}

/// Writes a file of associations, closed to others.
pub fn secret_file(path: &Path, text: &str) {
    // The mode before the keys.
    fs::write(path, "").unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, text).unwrap();
}

/// Everything that a process has said.
pub fn text(output: &Output) -> String {
    String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap()
}
