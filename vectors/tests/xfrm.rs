//! Every word of `ip xfrm state add` and every column of Wireshark's table: honoured, known to
//! be without effect, or refused by name.

use std::time::Duration;

use vesper_sa::{
    AddressRange, Df, Direction, Dscp, Ecn, Mode, ReplayProtection, Selector, Spi,
    UdpEncapsulation, WindowSize,
};
use vesper_verify::xfrm::{self, Entry, Offload, Row, SaFileError, State};

const ID: &str = "src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000";
const AEAD: &str = "aead 'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 128";

fn state(words: &str) -> State {
    let text = format!("ip xfrm state add {ID} {AEAD} {words}");
    match parse_one(&text) {
        Ok(Entry::State(state)) => *state,
        other => panic!("{words}: {other:?}"),
    }
}

fn parse_one(text: &str) -> Result<Entry, SaFileError> {
    let mut entries = xfrm::parse(text, "f.sa")?;
    assert_eq!(entries.len(), 1);
    Ok(entries.remove(0))
}

fn refusal(words: &str) -> String {
    let text = format!("ip xfrm state add {ID} {AEAD} {words}");
    parse_one(&text).expect_err(words).to_string()
}

fn row(text: &str) -> Row {
    match parse_one(text) {
        Ok(Entry::Row(row)) => row,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_line_of_the_kernel() {
    let state = state("");
    assert_eq!(state.spi, Spi::new(0x1000).unwrap());
    assert_eq!(state.source.to_string(), "192.0.2.1");
    assert_eq!(state.destination.to_string(), "192.0.2.2");
    assert_eq!(state.mode, Mode::Transport);
    assert_eq!(state.replay, ReplayProtection::Off);
    assert_eq!(state.direction, None);
    assert_eq!(state.keys.suite().name, "aes128gcm16");
    let params = state.params(Direction::Inbound);
    assert_eq!(params.sequence, 0);
    assert!(params.selectors.is_empty());
}

#[test]
fn words_say_whose_it_is_and_who_does_the_work() {
    let line = format!("vesper sa add host a vm web1 {ID} {AEAD} offload packet dev eth0 dir out");
    let Ok(Entry::State(owned)) = parse_one(&line) else {
        panic!("{line}");
    };
    assert_eq!(owned.host.as_deref(), Some("a"));
    assert_eq!(owned.vm.as_deref(), Some("web1"));
    assert_eq!(owned.offload, Some(Offload::Packet));
    assert_eq!(owned.direction, Some(Direction::Outbound));
    assert_eq!(
        state("offload dev eth0 dir in").offload,
        Some(Offload::Crypto)
    );
    assert_eq!(state("dir in").offload, None);
    assert!(refusal("vm a vm b").starts_with("f.sa:1: vm: given twice"));
}

#[test]
fn words_are_printed_as_they_are_read() {
    for words in [
        "",
        "mode tunnel reqid 7 replay-window 128 replay-seq 0xfffffffd replay-seq-hi 0x7 \
         replay-oseq 0x5 flag noecn decap-dscp nopmtudisc af-unspec esn \
         extra-flag dont-encap-dscp encap espinudp 4500 4501 0.0.0.0 tfcpad 512 \
         sel src 10.0.0.0/8 dst 10.1.2.3/32 proto 6 sport 80 limit byte-soft 100 \
         limit time-soft 10 limit packet-hard 5 offload packet dir in",
        "sel proto 1 type 8 code 0 flag wildrecv",
        "dir out",
    ] {
        let first = state(words);
        let printed = first.words_with_keys();
        let Ok(Entry::State(second)) = parse_one(&printed) else {
            panic!("{}", *printed);
        };
        assert_eq!(second.words_with_keys(), printed);
        for direction in [Direction::Inbound, Direction::Outbound] {
            assert_eq!(second.params(direction), first.params(direction));
        }
        assert_eq!(second.offload, first.offload);
        let hidden = first.words();
        assert!(
            hidden.contains("rfc4106(gcm(aes)) <<Keys hidden>> 128"),
            "{hidden}"
        );
        assert!(!hidden.contains("0x00010203"), "{hidden}");
    }
    let composed = format!(
        "add {ID} enc ecb(cipher_null) '' auth-trunc hmac(sha256) 0x{} 128",
        "11".repeat(32)
    );
    let Ok(Entry::State(null)) = parse_one(&composed) else {
        panic!("{composed}");
    };
    assert!(parse_one(&null.words_with_keys()).is_ok());
    assert!(
        null.words()
            .contains("auth-trunc hmac(sha256) <<Keys hidden>> 128")
    );
}

#[test]
fn values_are_named_but_never_keys() {
    let fault = |words: &str| parse_one(&format!("add {ID} {AEAD} {words}")).unwrap_err();
    assert_eq!(fault("mode beet").value.as_deref(), Some("beet"));
    assert_eq!(fault("replay-window 7").value.as_deref(), Some("7"));
    assert_eq!(fault("limit").value, None);
    let key = parse_one(&format!("add {ID} aead 'rfc4106(gcm(aes))' 0x00zz 128")).unwrap_err();
    assert_eq!(key.value, None);
    assert_eq!(
        key.reason.to_string(),
        "expected a key of hexadecimal digits after 0x"
    );
}

#[test]
fn every_way_to_begin_a_line() {
    for start in [
        "ip xfrm state add",
        "ip x s a",
        "ip xfrm state update",
        "ip xf sa a",
        "ip -6 xfrm state add",
        "ip -f inet6 xfrm state add",
        "ip -n blue xfrm state add",
        "sudo ip xfrm state add",
        "/sbin/ip xfrm state add",
        "xfrm state add",
        "state add",
        "add",
        "",
    ] {
        let text = format!("{start} {ID} {AEAD}");
        assert!(parse_one(&text).is_ok(), "{start}");
    }
    for start in [
        "ip xfrm policy add",
        "ip xfrm state delete",
        "ip xfrm state flush",
        "ip route add",
        "iptables",
        "ip -q xfrm state add",
    ] {
        let text = format!("{start} {ID} {AEAD}");
        assert!(parse_one(&text).is_err(), "{start}");
    }
}

#[test]
fn values_are_taken_over() {
    let state = state(
        "mode tunnel reqid 7 replay-window 128 flag esn af-unspec replay-seq 0xfffffffd \
         replay-seq-hi 7 replay-oseq 5 replay-oseq-hi 0x6 encap espinudp 4500 4501 0.0.0.0 \
         tfcpad 512 dir in",
    );
    assert_eq!(state.mode, Mode::Tunnel);
    assert_eq!(state.reqid, 7);
    assert_eq!(state.direction, Some(Direction::Inbound));
    assert!(state.flags.af_unspec);
    let inbound = state.params(Direction::Inbound);
    assert_eq!(inbound.sequence, 0x7_ffff_fffd);
    assert!(inbound.esn);
    assert_eq!(
        inbound.replay,
        ReplayProtection::Window(WindowSize::new(128).unwrap())
    );
    assert_eq!(
        inbound.encapsulation,
        Some(UdpEncapsulation {
            source_port: 4500,
            destination_port: 4501
        })
    );
    assert_eq!(inbound.tfc_pad, 512);
    assert_eq!(state.params(Direction::Outbound).sequence, 0x6_0000_0005);
}

#[test]
fn numbers_may_be_decimal_hexadecimal_or_octal() {
    let spi = |text: &str| {
        let line = format!("add src 192.0.2.1 dst 192.0.2.2 proto esp spi {text} {AEAD}");
        match parse_one(&line) {
            Ok(Entry::State(state)) => state.spi.get(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(spi("4096"), 4096);
    assert_eq!(spi("0x1000"), 4096);
    assert_eq!(spi("010000"), 4096);
}

#[test]
fn flags_shape_the_tunnel_header() {
    let params = |words| state(words).params(Direction::Outbound).tunnel;
    assert_eq!(params("").ecn, Ecn::Normal);
    assert_eq!(params("flag noecn").ecn, Ecn::Off);
    assert_eq!(params("flag nopmtudisc").df, Df::Clear);
    assert_eq!(params("extra-flag dont-encap-dscp").dscp, Dscp::Set(0));
    assert!(
        state("flag decap-dscp wildrecv align4 icmp")
            .flags
            .decap_dscp
    );
    let bits = state("replay-window 32 flag 0x85 extra-flag 0x1").flags;
    assert!(bits.esn && bits.noecn && bits.nopmtudisc && bits.dont_encap_dscp);
    assert!(!bits.decap_dscp && !bits.af_unspec);
}

#[test]
fn selectors() {
    let selector = |words: &str| state(&format!("sel {words} reqid 3")).selector.unwrap();
    assert_eq!(
        selector("src 10.1.0.0/16 dst 10.2.0.1/32 proto tcp sport 80 dport 0x50"),
        Selector {
            source: AddressRange::prefix("10.1.0.0".parse().unwrap(), 16),
            destination: AddressRange::prefix("10.2.0.1".parse().unwrap(), 32),
            protocol: Some(6),
            source_port: Some(80..=80),
            destination_port: Some(80..=80),
        }
    );
    assert_eq!(
        selector("src 2001:db8::/32 proto ipv6-icmp type 128 code 0"),
        Selector {
            source: AddressRange::prefix("2001:db8::".parse().unwrap(), 32),
            protocol: Some(58),
            source_port: Some(128..=128),
            destination_port: Some(0..=0),
            ..Selector::default()
        }
    );
    assert_eq!(selector("proto any sport 0 dev none"), Selector::default());
    assert_eq!(selector("proto 132").protocol, Some(132));
    // An empty prefix still names an IP version.
    let all = selector("src 0.0.0.0/0");
    assert!(
        all.source
            .unwrap()
            .contains("255.255.255.255".parse().unwrap())
    );
    assert!(!all.source.unwrap().contains("::".parse().unwrap()));
}

#[test]
fn limits() {
    let lifetime = state(
        "limit time-soft 3600 limit time-hard 0 limit byte-soft 1000 limit byte-hard \
         18446744073709551615 limit packet-soft 0x10 limit packet-hard 20 limit time-use-soft 0",
    )
    .lifetime;
    assert_eq!(lifetime.soft.time, Some(Duration::from_secs(3600)));
    assert_eq!(lifetime.hard.time, None);
    assert_eq!(lifetime.soft.bytes, Some(1000));
    assert_eq!(lifetime.hard.bytes, None);
    assert_eq!(lifetime.soft.packets, Some(16));
    assert_eq!(lifetime.hard.packets, Some(20));
}

#[test]
fn words_without_effect_are_known() {
    let plain = state("").params(Direction::Inbound);
    for words in [
        "seq 3",
        "if_id 0x2a",
        "output-mark 5",
        "output-mark 5 mask 0xff",
        "set-mark 1 mask 1",
        "nat-keepalive-interval 20",
        "pcpu-num 2",
        "flag wildrecv",
        "flag align4",
    ] {
        assert_eq!(state(words).params(Direction::Inbound), plain, "{words}");
    }
    for words in [
        "offload dev eth0 dir out",
        "offload packet dev eth0 dir out dir out",
    ] {
        assert_eq!(state(words).direction, Some(Direction::Outbound), "{words}");
    }
}

#[test]
fn algorithms() {
    let name = |words: &str| match parse_one(&format!("add {ID} {words}")) {
        Ok(Entry::State(state)) => state.keys.suite().name,
        other => panic!("{words}: {other:?}"),
    };
    let key = |bytes: usize| format!("0x{}", "5a".repeat(bytes));
    assert_eq!(
        name(&format!(
            "enc 'cbc(aes)' {} auth-trunc 'hmac(sha256)' {} 128",
            key(16),
            key(32)
        )),
        "aes128-sha256"
    );
    assert_eq!(
        name(&format!(
            "auth-trunc \"hmac(sha512)\" {} 256 enc rfc3686\\(ctr\\(aes\\)\\) {}",
            key(64),
            key(36)
        )),
        "aes256ctr-sha512"
    );
    assert_eq!(
        name(&format!("enc cipher_null \"\" auth sha1 {}", key(20))),
        "null-sha1"
    );
    assert_eq!(
        name("aead 'rfc4309(ccm(aes))' sixteen-byte-keysal 64"),
        "aes128ccm8"
    );
}

#[test]
fn what_cannot_be_honoured_is_named() {
    for (words, expected) in [
        ("mark 3 mask 7", "f.sa:1: mark: firewall marks are of"),
        ("coa 10.0.0.1", "f.sa:1: coa: "),
        ("ctx system_u", "f.sa:1: ctx: "),
        ("comp deflate", "f.sa:1: comp: "),
        (
            "extra-flag oseq-may-wrap",
            "f.sa:1: extra-flag: oseq-may-wrap",
        ),
        ("extra-flag 0x2", "f.sa:1: extra-flag: oseq-may-wrap"),
        ("encap espinudp-nonike 1 2 0.0.0.0", "f.sa:1: encap: "),
        ("encap espintcp 1 2 0.0.0.0", "f.sa:1: encap: "),
        ("encap espinudp 70000 2 0.0.0.0", "f.sa:1: encap: expected"),
        ("encap espinudp 4500 4500", "f.sa:1: encap: the line ends"),
        ("mode beet", "f.sa:1: mode: only transport and tunnel"),
        ("mode x", "f.sa:1: mode: expected"),
        ("mode tunnel mode tunnel", "f.sa:1: mode: given twice"),
        (
            "limit time-use-hard 3",
            "f.sa:1: limit: time since the first use",
        ),
        ("limit bytes 3", "f.sa:1: limit: expected"),
        ("limit", "f.sa:1: limit: the line ends"),
        (
            "replay-window 31",
            "f.sa:1: replay-window: expected 0 (off) or 32",
        ),
        (
            "replay-window 65537",
            "f.sa:1: replay-window: expected 0 (off) or 32",
        ),
        (
            "flag esn",
            "f.sa:1: replay-window: expected a window above 0",
        ),
        (
            "replay-window 32 replay-seq-hi 1",
            "f.sa:1: replay-seq-hi: expected flag esn",
        ),
        ("flag dummy", "f.sa:1: dummy: expected noecn"),
        ("tfcpad 100", "f.sa:1: tfcpad: expected mode tunnel"),
        (
            "mode tunnel tfcpad 65536",
            "f.sa:1: tfcpad: expected a length",
        ),
        ("dir in dir out", "f.sa:1: dir: both in and out"),
        ("offload dev eth0", "f.sa:1: offload: the line ends"),
        ("sel", "f.sa:1: sel: expected src, dst"),
        ("sel dev eth0", "f.sa:1: dev: "),
        ("sel proto gre key 7", "f.sa:1: key: selecting by GRE key"),
        ("sel proto icmp sport 1", "f.sa:1: sel: expected ports"),
        ("sel proto tcp type 1", "f.sa:1: sel: expected type"),
        (
            "sel proto icmp type 256",
            "f.sa:1: type: expected an ICMP type",
        ),
        (
            "sel src 10.0.0.1 dst 2001:db8::1",
            "f.sa:1: sel: expected src and dst",
        ),
        ("sel src 10.0.0.1/33", "f.sa:1: src: expected an address"),
        ("sel proto tcp flag icmp", "f.sa:1: icmp: "),
        ("spi 0x1001", "f.sa:1: spi: given twice"),
        ("bogus", "f.sa:1: bogus: not a word"),
        ("0x000102030405060708", "f.sa:1: 0x00...: not a word"),
        ("; true", "f.sa:1: ;: not a word"),
        (
            "auth-trunc 'hmac(sha1)' 0x00 96",
            "f.sa:1: auth-trunc: aead encrypts and",
        ),
    ] {
        let shown = refusal(words);
        assert!(shown.starts_with(expected), "{words}: {shown}");
    }
    for (line, expected) in [
        ("add dst 10.0.0.1 proto esp", "f.sa:1: spi: missing"),
        ("add src 10.0.0.1 proto esp spi 256", "f.sa:1: dst: missing"),
        ("add dst 10.0.0.1 spi 256", "f.sa:1: proto: missing"),
        (
            "add dst 10.0.0.1 proto esp spi 256",
            "f.sa:1: aead: missing",
        ),
        (
            "add dst 10.0.0.1 proto ah spi 256",
            "f.sa:1: proto: AH is not",
        ),
        (
            "add dst 10.0.0.1 proto esp spi 255",
            "f.sa:1: spi: expected an SPI of at least 256",
        ),
        (
            "add dst ::1 src 10.0.0.1 proto esp spi 256",
            "f.sa:1: src: expected an address of",
        ),
        (
            "add dst 10.0.0.1/24 proto esp",
            "f.sa:1: dst: expected an IP address",
        ),
        (
            "add dst 10.0.0.1 proto esp spi 256 enc 'cbc(aes)' 0x00112233445566778899aabbccddeeff",
            "f.sa:1: auth-trunc: ESP without integrity",
        ),
        (
            "add dst 10.0.0.1 proto esp spi 256 enc des3_ede 0x00 auth sha1 0x00",
            "f.sa:1: enc: 3DES is refused",
        ),
        (
            "add dst 10.0.0.1 proto esp spi 256 enc aes 0x00112233445566778899aabbccddeeff \
             auth sha1 0x0011",
            "f.sa:1: auth-trunc: aes128-sha1 takes a key of 20 bytes, this has 2",
        ),
        (
            "add dst 10.0.0.1 proto esp spi 256 aead 'rfc4106(gcm(aes))' 0x00zz 128",
            "f.sa:1: aead: expected a key",
        ),
    ] {
        let shown = parse_one(line).expect_err(line).to_string();
        assert!(shown.starts_with(expected), "{line}: {shown}");
    }
}

#[test]
fn errors_name_the_line_and_show_no_key() {
    let text = format!("# a comment\n\nip xfrm state add {ID} \\\n   {AEAD} \\\n   mark 1\n");
    let error = xfrm::parse(&text, "x.sa").unwrap_err();
    assert_eq!((error.line, error.word.as_str()), (5, "mark"));

    let text = format!("add {ID} {AEAD}\nadd {ID} {AEAD} reqid 2");
    let error = xfrm::parse(&text, "x.sa").unwrap_err();
    assert_eq!(
        error.to_string(),
        "x.sa:2: spi: line 1 already describes the association with this destination and SPI"
    );
    let shown = format!("{:?}", state(""));
    assert!(
        !shown.contains("0x0001") && !shown.contains("[0, 1, 2"),
        "{shown}"
    );
}

#[test]
fn rows_of_wireshark() {
    let plain = row(
        r#""IPv4","192.0.2.1","192.0.2.2","0x00001000","AES-GCM with 16 octet ICV [RFC4106]","0x000102030405060708090a0b0c0d0e0f10111213","NULL","""#,
    );
    let address = |text: &str| text.parse().unwrap();
    assert!(plain.matches(address("192.0.2.1"), address("192.0.2.2"), 0x1000));
    assert!(!plain.matches(address("192.0.2.3"), address("192.0.2.2"), 0x1000));
    assert!(!plain.matches(address("192.0.2.1"), address("192.0.2.2"), 0x1001));
    assert_eq!(plain.sequence_high, None);

    let wild = row(
        r#""IPv6","*","2001:db8::/32","0x12******","NULL","","HMAC-SHA-256-128 [RFC4868]","0x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","64-bit","0x7""#,
    );
    assert!(wild.matches(address("::1"), address("2001:db8::9"), 0x12ab_cdef));
    assert!(!wild.matches(address("::1"), address("2001:db9::9"), 0x12ab_cdef));
    assert!(!wild.matches(address("192.0.2.1"), address("2001:db8::9"), 0x12ab_cdef));
    assert!(!wild.matches(address("::1"), address("2001:db8::9"), 0x13ab_cdef));
    assert_eq!(wild.sequence_high, Some(7));
    assert_eq!(wild.keys.suite().name, "null-sha256");

    let any = row(
        r#""IPv4","*","*","*","AES-CBC [RFC3602]","0123456789abcdef","HMAC-SHA-1-96 [RFC2404]","a\x22bcdefghijklmnopqrs""#,
    );
    assert!(any.matches(address("10.0.0.1"), address("10.0.0.2"), 77));
}

#[test]
fn rows_that_cannot_be_honoured_are_named() {
    let key = "0x000102030405060708090a0b0c0d0e0f10111213";
    let gcm = "AES-GCM with 16 octet ICV [RFC4106]";
    for (text, expected) in [
        (r#""IPX","*","*","*""#.to_owned(), "protocol: expected"),
        (r#""IPv4","::1","*","*""#.to_owned(), "source: expected"),
        (
            r#""IPv4","10.*.*.*","*","*""#.to_owned(),
            "source: `*` stands",
        ),
        (r#""IPv4","*","*","0x1*""#.to_owned(), "spi: expected"),
        (r#""IPv4","*","*","7""#.to_owned(), "spi: expected"),
        (r#""IPv4","*","*","*""#.to_owned(), "encryption: missing"),
        (
            format!(r#""IPv4","*","*","*","{gcm}","{key}","HMAC-SHA-1-96 [RFC2404]","""#),
            "encryption: AES-GCM has its own integrity",
        ),
        (
            format!(r#""IPv4","*","*","*","{gcm}","{key}","NULL","","48-bit""#),
            "sequence number length: expected",
        ),
        (
            format!(r#""IPv4","*","*","*","{gcm}","{key}","NULL","","64-bit","x""#),
            "sequence number high half: expected",
        ),
        (
            format!(r#""IPv4","*","*","*","{gcm}","{key}","NULL","","64-bit","1","2""#),
            "row: expected",
        ),
        (
            r#""IPv4","*","*","*","AES-CBC [RFC3602]","0123456789abcdef","NULL","""#.to_owned(),
            "encryption: ESP without integrity",
        ),
        (r#""IPv4","*",*"#.to_owned(), "row: expected values"),
    ] {
        let shown = parse_one(&text).expect_err(&text).to_string();
        assert!(
            shown.starts_with(&format!("f.sa:1: {expected}")),
            "{text}: {shown}"
        );
    }
}

#[test]
fn text_never_panics() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config, TestRunner};
    let words = prop::sample::select(vec![
        "ip",
        "xfrm",
        "state",
        "add",
        "src",
        "dst",
        "192.0.2.1",
        "::1",
        "proto",
        "esp",
        "spi",
        "0x100",
        "mode",
        "tunnel",
        "sel",
        "flag",
        "esn",
        "extra-flag",
        "limit",
        "byte-hard",
        "encap",
        "espinudp",
        "4500",
        "aead",
        "'rfc4106(gcm(aes))'",
        "\"IPv4\",\"*\"",
        "'",
        "\"",
        "\\",
        "\n",
        "#",
        "offload",
        "dev",
        "dir",
        "in",
        "replay-window",
        "0x",
        "mark",
        "-6",
        "é",
    ]);
    let lines = prop::collection::vec(words, 0..40);
    TestRunner::new(Config::with_cases(4000))
        .run(&lines, |words| {
            let _ = xfrm::parse(&words.join(" "), "f");
            let _ = xfrm::parse(&words.concat(), "f");
            Ok(())
        })
        .unwrap();
}
