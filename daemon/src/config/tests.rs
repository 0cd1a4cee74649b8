use super::*;
use std::time::Duration;

/// The embedded configuration with a line changed.
fn with(old: &str, new: &str) -> Result<Config, String> {
    assert!(DEFAULT.contains(old), "{old}");
    Config::parse(&DEFAULT.replacen(old, new, 1), "x.toml").map_err(|error| error.to_string())
}

fn line_of(part: &str) -> usize {
    1 + DEFAULT[..DEFAULT.find(part).unwrap()].matches('\n').count()
}

#[test]
fn the_embedded_configuration_is_two_hosts_back_to_back() {
    let config = Config::embedded();
    assert_eq!(config.hosts.len(), 2);
    assert_eq!(config.pairs.len(), 3);
    for host in &config.hosts {
        let limits: Vec<u32> = host.vms.iter().map(|vm| vm.ipsec_offload_limit).collect();
        assert_eq!(limits, [512, 512, 0]);
        let weights: Vec<u16> = host.vms.iter().map(|vm| *vm.iov_weight).collect();
        assert_eq!(weights, [0, 100, 0]);
        assert!(host.vms.iter().all(|vm| vm.require_protection));
        assert_eq!(host.switch.age.0, Duration::from_secs(300));
    }
    // What it says about defaults is true: without those lines it is the same.
    let mut shorter = String::new();
    for line in DEFAULT.lines() {
        let is_default = [
            "processors = 1",
            "workers = 1",
            "buffers = 4096",
            "frame = 1600",
            "adapter = \"full\"",
            "switch = ",
            "vmq_weight = 100",
            "suite = ",
            "esn = ",
            "replay_window = ",
            "log_format = ",
        ];
        if !is_default.iter().any(|start| line.starts_with(start)) {
            shorter.push_str(line);
            shorter.push('\n');
        }
    }
    assert!(shorter.len() + 300 < DEFAULT.len());
    assert_eq!(Config::parse(&shorter, "x.toml").unwrap(), config);
}

#[test]
fn errors_name_file_line_and_the_way_out() {
    let cases = [
        (
            "vmq_weight = 100",
            "vmq_wieght = 100",
            "unknown field `vmq_wieght`",
            "did you mean `vmq_weight`?",
        ),
        (
            "vmq_weight = 100",
            "vmq_weight = 101",
            "vmq_weight is 101",
            "use 0 to 100",
        ),
        (
            "iov_weight = 100",
            "iov_weight = 100\niov_queue_pairs = 1000",
            "iov_queue_pairs is 1000",
            "ask for 1 to 128",
        ),
        (
            "adapter = \"full\"",
            "adapter = \"ful\"",
            "adapter `ful` does not exist",
            "did you mean `full`?",
        ),
        (
            "mac = \"02:00:00:00:0a:01\"",
            "mac = \"01:00:00:00:0a:01\"",
            "`01:00:00:00:0a:01` is not the Ethernet address of a station",
            "the first byte even",
        ),
        (
            "mac = \"02:00:00:00:0a:02\"",
            "mac = \"02:00:00:00:0a:01\"",
            "queue has the address 02:00:00:00:0a:01 already",
            "",
        ),
        (
            "name = \"function\"",
            "name = \"queue\"",
            "there is another vm `queue`",
            "give it another name",
        ),
        (
            "suite = \"aes256gcm16\"",
            "suite = \"aes256gmc16\"",
            "suite `aes256gmc16` does not exist",
            "did you mean `aes256gcm16`?",
        ),
        (
            "vms = [\"a/queue\", \"b/queue\"]",
            "vms = [\"a/queue\", \"b/queu\"]",
            "vm `b/queu` does not exist",
            "did you mean `b/queue`?",
        ),
        (
            "replay_window = 1024",
            "replay_window = 31",
            "replay_window is 31",
            "use 32 to 65536",
        ),
        (
            "uplink = { cable = { name = \"wire\" } }",
            "uplink = { cabel = { name = \"wire\" } }",
            "unknown variant `cabel`",
            "did you mean `cable`?",
        ),
        (
            "uplink = { cable = { name = \"wire\" } }",
            "uplink = { cable = { name = \"wier\" } }",
            "cable `wier` has one end only",
            "did you mean `wire`?",
        ),
        (
            "workers = 1",
            "workers = 3",
            "3 workers for 1 processor",
            "use at most 2",
        ),
        (
            "frame = 1600",
            "frame = 100",
            "frame is 100 bytes",
            "use 1522 to 65600",
        ),
        ("log = \"info\"", "log = 7", "invalid type: integer `7`", ""),
        ("log = \"info\"", "log = \"info", "invalid basic string", ""),
    ];
    for (old, new, message, way_out) in cases {
        let error = with(old, new).unwrap_err();
        let first = error.lines().next().unwrap();
        assert!(error.contains(message), "{error}");
        assert!(error.contains(way_out), "{error}");
        // At the value, or at the name of what it belongs to.
        let line = line_of(old);
        let at: usize = first.split(':').nth(1).unwrap().parse().unwrap();
        assert!(first.starts_with("x.toml:"), "{first}");
        assert!(
            (line - 2..=line).contains(&at),
            "{first}, expected line {line}"
        );
    }
}

