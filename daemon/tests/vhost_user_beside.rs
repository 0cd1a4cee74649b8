//! Two guests of one worker, on real vhost-user ports of a real vesperd: whatever the one does,
//! the other one's packets pass. With `VESPER_LONG=1`, in a release build and on a quiet machine,
//! it keeps its rate and its latency as well.

mod front_end;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use front_end::{BUFFERS, Directory, FrontEnd, NEXT, SIZE, feature};
use vhost::VhostBackend;

/// The quiet guest sends one packet in this time.
const EVERY: Duration = Duration::from_micros(200);

/// Chains that the noisy guest makes at a time: one thread is both guests, and must not keep the
/// quiet one from looking.
const AT_A_TIME: usize = 8;

/// A packet that is not back by then is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the other guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noise {
    /// Nothing.
    None,
    /// Small packets, as many as are taken.
    Packets,
    /// Large packets to be cut into as many segments as there may be.
    Segments,
    /// Chains that never end.
    Loops,
    /// An index that can not be, again and again.
    Index,
}

/// vesperd with two machines, whose packets the uplink sends back; killed when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(directory: &Path) -> Self {
        let machine = |number: u8| {
            let socket = directory.join(format!("{number}.sock"));
            format!(
                "[[host.vm]]\nname = \"vm{number}\"\nmac = \"02:00:00:00:00:0{number}\"\n\
                 port = {{ vhost_user = {{ socket = {socket:?} }} }}\nrequire_protection = false\n"
            )
        };
        let text = format!(
            "[[host]]\nname = \"a\"\nuplink = \"loopback\"\n\
             tunnel = {{ address = \"192.0.2.1\", mac = \"02:00:00:00:0a:00\" }}\n{}{}",
            machine(1),
            machine(2)
        );
        let path = directory.join("vesper.toml");
        std::fs::write(&path, text).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_vesperd"))
            .arg("--config")
            .arg(&path)
            .arg("--quiet")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let daemon = Self(child);
        let end = Instant::now() + Duration::from_secs(30);
        while !directory.join("2.sock").exists() {
            assert!(Instant::now() < end, "vesperd does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn udp(from: u8, payload: usize) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, from], [2, 0, 0, 0, 0, 9]);
    let udp = link
        .ipv4([10, 0, 0, from], [10, 0, 0, 9], 64)
        .udp(1000, 2000);
    let mut frame = Vec::new();
    udp.write(&mut frame, &vec![7; payload]).unwrap();
    frame
}

fn tcp(from: u8, payload: usize) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, from], [2, 0, 0, 0, 0, 9]);
    let ip = link.ipv4([10, 0, 0, from], [10, 0, 0, 9], 64);
    let mut frame = Vec::new();
    ip.tcp(1, 2, 0, 9)
        .write(&mut frame, &vec![7; payload])
        .unwrap();
    frame
}

/// Does once what the noisy guest does all the time.
fn make(noise: Noise, guest: &mut FrontEnd, small: &[u8], large: &[u8]) {
    let room = |guest: &FrontEnd| guest.outstanding(1) < SIZE;
    match noise {
        Noise::None => {}
        Noise::Packets => {
            for _ in 0..AT_A_TIME {
                if room(guest) {
                    guest.transmit(&[0; 12], small);
                }
            }
        }
        Noise::Segments => {
            // Checksum and TCP over IPv4, eight bytes a segment.
            let header = [1, 1, 54, 0, 8, 0, 34, 0, 16, 0, 0, 0];
            while room(guest) {
                guest.transmit(&header, large);
            }
        }
        Noise::Loops => {
            guest.descriptor(1, 0, BUFFERS, 64, NEXT, 1);
            guest.descriptor(1, 1, BUFFERS, 64, NEXT, 0);
            while room(guest) {
                guest.offer(1, 0);
            }
        }
        Noise::Index => {
            guest.set_available(1, guest.used(1).wrapping_add(SIZE + 1));
            let _ = guest.kicks[1].write(1);
            guest.protocol.get_vring_base(1).unwrap();
            guest.start(1);
        }
    }
    if noise != Noise::None {
        let _ = guest.kicks[1].write(1);
        for _ in 0..2 * AT_A_TIME {
            if guest.outstanding(0) < SIZE {
                guest.post(2048);
            }
        }
    }
}

/// What the quiet guest has seen.
#[derive(Default)]
struct Seen {
    /// How long each packet took.
    times: Vec<Duration>,
    elapsed: Duration,
}

impl Seen {
    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The time that so many of a thousand packets did not exceed.
    fn within(&self, thousandths: usize) -> Duration {
        let mut times = self.times.clone();
        times.sort_unstable();
        times[(times.len() * thousandths / 1000).min(times.len() - 1)]
    }
}

/// Adds what the quiet guest sees in a while.
fn beside(noise: Noise, daemon: &Path, duration: Duration, seen: &mut Seen) {
    let mut quiet = FrontEnd::connect(&daemon.join("1.sock"), feature::USUAL);
    let mut noisy = FrontEnd::connect(&daemon.join("2.sock"), feature::USUAL);
    let (mine, small, large) = (udp(1, 18), udp(2, 18), tcp(2, 1900));
    for _ in 0..SIZE {
        quiet.post(2048);
    }
    let start = Instant::now();
    let mut next = start;
    while start.elapsed() < duration {
        while Instant::now() < next {
            make(noise, &mut noisy, &small, &large);
        }
        next += EVERY;
        let received = quiet.used(0);
        let sent = Instant::now();
        quiet.transmit(&[0; 12], &mine);
        quiet.kicks[1].write(1).unwrap();
        while quiet.used(0) == received {
            assert!(sent.elapsed() < PATIENCE, "lost beside {noise:?}");
            make(noise, &mut noisy, &small, &large);
        }
        seen.times.push(sent.elapsed());
        quiet.post(2048);
        // Whoever was late does not hurry afterwards: that would be another load.
        next = next.max(Instant::now());
    }
    seen.elapsed += start.elapsed();
}

#[test]
fn a_guest_that_does_its_worst_stops_nobody_else() {
    let directory = Directory::new("beside");
    let daemon = Daemon::start(&directory.0);
    let is_long = std::env::var_os("VESPER_LONG").is_some();
    let (window, turns) = match is_long {
        true => (Duration::from_millis(300), 10),
        false => (Duration::from_millis(100), 1),
    };
    for noise in [Noise::Packets, Noise::Segments, Noise::Loops, Noise::Index] {
        // In turn, so that whatever else disturbs the machine disturbs both.
        let (mut alone, mut seen) = (Seen::default(), Seen::default());
        for _ in 0..turns {
            beside(Noise::None, &directory.0, window, &mut alone);
            beside(noise, &directory.0, window, &mut seen);
        }
        println!(
            "{noise:?}: {:.0} a second ({:.0} alone), median {:?} ({:?}), 99th percentile {:?} ({:?}), longest {:?} ({:?})",
            seen.rate(),
            alone.rate(),
            seen.within(500),
            alone.within(500),
            seen.within(990),
            alone.within(990),
            seen.within(1000),
            alone.within(1000),
        );
        let count = seen.times.len();
        assert!(count > 5, "{count} packets beside {noise:?}");
        if is_long && noise == Noise::Packets {
            assert!(seen.rate() >= 0.95 * alone.rate(), "rate");
            assert!(seen.within(990) <= 2 * alone.within(990), "latency");
        }
    }
    drop(daemon);
}
