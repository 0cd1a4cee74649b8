//! What requests and answers look like. `docs/openapi.json` is made of this.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An association.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sa {
    /// Its number for as long as the daemon runs.
    pub id: u64,
    /// The host.
    pub host: String,
    /// The machine that owns it; absent: the host itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vm: Option<String>,
    /// `in` or `out`.
    pub dir: String,
    /// `0x` and 8 hexadecimal digits.
    pub spi: String,
    /// Outer source address.
    pub src: String,
    /// Outer destination address.
    pub dst: String,
    /// `tunnel` or `transport`.
    pub mode: String,
    /// Links associations and policies; 0 is none.
    pub reqid: u32,
    /// The suite, as `vesper-verify --list` names it.
    pub suite: String,
    /// INSTALLED, REKEYING (soft limit reached), EXPIRED (hard limit reached), NEEDS_REKEY or
    /// DELETED.
    pub state: String,
    /// Why it needs to be rekeyed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub needs_rekey: Option<String>,
    /// `packet`, `crypto`, or `software`.
    pub offload: String,
    /// Why it is in software.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why_not: Option<String>,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Packets of the replay window; 0 is no replay protection.
    pub replay_window: u32,
    /// Outbound the last number used, inbound the highest one accepted.
    pub sequence: u64,
    /// Packets sent, or accepted.
    pub packets: u64,
    /// Bytes that were encrypted or decrypted in them.
    pub bytes: u64,
    /// Packets refused by their sequence number.
    pub replays: u64,
    /// Packets that failed authentication.
    pub authentication_failures: u64,
    /// Packets refused because of a limit, of the lease or of deletion.
    pub refused: u64,
    /// Seconds since it was added here.
    pub age_seconds: u64,
    /// `configured` or `requested`.
    pub origin: String,
    /// What follows `ip xfrm state add`; with keys only if they were asked for.
    pub words: String,
}

/// Associations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sas {
    /// Oldest first.
    pub sas: Vec<Sa>,
}

/// Words of `ip xfrm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Words {
    /// What follows `ip xfrm state add` or `ip xfrm policy add`, with `host NAME` and
    /// `vm NAME` in front where they are needed.
    pub words: String,
}

/// What was added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Added {
    /// The numbers of the associations, in the order of the request.
    pub ids: Vec<u64>,
}

/// How much was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// Things that were added, changed or deleted.
    pub count: usize,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// Its number for as long as the daemon runs.
    pub index: u64,
    /// The host.
    pub host: String,
    /// The machine whose packets it is about.
    pub vm: String,
    /// `in` or `out`.
    pub dir: String,
    /// Lower ones decide first.
    pub priority: u32,
    /// The words of its selector; empty: all packets.
    pub selector: String,
    /// `protect`, `bypass` or `discard`.
    pub action: String,
    /// `configured` or `requested`.
    pub origin: String,
    /// What follows `ip xfrm policy add`.
    pub words: String,
}

/// Policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Policies {
    /// Machine by machine, in the order in which they decide.
    pub policies: Vec<Policy>,
}

/// How much of something is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// In use.
    pub used: u32,
    /// At most.
    pub limit: u32,
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vm {
    /// The host.
    pub host: String,
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// Its Ethernet address.
    pub mac: String,
    /// Its VLAN.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vlan: Option<u16>,
    /// Associations, of how many it may have.
    pub sas: Usage,
    /// Offloaded associations, of how many it may have.
    pub offloaded: Usage,
    /// Its receive queue.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub queue: Option<u16>,
    /// Its virtual function.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub function: Option<u16>,
    /// The processor of the adapter that serves it.
    pub processor: usize,
    /// How its associations are offloaded, the preferred mode first.
    pub offload: Vec<String>,
    /// Share of a receive queue and of the processors.
    pub vmq_weight: u16,
    /// The wish for a virtual function.
    pub iov_weight: u16,
    /// Packets that no policy matches are discarded.
    pub require_protection: bool,
    /// What it does not get of what it asks for, and why.
    pub fallbacks: Vec<String>,
    /// `configured` or `requested`.
    pub origin: String,
}

