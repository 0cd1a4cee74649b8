//! What can be configured, as it stands in the file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use vesper_offload::{
    InterruptModeration, NicSwitchParams, OffloadMode, SwitchLimits, VmAddress, VmSettings,
};

use super::value::{Located, Mac, Period, Secret, Vlan};

/// A whole configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `[daemon]`: what concerns the process.
    #[serde(default)]
    pub daemon: DaemonConfig,
    /// `[control]`: who may use the control interface, and where it is beside its socket.
    #[serde(default)]
    pub control: ControlConfig,
    /// `[[host]]`: adapters with their machines.
    #[serde(default, rename = "host")]
    pub hosts: Vec<HostConfig>,
    /// `[[pair]]`: machines of this very process that talk to each other with fresh keys.
    #[serde(default, rename = "pair")]
    pub pairs: Vec<PairConfig>,
}

/// What concerns the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonConfig {
    /// The directory of the state that survives; without it nothing does.
    pub state: Option<PathBuf>,
    /// The file of the key that wraps the keys in `state`; by default one beside them, which is
    /// made if there is none.
    pub key: Option<PathBuf>,
    /// The file that tells whether `state` is the latest; by default one in that directory.
    pub anchor: Option<PathBuf>,
    /// The control socket; without it there is none.
    pub control: Option<PathBuf>,
    /// Where metrics and status page are served; without it they are not.
    pub status: Option<SocketAddr>,
    /// What is logged: a level, or directives as of `tracing`.
    pub log: Option<String>,
    /// How it is written.
    pub log_format: LogFormat,
}

/// Who may use the control interface, beside root and the user of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// The group of the control socket.
    pub group: Option<Located<String>>,
    /// Users of the control socket.
    pub users: Vec<Located<UserConfig>>,
    /// The group of the sockets of machines.
    pub vm_group: Option<Located<String>>,
    /// Users of the sockets of machines.
    pub vm_users: Vec<Located<UserConfig>>,
    /// A TCP address for holders of certificates.
    pub tcp: Option<Located<TcpConfig>>,
}

impl ControlConfig {
    /// Whether sockets belong to a group that is named.
    pub fn gives_groups(&self) -> bool {
        self.group.is_some() || self.vm_group.is_some()
    }
}

/// A user of the system.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "the name or number of a user")]
pub enum UserConfig {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
}

/// A TCP address for holders of certificates.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// The certificate of the daemon with its chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, closed to others; `$CREDENTIALS_DIRECTORY/NAME` is a credential of
    /// systemd.
    pub key: PathBuf,
    /// The authorities of which a client needs a certificate, PEM.
    pub client_authorities: PathBuf,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object a line.
    Json,
}

/// An adapter with its machines.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// Its name, unique in the file.
    pub name: Located<String>,
    /// The model of adapter: a name of [`Profile`](vesper_offload::Profile).
    #[serde(default = "full")]
    pub adapter: Located<String>,
    /// Processors of the adapter.
    #[serde(default = "one")]
    pub processors: Located<u16>,
    /// Threads that drive the adapter and the host; as many as there are CPUs at most.
    #[serde(default = "one")]
    pub workers: Located<u16>,
    /// The CPUs that its workers are pinned to, in turn; by default those that the process may
    /// use.
    pub cpus: Option<Located<Vec<usize>>>,
    /// The NIC switch; without it there are no virtual functions.
    pub nic_switch: Option<NicSwitchConfig>,
    /// Limits of the software switch.
    #[serde(default)]
    pub switch: SwitchConfig,
    /// Packet buffers, beside those that are posted for each machine.
    #[serde(default = "buffers")]
    pub buffers: Located<u32>,
    /// The longest frame in bytes that a buffer takes.
    #[serde(default = "frame")]
    pub frame: Located<u32>,
    /// Where its tunnels end.
    pub tunnel: TunnelConfig,
    /// The port to the network.
    pub uplink: Located<PortConfig>,
    /// `[[host.vm]]`: its machines.
    #[serde(default, rename = "vm")]
    pub vms: Vec<VmConfig>,
}

