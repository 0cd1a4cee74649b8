//! A simulated Ethernet adapter that offloads IPsec for virtual machines: what Windows Server
//! 2012 asked of hardware (virtual machine queues, IPsec task offload, SR-IOV), in software,
//! with real cryptography.
//!
//! A vswitch drives a [`Nic`] as it would drive hardware, through rings, verbs and events, and
//! tests its host code against it, faults included. [`Host`] is such a host: software switch,
//! machines, software fallback. [`IpsecDriver`] is the part that a real driver could implement.
//!
//! Simulated are the adapter, its interrupts, its "DMA" (a buffer is handed over instead of
//! being written to) and its PCI functions. Real are the ESP packets and their cryptography,
//! the state of the associations, policy, queues, fairness, and who may do what.
//!
//! Not here: sockets, threads, a clock (`now` is passed in), key exchange. Each
//! [processor](Nic::run_processor) of the adapter is run by a thread that the embedder owns.
//!
//! # One packet out
//!
//! ```text
//! machine with a virtual function           machine on the synthetic path
//!   Nic::send_from_function                   Host::send
//!        │  own address? own VLAN?            Host::run: policy ─ association in the adapter?
//!        │                                       │yes: handle   │no: Engine::encapsulate
//!        │                                       ▼              ▼
//!        │                                    software switch (unprotected frames)
//!        │                                       │
//!        ▼                                       ▼  Nic::send_from_host
//!   send ring of the machine ◀───────────────────┘   handle of this machine? else it fails here
//!        │  Nic::run_processor: fair turns, rate limit
//!        ▼
//!   policy ─▶ association ─▶ packet mode: Engine::encapsulate
//!        │         │         crypto mode: encrypt in place what the host has made
//!        │         └─ not in the adapter: to the host's software, through the default queue
//!        ▼
//!   NIC switch ─▶ function of this adapter, or wire ─▶ completion
//! ```
//!
//! # One packet in
//!
//! ```text
//!   Nic::receive: address and VLAN ─▶ filter ─▶ queue; ESP to the host: SPI ─▶ owner's queue
//!        │        VLAN and owner are decided before memory that a machine sees
//!        ▼
//!   queue, else default queue
//!        │  Nic::run_processor: packet mode opens and checks policy, crypto mode decrypts in
//!        │  place and says how it went, what the adapter has no association for goes to
//!        │  the host's software
//!        ▼
//!   posted buffer in exchange (no copy) ─▶ one indication per queue and batch
//!        │                    │                          │
//!        ▼ function           ▼ queue of the machine      ▼ default queue
//!   the machine's driver    Host: handed on, no copy    Host: software IPsec, switch, one copy
//! ```
//!
//! An example of both is `examples/vswitch.rs`; what each part promises, and which test holds
//! it to that, is in `docs/adapter.md` and `docs/seed.md`.
#![forbid(unsafe_code)]

mod arrivals;
mod capability;
mod completions;
mod crypto_mode;
mod crypto_status;
mod driver;
mod ethernet;
mod fate;
mod fault;
mod filter;
mod flow_key;
mod host;
mod nic;
mod profile;
mod queue;
mod rings;
mod sends;
mod settings;
mod sriov;
mod transfer;
mod unit;
mod vswitch;

pub use capability::{Capabilities, EncryptionCapability, OffloadMode, WhyNot};
pub use crypto_status::{CryptoInfo, CryptoStatus};
pub use driver::IpsecDriver;
pub use ethernet::{Frame, FrameError, Link, MacAddress, VlanId, ethertype};
pub use fate::{Loss, Losses, SendError};
pub use fault::{Fault, FaultCounters, FaultPlan, PerMillion};
pub use filter::{FilterError, FilterId, ReceiveFilter};
pub use host::{
    AdapterWork, DataPath, Host, MachineCounters, MachineError, OffloadWish, Outstanding,
    OutstandingCounters, Placement, SetAside, SoftwareReason,
};
pub use nic::{
    BATCH, Nic, NicEvent, NicUsage, Paused, Posted, QueueError, QueueStatus, RemoveVmError,
    SendRefusal, VmUsage, Work,
};
pub use profile::Profile;
pub use queue::{QueueEvent, QueueId, QueueState, WrongState};
pub use rings::QueueCounters;
pub use sends::{Poster, RateLimiter, VmCounters};
pub use settings::{
    Admission, Fallback, InterruptModeration, SettingsError, Usage, VmAddress, VmSettings,
};
pub use sriov::{
    Function, NicSwitchParams, NicSwitchState, SriovError, VPortId, VfEvent, VfId, VfState,
    WrongVfState,
};
pub use transfer::{Completion, HostSend, HostWork, Received, ReceivedIpsec, Send, SendIpsec};
pub use unit::{AddSaError, OffloadHandle, PortId, Rewrite, SaOffload, UpdateSaError};
pub use vswitch::{Forward, PortVlan, SwitchLimits, SwitchPort, VirtualSwitch};

/// Bytes of room in front of an Ethernet frame that suffice for every protection: outer
/// headers, IV, and a VLAN tag.
pub const HEADROOM: usize =
    vesper_esp::PacketBuf::HEADROOM + ethernet::HEADER_LEN + ethernet::TAG_LEN;
