//! The command `vesper` as its users see it: what it prints, and its exit status.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Served, inbound, key, outbound};

struct Run {
    status: i32,
    out: String,
    error: String,
}

fn command(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vesper"));
    command.arg("--socket").arg(socket).args(arguments);
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn finished(output: Output) -> Run {
    Run {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        error: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Run {
    fn of(served: &Served, line: &str) -> Self {
        let arguments: Vec<_> = line.split_whitespace().collect();
        finished(command(&served.socket(), &arguments).output().unwrap())
    }

    /// What is printed by a command that has to succeed, with times left out.
    fn good(served: &Served, line: &str) -> String {
        let run = Self::of(served, line);
        assert_eq!((run.status, run.error.as_str()), (0, ""), "{line}");
        let is_time = |word: &str| {
            let digits = word.trim_end_matches('s');
            digits.len() < word.len() && digits.parse::<u64>().is_ok()
        };
        let line = |line: &str| {
            line.split(' ')
                .map(|word| if is_time(word) { "TIME" } else { word })
                .collect::<Vec<_>>()
                .join(" ")
        };
        run.out.lines().map(|text| line(text) + "\n").collect()
    }
}

#[test]
fn associations_in_the_words_of_ip() {
    let served = Served::new();
    assert_eq!(
        Run::good(&served, &format!("sa add {}", outbound(0x1000))),
        ""
    );
    let limited = format!("sa add {} limit packet-hard 9", inbound(0x2000));
    assert_eq!(Run::good(&served, &limited), "");
    assert_eq!(
        Run::good(&served, "sa list"),
        "a/web1: reqid 7, TUNNEL, ESP:aes256gcm16\n\
         \x20 #1 out 00001000 192.0.2.1 === 192.0.2.2, INSTALLED, packet, 0 bytes, 0 packets, TIME ago\n\
         \x20 #2 in  00002000 192.0.2.2 === 192.0.2.1, INSTALLED, packet, 0 bytes, 0 packets, TIME ago\n"
    );
    assert_eq!(
        Run::good(&served, "sa list --xfrm vm web1 dir in"),
        "src 192.0.2.2 dst 192.0.2.1\n\
         \tproto esp spi 0x00002000(8192) reqid 7(0x00000007) mode tunnel\n\
         \treplay-window 64\n\
         \taead rfc4106(gcm(aes)) <<Keys hidden>> 128\n\
         \tlimit packet-hard 9\n\
         \tdir in\n\
         \thost a vm web1 state INSTALLED\n\
         \tlifetime current:\n\
         \t  0(bytes), 0(packets)\n\
         \t  add TIME ago\n\
         \tstats:\n\
         \t  replay-window 0 replay 0 failed 0\n"
    );
    let shown = Run::good(&served, "sa show 1 --show-keys");
    assert!(shown.contains(&key("0a", 0x1000)), "{shown}");
    for silent in ["sa show 1", "sa list", "sa list --json", "sa list --xfrm"] {
        let shown = Run::of(&served, silent).out;
        assert!(!shown.contains("5a5a5a"), "{silent}: {shown}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&Run::of(&served, "sa list --json spi 0x1000").out).unwrap();
    assert_eq!(json["sas"][0]["spi"], "0x00001000");
    assert_eq!(Run::good(&served, "sa del spi 0x1000 dir out"), "");
    assert_eq!(Run::good(&served, "sa flush vm web1"), "1 deleted\n");
    assert_eq!(Run::good(&served, "sa list"), "");
}

#[test]
fn files_are_imported_from_standard_input() {
    let served = Served::new();
    let mut child = command(&served.socket(), &["sa", "import", "--vm", "web1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = [outbound(0x1000), inbound(0x2000)]
        .map(|words| format!("ip xfrm state add {}\n", words.replace("vm web1 ", "")))
        .concat();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let run = finished(child.wait_with_output().unwrap());
    assert_eq!(
        (run.status, run.out.as_str()),
        (0, "2 added\n"),
        "{}",
        run.error
    );
}

#[test]
fn policies_machines_and_counters() {
    let served = Served::new();
    let policy = "vm web1 src 10.0.0.0/24 dst 10.1.0.0/24 dir out tmpl src 192.0.2.1 dst \
                  192.0.2.2 proto esp reqid 7 mode tunnel";
    assert_eq!(Run::good(&served, &format!("policy add {policy}")), "");
    let listed = Run::good(&served, "policy list");
    assert_eq!(
        listed,
        "INDEX  VM      DIR  PRIORITY  ACTION   PACKETS                          TEMPLATE\n\
         \x20   1  a/web1  out         0  protect  src 10.0.0.0/24 dst 10.1.0.0/24  src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel\n"
    );
    assert_eq!(
        Run::good(&served, "policy list --xfrm"),
        "src 10.0.0.0/24 dst 10.1.0.0/24\n\
         \tdir out priority 0 index 1\n\
         \thost a vm web1\n\
         \ttmpl src 192.0.2.1 dst 192.0.2.2\n\
         \t\tproto esp reqid 7 mode tunnel\n"
    );
    assert_eq!(
        Run::good(
            &served,
            "policy del src 10.0.0.0/24 dst 10.1.0.0/24 dir out"
        ),
        "1 deleted\n"
    );

    assert_eq!(
        Run::good(&served, "vm list"),
        "VM      MAC                VLAN  PLACE          CPU    SAS  OFFLOADED  PROTECTION\n\
         a/web1  02:00:00:01:00:01  -     queue 1          0  0/512      0/512  required\n\
         a/web2  02:00:00:01:00:02  -     default queue    1  0/512      0/512  required\n\
         b/db1   02:00:00:01:00:03  -     queue 1          0  0/512      0/512  required\n"
    );
    Run::good(&served, "vm set web1 --sa-limit 3");
    assert!(Run::good(&served, "vm show web1").contains("SAs                     0/3\n"));

    let xfrm = Run::good(&served, "stat --xfrm");
    // The layout of the file, to the byte.
    let names: Vec<_> = xfrm
        .lines()
        .map(|line| line.split('\t').next().unwrap())
        .collect();
    assert!(names.iter().all(|name| name.len() == 24), "{xfrm}");
    if let Ok(file) = std::fs::read_to_string("/proc/net/xfrm_stat") {
        let of_kernel = file.lines().map(|line| line.split('\t').next().unwrap());
        for (ours, theirs) in names.iter().zip(of_kernel) {
            assert_eq!(*ours, theirs);
        }
    }
    let counters = Run::good(&served, "port stat web1");
    assert!(
        counters.starts_with("NIC statistics:\n     rx_packets: 500\n"),
        "{counters}"
    );
    for (port, expected) in [
        ("nope", "port nope: not found; there are a/uplink, a/web1"),
        ("a/nope", "port a/nope: not found; GET /v1/ports"),
        ("nope/web1", "port nope/web1: not found; GET /v1/ports"),
    ] {
        let run = Run::of(&served, &format!("port stat {port}"));
        assert_eq!(run.status, 4, "{}", run.error);
        assert!(run.error.contains(expected), "{}", run.error);
    }
    let stat = Run::good(&served, "stat");
    assert!(
        stat.contains("CPU 0: 25 % busy: a: host, adapter\n"),
        "{stat}"
    );
    assert!(Run::good(&served, "port list").contains("a/web1    up    1500         500    50,000"));
    assert!(Run::good(&served, "adapter list").contains("a: full, 2 processors, 0 of 65536 SAs"));
    let why = Run::good(&served, &format!("adapter why-not {}", outbound(0x1000)));
    assert_eq!(why, "packet: yes\ncrypto: yes\n");
    assert!(Run::good(&served, "switch list").starts_with("a: no NIC switch"));
    assert!(Run::good(&served, "reload --check").starts_with("+ sa a/web1 "));
    Run::good(&served, "reload");
    assert_eq!(Run::good(&served, "reload"), "nothing has changed\n");
}

#[test]
fn the_exit_status_says_what_kind_of_failure_it_was() {
    let served = Served::new();
    for (line, status, error) in [
        ("sa del spi 0x9999", 4, "vesper: spi 0x00009999: not found"),
        ("sa show 77", 4, "vesper: sa 77: not found"),
        ("vm show nobody", 4, "vesper: vm nobody: not found"),
        ("sa add vm web1 mark 7", 2, "vesper: mark: firewall marks"),
        ("sa list spi", 2, "vesper: spi: give its value"),
        (
            "sa list colour red",
            2,
            "vesper: colour red: not a word that names",
        ),
        ("nonsense", 2, "error: unrecognized subcommand"),
        ("switch create 4 --host a", 1, "vesper: switch a: "),
        ("top", 2, "vesper: top needs a terminal"),
    ] {
        let run = Run::of(&served, line);
        assert_eq!(run.status, status, "{line}: {}", run.error);
        assert!(run.error.starts_with(error), "{line}: {}", run.error);
        assert_eq!(run.out, "", "{line}");
    }
    Run::good(&served, &format!("sa add {}", outbound(0x1000)));
    let twice = Run::of(&served, &format!("sa add {}", outbound(0x1000)));
    assert_eq!(twice.status, 1);
    assert!(
        twice.error.contains("spi 0x00001000: in use"),
        "{}",
        twice.error
    );
    let nobody = finished(
        command(Path::new("/nonexistent/control.sock"), &["sa", "list"])
            .output()
            .unwrap(),
    );
    assert_eq!(nobody.status, 3);
    assert!(
        nobody.error.contains("vesperd is not reachable"),
        "{}",
        nobody.error
    );
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let served = Served::new();
    let fine = Run::of(&served, "doctor");
    assert_eq!(fine.status, 0, "{}", fine.out);
    assert!(fine.out.contains("cpu: AES-GCM runs on"), "{}", fine.out);
    let unprotected = inbound(0x2000).replace("replay-window 64 ", "");
    Run::good(&served, &format!("sa add {unprotected}"));
    Run::good(&served, "policy add vm web1 dst 10.9.9.9 dir out");
    Run::good(&served, "vm set web1 --sa-limit 1");
    let ill = Run::of(&served, "doctor");
    assert_eq!(ill.status, 1);
    for expected in [
        "problem  sa 0x00002000 to 192.0.2.1 of a/web1: has no replay protection",
        "warning  vm a/web1: has 1 of 1 SAs",
        "dst 10.9.9.9/32 dir out priority 0: lets packets pass in clear text",
    ] {
        assert!(ill.out.contains(expected), "{expected}:\n{}", ill.out);
    }
}

#[test]
fn whoever_closes_the_pipe_changes_no_status() {
    let served = Served::new();
    Run::good(&served, &format!("sa add {}", outbound(0x1000)));
    let unprotected = inbound(0x2000).replace("replay-window 64 ", "");
    Run::good(&served, &format!("sa add {unprotected}"));
    for (line, status) in [
        ("doctor", 1),
        ("doctor --json", 1),
        ("sa list", 0),
        ("sa list --json", 0),
        ("sa show 1", 0),
        ("stat", 0),
        ("stat --xfrm", 0),
        ("vm list", 0),
        ("man", 0),
        ("completions bash", 0),
        // What it could not tell may have been a failure.
        ("verify --list", 1),
        ("--help", 0),
        ("sa del spi 0x9999", 4),
    ] {
        let arguments: Vec<_> = line.split_whitespace().collect();
        let mut command = command(&served.socket(), &arguments);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        command.stdout(writer);
        let run = finished(command.output().unwrap());
        assert_eq!(run.status, status, "{line}: {}", run.error);
        assert!(!run.error.contains("panicked"), "{line}: {}", run.error);
    }
}

#[test]
fn a_stream_without_end_is_not_imported() {
    let served = Served::new();
    for line in [
        "sa import /dev/zero",
        "sa import --vm web1 /dev/urandom",
        "policy import /dev/zero",
    ] {
        let run = Run::of(&served, line);
        assert_eq!(run.status, 2, "{line}: {}", run.error);
        assert!(run.error.contains("longer than 16 MiB"), "{}", run.error);
    }
    let missing = Run::of(&served, "policy import /nonexistent");
    assert_eq!(missing.status, 1);
    assert!(
        missing.error.contains("/nonexistent: "),
        "{}",
        missing.error
    );
}

#[test]
fn events_are_followed() {
    let served = Served::new();
    let child = command(&served.socket(), &["events", "--count", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    Run::good(&served, &format!("sa add {}", outbound(0x1000)));
    let run = finished(child.wait_with_output().unwrap());
    assert_eq!(run.status, 0, "{}", run.error);
    let (_, text) = run.out.split_once("Z ").unwrap();
    assert_eq!(
        text,
        "a sa-added: outbound SA 0x00001000 to 192.0.2.2 of web1 added\n"
    );
}

#[test]
fn strangers_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    if !nix::unistd::Uid::effective().is_root() {
        println!("skipped: only root can become somebody else");
        return;
    }
    let served = Served::new();
    // The command where everybody may run it.
    let program = served.directory.path().join("vesper");
    std::fs::copy(env!("CARGO_BIN_EXE_vesper"), &program).unwrap();
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(served.directory.path(), 0o755);
    let ask = || {
        let mut command = Command::new(&program);
        command
            .arg("--socket")
            .arg(served.socket())
            .args(["sa", "list"]);
        finished(command.uid(NOBODY).gid(NOBODY).output().unwrap())
    };
    // First the mode of the socket keeps them out, then their credentials.
    let kept_out = ask();
    assert_eq!(kept_out.status, 5, "{}", kept_out.error);
    open(&served.socket(), 0o666);
    let refused = ask();
    assert_eq!(refused.status, 5, "{}", refused.error);
    assert!(
        refused.error.contains("user 65534 may not use this socket"),
        "{}",
        refused.error
    );
    let doctor = Run::of(&served, "doctor");
    assert!(
        doctor.out.contains("everybody may connect"),
        "{}",
        doctor.out
    );
}

#[test]
fn completions_and_manual_pages_come_from_the_definition() {
    let served = Served::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = Run::of(&served, &format!("completions {shell}")).out;
        assert!(
            script.contains("import") && script.contains("why-not"),
            "{shell}"
        );
    }
    let page = Run::of(&served, "man").out;
    assert!(page.contains("Exit status"), "{page}");
    let directory = served.directory.path().join("man");
    Run::good(&served, &format!("man {}", directory.display()));
    let pages = std::fs::read_dir(&directory).unwrap().count();
    assert!(pages > 30, "{pages}");
    assert!(directory.join("vesper-sa-add.1").exists());
    assert!(directory.join("vesperd.8").exists());
    let verify = Run::of(&served, "verify --list");
    assert_eq!(verify.status, 0, "{}", verify.error);
}

/// The package ships what these commands print.
#[test]
fn packaged_pages_and_completions_are_those_of_this_release() {
    let served = Served::new();
    let packaging = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging");
    let made = served.directory.path().join("man");
    Run::good(&served, &format!("man {}", made.display()));
    let mut files: Vec<(String, String)> = std::fs::read_dir(&made)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let text = std::fs::read_to_string(entry.path()).unwrap();
            (format!("man/{name}"), text)
        })
        .collect();
    for (shell, name) in [
        ("bash", "vesper.bash"),
        ("zsh", "_vesper"),
        ("fish", "vesper.fish"),
    ] {
        let script = Run::of(&served, &format!("completions {shell}")).out;
        files.push((format!("completions/{name}"), script));
    }
    let is_blessed = std::env::var_os("VESPER_BLESS").is_some();
    for (name, text) in &files {
        let path = format!("{packaging}/{name}");
        if is_blessed {
            std::fs::write(&path, text).unwrap();
        }
        let packaged = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            packaged == *text,
            "packaging/{name} is of another release; run this test with VESPER_BLESS=1"
        );
    }
    let packaged = std::fs::read_dir(format!("{packaging}/man"))
        .unwrap()
        .count();
    assert_eq!(packaged + 3, files.len(), "pages of commands that are gone");
}