/// The NIC switch of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicSwitchConfig {
    /// Virtual functions that there will be.
    pub virtual_functions: u16,
    /// Queue pairs of the default port.
    #[serde(default = "one_pair")]
    pub queue_pairs: u16,
}

/// Limits of the software switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwitchConfig {
    /// Addresses that it learns.
    pub addresses: usize,
    /// After this time without a frame an address is forgotten.
    pub age: Period,
    /// Frames that a port may flood in a second.
    pub floods: u32,
}

/// Where the tunnels of a host end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelConfig {
    /// The outer address of the host.
    pub address: IpAddr,
    /// The Ethernet address of the host on its uplink.
    pub mac: Mac,
    /// The next hop towards the peers, to be resolved; by default each peer itself.
    pub gateway: Option<IpAddr>,
    /// The Ethernet address of the next hop, where it is fixed.
    pub gateway_mac: Option<Mac>,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Its name, unique on its host.
    pub name: Located<String>,
    /// Its Ethernet address.
    pub mac: Located<Mac>,
    /// Its VLAN; none is the untagged network.
    pub vlan: Option<Vlan>,
    /// What it is behind.
    pub port: Located<PortConfig>,
    /// Associations that may be offloaded, both directions together; 0 is none.
    #[serde(default = "offload_limit")]
    pub ipsec_offload_limit: u32,
    /// Associations that it may have, offloaded or not.
    #[serde(default = "offload_limit")]
    pub sa_limit: u32,
    /// Who does what of IPsec offload, the preferred first.
    #[serde(default = "modes")]
    pub offload: Vec<OffloadModeConfig>,
    /// Share of a receive queue and of the processors, 1 to 100; 0 is no queue.
    #[serde(default = "hundred")]
    pub vmq_weight: Located<u16>,
    /// The wish for a virtual function, 1 to 100; 0 is none.
    #[serde(default = "none")]
    pub iov_weight: Located<u16>,
    /// Queue pairs of the virtual function.
    #[serde(default = "one_pair")]
    pub iov_queue_pairs: u16,
    /// Received packets are indicated when this many wait ...
    #[serde(default = "one_packet")]
    pub interrupt_packets: u32,
    /// ... or the oldest has waited for so long.
    #[serde(default)]
    pub interrupt_delay: Period,
    /// The most that it may send, in bits a second; 0 is unlimited.
    #[serde(default)]
    pub rate_limit: u64,
    /// It may use other Ethernet addresses than its own.
    #[serde(default)]
    pub trusted: bool,
    /// Packets that no policy matches are discarded, also when there is no policy at all.
    #[serde(default = "yes")]
    pub require_protection: bool,
    /// Associations, each in the words of `ip xfrm state add`.
    #[serde(default)]
    pub sa: Vec<Located<Secret>>,
    /// A file of them, readable by the owner alone.
    pub sa_file: Option<Located<PathBuf>>,
    /// Policies, each in the words of `ip xfrm policy add`.
    #[serde(default)]
    pub policy: Vec<Located<String>>,
}

/// Who does what of IPsec offload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OffloadModeConfig {
    /// The adapter does it all.
    Packet,
    /// The adapter encrypts and decrypts, the host does the rest.
    Crypto,
}

/// What a machine, or the network, is behind.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortConfig {
    /// A cable to another host of this process.
    Cable(CableConfig),
    /// Sends made-up packets, and checks those that come back or from another generator.
    Generator(GeneratorConfig),
    /// Takes everything and sends nothing.
    Sink,
    /// Sends back what it gets, to whoever sent it.
    Loopback,
    /// Sends what is in a capture file, writes what it gets to another.
    Pcap(PcapConfig),
    /// A virtual machine of QEMU, cloud-hypervisor or DPDK, over vhost-user.
    VhostUser(VhostUserConfig),
    /// A TAP interface, which is made if there is none of this name.
    Tap(TapConfig),
    /// An interface of the host, through a packet socket.
    AfPacket(AfPacketConfig),
}

