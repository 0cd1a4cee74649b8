//! vesperd under traffic: rekeys, limits and reloads lose nothing and mix nothing.
//!
//! Each test has a short form and, with `VESPER_LONG` in the environment, the full one; each
//! prints its figures.

mod process;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hyper::Method;
use process::{
    CABLE, Daemon, add, cabled, delete, generator, head, host, is_long, machine, sa, wait_until,
};
use vesper_daemon::control::client::Client;
use vesper_daemon::control::types;
use vesper_verify::capture::CaptureReader;

/// How the counters of one machine stand.
fn vm<'a>(stats: &'a types::Stats, host: &str, name: &str) -> &'a types::VmStats {
    let host = stats.hosts.iter().find(|other| other.name == host).unwrap();
    host.vms.iter().find(|vm| vm.name == name).unwrap()
}

/// Make before break, as `docs/control.md` says it: nothing is lost, and at most two inbound
/// associations are there. Several machines are rekeyed at the same time, as a key exchange does
/// it.
#[test]
fn rekeys_under_traffic_lose_nothing() {
    let (rekeys, vms): (u32, u8) = if is_long() { (10_000, 10) } else { (150, 3) };
    let directory = tempfile::tempdir().unwrap();
    let rate = if is_long() { 2_000 } else { 700 };
    let configuration =
        head(directory.path()) + &cabled(directory.path(), vms, rate, |_| String::new());
    let daemon = Daemon::start(directory.path(), &configuration);
    let begin = Instant::now();
    let longest = AtomicU64::new(0);
    thread::scope(|scope| {
        for vm in 1..=vms {
            let (daemon, longest) = (&daemon, &longest);
            scope.spawn(move || {
                let took = rekey(&daemon.client(), vm, rekeys / u32::from(vms));
                longest.fetch_max(took.as_micros() as u64, Ordering::Relaxed);
            });
        }
    });
    let took = begin.elapsed();
    let (is_accounted_for, said) = daemon.stop();
    assert!(is_accounted_for, "{said}");
    // machine, path, sent, sealed, opened, received, drops: in the summary, the last of each.
    let rows = |name: &str| -> Vec<u64> {
        let row = said.lines().rfind(|line| line.starts_with(name)).unwrap();
        let numbers = row.split_whitespace().skip(2);
        numbers.map(|number| number.parse().unwrap()).collect()
    };
    let (mut sent, mut received) = (0, 0);
    for vm in 1..=vms {
        // With a space behind: vm1 is not vm10.
        let (a, b) = (rows(&format!("a/vm{vm} ")), rows(&format!("b/vm{vm} ")));
        sent += a[0] + b[0];
        received += a[3] + b[3];
        assert_eq!((a[0], a[1], b[2], b[3]), (a[0], a[0], a[0], a[0]), "{said}");
        assert_eq!((b[0], b[1], a[2], a[3]), (b[0], b[0], b[0], b[0]), "{said}");
        assert_eq!((a[4], b[4]), (0, 0), "{said}");
    }
    println!(
        "{rekeys} rekeys of {vms} machines at a time in {took:?}, the longest {longest:?} us, \
         {sent} packets sent, {} lost",
        sent - received
    );
    assert!(!said.contains("dropped"), "{said}");
}

/// Rekeys one machine so many times, in turn one direction and the other; the longest.
fn rekey(client: &Client, vm: u8, rekeys: u32) -> Duration {
    let query = |host| format!("/v1/sas?host={host}&vm=vm{vm}");
    let mut old: HashMap<(String, String), u64> = HashMap::new();
    for host in ["a", "b"] {
        let sas: types::Sas = client.get(&query(host)).unwrap();
        old.extend(sas.sas.into_iter().map(|sa| ((sa.host, sa.dir), sa.id)));
    }
    assert_eq!(old.len(), 4);
    let mut longest = Duration::ZERO;
    for round in 0..rekeys {
        let began = Instant::now();
        let from = (round % 2) as u8 + 1;
        let spi = (u32::from(vm) << 20) + 0x2000 + round;
        let (here, there) = (process::name(from), process::name(3 - from));
        let inward = add(client, &sa(from, vm, "in", spi, ""));
        let outward = add(client, &sa(from, vm, "out", spi, ""));
        let last = old.insert((here.into(), "out".into()), outward).unwrap();
        delete(client, last);
        // The wire keeps the order: with the first packet of the new one all of the old one
        // have arrived.
        wait_until("the new association is used", || {
            let sa: types::Sa = client.get(&format!("/v1/sas/{inward}")).unwrap();
            sa.packets > 0
        });
        let last = old.insert((there.into(), "in".into()), inward).unwrap();
        delete(client, last);
        longest = longest.max(began.elapsed());
    }
    longest
}

