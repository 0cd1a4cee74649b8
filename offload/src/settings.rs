//! What an administrator sets for a virtual machine, and what an adapter makes of it.

use core::fmt;

use vesper_sa::VmId;

use crate::ethernet::{MacAddress, VlanId};
use crate::profile::Profile;

/// The settings of one virtual network adapter, named and with the defaults as in Hyper-V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmSettings {
    /// How many associations may be offloaded, both directions together; 0 switches IPsec task
    /// offload off (`IPsecOffloadMaximumSecurityAssociation`).
    pub ipsec_offload_limit: u32,
    /// The share of a receive queue, and of what the processors do, that the machine gets
    /// beside others, 1 to 100; 0 is no queue (`VmqWeight`).
    pub vmq_weight: u16,
    /// The wish for a virtual function, 1 to 100; 0 is none (`IovWeight`).
    pub iov_weight: u16,
    /// Queue pairs of the virtual function (`IovQueuePairsRequested`).
    pub iov_queue_pairs: u16,
    /// When received packets are indicated (`IovInterruptModeration`).
    pub interrupts: InterruptModeration,
    /// The most that the machine may send, in bits a second; 0 is unlimited.
    pub rate_limit: u64,
    /// The machine may send from other addresses than its own and change its own: no spoof
    /// guard.
    pub trusted: bool,
}

impl Default for VmSettings {
    fn default() -> Self {
        Self {
            ipsec_offload_limit: 512,
            vmq_weight: 100,
            iov_weight: 0,
            iov_queue_pairs: 1,
            interrupts: InterruptModeration::default(),
            rate_limit: 0,
            trusted: false,
        }
    }
}

impl VmSettings {
    /// The share of a processor that the machine gets beside others: that of its queue or of
    /// its function; one that has neither wished for gets as much as by default.
    pub(crate) const fn share(&self) -> u16 {
        match (self.vmq_weight, self.iov_weight) {
            (0, 0) => 100,
            (queue, function) if queue > function => queue,
            (_, function) => function,
        }
    }
}

/// When received packets are indicated: as soon as either limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptModeration {
    /// This many packets wait.
    pub packets: u32,
    /// The oldest packet has waited for this many nanoseconds.
    pub delay: u64,
}

impl Default for InterruptModeration {
    /// At once.
    fn default() -> Self {
        Self {
            packets: 1,
            delay: 0,
        }
    }
}

/// Where a virtual machine is on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmAddress {
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its VLAN, which the machine itself does not see; `None` is the untagged network.
    pub vlan: Option<VlanId>,
}

/// What a virtual machine gets of what it asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// What it does not get, and why; it is served in the way that is left.
    pub fallbacks: Vec<Fallback>,
}

/// A wish that an adapter could not fulfil, and what happens instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fallback {
    /// The adapter has no IPsec offload: associations stay in software.
    NoIpsecOffload,
    /// No receive queue is left or there is none: packets come through the default queue.
    NoReceiveQueue,
    /// The NIC switch has no virtual function for the machine: synthetic path.
    NoVirtualFunction,
    /// There is no NIC switch: it is decided when the switch is created.
    NoNicSwitch,
    /// The machine has not declared a driver for the virtual function: synthetic path.
    NoGuestDriver,
    /// The receive filters are used up: packets come through the default queue.
    NoFilter,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoIpsecOffload => "no IPsec offload in this adapter; associations in software",
            Self::NoReceiveQueue => "no receive queue is free; default queue",
            Self::NoVirtualFunction => "no virtual function is free; synthetic path",
            Self::NoNicSwitch => {
                "the adapter has no NIC switch; create one with virtual functions before the \
                 first machine; synthetic path"
            }
            Self::NoGuestDriver => "the machine has not declared a driver; synthetic path",
            Self::NoFilter => "no receive filter is free; default queue",
        })
    }
}

