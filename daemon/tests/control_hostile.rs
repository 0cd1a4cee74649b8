//! The control interface under attack: malformed requests, and more than a quota allows.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{Served, inbound, outbound};
use hyper::Method;
use serde_json::json;
use vesper_daemon::control::types;

/// Requests that are malformed on purpose.
const MALFORMED: usize = 10_000;

/// A small generator of numbers (xorshift), so that a failure can be repeated.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Words with attributes missing, doubled, too short, too long, or odd.
fn mutated(numbers: &mut Numbers, line: &str) -> String {
    let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
    for _ in 0..1 + numbers.below(3) {
        if words.is_empty() {
            break;
        }
        let place = numbers.below(words.len());
        match numbers.below(8) {
            0 => {
                words.remove(place);
            }
            1 => {
                let word = words[place].clone();
                words.insert(place, word);
            }
            2 => {
                let half = words[place].chars().count() / 2;
                words[place] = words[place].chars().take(half).collect();
            }
            3 => words[place] = words[place].repeat(1 + numbers.below(400)),
            4 => words[place] = numbers.next().to_string(),
            5 => {
                words[place] = ["'", "\"", "\\", "\u{0}", "\u{fffd}", "-1", "0x", ""]
                    [numbers.below(8)]
                .to_owned()
            }
            6 => words.truncate(place),
            _ => {
                let other = numbers.below(words.len());
                words.swap(place, other);
            }
        }
    }
    words.join(" ")
}

/// A whole request, which may be broken at any of its layers.
fn request(numbers: &mut Numbers) -> Vec<u8> {
    let base = [
        outbound(0x1000),
        inbound(0x2000),
        "vm web1 src 10.0.0.0/8 dir out tmpl dst 192.0.2.2 proto esp reqid 7 mode tunnel"
            .to_owned(),
    ];
    let line = &base[numbers.below(3)];
    let words = mutated(numbers, line);
    let mut body = match numbers.below(5) {
        0 => json!({ "words": words }).to_string(),
        1 => json!({ "words": words, "more": 1 }).to_string(),
        2 => json!({ "line": words }).to_string(),
        3 => json!([words]).to_string(),
        _ => words.clone(),
    }
    .into_bytes();
    if numbers.below(4) == 0 && !body.is_empty() {
        let place = numbers.below(body.len());
        body[place] = numbers.next() as u8;
    }
    if numbers.below(4) == 0 {
        let end = numbers.below(body.len() + 1);
        body.truncate(end);
    }
    let method = ["GET", "POST", "PUT", "DELETE", "PATCH", "BREW", ""][numbers.below(7)];
    let path = [
        "/v1/sas".to_owned(),
        "/v1/sas/import?vm=web1".to_owned(),
        format!("/v1/sas/{}", numbers.next() % 3),
        format!("/v1/sas?spi={}&dir=%6{}", numbers.next(), numbers.below(12)),
        "/v1/policies".to_owned(),
        format!("/v1/policies?src={}&dst=%zz", numbers.next()),
        "/v1/vms".to_owned(),
        "/v1/vms/a/%2e%2e".to_owned(),
        "/v1/adapter/why-not".to_owned(),
        "/v1/switch".to_owned(),
        "/../../etc/passwd".to_owned(),
        "*".to_owned(),
    ][numbers.below(12)]
    .clone();
    let length = match numbers.below(6) {
        0 => body.len() / 2,
        1 => body.len() + 7,
        _ => body.len(),
    };
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nhost: v\r\nconnection: close\r\n").into_bytes();
    match numbers.below(8) {
        0 => request.extend(b"transfer-encoding: chunked\r\n\r\n"),
        1 => request.extend(b"content-length: -1\r\n\r\n"),
        2 => request.extend(b"content-length: 99999999999999999999\r\n\r\n"),
        _ => request.extend(format!("content-length: {length}\r\n\r\n").as_bytes()),
    }
    request.extend(body);
    request
}

