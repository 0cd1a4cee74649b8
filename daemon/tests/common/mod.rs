//! Nodes without ports, driven by a thread each, and a plane over them.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vesper_daemon::node::NodeHandle;
use vesper_daemon::plane::{
    MachineSpec, NodeSpec, Origin, Persistence, Plane, SaSpec, Scope, Volatile,
};
use vesper_daemon::store::{Durable, Files, RefillSettings, StorePaths};
use vesper_esp::PacketBuf;
use vesper_offload::{Host, MacAddress, Nic, Profile, SwitchLimits};
use vesper_sa::Timestamp;
use vesper_verify::xfrm::{self, Line, State};

/// A store in this directory, which must have no reason to complain.
pub fn durable(directory: &Path) -> Arc<Durable> {
    let paths = StorePaths {
        files: Files::in_directory(directory),
        kek: directory.join("key"),
    };
    let durable = Durable::open(&paths, RefillSettings::default(), |alarm| {
        panic!("{alarm:?}");
    });
    Arc::new(durable.unwrap())
}

/// A plane with running nodes.
pub struct Bed {
    pub plane: Arc<Plane>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Bed {
    /// Host `a` with the machines `web1` and `web2`, and host `b` with `db1`.
    pub fn new() -> Self {
        Self::with(Arc::new(Volatile::default()), Profile::full())
    }

    pub fn with(persistence: Arc<dyn Persistence>, profile: Profile) -> Self {
        let plane = Arc::new(Plane::new(persistence).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (number, name) in [(1, "a"), (2, "b")] {
            let nic = Arc::new(Nic::<PacketBuf>::new(profile.clone()));
            let (handle, commands) = NodeHandle::new(name, Arc::clone(&nic));
            let stop = Arc::clone(&stop);
            threads.push(thread::spawn(move || {
                let mut host = Host::new(nic, SwitchLimits::default());
                let began = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let now =
                        Timestamp::from_nanos(1_000_000_000 + began.elapsed().as_nanos() as u64);
                    if commands.run(&mut host, now) == 0 {
                        host.run(now, 32);
                        for processor in 0..host.nic().processors() {
                            host.nic().run_processor(processor, now, 32);
                        }
                        thread::sleep(Duration::from_micros(50));
                    }
                }
            }));
            let spec = NodeSpec {
                addresses: vec![IpAddr::from([192, 0, 2, number])],
                mac: MacAddress([2, 0, 0, 0, number, 1]),
                gateway: Some(MacAddress([2, 0, 0, 0, 3 - number, 1])),
                ..NodeSpec::default()
            };
            plane.add_node(handle, spec);
        }
        for (host, name, number) in [("a", "web1", 1), ("a", "web2", 2), ("b", "db1", 3)] {
            let mut spec = MachineSpec::new(host, name, MacAddress([2, 0, 0, 1, 0, number]));
            spec.settings.vmq_weight = if name == "web2" { 0 } else { 100 };
            plane.add_vm(spec, None, Origin::Configured).unwrap();
        }
        Self {
            plane,
            stop,
            threads,
        }
    }

    pub fn add(&self, words: &str) -> Result<u64, String> {
        self.plane
            .add_sas(
                Scope::All,
                vec![SaSpec::new(state(words))],
                Origin::Requested,
            )
            .map(|ids| ids[0].0)
            .map_err(|refusal| refusal.to_string())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

pub fn state(words: &str) -> State {
    match xfrm::parse_lines(words, "test").unwrap().remove(0) {
        Line::State(state) => *state,
        Line::Policy(_) => panic!("{words}"),
    }
}

/// A key that only this association has.
pub fn key(direction: &str, spi: u32) -> String {
    format!("0x{direction}{spi:08x}{}", "5a".repeat(31))
}

/// An association of `web1` on host `a`, outbound.
pub fn outbound(spi: u32) -> String {
    let key = key("0a", spi);
    format!(
        "vm web1 src 192.0.2.1 dst 192.0.2.2 proto esp spi {spi:#x} reqid 7 mode tunnel \
         aead rfc4106(gcm(aes)) {key} 128"
    )
}

/// The same towards it.
pub fn inbound(spi: u32) -> String {
    let key = key("0b", spi);
    format!(
        "vm web1 src 192.0.2.2 dst 192.0.2.1 proto esp spi {spi:#x} reqid 7 mode tunnel \
         replay-window 64 aead rfc4106(gcm(aes)) {key} 128"
    )
}

/// The control interface over a bed, with its sockets in a directory of its own.
pub struct Served {
    pub bed: Bed,
    pub directory: tempfile::TempDir,
    pub control: Option<vesper_daemon::control::Control>,
}

impl Served {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut vesper_daemon::control::ControlSettings)) -> Self {
        use vesper_daemon::control::{Control, ControlSettings, Service};
        let bed = Bed::new();
        let directory = tempfile::tempdir().unwrap();
        let mut settings = ControlSettings::at(directory.path().join("control.sock"));
        change(&mut settings);
        let plane = Arc::clone(&bed.plane);
        let service = Service {
            plane: Arc::clone(&bed.plane),
            statistics: Arc::new(statistics),
            reload: Arc::new(move |only_check| {
                let desired = vesper_daemon::plane::Desired {
                    machines: plane.vms().iter().map(|vm| vm.spec.clone()).collect(),
                    sas: vec![state(&outbound(0x7000))],
                    policies: Vec::new(),
                };
                plane.reload(desired, only_check)
            }),
        };
        let control = Control::start(&settings, service).unwrap();
        Self {
            bed,
            directory,
            control: Some(control),
        }
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("control.sock")
    }

    pub fn client(&self) -> vesper_daemon::control::client::Client {
        vesper_daemon::control::client::Client::new(&self.socket()).unwrap()
    }

    /// A client on the socket of a machine.
    pub fn vm_client(&self, vm: &str) -> vesper_daemon::control::client::Client {
        let socket = self.directory.path().join(format!("vm/{vm}.sock"));
        for _ in 0..200 {
            if socket.exists() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        vesper_daemon::control::client::Client::new(&socket).unwrap()
    }
}

/// Made-up counters, all of them different.
fn statistics() -> vesper_daemon::node::Statistics {
    use vesper_daemon::node::WorkerStatistics;
    use vesper_daemon::node::{MachineStatistics, NodeStatistics, PathKind, Statistics};
    use vesper_daemon::port::PortStatus;
    let port = |first: u64| PortStatus {
        up: true,
        mac: None,
        mtu: 1500,
        received: first,
        received_bytes: first * 100,
        sent: first + 1,
        sent_bytes: (first + 1) * 100,
        malformed: 2,
        dropped: 3,
    };
    Statistics {
        nodes: vec![NodeStatistics {
            name: "a".into(),
            at: Timestamp::from_secs(7),
            uplink: port(1000),
            machines: vec![MachineStatistics {
                vm: vesper_sa::VmId(1),
                name: "web1".into(),
                path: PathKind::Queue,
                port: port(500),
                unusable: 4,
                sas: vesper_sa::SaUsage {
                    associations: 2,
                    reserved: 1,
                    limit: 512,
                },
                offloaded: vesper_offload::Usage {
                    used: 2,
                    capacity: 512,
                },
                adapter: Default::default(),
                host: Default::default(),
            }],
            esp: Default::default(),
            losses: Default::default(),
            abandoned: 0,
            free_buffers: 9,
        }],
        workers: vec![WorkerStatistics {
            roles: "a: host, adapter".into(),
            cpu: Some(0),
            busy: 250,
            elapsed: 1000,
            sleeps: 5,
        }],
    }
}