/// Settings that no adapter could serve, or a machine that can not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingsError {
    /// A weight above 100.
    Weight {
        /// The setting's name.
        name: &'static str,
        /// Its value.
        value: u16,
    },
    /// A virtual function without queue pairs, or with more than the adapter has.
    QueuePairs {
        /// What was asked for.
        asked: u16,
        /// What the adapter has.
        available: u16,
    },
    /// Moderation that would never indicate a packet.
    Interrupts,
    /// The address is a group address.
    Address(MacAddress),
    /// Another machine has the address on this VLAN.
    AddressInUse(VmAddress),
    /// The machine exists.
    Exists(VmId),
    /// The machine does not exist.
    Unknown(VmId),
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weight { name, value } => write!(f, "{name} is {value}, but at most 100"),
            Self::QueuePairs { asked, available } => write!(
                f,
                "iov_queue_pairs is {asked}, but the adapter has {available}; ask for 1 to \
                 {available}, or set iov_weight to 0"
            ),
            Self::Interrupts => f.write_str("interrupt moderation by 0 packets; use at least 1"),
            Self::Address(mac) => write!(f, "{mac} is a group address"),
            Self::AddressInUse(address) => match address.vlan {
                Some(vlan) => write!(f, "{} is in use on VLAN {vlan}", address.mac),
                None => write!(f, "{} is in use", address.mac),
            },
            Self::Exists(vm) => write!(f, "{vm} exists already"),
            Self::Unknown(vm) => write!(f, "{vm} does not exist"),
        }
    }
}

impl core::error::Error for SettingsError {}

impl VmSettings {
    /// Whether the settings make sense, on an adapter of this profile.
    pub fn check(&self, profile: &Profile) -> Result<(), SettingsError> {
        for (name, value) in [
            ("vmq_weight", self.vmq_weight),
            ("iov_weight", self.iov_weight),
        ] {
            if value > 100 {
                return Err(SettingsError::Weight { name, value });
            }
        }
        if self.interrupts.packets == 0 {
            return Err(SettingsError::Interrupts);
        }
        let has_functions = self.iov_weight > 0 && profile.virtual_functions > 0;
        if has_functions
            && (self.iov_queue_pairs == 0 || self.iov_queue_pairs > profile.queue_pairs)
        {
            return Err(SettingsError::QueuePairs {
                asked: self.iov_queue_pairs,
                available: profile.queue_pairs,
            });
        }
        Ok(())
    }
}

/// What is used of what there is: read back per machine and per adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used: u32,
    /// At most.
    pub capacity: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_those_of_the_hypervisor() {
        let settings = VmSettings::default();
        assert_eq!(settings.ipsec_offload_limit, 512);
        assert_eq!((settings.vmq_weight, settings.iov_weight), (100, 0));
        assert_eq!(settings.iov_queue_pairs, 1);
        assert_eq!(settings.check(&Profile::basic()), Ok(()));
    }

    #[test]
    fn impossible_settings_are_refused_with_name_and_value() {
        let full = Profile::full();
        let refused = |settings: VmSettings| settings.check(&full).unwrap_err().to_string();
        let default = VmSettings::default();
        assert_eq!(
            refused(VmSettings {
                vmq_weight: 101,
                ..default
            }),
            "vmq_weight is 101, but at most 100"
        );
        assert!(
            refused(VmSettings {
                iov_weight: 50,
                iov_queue_pairs: 129,
                ..default
            })
            .contains("the adapter has 128")
        );
        let interrupts = InterruptModeration {
            packets: 0,
            delay: 5,
        };
        assert!(
            refused(VmSettings {
                interrupts,
                ..default
            })
            .contains("at least 1")
        );
        // Without SR-IOV the wish for queue pairs is moot.
        let settings = VmSettings {
            iov_weight: 50,
            ..default
        };
        assert_eq!(settings.check(&Profile::without_sriov()), Ok(()));
    }
}