/// Virtual machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Vms {
    /// By number.
    pub vms: Vec<Vm>,
}

/// A virtual machine to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewVm {
    /// The host; may be left out if there is only one.
    #[serde(default)]
    pub host: Option<String>,
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: String,
    /// Its VLAN.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// What it is behind, as a table of the configuration.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub port: Option<serde_json::Value>,
    /// Associations that it may have.
    #[serde(default)]
    pub sa_limit: Option<u32>,
    /// Associations that may be offloaded.
    #[serde(default)]
    pub ipsec_offload_limit: Option<u32>,
    /// Share of a receive queue and of the processors, 1 to 100; 0 is no queue.
    #[serde(default)]
    pub vmq_weight: Option<u16>,
    /// The wish for a virtual function, 1 to 100; 0 is none.
    #[serde(default)]
    pub iov_weight: Option<u16>,
    /// Packets that no policy matches are discarded, which is so unless it is said otherwise.
    #[serde(default)]
    pub require_protection: Option<bool>,
}

/// What is to change of a virtual machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmPatch {
    /// Associations that it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sa_limit: Option<u32>,
    /// Associations that may be offloaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipsec_offload_limit: Option<u32>,
    /// The processor of the adapter that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<usize>,
    /// Packets that no policy matches are discarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_protection: Option<bool>,
    /// Another port to be behind, as a table of the configuration; its associations stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub port: Option<serde_json::Value>,
}

/// A port, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Port {
    /// `HOST/uplink` or `HOST/VM`.
    pub name: String,
    /// Frames can pass.
    pub up: bool,
    /// The longest IP packet that the link carries, in bytes.
    pub mtu: u32,
    /// The address of the interface, where it has one of its own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub mac: Option<String>,
    /// Frames received from the link.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames sent to the link.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames from the link that were not usable.
    pub rx_errors: u64,
    /// Frames that the link could not carry.
    pub tx_dropped: u64,
}

/// Ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ports {
    /// Host by host, the uplink first.
    pub ports: Vec<Port>,
}

/// The counters of a port, as `ethtool -S` prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortCounters {
    /// `HOST/uplink` or `HOST/VM`.
    pub name: String,
    /// Names and values, in their order.
    pub counters: Vec<(String, u64)>,
}

/// The NIC switch of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Switch {
    /// The host.
    pub host: String,
    /// There is one: whether and how is decided before the first machine.
    pub exists: bool,
    /// Virtual functions that there are.
    pub virtual_functions: Usage,
    /// Queue pairs.
    pub queue_pairs: Usage,
    /// The functions in use.
    pub functions: Vec<Function>,
}

/// NIC switches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Switches {
    /// Host by host.
    pub switches: Vec<Switch>,
}

/// A virtual function in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Function {
    /// Its number.
    pub id: u16,
    /// The machine that has it.
    pub vm: String,
    /// Where it is in its life.
    pub state: String,
}

/// A NIC switch to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewSwitch {
    /// The host; may be left out if there is only one.
    #[serde(default)]
    pub host: Option<String>,
    /// Virtual functions that there will be.
    pub virtual_functions: u16,
    /// Queue pairs of the default port.
    #[serde(default = "one")]
    pub queue_pairs: u16,
}

const fn one() -> u16 {
    1
}

/// An adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Adapter {
    /// The host.
    pub host: String,
    /// The model.
    pub profile: String,
    /// Processors of the adapter.
    pub processors: usize,
    /// Offloaded associations.
    pub sas: Usage,
    /// Receive queues beside the default queue.
    pub queues: Usage,
    /// Receive filters.
    pub filters: Usage,
    /// What it offers: for each capability whether it is supported and enabled.
    pub capabilities: Vec<Capability>,
}

/// Adapters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Adapters {
    /// Host by host.
    pub adapters: Vec<Adapter>,
}