/// Numbers preset to their ends and hard limits: everything before the limit arrives, nothing
/// after it is sent.
#[test]
fn traffic_stops_exactly_at_each_limit() {
    let packets: u64 = if is_long() { 100_000 } else { 1_000 };
    let rate = if is_long() { 20_000 } else { 1_000 };
    let short_end = (u64::from(u32::MAX) - packets) as u32;
    let long_end = u64::MAX - packets;
    let (low, high) = (long_end as u32, long_end >> 32);
    // Machine, what its outbound association has, and its inbound one.
    let cases = [
        // RFC 4303 section 3.3.3: the number must not cycle.
        (
            format!("replay-oseq {short_end:#x}"),
            format!("replay-seq {short_end:#x}"),
        ),
        (
            format!("flag esn replay-oseq {low:#x} replay-oseq-hi {high:#x}"),
            format!("flag esn replay-seq {low:#x} replay-seq-hi {high:#x}"),
        ),
        (format!("limit packet-hard {packets}"), String::new()),
        // RFC 4301 section 4.4.2.1: the bytes to which the algorithm is applied; 100 of the
        // generator's packets, and the trailer up to a multiple of 4.
        (format!("limit byte-hard {}", packets * 104), String::new()),
        (String::new(), format!("limit packet-hard {packets}")),
    ];
    let directory = tempfile::tempdir().unwrap();
    let mut configuration = head(directory.path());
    for number in [1, 2] {
        let mut machines = String::new();
        for (vm, (out, inward)) in (1..).zip(&cases) {
            let path = directory.path().join(format!("{number}-{vm}.sa"));
            let (port, words) = match number {
                1 => (
                    generator(1, vm, rate),
                    sa(1, vm, "out", 0x1000 + u32::from(vm), out),
                ),
                _ => (
                    "\"sink\"".to_owned(),
                    sa(1, vm, "in", 0x1000 + u32::from(vm), inward),
                ),
            };
            process::secret_file(&path, &words);
            machines += &machine(number, vm, &port, &format!("sa_file = {path:?}"));
        }
        configuration += &host(number, CABLE, &machines);
    }
    let daemon = Daemon::start(directory.path(), &configuration);
    let client = daemon.client();
    let stats = || -> types::Stats { client.get("/v1/stats").unwrap() };
    // Half as many again are offered.
    wait_until("enough is sent", || {
        let stats = stats();
        let sent = |name: String| vm(&stats, "a", &name).tx_packets;
        (1..=cases.len()).all(|vm| sent(format!("vm{vm}")) > packets * 3 / 2)
    });
    thread::sleep(Duration::from_millis(500));
    let (end, later) = (stats(), {
        thread::sleep(Duration::from_millis(300));
        stats()
    });
    for (index, case) in cases.iter().enumerate() {
        let name = format!("vm{}", index + 1);
        let (a, b) = (vm(&end, "a", &name), vm(&end, "b", &name));
        println!(
            "{case:?}: {} offered, {} sealed, {} received",
            a.tx_packets, a.sealed, b.rx_packets
        );
        // The last case ends at the receiver.
        if index < 4 {
            assert_eq!(a.sealed, packets, "{case:?}");
        }
        assert_eq!(
            (b.opened, b.rx_packets),
            (packets, packets),
            "{case:?} {:?}",
            end.hosts[1]
        );
        assert_eq!(vm(&later, "b", &name).rx_packets, packets, "{case:?}");
    }
}

