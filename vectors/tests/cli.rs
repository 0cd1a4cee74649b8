//! The command lines as a user meets them: exit status, output, JSON, files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use vesper_esp::Suite;
use vesper_esp::aead::Implementation;

fn verify(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vesper-verify"))
        .args(arguments)
        .output()
        .unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().expect("no signal")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn capture(name: &str, end: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/captures");
    path.join(format!("{name}{end}")).display().to_string()
}

fn file(directory: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path: PathBuf = directory.path().join(name);
    fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// The packets of a classic little-endian pcap.
fn packets(path: &str) -> Vec<Vec<u8>> {
    let content = fs::read(path).unwrap();
    let mut rest = &content[24..];
    let mut packets = Vec::new();
    while !rest.is_empty() {
        let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        packets.push(rest[16..16 + len].to_vec());
        rest = &rest[16 + len..];
    }
    packets
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

#[test]
fn the_builtin_set_passes() {
    let output = verify(&["--json"]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let report = json(&output);
    assert_eq!(report["failed"], 0);
    assert!(report["passed"].as_u64().unwrap() > 7000);
    let output = verify(&["--impl", "rustcrypto"]);
    assert_eq!(status(&output), 0);
    let text = stdout(&output);
    assert!(text.contains("wycheproof/aes_gcm_test.json.gz"), "{text}");
    assert!(
        !text.contains("skipped 1"),
        "rustcrypto has everything: {text}"
    );
    assert!(!text.contains('\u{1b}'), "no colours into a pipe");
}

#[test]
fn every_capture_gives_the_expected_packets() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out.pcap").display().to_string();
    let mut cases = 0;
    for entry in fs::read_dir(Path::new(&capture("", ""))).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(name) = name.strip_suffix(".expect.json") else {
            continue;
        };
        let expected: Value =
            serde_json::from_slice(&fs::read(capture(name, ".expect.json")).unwrap()).unwrap();
        let (sa, pcap) = (capture(name, ".sa"), capture(name, ".pcap"));
        let output = verify(&["pcap", "--sa", &sa, "--write", &out, "--json", &pcap]);
        let report = json(&output);
        let inner: Vec<Vec<u8>> = expected["inner"]
            .as_array()
            .unwrap()
            .iter()
            .map(|packet| hex(packet.as_str().unwrap()))
            .collect();
        assert_eq!(packets(&out), inner, "{name}");
        assert_eq!(report["accepted"], expected["packets"], "{name}");
        assert_eq!(report["frames"], expected["frames"], "{name}");
        assert_eq!(report["disagreements"], 0, "{name}");
        let dropped = report["dropped"].as_object().unwrap();
        let drops: u64 = dropped.values().map(|count| count.as_u64().unwrap()).sum();
        let (not_esp, kind) = match name {
            "non-esp-mixed-in-gcm256-v4" => (Some(9), ""),
            "unknown-spi-mixed-in" => (Some(0), "no_sa"),
            "dummy-packets-gcm128-tunnel-v4" => (Some(0), "dummy"),
            _ => (None, ""),
        };
        if let Some(not_esp) = not_esp {
            assert_eq!(report["not_esp"], not_esp, "{name}");
        }
        assert_eq!(
            drops,
            if kind.is_empty() {
                0
            } else {
                dropped[kind].as_u64().unwrap()
            }
        );
        assert_eq!(
            report["packets"].as_u64().unwrap(),
            report["accepted"].as_u64().unwrap() + drops,
            "{name}"
        );
        assert_eq!(status(&output), i32::from(kind == "no_sa"), "{name}");
        cases += 1;
    }
    assert_eq!(cases, 44);
}

#[test]
fn the_counts_are_always_there() {
    let (sa, pcap) = (
        capture("gcm128-tunnel-v4", ".sa"),
        capture("gcm128-tunnel-v4", ".pcap"),
    );
    let report = json(&verify(&["pcap", "--sa", &sa, "--json", &pcap]));
    for count in [
        "icv",
        "replay",
        "malformed",
        "padding",
        "dummy",
        "selector",
        "no_sa",
    ] {
        assert_eq!(report["dropped"][count], 0, "{count}");
    }
    for key in ["packets", "accepted", "not_esp"] {
        assert!(report[key].is_u64(), "{key}");
    }
    let sa = &report["sas"][0];
    assert_eq!(sa["suite"], "aes128gcm16");
    let suite = Suite::by_name("aes128gcm16").unwrap();
    let having = Implementation::available().filter(|known| known.supports(suite));
    let lanes = sa["implementations"].as_array().unwrap();
    assert_eq!(lanes.len(), having.count());
    assert!(lanes.iter().all(|lane| lane["accepted"] == 16), "{lanes:?}");
}

#[test]
fn people_get_tables_and_every_failure() {
    let (sa, pcap) = (
        capture("unknown-spi-mixed-in", ".sa"),
        capture("unknown-spi-mixed-in", ".pcap"),
    );
    let output = verify(&["pcap", "--sa", &sa, &pcap]);
    assert_eq!(status(&output), 1);
    let text = stdout(&output);
    assert!(
        text.contains("frame 2 SPI 0xe5998bff sequence 1: no_sa: "),
        "{text}"
    );
    assert!(
        text.contains("12 ESP packets: 8 accepted, 4 dropped (4 no_sa)"),
        "{text}"
    );
    assert!(text.contains("rustcrypto"), "{text}");
}

#[test]
fn a_wireshark_table_opens_what_the_kernel_line_opens() {
    let directory = TempDir::new().unwrap();
    let out = directory.path().join("out.pcap").display().to_string();
    for (name, mode) in [
        ("gcm128-tunnel-v4", "tunnel"),
        ("gcm256-transport-v4-natt", "transport"),
        ("esn-wrap-gcm128-tunnel-v4", "esn"),
        ("chapoly-transport-v4", "transport"),
        ("null-sha256-tunnel-v6", "tunnel"),
        ("dummy-packets-gcm128-tunnel-v4", "tunnel"),
    ] {
        let line = fs::read_to_string(capture(name, ".sa")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| {
            let at = words.iter().position(|&other| other == word)?;
            words.get(at + 1..).map(<[&str]>::to_vec)
        };
        let (encryption, key) = match after("aead") {
            Some(words) if words[0].contains("gcm") => {
                ("AES-GCM with 16 octet ICV [RFC4106]", words[1])
            }
            Some(words) => ("ChaCha20 with Poly1305 [RFC7634]", words[1]),
            None => ("NULL", ""),
        };
        let (authentication, auth_key) = match after("auth-trunc") {
            Some(words) => ("HMAC-SHA-256-128 [RFC4868]", words[1]),
            None => ("NULL", ""),
        };
        let protocol = if line.contains("src f") {
            "IPv6"
        } else {
            "IPv4"
        };
        let esn = if mode == "esn" {
            ",\"64-bit\",\"0x7\""
        } else {
            ""
        };
        let destination = after("dst").unwrap()[0];
        let row = format!(
            "# comment\n\"{protocol}\",\"*\",\"{destination}\",\"*\",\"{encryption}\",\"{key}\",\
             \"{authentication}\",\"{auth_key}\"{esn}\n"
        );
        let table = file(&directory, "esp_sa", row);
        let output = verify(&[
            "pcap",
            "--sa",
            &table,
            "--write",
            &out,
            "--json",
            &capture(name, ".pcap"),
        ]);
        let expected: Value =
            serde_json::from_slice(&fs::read(capture(name, ".expect.json")).unwrap()).unwrap();
        assert_eq!(
            status(&output),
            0,
            "{name}: {} {}",
            stderr(&output),
            stdout(&output)
        );
        let inner = expected["inner"].as_array().unwrap();
        let written = packets(&out);
        assert_eq!(written.len(), inner.len(), "{name}");
        for (packet, inner) in written.iter().zip(inner) {
            assert_eq!(*packet, hex(inner.as_str().unwrap()), "{name}");
        }
    }
}

#[test]
fn sealing_and_opening_gives_the_packets_again() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let name = "non-esp-mixed-in-gcm256-v4";
    let line = "ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1234 mode tunnel \
                replay-window 64 aead 'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 128";
    let sa = file(&directory, "sa", line);
    let (sealed, opened) = (path("sealed.pcap"), path("opened.pcap"));
    let output = verify(&[
        "encap",
        "--sa",
        &sa,
        "--json",
        &capture(name, ".pcap"),
        &sealed,
    ]);
    let report = json(&output);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    // Of 15 frames, ARP and LLDP are not IP.
    assert_eq!(report["frames"], 15);
    assert_eq!(report["not_ip"], 2);
    assert_eq!(report["sealed"], 13);
    let output = verify(&["pcap", "--sa", &sa, "--write", &opened, "--json", &sealed]);
    assert_eq!(status(&output), 0);
    assert_eq!(json(&output)["accepted"], 13);
    let opened = packets(&opened);
    assert_eq!(opened.len(), 13);
    let udp = opened.iter().filter(|packet| match packet[0] >> 4 {
        4 => packet[9] == 17,
        _ => packet[6] == 17,
    });
    let udp = udp.count() as u64;

    // A selector takes what it matches, the second line the rest, and `dir in` nothing.
    let lines = format!(
        "{line} dir in\n{} sel proto udp\n{}",
        line.replace("0x1234", "0x2000"),
        line.replace("0x1234", "0x3000")
    );
    let sa = file(&directory, "sa", &lines);
    let report = json(&verify(&[
        "encap",
        "--sa",
        &sa,
        "--json",
        &capture(name, ".pcap"),
        &sealed,
    ]));
    assert_eq!(report["sas"].as_array().unwrap().len(), 2);
    let sealed_by = |index: usize| report["sas"][index]["sealed"].as_u64().unwrap();
    assert!(udp > 0 && udp < 13 && 2 * udp != 13);
    assert_eq!((sealed_by(0), sealed_by(1)), (udp, 13 - udp));
    // Without the second line the rest is not copied.
    let only = lines.rsplit_once('\n').unwrap().0;
    let sa = file(&directory, "sa", only);
    let report = json(&verify(&[
        "encap",
        "--sa",
        &sa,
        "--json",
        &capture(name, ".pcap"),
        &sealed,
    ]));
    assert_eq!(report["sealed"].as_u64().unwrap(), sealed_by(0));
    assert_eq!(report["not_selected"].as_u64().unwrap(), sealed_by(1));
    assert_eq!(packets(&sealed).len() as u64, sealed_by(0));
}

#[test]
fn faults_are_status_2_with_file_line_and_reason() {
    let directory = TempDir::new().unwrap();
    let (sa, pcap) = (
        capture("gcm128-tunnel-v4", ".sa"),
        capture("gcm128-tunnel-v4", ".pcap"),
    );
    let out = directory.path().join("out.pcap").display().to_string();
    let missing = directory.path().join("missing").display().to_string();
    let marked = file(&directory, "marked.sa", "\nip xfrm state add mark 1");
    let twice = format!("{0}{0}", fs::read_to_string(&sa).unwrap());
    let twice = file(&directory, "twice.sa", twice);
    let row = file(
        &directory,
        "row.sa",
        "\"IPv4\",\"*\",\"*\",\"*\",\"NULL\",\"\",\"HMAC-SHA-1-96 [RFC2404]\",\"0123456789abcdefghij\"",
    );
    let binary = file(&directory, "binary.sa", [0xff, 0xfe, 0]);
    let text = file(&directory, "text.pcap", "no capture at all");
    let mut cut = fs::read(&pcap).unwrap();
    cut.truncate(cut.len() - 1);
    let cut = file(&directory, "cut.pcap", cut);
    let mut wifi = fs::read(&pcap).unwrap();
    wifi[20] = 105;
    let wifi = file(&directory, "wifi.pcap", wifi);
    let json_text = file(
        &directory,
        "some.json",
        "{\"algorithm\": \"AES-GCM\",\n\"testGroups\": 7}",
    );
    let unknown = file(&directory, "unknown.json", "{\"a\": 1}");
    let rsp = file(
        &directory,
        "bad.rsp",
        "# GCM\n[Taglen = 128]\nCount = 0\nKey = 0g\n",
    );
    let lone = file(
        &directory,
        "lone.expect.json",
        "{\"packets\": 0, \"frames\": 0, \"inner\": []}",
    );
    let copy = file(&directory, "copy.pcap", fs::read(&pcap).unwrap());
    let folder = directory.path().display().to_string();
    let cases: &[(&[&str], &str)] = &[
        (&["pcap", "--sa", &missing, &pcap], "missing: No such file"),
        (
            &["pcap", "--sa", &marked, &pcap],
            "marked.sa:2: mark: firewall marks",
        ),
        (
            &["pcap", "--sa", &twice, &pcap],
            "twice.sa:2: spi: line 1 already",
        ),
        (
            &["pcap", "--sa", &binary, &pcap],
            "binary.sa: not a text file",
        ),
        (&["pcap", "--sa", &sa, &missing], "missing: No such file"),
        (
            &["pcap", "--sa", &sa, &text],
            "text.pcap: byte 0: neither pcap nor pcapng",
        ),
        (
            &["pcap", "--sa", &sa, &cut],
            "the file ends inside a record",
        ),
        (
            &["pcap", "--sa", &sa, &wifi],
            "wifi.pcap: byte 20: link type 105",
        ),
        (
            &["pcap", "--sa", &sa, "--write", &copy, &copy],
            "copy.pcap: is read from",
        ),
        (
            &["pcap", "--sa", &sa, "--write", &folder, &pcap],
            "Is a directory",
        ),
        (
            &["encap", "--sa", &sa, &copy, &copy],
            "copy.pcap: is read from",
        ),
        (
            &["encap", "--sa", &row, &pcap, &out],
            "row.sa:1: a Wireshark row",
        ),
        (&["encap", "--sa", &sa, &text, &out], "text.pcap: byte 0"),
        (&[&missing], "missing: No such file"),
        (&[&text], "text.pcap: not a file of test vectors"),
        (&[&json_text], "some.json:2: "),
        (&[&unknown], "unknown.json: not a file of test vectors"),
        (&[&rsp], "bad.rsp:4: expected an even number"),
        (&[&lone], "lone.sa: No such file"),
        (&["--impl", "nonsense"], "invalid value 'nonsense'"),
        (&["pcap", &pcap], "--sa <FILE>"),
        (&["pcap", "--sa", &sa], "<CAPTURE>"),
        (&["encap", "--sa", &sa, &pcap], "<OUT.pcap>"),
        (&["--nonsense"], "unexpected argument"),
    ];
    for (arguments, expected) in cases {
        let output = verify(arguments);
        let message = stderr(&output);
        assert_eq!(status(&output), 2, "{arguments:?}: {message}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn nothing_ran_is_status_1() {
    let directory = TempDir::new().unwrap();
    let sa = capture("gcm128-tunnel-v4", ".sa");
    let pcap = capture("gcm128-tunnel-v4", ".pcap");
    let empty = file(&directory, "empty.pcap", &fs::read(&pcap).unwrap()[..24]);
    let output = verify(&["pcap", "--sa", &sa, &empty]);
    assert_eq!(status(&output), 1);
    assert!(stdout(&output).contains("no packet was accepted"));
    let out = directory.path().join("out.pcap").display().to_string();
    assert_eq!(status(&verify(&["encap", "--sa", &sa, &empty, &out])), 1);

    let folder = TempDir::new().unwrap();
    file(&folder, "notes.txt", "nothing");
    let output = verify(&[&folder.path().display().to_string()]);
    assert_eq!(status(&output), 1);
    assert!(
        stdout(&output).contains("notes.txt: no file of vectors"),
        "{}",
        stdout(&output)
    );

    let none = file(&directory, "none.sa", "# no association\n");
    let report = verify(&["pcap", "--sa", &none, "--json", &pcap]);
    assert_eq!(status(&report), 1);
    assert_eq!(json(&report)["dropped"]["no_sa"], 16);
}

#[test]
fn a_wrong_vector_is_a_failure_that_is_named() {
    let directory = TempDir::new().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let right = fs::read_to_string(data.join("packets/rfc7634.json")).unwrap();
    let named = file(&directory, "right.json", &right);
    assert_eq!(status(&verify(&[&named])), 0);
    // The last digit of the ICV.
    for (from, to, reason) in [
        ("07e1ad43\"", "07e1ad42\"", "integrity check failed"),
        ("34353637\"", "34353638\"", "opened to another inner packet"),
    ] {
        let wrong = right.replace(from, to);
        assert_ne!(wrong, right);
        let named = file(&directory, "wrong.json", &wrong);
        let output = verify(&[&named]);
        assert_eq!(status(&output), 1);
        let text = stdout(&output);
        assert!(text.contains("FAILED") && text.contains(reason), "{text}");
        assert!(text.contains("appendix A on ring"), "{text}");
        let report = json(&verify(&["--json", "--impl", "ring", &named]));
        assert_eq!(report["failures"][0]["implementation"], "ring");
    }
    let bare = fs::read_to_string(data.join("primitives/rfc4231.json")).unwrap();
    let wrong = bare.replace("b0344c61", "b0344c62");
    assert_ne!(wrong, bare);
    let output = verify(&[&file(&directory, "mac.json", &wrong)]);
    assert_eq!(status(&output), 1);
    assert!(stdout(&output).contains("the right tag was refused"));
    let bare = fs::read_to_string(data.join("primitives/mcgrew-gcm-test.json")).unwrap();
    let wrong = bare.replacen("\"text\": \"4500", "\"text\": \"4501", 1);
    assert_ne!(wrong, bare);
    let output = verify(&[&file(&directory, "text.json", &wrong)]);
    assert_eq!(status(&output), 1);
    assert!(stdout(&output).contains("opened to another text"));
}

#[test]
fn a_list_says_what_there_is() {
    let text = stdout(&verify(&["--list"]));
    for word in [
        "ring",
        "rustcrypto",
        "cavp/gcmDecrypt128.rsp.gz",
        "tests in",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let list = json(&verify(&["--list", "--json"]));
    let names: Vec<&str> = list["implementations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    let all: Vec<&str> = Implementation::ALL
        .iter()
        .map(|known| known.name())
        .collect();
    assert_eq!(names, all);
    let sources = list["sources"].as_array().unwrap();
    assert!(sources.iter().any(|source| source["tests"] == 525));
}

#[test]
fn a_closed_pipe_is_no_panic() {
    for arguments in [&["--list"][..], &[], &["--json"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vesper-verify"))
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!message.contains("panicked"), "{message}");
        assert!(output.status.code().is_some(), "no signal");
    }
}