#[test]
fn malformed_requests_are_refused_clearly() {
    let served = Served::new();
    let client = served.client();
    let mut numbers = Numbers(0x5eed);
    let (mut refused, mut silent) = (0, 0);
    for round in 0..MALFORMED {
        let request = request(&mut numbers);
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(8)))
            .unwrap();
        let _ = stream.write_all(&request);
        // Whoever says that more will come, and ends, has ended the request.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let shown = String::from_utf8_lossy(&request).into_owned();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status: u16 = match answer.split(' ').nth(1) {
            Some(status) => status.parse().unwrap(),
            None => {
                // Not even a head of a request.
                silent += 1;
                continue;
            }
        };
        assert!(status != 500 && status != 503, "{round}: {shown}\n{answer}");
        assert!(
            !answer.contains("5a5a5a5a5a"),
            "{round}: a key is shown: {answer}"
        );
        if status >= 400 {
            refused += 1;
            // Refused by the API: says what, and the way out.
            if let Some((_, body)) = answer.split_once("\r\n\r\n{") {
                let error: types::Error = serde_json::from_str(&format!("{{{body}"))
                    .unwrap_or_else(|error| panic!("{round}: {error}: {answer}"));
                assert!(!error.error.is_empty());
            }
        }
    }
    println!("{MALFORMED} malformed requests: {refused} refused, {silent} broken off");
    assert!(refused > MALFORMED / 2);
    let types::Vms { vms } = client.get("/v1/vms").unwrap();
    assert!(vms.len() >= 3);
    client.ask(Method::DELETE, "/v1/sas?all=true", &[]).unwrap();
}

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[test]
fn more_than_the_quota_is_refused_at_little_cost() {
    let long = std::env::var_os("VESPER_LONG").is_some();
    let asked: u32 = if long { 1_000_000 } else { 5_000 };
    let limit = 512;
    let served = Served::new();
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    let mut answer = vec![0; 4096];
    let (mut added, mut refused) = (0, 0);
    let mut before = 0;
    let begin = Instant::now();
    for number in 0..asked {
        let body = json!({ "words": outbound(0x1000 + number) }).to_string();
        let head = format!(
            "POST /v1/sas HTTP/1.1\r\nhost: v\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let length = stream.read(&mut answer).unwrap();
        let text = std::str::from_utf8(&answer[..length]).unwrap();
        if text.starts_with("HTTP/1.1 201") {
            added += 1;
        } else {
            assert!(text.starts_with("HTTP/1.1 409"), "{text}");
            assert!(
                text.contains("vm web1: has its 512 SAs already; delete one"),
                "{text}"
            );
            refused += 1;
        }
        if number == asked / 2 {
            before = resident();
        }
    }
    let took = begin.elapsed();
    let grown = resident().saturating_sub(before);
    println!(
        "{asked} SAs asked for: {added} added, {refused} refused in {took:?}, memory +{grown} bytes"
    );
    assert_eq!((added, refused), (limit, asked - limit));
    assert!(grown < 4 << 20, "{grown}");
}

#[test]
fn a_reload_with_an_error_in_its_last_line_changes_nothing() {
    use vesper_daemon::plane::{Desired, PolicyFilter, SaFilter, Scope, VmChange};
    use vesper_verify::xfrm::parse_policies;
    let bed = common::Bed::new();
    let many = 10_000;
    let change = VmChange {
        sa_limit: Some(many),
        ipsec_offload_limit: Some(many),
        ..VmChange::default()
    };
    bed.plane.change_vm(None, "web1", &change).unwrap();
    let policy = |number: u32| {
        let (high, low) = (number / 250, number % 250 + 1);
        let words = format!(
            "vm web1 dst 10.{high}.{low}.0/24 dir out tmpl dst 192.0.2.2 proto esp reqid 7 mode tunnel"
        );
        parse_policies(&words, "test").unwrap().remove(0)
    };
    let mut desired = Desired {
        machines: bed.plane.vms().iter().map(|vm| vm.spec.clone()).collect(),
        sas: (0..many)
            .map(|number| common::state(&outbound(0x1000 + number)))
            .collect(),
        policies: (0..1000).map(policy).collect(),
    };
    let mut bad = desired.clone();
    bad.policies.last_mut().unwrap().vm = Some("nobody".to_owned());
    let refusal = bed.plane.reload(bad, false).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "vm nobody: not found; list what there is, and name one of them"
    );
    assert!(bed.plane.sas(Scope::All, &SaFilter::default()).is_empty());
    assert!(bed.plane.policies(&PolicyFilter::default()).is_empty());

    let begin = Instant::now();
    let diff = bed.plane.reload(desired.clone(), false).unwrap();
    println!(
        "reload of {many} SAs and 1,000 policies: {:?}",
        begin.elapsed()
    );
    assert_eq!(diff.added.len(), many as usize + 1000);
    let before = bed.plane.sas(Scope::All, &SaFilter::default());
    // One too many for the quota, and nothing of the rest happens.
    desired.sas.push(common::state(&inbound(0x9000)));
    desired.policies.clear();
    assert!(bed.plane.reload(desired, false).is_err());
    let after = bed.plane.sas(Scope::All, &SaFilter::default());
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| before.id == after.id)
    );
    assert_eq!(bed.plane.policies(&PolicyFilter::default()).len(), 1000);
    assert_eq!(bed.plane.nodes()[0].nic().usage().ipsec_sas.used, many);
}