/// The generation that an SPI belongs to: each reload replaces all associations.
const fn generation(spi: u32) -> u32 {
    spi >> 20
}

/// A configuration with so many associations and policies of one generation; the machines' own
/// traffic uses one of each.
fn write_generation(
    directory: &Path,
    generation: u32,
    sas_per_vm: u32,
    policies_per_vm: u32,
    last_line: &str,
) -> String {
    let mut machines = String::new();
    for vm in 1..=VMS {
        let reqid = 100 * generation + u32::from(vm);
        let lines: Vec<String> = (0..sas_per_vm)
            .map(|number| {
                let spi = (generation << 20) + (u32::from(vm) << 16) + number;
                // The first is the one that is used.
                let reqid = if number == 0 {
                    reqid
                } else {
                    1_000_000 + number
                };
                sa(1, vm, "out", spi, "").replace(
                    &format!("reqid {} ", process::reqid(vm)),
                    &format!("reqid {reqid} "),
                )
            })
            .collect();
        let path = directory.join(format!("{vm}.sa"));
        process::secret_file(&path, &lines.join("\n"));
        let mut policies = vec![format!(
            "\"dir out priority 9 tmpl src 192.0.2.1 dst 192.0.2.2 proto esp reqid {reqid} mode tunnel\""
        )];
        policies.extend((1..policies_per_vm).map(|number| {
            format!(
                "\"dir out dst 172.{}.{}.{}/32 priority 1 action block\"",
                16 + generation % 8,
                number / 250,
                number % 250
            )
        }));
        if vm == VMS {
            policies.extend((!last_line.is_empty()).then(|| format!("{last_line:?}")));
        }
        machines += &format!(
            "[[host.vm]]\nname = \"vm{vm}\"\nmac = \"02:00:00:01:01:{vm:02x}\"\nport = {}\n\
             sa_limit = 20000\nipsec_offload_limit = {}\nsa_file = {path:?}\npolicy = [{}]\n",
            generator(1, vm, 2_000),
            // Half of the machines in the adapter, half in the host's software.
            if vm % 2 == 1 { 20_000 } else { 0 },
            policies.join(", ")
        );
    }
    let uplink = format!(
        "{{ pcap = {{ write = {:?} }} }}",
        directory.join("wire.pcap")
    );
    let text = head(directory)
        + &host(
            1,
            &uplink,
            "adapter = \"full\"\nprocessors = 2\nworkers = 2",
        )
        + &machines;
    fs::write(directory.join("vesperd.toml"), &text).unwrap();
    text
}

/// Machines of that configuration.
const VMS: u8 = 4;

