//! VPP, whose packet generator drives packets through its own nodes for ESP, and which says itself
//! what each node cost.

mod console;
mod runtime;
mod setup;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sched::sched_getcpu;

use crate::case::{Case, Digest, PACKETS};
use crate::contest::{Contestant, Fault, Refusal, Repetition};

use super::PeersError;
use console::Console;
use runtime::Runtime;

/// The environment variable with the prefix that VPP was installed to.
const PREFIX: &str = "VESPER_BENCH_VPP_PREFIX";
/// The name in results.
const NAME: &str = "vpp";
/// Packets of a turn, in passes: one turn to warm up, one to measure.
const PASSES: usize = 4;
/// The nodes that do what an engine does, out and in.
const NODES: [&[&str]; 2] = [
    &["esp4-encrypt-tun", "adj-midchain-tx"],
    &["ipsec4-tun-input", "esp4-decrypt-tun"],
];
/// The node after which packets have left.
const END: &str = "pg1-tx";
/// How often VPP loses the core around a turn of which nothing is disturbed, by its own answers.
const AROUND: u64 = 2;
/// How long a turn may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// VPP, if the environment has its prefix.
pub(super) fn contestant(huge_pages: bool) -> Result<Option<Vpp>, PeersError> {
    let Some(prefix) = std::env::var_os(PREFIX).map(PathBuf::from) else {
        return Ok(None);
    };
    let program = prefix.join("bin/vpp");
    if !program.is_file() {
        return Err(PeersError::Program {
            variable: PREFIX,
            prefix,
            program,
        });
    }
    Ok(Some(Vpp {
        program,
        huge_pages,
        running: None,
    }))
}

/// An installation of VPP; a process of it runs for each case.
pub(super) struct Vpp {
    program: PathBuf,
    huge_pages: bool,
    running: Option<Running>,
}

struct Running {
    console: Console,
    /// How long a turn takes.
    turn: Duration,
    /// Where it writes; last, so that the process has left before it is removed.
    _directory: Directory,
}

impl Contestant for Vpp {
    fn name(&self) -> &str {
        NAME
    }

    /// It chooses IVs at random, so that what it sealed can not be compared; what it opened is.
    fn prepare(&mut self, case: &Case) -> Result<Option<Digest>, Refusal> {
        if let Some(reason) = setup::obstacle(case) {
            return Err(Refusal::Declined(reason));
        }
        let directory = Directory::create()?;
        let path = directory.0.clone();
        let path = path.as_path();
        let configuration = path.join("startup.conf");
        write(
            &configuration,
            setup::configuration(path, self.huge_pages, own_cpu()?).as_bytes(),
        )?;
        let capture = path.join("packets.pcap");
        let packets = setup::capture(case);
        write(&capture, &packets)?;
        let mut running = Running {
            console: Console::start(&self.program, &configuration, path.join("messages"))?,
            turn: Duration::ZERO,
            _directory: directory,
        };
        for command in setup::commands(case, PASSES * PACKETS, &capture) {
            running.console.tell(&command)?;
        }
        running.check(&setup::captured(&packets), &path.join("opened.pcap"))?;
        self.running = Some(running);
        Ok(None)
    }

    fn repeat(&mut self) -> Result<Repetition, Fault> {
        let Some(running) = &mut self.running else {
            return Err(Fault::new(NAME, "no case was prepared"));
        };
        running.turn()?;
        let (runtime, disturbed) = running.turn()?;
        let mut ticks = [0; 2];
        for (ticks, nodes) in ticks.iter_mut().zip(NODES) {
            let Some(each) = runtime.ticks(nodes) else {
                let missing = format_args!("it has no figures of {}", nodes.join(" and "));
                return Err(running.console.fault(&missing));
            };
            *ticks = (each * PACKETS as f64) as u64;
        }
        Ok(Repetition { ticks, disturbed })
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.running = None;
        Ok(())
    }
}

impl Running {
    /// A turn of which the packets that were opened are compared with those that were sent; learns
    /// how long a turn takes.
    fn check(&mut self, sent: &[&[u8]], opened: &Path) -> Result<(), Fault> {
        let sink = setup::SINK;
        let path = opened.display();
        let count = PASSES * PACKETS;
        self.console.tell(&format!(
            "packet-generator capture {sink} pcap {path} count {count}"
        ))?;
        self.turn()?;
        self.console
            .tell(&format!("packet-generator capture {sink} disable"))?;
        let file = std::fs::read(opened).map_err(|error| Fault::new(NAME, error))?;
        let received = setup::captured(&file);
        // Routing has changed time to live and checksum.
        let text = |packet: &&[u8]| packet.get(12..).map(<[u8]>::to_vec);
        let mut expected: Vec<_> = sent.iter().cycle().take(count).map(text).collect();
        let mut found: Vec<_> = received.iter().map(text).collect();
        expected.sort();
        found.sort();
        if expected != found {
            return Err(self.console.fault(&"opened packets are not those sealed"));
        }
        self.turn = Duration::ZERO;
        let began = Instant::now();
        self.turn()?;
        self.turn = began.elapsed();
        Ok(())
    }

    /// Sends all packets of a turn through the graph; what the nodes say then, and whether the
    /// scheduler interrupted.
    fn turn(&mut self) -> Result<(Runtime, bool), Fault> {
        let console = &mut self.console;
        console.tell("clear runtime")?;
        let before = console.preemptions();
        console.send("packet-generator enable-stream packets")?;
        // Meanwhile the core is VPP's: nothing here runs that could wake up on its answer.
        std::thread::sleep(self.turn);
        let mut disturbed = console.preemptions() - before > AROUND;
        console.receive()?;
        let began = Instant::now();
        loop {
            let runtime = Runtime::parse(&console.ask("show runtime")?);
            let wanted = (PASSES * PACKETS) as u64;
            let there = runtime.packets(END);
            if there == wanted && runtime.packets("error-drop") == 0 {
                return Ok((runtime, disturbed));
            }
            if began.elapsed() > PATIENCE || runtime.packets("error-drop") > 0 {
                let errors = console.ask("show errors")?;
                let what = format_args!("of {wanted} packets {there} came through; {errors}");
                return Err(console.fault(&what));
            }
            disturbed = true;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The core of the calling thread, which all contestants share.
fn own_cpu() -> Result<usize, Fault> {
    sched_getcpu().map_err(|error| Fault::new(NAME, error))
}

/// A directory of our own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn create() -> Result<Self, Fault> {
        let path = std::env::temp_dir().join(format!("vesper-bench-vpp-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .map_err(|error| Fault::new(NAME, format_args!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Fault> {
    std::fs::write(path, bytes)
        .map_err(|error| Fault::new(NAME, format_args!("{}: {error}", path.display())))
}