/// A vhost-user socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VhostUserConfig {
    /// Its path.
    pub socket: PathBuf,
    /// Who makes it.
    #[serde(default)]
    pub mode: VhostUserMode,
    /// Queue pairs that the machine may have, 1 to 64.
    #[serde(default = "one_pair")]
    pub queues: u16,
    /// The longest IP packet, in bytes; give the machine the same (`host_mtu` of QEMU).
    #[serde(default = "mtu")]
    pub mtu: u16,
    /// Who may connect, as `chmod` takes it.
    #[serde(default = "permissions")]
    pub permissions: u32,
    /// Refuse memory that the hypervisor has not sealed against shrinking.
    #[serde(default)]
    pub sealed: bool,
    /// What the machine is told about its network.
    #[serde(default)]
    pub edge: EdgeConfig,
}

/// What a machine is told about its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeConfig {
    /// Its questions for neighbours (ARP, neighbour discovery) are answered with the address of
    /// the host.
    pub neighbours: bool,
    /// The longest IP packet that goes into its tunnels: longer ones are cut, or answered.
    pub tunnel_mtu: Option<u16>,
    /// Its TCP connections agree upon segments that fit into `tunnel_mtu`.
    pub clamp_mss: bool,
}

impl Default for EdgeConfig {
    fn default() -> Self {
        Self {
            neighbours: true,
            tunnel_mtu: None,
            clamp_mss: false,
        }
    }
}

/// Who makes a vhost-user socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VhostUserMode {
    /// vesperd does; the hypervisor connects.
    #[default]
    Server,
    /// The hypervisor does; vesperd connects, again and again.
    Client,
}

/// A TAP interface.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapConfig {
    /// Its name.
    pub interface: String,
    /// Queues, 1 to 16.
    #[serde(default = "one_pair")]
    pub queues: u16,
    /// The MTU that it gets; by default it keeps its own.
    pub mtu: Option<u16>,
    /// What the machine is told about its network.
    #[serde(default)]
    pub edge: EdgeConfig,
}

/// An interface of the host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AfPacketConfig {
    /// Its name.
    pub interface: String,
    /// What the machine is told about its network, if one is behind it.
    #[serde(default)]
    pub edge: EdgeConfig,
}

/// A cable to another host of this process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CableConfig {
    /// Its name; exactly two ports have it.
    pub name: String,
}

/// Made-up packets.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Source address of the packets.
    pub source: Ipv4Addr,
    /// Their destination.
    pub destination: Ipv4Addr,
    /// Lengths of the IP packets.
    #[serde(default)]
    pub sizes: Sizes,
    /// UDP flows, told apart by their source port.
    #[serde(default = "flows")]
    pub flows: u16,
    /// Packets a second; 0 is as many as are taken.
    #[serde(default)]
    pub rate: u64,
}

/// Lengths of made-up IP packets, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizes {
    /// Of twelve packets seven have 64, four 570, and one 1420 bytes, mixed.
    #[default]
    Imix,
    /// All of this length.
    Fixed(u16),
}

/// Capture files.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcapConfig {
    /// Frames to send.
    pub read: Option<PathBuf>,
    /// Frames a second; by default at the pace at which they were captured, 0 as fast as
    /// possible.
    pub rate: Option<u64>,
    /// From the beginning again after the last one.
    #[serde(default)]
    pub repeat: bool,
    /// Where to write what is received.
    pub write: Option<PathBuf>,
    /// The most that is written, in bytes.
    #[serde(default = "capture_bytes")]
    pub limit: u64,
}