/// Every packet was sealed by the old association or by the new one, in that order; none was
/// lost between a policy and an association that were not of one configuration.
#[test]
fn reloads_under_traffic_mix_nothing() {
    let (reloads, sas, policies) = match is_long() {
        true => (20, 2_500, 250),
        false => (3, 50, 10),
    };
    let directory = tempfile::tempdir().unwrap();
    let first = write_generation(directory.path(), 1, sas, policies, "");
    let daemon = Daemon::start(directory.path(), &first);
    let client = daemon.client();
    let reload = || client.ask(Method::POST, "/v1/reload", &[]);
    let mut longest = Duration::ZERO;
    for generation in 2..2 + reloads {
        thread::sleep(Duration::from_millis(100));
        write_generation(directory.path(), generation, sas, policies, "");
        let began = Instant::now();
        let diff: types::Diff = client.send_for(Method::POST, "/v1/reload", &[]).unwrap();
        longest = longest.max(began.elapsed());
        assert_eq!(
            diff.added.len(),
            usize::from(VMS) * (sas + policies) as usize
        );
        // An error in the last line: nothing changes.
        let list = |path: &str| -> Vec<u8> {
            let text: serde_json::Value = client.get(path).unwrap();
            let mut items = text.as_object().unwrap().values().next().unwrap().clone();
            for item in items.as_array_mut().unwrap() {
                // What traffic changes.
                let item = item.as_object_mut().unwrap();
                item.retain(|name, _| matches!(&**name, "id" | "index" | "words" | "origin"));
            }
            items.to_string().into_bytes()
        };
        let before = (list("/v1/sas"), list("/v1/policies"));
        let used: types::Adapters = client.get("/v1/adapter").unwrap();
        for last in [
            "dir out tmpl proto nonsense",
            "dir out priority 9 action block",
        ] {
            write_generation(directory.path(), generation + 1, sas, policies, last);
            let refusal = reload().unwrap_err().to_string();
            assert!(!refusal.is_empty());
        }
        assert!(before == (list("/v1/sas"), list("/v1/policies")));
        let now: types::Adapters = client.get("/v1/adapter").unwrap();
        assert_eq!(used.adapters[0].sas, now.adapters[0].sas);
    }
    thread::sleep(Duration::from_millis(300));
    let (is_accounted_for, said) = daemon.stop();
    assert!(is_accounted_for, "{said}");
    assert!(!said.contains("dropped"), "{said}");

    let mut wire = CaptureReader::open(&directory.path().join("wire.pcap")).unwrap();
    // By machine: the generation, and the number of its last packet.
    let mut last: HashMap<u32, (u32, u32)> = HashMap::new();
    let (mut count, mut before, mut gap) = (0_u64, None, 0);
    while let Some(record) = wire.next_record().unwrap() {
        let word = |at: usize| u32::from_be_bytes(record.data[at..at + 4].try_into().unwrap());
        let (spi, sequence) = (word(34), word(38));
        assert_eq!(
            spi & 0xffff,
            0,
            "an association that no policy names: {spi:#x}"
        );
        let seen = last.entry(spi >> 16 & 0xf).or_insert((1, 0));
        if generation(spi) == seen.0 {
            assert_eq!(sequence, seen.1 + 1, "{spi:#x}");
        } else {
            assert_eq!((generation(spi), sequence), (seen.0 + 1, 1), "{spi:#x}");
        }
        *seen = (generation(spi), sequence);
        count += 1;
        gap = gap.max(record.timestamp - before.unwrap_or(record.timestamp));
        before = Some(record.timestamp);
    }
    let sent: u64 = (said.lines())
        .filter(|line| line.starts_with("a/vm"))
        .map(|line| {
            line.split_whitespace()
                .nth(2)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum();
    println!(
        "{reloads} reloads of {} SAs and {} policies: the longest {longest:?}, {sent} packets \
         sent, {count} on the wire, longest silence {:?}",
        u32::from(VMS) * sas,
        u32::from(VMS) * policies,
        Duration::from_nanos(gap)
    );
    assert_eq!(last.len(), usize::from(VMS));
    assert!(
        last.values()
            .all(|(generation, _)| *generation == 1 + reloads)
    );
    assert_eq!(count, sent);
}

/// What is posted for many machines leaves buffers for what they send.
#[test]
fn many_machines_have_buffers() {
    const MANY: u8 = 24;
    let directory = tempfile::tempdir().unwrap();
    let mut configuration = head(directory.path());
    for number in [1, 2] {
        let machines: String = (1..=MANY)
            .map(|vm| machine(number, vm, &generator(number, vm, 200), ""))
            .collect();
        configuration += &host(number, CABLE, &format!("buffers = 512\n{machines}"));
    }
    for vm in 1..=MANY {
        configuration += &format!("[[pair]]\nvms = [\"a/vm{vm}\", \"b/vm{vm}\"]\n");
    }
    // Pairs bring their policies.
    let configuration: String = (configuration.lines())
        .filter(|line| !line.starts_with("policy = "))
        .flat_map(|line| [line, "\n"])
        .collect();
    let daemon = Daemon::start(directory.path(), &configuration);
    let client = daemon.client();
    wait_until("every machine receives", || {
        let stats: types::Stats = client.get("/v1/stats").unwrap();
        let mut vms = stats.hosts.iter().flat_map(|host| &host.vms);
        vms.all(|vm| vm.rx_packets > 50)
    });
    let (is_accounted_for, said) = daemon.stop();
    assert!(is_accounted_for && !said.contains("dropped"), "{said}");
}
