//! A simulated Ethernet adapter that offloads IPsec for virtual machines.
#![forbid(unsafe_code)]

mod capability;
mod crypto_status;
mod ethernet;
mod fate;
mod fault;
mod filter;
mod host;
mod nic;
mod profile;
mod queue;
mod rings;
mod settings;
mod sriov;
mod transfer;
mod unit;
mod vswitch;

pub use capability::{Capabilities, EncryptionCapability, OffloadMode, WhyNot};
pub use crypto_status::{CryptoInfo, CryptoStatus};
pub use ethernet::{Frame, FrameError, Link, MacAddress, VlanId, ethertype};
pub use fate::{Loss, Losses, SendError};
pub use fault::{Fault, FaultCounters, FaultPlan, PerMillion};
pub use filter::{FilterError, FilterId, ReceiveFilter};
pub use host::{
    DataPath, Host, MachineCounters, MachineError, OffloadWish, Outstanding, OutstandingCounters,
    Placement, SoftwareReason, Ticket,
};
pub use nic::{
    BATCH, Nic, NicEvent, NicUsage, Posted, QueueError, QueueStatus, RemoveVmError, SendRefusal,
    VmUsage, Work,
};
pub use profile::Profile;
pub use queue::{QueueEvent, QueueId, QueueState, WrongState};
pub use rings::{QueueCounters, RateLimiter, VmCounters};
pub use settings::{
    Admission, Fallback, InterruptModeration, SettingsError, Usage, VmAddress, VmSettings,
};
pub use sriov::{
    Function, NicSwitchParams, NicSwitchState, SriovError, VPortId, VfEvent, VfId, VfState,
    WrongVfState,
};
pub use transfer::{Completion, HostWork, Received, ReceivedIpsec, Send, SendIpsec};
pub use unit::{AddSaError, OffloadHandle, PortId, Rewrite, SaOffload, UpdateSaError};
pub use vswitch::{Forward, PortVlan, SwitchLimits, SwitchPort, VirtualSwitch};

/// Bytes of room in front of an Ethernet frame that suffice for every protection: outer
/// headers, IV, and a VLAN tag.
pub const HEADROOM: usize =
    vesper_esp::PacketBuf::HEADROOM + ethernet::HEADER_LEN + ethernet::TAG_LEN;
