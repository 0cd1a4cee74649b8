//! Every word of `ip xfrm policy add`: honoured, known to be without effect, or refused by name.

use std::net::IpAddr;

use vesper_sa::{AddressRange, Direction, Mode, Selector};
use vesper_verify::xfrm::{self, Line, PolicyAction, PolicyLine, Template};

const TEMPLATE: &str = "tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel";

fn policy(words: &str) -> PolicyLine {
    let mut policies = xfrm::parse_policies(words, "f.sp").unwrap();
    assert_eq!(policies.len(), 1);
    policies.remove(0)
}

fn refusal(words: &str) -> String {
    let line = format!("ip xfrm policy add dir out {words}");
    xfrm::parse_policies(&line, "f.sp")
        .expect_err(words)
        .to_string()
}

#[test]
fn a_line_of_the_kernel() {
    let line = format!(
        "ip xfrm policy add src 10.0.0.0/24 dst 10.1.0.0/24 proto tcp dport 443 dir out \
         priority 5 index 9 ptype main flag localok {TEMPLATE} level required"
    );
    let found = policy(&line);
    assert_eq!(found.direction, Direction::Outbound);
    assert_eq!(found.priority, 5);
    assert_eq!(
        found.selector,
        Selector {
            source: AddressRange::prefix(IpAddr::from([10, 0, 0, 0]), 24),
            destination: AddressRange::prefix(IpAddr::from([10, 1, 0, 0]), 24),
            protocol: Some(6),
            source_port: None,
            destination_port: Some(443..=443),
        }
    );
    assert_eq!(
        found.action,
        PolicyAction::Protect(Template {
            source: Some(IpAddr::from([192, 0, 2, 1])),
            destination: Some(IpAddr::from([192, 0, 2, 2])),
            reqid: 7,
            mode: Mode::Tunnel,
        })
    );
    assert_eq!(policy("vm a dir in").action, PolicyAction::Pass);
    assert_eq!(policy("dir in action block").action, PolicyAction::Block);
    let transport = policy("dst 10.0.0.1 dir out tmpl proto esp reqid 3");
    let PolicyAction::Protect(template) = transport.action else {
        panic!("{transport:?}");
    };
    assert_eq!(
        (template.mode, template.destination),
        (Mode::Transport, None)
    );
}

#[test]
fn lines_are_printed_as_they_are_read() {
    for words in [
        "dir in priority 0",
        "host a vm web1 src 10.0.0.0/24 dst 10.1.0.0/24 proto 17 sport 53 dir out priority 5 \
         tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid 7 mode tunnel",
        "proto 58 type 135 dir in priority 0 action block",
        "dst ::/0 dir out priority 0 tmpl proto esp reqid 1 mode transport",
    ] {
        assert_eq!(policy(words).to_string(), words);
    }
}

#[test]
fn files_may_hold_both() {
    let text = format!(
        "ip xfrm policy add dir out {TEMPLATE}\n\
         ip xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 \
         aead rfc4106(gcm(aes)) 0x{} 128\n",
        "00".repeat(20)
    );
    let lines = xfrm::parse_lines(&text, "f").unwrap();
    assert!(matches!(lines[..], [Line::Policy(_), Line::State(_)]));
    assert!(xfrm::parse_policies(&text, "f").is_err());
    assert!(xfrm::parse(&text, "f").is_err());
}

#[test]
fn what_cannot_be_honoured_is_named() {
    for (words, expected) in [
        ("dir in", "f.sp:1: dir: given twice"),
        ("action deny", "f.sp:1: action: expected allow or block"),
        (
            "action block tmpl proto esp reqid 1",
            "f.sp:1: action: block and `tmpl`",
        ),
        ("tmpl proto ah reqid 1", "f.sp:1: proto: only esp"),
        ("tmpl proto esp", "f.sp:1: reqid: expected tmpl ... reqid N"),
        ("tmpl proto esp reqid 0", "f.sp:1: reqid: expected"),
        (
            "tmpl proto esp reqid 1 mode tunnel",
            "f.sp:1: dst: expected tmpl ... dst",
        ),
        (
            "tmpl proto esp reqid 1 level use",
            "f.sp:1: level: packets would leave in clear",
        ),
        (
            "tmpl proto esp reqid 1 spi 0x100",
            "f.sp:1: spi: a policy finds",
        ),
        ("tmpl reqid 1 tmpl reqid 2", "f.sp:1: tmpl: only one"),
        ("mark 1", "f.sp:1: mark: "),
        ("limit byte-soft 1", "f.sp:1: limit: policies do not"),
        ("ptype sub", "f.sp:1: ptype: expected main"),
        ("src 10.0.0.0/33", "f.sp:1: src: expected an address"),
        (
            "src 10.0.0.1 priority 1 dst 10.0.0.2",
            "f.sp:1: dst: given twice",
        ),
        ("bogus", "f.sp:1: bogus: not a word"),
    ] {
        let shown = refusal(words);
        assert!(shown.starts_with(expected), "{words}: {shown}");
    }
    let forward = xfrm::parse_policies("dir fwd", "f")
        .unwrap_err()
        .to_string();
    assert!(forward.contains("are not forwarded"), "{forward}");
    let none = xfrm::parse_policies("src 10.0.0.1", "f").unwrap_err();
    assert_eq!(none.to_string(), "f:1: dir: missing; the line needs it");
}

#[test]
fn text_never_panics() {
    let line = format!("ip xfrm policy add src 10.0.0.0/24 dir out {TEMPLATE}");
    let words: Vec<_> = line.split(' ').collect();
    for start in 0..words.len() {
        for end in start..=words.len() {
            let _ = xfrm::parse_lines(&words[start..end].join(" "), "f");
            let _ = xfrm::parse_policies(&words[start..end].join(" "), "f");
        }
    }
}