/// A capability of an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capability {
    /// Its name.
    pub name: String,
    /// What the adapter could do: yes, no, or how much.
    pub supported: String,
    /// What it does at present.
    pub enabled: String,
}

/// Whether the adapter would take an association.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WhyNot {
    /// For each mode the reasons; none: it would.
    pub modes: Vec<ModeReasons>,
}

/// The reasons of one mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModeReasons {
    /// `packet` or `crypto`.
    pub mode: String,
    /// Every reason why not.
    pub reasons: Vec<String>,
}

/// How things stand; all counters count from the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Host by host.
    pub hosts: Vec<HostStats>,
    /// The threads that move packets.
    pub workers: Vec<WorkerStats>,
    /// All drops under the names and in the order of `/proc/net/xfrm_stat`.
    pub xfrm: Vec<(String, u64)>,
}

/// One host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostStats {
    /// Its name.
    pub name: String,
    /// When this was counted, in nanoseconds on a clock of the daemon.
    pub at_nanos: u64,
    /// Packets that ESP was put around.
    pub sealed_packets: u64,
    /// Bytes of them.
    pub sealed_bytes: u64,
    /// Packets that ESP was taken off.
    pub opened_packets: u64,
    /// Bytes of them.
    pub opened_bytes: u64,
    /// Packets that ESP dropped, by reason.
    pub esp_drops: BTreeMap<String, u64>,
    /// Frames lost before it was known for whom they were, by reason.
    pub losses: BTreeMap<String, u64>,
    /// Its machines.
    pub vms: Vec<VmStats>,
}

/// One machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmStats {
    /// Its name.
    pub name: String,
    /// The way that its packets take: software, synthetic, queue or function.
    pub path: String,
    /// Frames that came from it.
    pub tx_packets: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames that it got.
    pub rx_packets: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Packets sealed for it.
    pub sealed: u64,
    /// Packets opened for it.
    pub opened: u64,
    /// Associations that it has ...
    pub sas: u32,
    /// ... and may have.
    pub sa_limit: u32,
    /// Frames lost on the way from or to it, by reason.
    pub losses: BTreeMap<String, u64>,
}

/// One thread that moves packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkerStats {
    /// What it drives.
    pub roles: String,
    /// The CPU that it is pinned to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu: Option<usize>,
    /// Nanoseconds in which it moved something.
    pub busy_nanos: u64,
    /// Nanoseconds since it was started.
    pub elapsed_nanos: u64,
    /// Times that it went to sleep.
    pub sleeps: u64,
}

/// Something that happened: one line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Grows by one from event to event; a gap is what was lost.
    pub number: u64,
    /// When, in seconds and fractions since 1970.
    pub time: String,
    /// What it was, in a word.
    pub kind: String,
    /// The host.
    pub host: String,
    /// The machine.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vm: Option<String>,
    /// `in` or `out`: direction of the association that it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dir: Option<String>,
    /// Its SPI.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spi: Option<String>,
    /// Its outer destination.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub dst: Option<String>,
    /// The `reqid` that an association is wanted for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reqid: Option<u32>,
    /// The same for people.
    pub text: String,
}

/// What a reload has changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Diff {
    /// What is new.
    pub added: Vec<String>,
    /// What is different.
    pub changed: Vec<String>,
    /// What is gone.
    pub removed: Vec<String>,
}

/// What the doctor found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Findings {
    /// Worst first.
    pub findings: Vec<Finding>,
}

/// Something that the doctor found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// `fine`, `warning` or `problem`.
    pub severity: String,
    /// What it is about.
    pub about: String,
    /// What was found.
    pub text: String,
    /// How to mend it.
    pub remedy: String,
}

/// Why a request was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// All of it in one sentence.
    pub error: String,
    /// The word that is at fault; empty if no word is.
    pub word: String,
    /// Its value; empty if it has none.
    pub value: String,
    /// The way out.
    pub remedy: String,
}