/// Two machines of this process that talk to each other through tunnels with keys that are
/// made afresh at each start.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairConfig {
    /// The machines, each as `host/name`.
    pub vms: Located<[String; 2]>,
    /// The cipher suite.
    #[serde(default = "suite")]
    pub suite: Located<String>,
    /// Extended sequence numbers.
    #[serde(default = "yes")]
    pub esn: bool,
    /// Packets of the replay window.
    #[serde(default = "window")]
    pub replay_window: Located<u32>,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        let limits = SwitchLimits::default();
        Self {
            addresses: limits.addresses,
            age: Period(limits.age),
            floods: limits.floods,
        }
    }
}

impl From<SwitchConfig> for SwitchLimits {
    fn from(config: SwitchConfig) -> Self {
        Self {
            addresses: config.addresses,
            age: config.age.0,
            floods: config.floods,
        }
    }
}

impl From<NicSwitchConfig> for NicSwitchParams {
    fn from(config: NicSwitchConfig) -> Self {
        Self {
            virtual_functions: config.virtual_functions,
            default_queue_pairs: config.queue_pairs,
        }
    }
}

impl From<OffloadModeConfig> for OffloadMode {
    fn from(mode: OffloadModeConfig) -> Self {
        match mode {
            OffloadModeConfig::Packet => Self::Packet,
            OffloadModeConfig::Crypto => Self::Crypto,
        }
    }
}

impl UserConfig {
    /// The number of the user; `None` if the system knows nobody of this name.
    pub fn uid(&self) -> Option<u32> {
        match self {
            Self::Number(uid) => Some(*uid),
            Self::Name(name) => {
                let user = nix::unistd::User::from_name(name).ok().flatten();
                user.map(|user| user.uid.as_raw())
            }
        }
    }
}

impl VmConfig {
    /// What the adapter is told about it.
    pub fn settings(&self) -> VmSettings {
        VmSettings {
            ipsec_offload_limit: self.ipsec_offload_limit,
            vmq_weight: *self.vmq_weight,
            iov_weight: *self.iov_weight,
            iov_queue_pairs: self.iov_queue_pairs,
            interrupts: InterruptModeration {
                packets: self.interrupt_packets,
                delay: u64::try_from(self.interrupt_delay.0.as_nanos()).unwrap_or(u64::MAX),
            },
            rate_limit: self.rate_limit,
            trusted: self.trusted,
        }
    }

    /// Where it is on the network.
    pub fn address(&self) -> VmAddress {
        VmAddress {
            mac: self.mac.0,
            vlan: self.vlan.map(|vlan| vlan.0),
        }
    }
}

impl Default for Period {
    fn default() -> Self {
        Self(Duration::ZERO)
    }
}

fn full() -> Located<String> {
    Located::new("full".to_owned(), 0)
}

const fn one() -> Located<u16> {
    Located::new(1, 0)
}

const fn none() -> Located<u16> {
    Located::new(0, 0)
}

const fn hundred() -> Located<u16> {
    Located::new(100, 0)
}

const fn one_pair() -> u16 {
    1
}

const fn one_packet() -> u32 {
    1
}

const fn buffers() -> Located<u32> {
    Located::new(4096, 0)
}

const fn frame() -> Located<u32> {
    Located::new(1600, 0)
}

const fn offload_limit() -> u32 {
    512
}

fn modes() -> Vec<OffloadModeConfig> {
    vec![OffloadModeConfig::Packet, OffloadModeConfig::Crypto]
}

const fn mtu() -> u16 {
    1500
}

const fn permissions() -> u32 {
    0o660
}

const fn yes() -> bool {
    true
}

const fn flows() -> u16 {
    8
}

const fn capture_bytes() -> u64 {
    1 << 30
}

fn suite() -> Located<String> {
    Located::new("aes256gcm16".to_owned(), 0)
}

const fn window() -> Located<u32> {
    Located::new(1024, 0)
}
