//! A port on its own, without a node: what comes in goes out again with its Ethernet addresses
//! exchanged, or is dropped. For trying a port, and for measuring it beside its peers.
//!
//! ```text
//! port_echo vhost-user SOCKET QUEUES [drop|fill]
//! port_echo tap INTERFACE QUEUES [drop|fill]
//! port_echo af-packet INTERFACE [drop|fill]
//! ```
//! `drop` takes frames only, `fill` sends 64-byte frames as fast as they are taken. Once a
//! second it prints how many have passed.

use std::time::{Duration, Instant};

use vesper_daemon::port::vhost_user::{Role, VhostUser, VhostUserOptions};
use vesper_daemon::port::{AfPacket, Pool, Port, Tap};
use vesper_esp::Buffer;
use vesper_offload::MacAddress;
use vesper_sa::Timestamp;

const BATCH: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (mut port, what): (Box<dyn Port>, &str) = match words[..] {
        ["vhost-user", socket, queues, ref rest @ ..] => {
            let options = VhostUserOptions {
                socket: socket.into(),
                role: Role::Server { permissions: 0o660 },
                queue_pairs: queues.parse()?,
                mtu: 9000,
                sealed: false,
            };
            let what = rest.first().copied().unwrap_or("echo");
            (Box::new(VhostUser::open(&options)?), what)
        }
        ["tap", interface, queues, ref rest @ ..] => {
            let port = Tap::open(interface, queues.parse()?, None)?;
            (Box::new(port), rest.first().copied().unwrap_or("echo"))
        }
        ["af-packet", interface, ref rest @ ..] => {
            let port = AfPacket::open(interface, MacAddress::BROADCAST)?;
            (Box::new(port), rest.first().copied().unwrap_or("echo"))
        }
        _ => {
            return Err(
                "usage: port_echo vhost-user|tap|af-packet NAME [QUEUES] [drop|fill]".into(),
            );
        }
    };
    let mut pool = Pool::new(4096, 9018);
    let mut incoming = Vec::new();
    let mut outgoing = Vec::new();
    let mut shown = port.status();
    let mut next = Instant::now() + Duration::from_secs(1);
    let start = Instant::now();
    let mut before = cpu();
    loop {
        let now = Timestamp::from_nanos(start.elapsed().as_nanos() as u64);
        for _ in 0..100 {
            port.receive(now, &mut pool, BATCH, &mut incoming);
            for mut received in incoming.drain(..) {
                if what != "echo" {
                    pool.give(received.frame);
                    continue;
                }
                let (to, from) = received.frame.data_mut()[..12].split_at_mut(6);
                to.swap_with_slice(from);
                outgoing.push(received.frame);
            }
            while what == "fill" && outgoing.len() < BATCH {
                outgoing.extend(pool.copy(&[0; 60]));
            }
            port.send(now, &mut pool, &mut outgoing);
        }
        if Instant::now() >= next {
            next += Duration::from_secs(1);
            let status = port.status();
            let spent = cpu();
            let moved = status.received + status.sent - shown.received - shown.sent;
            let each = (spent - before).as_nanos() / u128::from(moved.max(1));
            before = spent;
            println!(
                "{each} ns of CPU per frame, up {} received {} sent {} malformed {} dropped {}",
                status.up,
                status.received - shown.received,
                status.sent - shown.sent,
                status.malformed - shown.malformed,
                status.dropped - shown.dropped,
            );
            shown = status;
        }
    }
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