#[test]
fn every_problem_is_said_at_once() {
    let text = DEFAULT
        .replace("frame = 1600", "frame = 100")
        .replace("replay_window = 1024", "replay_window = 1");
    let error = Config::parse(&text, "x.toml").unwrap_err().to_string();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn a_difference_names_what_changes() {
    let old = Config::embedded();
    assert!(Diff::between(&old, &old).is_empty());
    let text = DEFAULT
        .replacen("ipsec_offload_limit = 0", "ipsec_offload_limit = 7", 1)
        .replace("log = \"info\"", "log = \"debug\"")
        .replacen("buffers = 4096", "buffers = 8192", 1);
    let new = Config::parse(&text, "x.toml").unwrap();
    let diff = Diff::between(&old, &new);
    assert_eq!(
        diff.to_string(),
        "~ daemon: log\n~ host a: buffers\n~ vm a/software: ipsec_offload_limit"
    );
    let restart: Vec<bool> = diff.changes.iter().map(Change::needs_restart).collect();
    assert_eq!(restart, [true, true, false]);

    let mut fewer = old.clone();
    let gone = fewer.hosts[1].vms.pop().unwrap();
    fewer.pairs.pop();
    assert_eq!(
        Diff::between(&old, &fewer).to_string(),
        format!("- vm b/{}\n~ pair", gone.name)
    );
    assert_eq!(
        Diff::between(&fewer, &old).to_string(),
        format!("+ vm b/{}\n~ pair", gone.name)
    );
}

#[test]
fn comments_and_blank_lines_do_not_matter() {
    let moved = format!("# nothing\n\n{DEFAULT}");
    let config = Config::parse(&moved, "x.toml").unwrap();
    assert!(Diff::between(&Config::embedded(), &config).is_empty());
}

#[test]
fn secrets_are_not_shown() {
    let key = "000102030405060708090a0b0c0d0e0f10111213";
    let text = DEFAULT.replacen(
        "vmq_weight = 100",
        &format!("sa = [\"src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 aead 'rfc4106(gcm(aes))' 0x{key} 128\"]"),
        1,
    );
    let config = Config::parse(&text, "x.toml").unwrap();
    assert!(config.hosts[0].vms[0].sa[0].expose().contains(key));
    assert!(!format!("{config:?}").contains(key));
}

#[test]
fn files_of_secrets_are_the_owners_alone() {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    let line = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 reqid 1 mode tunnel aead \
                rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128 dir out";
    fs::write(file.path(), line).unwrap();
    let text = DEFAULT.replacen(
        "vmq_weight = 100",
        &format!("sa_file = {:?}", file.path()),
        1,
    );
    for (mode, is_good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
        fs::set_permissions(file.path(), Permissions::from_mode(mode)).unwrap();
        let outcome = Config::parse(&text, "x.toml");
        assert_eq!(outcome.is_ok(), is_good, "{mode:o}");
        match outcome {
            Ok(config) => {
                let host = &config.hosts[0];
                let states = host.vms[0].states(host).unwrap();
                assert_eq!(states[0].vm.as_deref(), Some("queue"));
            }
            Err(error) => assert!(error.to_string().contains("chmod 0600"), "{error}"),
        }
    }
}

/// A reload that waits for somebody to write into a pipe would wait for good.
#[test]
fn only_regular_files_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for path in [&pipe, std::path::Path::new("/dev/zero")] {
        let error = Config::read(path).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
    let error = Config::read(directory.path()).unwrap_err().to_string();
    assert!(error.contains("is a directory"), "{error}");
    let text = DEFAULT.replacen("vmq_weight = 100", &format!("sa_file = {pipe:?}"), 1);
    let error = Config::parse(&text, "x.toml").unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn lengths_of_time_have_units() {
    for (text, expected) in [
        ("10s", Some(Duration::from_secs(10))),
        ("10", Some(Duration::from_secs(10))),
        ("500ms", Some(Duration::from_millis(500))),
        ("2m", Some(Duration::from_secs(120))),
        ("1h", Some(Duration::from_secs(3600))),
        ("1d", None),
        ("s", None),
        ("", None),
        ("-1s", None),
        ("99999999999999999999s", None),
        ("18446744073709551615h", None),
    ] {
        assert_eq!(
            Period::parse(text).map(|period| period.0),
            expected,
            "{text}"
        );
    }
}
