//! A running vesperd as an operator sees it: metrics, status page, and what it has taken away
//! from itself.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A daemon that ends with the test.
struct Daemon {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Daemon {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vesperd"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// The address of the status page, as it is told at the start.
    fn address(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "no address");
            if let Some((_, address)) = line.split_once("status page: http://") {
                return address.trim().trim_end_matches('/').to_owned();
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks over HTTP: the status line and the rest.
fn ask(address: &str, request: &str, host: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (status, rest) = answer.split_once("\r\n").unwrap();
    (status.to_owned(), rest.to_owned())
}

#[test]
fn metrics_and_page_are_read_and_nothing_else() {
    let mut daemon = Daemon::start(&["--for", "60s"]);
    let address = daemon.address();
    let (status, metrics) = ask(&address, "GET /metrics", &address);
    assert!(status.ends_with("200 OK"), "{status}");
    assert!(metrics.contains("application/openmetrics-text"));
    let sealed = r#"vesper_esp_packets_total{dir="out",host="a",vm="function"} "#;
    assert!(metrics.lines().any(|line| line.starts_with(sealed)));
    assert!(metrics.contains("# EOF"));
    let (_, json) = ask(&address, "GET /status.json", &address);
    let (_, body) = json.split_once("\r\n\r\n").unwrap();
    let status: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(status["stats"]["hosts"][1]["vms"][2]["name"], "software");
    let (_, page) = ask(&address, "GET /", &address);
    assert!(page.contains("default-src 'none'") && page.contains("<title>vesperd</title>"));
    // Nothing is changed here, and no page of the web can read it.
    assert!(ask(&address, "POST /metrics", &address).0.contains("405"));
    assert!(
        ask(&address, "GET /metrics", "evil.example")
            .0
            .contains("403")
    );
}

#[test]
fn a_daemon_with_keys_is_confined() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("vesper.toml");
    let state = directory.path().join("state");
    let text = format!(
        "[daemon]\nstate = {:?}\nstatus = \"127.0.0.1:0\"\n",
        state.display()
    );
    let default = vesper_daemon::config::DEFAULT;
    let (_, hosts) = default.split_once("[[host]]").unwrap();
    fs::write(&config, format!("{text}\n[[host]]{hosts}")).unwrap();
    let mut daemon = Daemon::start(&["--config", config.to_str().unwrap(), "--for", "60s"]);
    let address = daemon.address();
    let process = Path::new("/proc").join(daemon.child.id().to_string());
    let status = fs::read_to_string(process.join("status")).unwrap();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim()
    };
    assert_eq!((value("NoNewPrivs"), value("Seccomp")), ("1", "2"));
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_SYS_NICE.
    let needed = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 23;
    let capabilities = u64::from_str_radix(value("CapPrm"), 16).unwrap();
    assert_eq!(capabilities & !needed, 0, "{capabilities:x}");
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core"));
    let zeros = core.unwrap().split_whitespace().filter(|word| *word == "0");
    assert_eq!(zeros.count(), 2);
    // It works nevertheless.
    assert!(
        ask(&address, "GET /metrics", &address)
            .0
            .ends_with("200 OK")
    );
    assert!(state.join("store.redb").exists() && state.join("key").exists());
}
