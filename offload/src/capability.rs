//! What an adapter can do for IPsec, and for one association: yes, or every reason why not.

use core::fmt;

use vesper_esp::wire::protocol;
use vesper_esp::{Encryption, Integrity, Suite};
use vesper_sa::{Direction, Mode, ReplayProtection, SaParams};

/// Who does what for an association that is offloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OffloadMode {
    /// The host makes and removes the ESP packet, keeps sequence numbers, replay window and
    /// lifetimes; the adapter encrypts, decrypts and authenticates (NDIS IPsecOV2, Linux
    /// `offload crypto`, `RTE_SECURITY_ACTION_TYPE_INLINE_CRYPTO`).
    Crypto,
    /// The adapter does all of it, policy included (Linux `offload packet`,
    /// `RTE_SECURITY_ACTION_TYPE_INLINE_PROTOCOL`).
    Packet,
}

impl fmt::Display for OffloadMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Crypto => "crypto",
            Self::Packet => "packet",
        })
    }
}

/// What an adapter offers. The first seventeen fields are those of `NDIS_IPSEC_OFFLOAD_V2`,
/// the others what Linux and DPDK describe beside them.
///
/// An adapter has two: what it [supports](crate::Nic::supported) and what is
/// [enabled](crate::Nic::enabled), which is never more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Ethernet II frames. 802.3 with LLC is not carried.
    pub encapsulation_ethernet: bool,
    /// IPv6, outer and inner.
    pub ipv6: bool,
    /// IPv4 packets with options, protected in transport mode.
    pub ipv4_options: bool,
    /// IPv6 packets with other extension headers, protected in transport mode.
    pub ipv6_extension_headers: bool,
    /// The authentication header; this adapter has none of it (RFC 4301 makes it optional).
    pub ah: bool,
    /// ESP.
    pub esp: bool,
    /// AH and ESP on one packet.
    pub ah_esp_combined: bool,
    /// Transport mode.
    pub transport: bool,
    /// Tunnel mode.
    pub tunnel: bool,
    /// A transport-mode association inside a tunnel-mode one on the same packet.
    pub transport_tunnel_combined: bool,
    /// Large segments are cut before they are protected; in packet mode only.
    pub large_send: bool,
    /// Extended sequence numbers.
    pub esn: bool,
    /// ESP in UDP around transport mode.
    pub udp_transport: bool,
    /// ESP in UDP around tunnel mode.
    pub udp_tunnel: bool,
    /// Integrity algorithms beside the AEADs.
    pub integrity: Vec<Integrity>,
    /// Encryption algorithms, with the lengths of key and ICV in bytes.
    pub encryption: Vec<EncryptionCapability>,
    /// How many associations the adapter can hold, both directions together.
    pub sa_capacity: u32,

    /// Crypto mode.
    pub crypto_mode: bool,
    /// Packet mode.
    pub packet_mode: bool,
    /// Packet mode: replay windows, in packets, smallest and largest.
    pub replay_window: (u32, u32),
    /// Packet mode: an association without replay protection.
    pub replay_off: bool,
    /// Packet mode: limits by bytes and packets.
    pub lifetimes: bool,
    /// Packet mode: limits by time and idleness.
    pub time_lifetimes: bool,
    /// Packet mode: padding for traffic flow confidentiality.
    pub tfc_padding: bool,
    /// Packet mode: TCP and UDP checksums of inner packets.
    pub inner_checksum: bool,
}

/// One encryption algorithm of an adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptionCapability {
    /// The algorithm.
    pub encryption: Encryption,
    /// Key lengths in bytes, without the salt.
    pub key_lens: Vec<usize>,
    /// ICV lengths in bytes; of no effect for what is no AEAD.
    pub icv_lens: Vec<usize>,
}

impl EncryptionCapability {
    /// An algorithm with its key and ICV lengths in bytes.
    pub fn new(encryption: Encryption, key_lens: &[usize], icv_lens: &[usize]) -> Self {
        Self {
            encryption,
            key_lens: key_lens.to_vec(),
            icv_lens: icv_lens.to_vec(),
        }
    }

    /// What both offer.
    fn restricted_to(&self, other: &Self) -> Self {
        let both = |ours: &[usize], theirs: &[usize]| {
            let common = ours.iter().filter(|len| theirs.contains(len));
            common.copied().collect()
        };
        Self {
            encryption: self.encryption,
            key_lens: both(&self.key_lens, &other.key_lens),
            icv_lens: both(&self.icv_lens, &other.icv_lens),
        }
    }
}

/// What would have to be otherwise for an adapter to take an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhyNot {
    /// The adapter has no IPsec offload, or it is disabled.
    NoIpsec,
    /// The mode of offload is not offered.
    OffloadMode(OffloadMode),
    /// Transport or tunnel mode is not offered.
    Mode(Mode),
    /// IPv6 is not offered.
    Ipv6,
    /// Extended sequence numbers are not offered.
    Esn,
    /// ESP in UDP is not offered around this mode.
    UdpEncapsulation(Mode),
    /// Crypto mode can not compute the UDP checksum that ESP in UDP over IPv6 needs.
    UdpChecksum,
    /// The encryption algorithm is not offered.
    Encryption(Encryption),
    /// The key length, in bytes, is not offered.
    KeyLength(usize),
    /// The ICV length, in bytes, is not offered.
    IcvLength(usize),
    /// The integrity algorithm is not offered.
    Integrity(Integrity),
    /// The replay window is not among those offered.
    ReplayWindow {
        /// The window asked for, in packets.
        asked: u32,
        /// The smallest one.
        min: u32,
        /// The largest one.
        max: u32,
    },
    /// Replay protection can not be off.
    ReplayOff,
    /// Limits by bytes or packets are not offered.
    Lifetimes,
    /// Limits by time or idleness are not offered.
    TimeLifetimes,
    /// Padding for traffic flow confidentiality is not offered.
    TfcPadding,
    /// An implicit IV in crypto mode with extended sequence numbers: the nonce would depend on
    /// the high half that the host has pushed, and a late push would repeat one.
    ImplicitIv,
    /// The virtual machine has offload switched off.
    OffloadDisabled,
    /// The virtual machine has as many offloaded associations as it may.
    Quota {
        /// `ipsec_offload_limit` of the machine.
        limit: u32,
    },
    /// The adapter is full.
    Capacity {
        /// How many associations it holds at most.
        capacity: u32,
    },
    /// Another offloaded association has the same SPI and destination for this receiver.
    SpiInUse,
    /// The owner is not known to the adapter, or is not on the port or VLAN that was named.
    Port,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = |mode: &Mode| match mode {
            Mode::Transport => "transport",
            Mode::Tunnel => "tunnel",
        };
        match self {
            Self::NoIpsec => f.write_str("the adapter has no IPsec offload, or it is disabled"),
            Self::OffloadMode(asked) => write!(f, "{asked} offload is not offered"),
            Self::Mode(asked) => write!(f, "{} mode is not offered", mode(asked)),
            Self::Ipv6 => f.write_str("IPv6 is not offered"),
            Self::Esn => f.write_str("extended sequence numbers are not offered"),
            Self::UdpEncapsulation(asked) => {
                write!(f, "ESP in UDP around {} mode is not offered", mode(asked))
            }
            Self::UdpChecksum => {
                f.write_str("ESP in UDP over IPv6 needs packet offload for its checksum")
            }
            Self::Encryption(asked) => write!(f, "encryption {asked:?} is not offered"),
            Self::KeyLength(bytes) => write!(f, "a key of {bytes} bytes is not offered"),
            Self::IcvLength(bytes) => write!(f, "an ICV of {bytes} bytes is not offered"),
            Self::Integrity(asked) => write!(f, "integrity {asked:?} is not offered"),
            Self::ReplayWindow { asked, min, max } => {
                write!(f, "a replay window of {asked} is not within {min} to {max}")
            }
            Self::ReplayOff => f.write_str("replay protection can not be off"),
            Self::Lifetimes => f.write_str("limits by bytes or packets are not offered"),
            Self::TimeLifetimes => f.write_str("limits by time are not offered"),
            Self::TfcPadding => f.write_str("traffic flow padding is not offered"),
            Self::ImplicitIv => {
                f.write_str("an implicit IV with ESN needs packet offload for its nonce")
            }
            Self::OffloadDisabled => f.write_str("ipsec_offload_limit of the virtual machine is 0"),
            Self::Quota { limit } => {
                write!(
                    f,
                    "the virtual machine has its {limit} offloaded SAs already"
                )
            }
            Self::Capacity { capacity } => write!(f, "the adapter has its {capacity} SAs already"),
            Self::SpiInUse => f.write_str("SPI and destination are in use"),
            Self::Port => f.write_str("the owner is not on this port and VLAN of the adapter"),
        }
    }
}

impl Capabilities {
    /// Nothing at all.
    pub fn none() -> Self {
        Self {
            encapsulation_ethernet: true,
            ipv6: false,
            ipv4_options: false,
            ipv6_extension_headers: false,
            ah: false,
            esp: false,
            ah_esp_combined: false,
            transport: false,
            tunnel: false,
            transport_tunnel_combined: false,
            large_send: false,
            esn: false,
            udp_transport: false,
            udp_tunnel: false,
            integrity: Vec::new(),
            encryption: Vec::new(),
            sa_capacity: 0,
            crypto_mode: false,
            packet_mode: false,
            replay_window: (0, 0),
            replay_off: false,
            lifetimes: false,
            time_lifetimes: false,
            tfc_padding: false,
            inner_checksum: false,
        }
    }

    /// Every reason why an association with these parameters can not be offloaded in this
    /// mode; none: it can, as far as capabilities go.
    pub fn why_not(&self, params: &SaParams, suite: &Suite, mode: OffloadMode) -> Vec<WhyNot> {
        if !self.esp || self.sa_capacity == 0 {
            return vec![WhyNot::NoIpsec];
        }
        let mut reasons = Vec::new();
        let mut check = |fine: bool, reason| {
            if !fine {
                reasons.push(reason);
            }
        };
        let offered = match mode {
            OffloadMode::Crypto => self.crypto_mode,
            OffloadMode::Packet => self.packet_mode,
        };
        check(offered, WhyNot::OffloadMode(mode));
        let (has_mode, has_udp) = match params.mode {
            Mode::Transport => (self.transport, self.udp_transport),
            Mode::Tunnel => (self.tunnel, self.udp_tunnel),
        };
        check(has_mode, WhyNot::Mode(params.mode));
        check(self.ipv6 || params.destination.is_ipv4(), WhyNot::Ipv6);
        check(self.esn || !params.esn, WhyNot::Esn);
        if params.encapsulation.is_some() {
            check(has_udp, WhyNot::UdpEncapsulation(params.mode));
            let checksum = params.destination.is_ipv6() && params.direction == Direction::Outbound;
            check(
                mode == OffloadMode::Packet || !checksum,
                WhyNot::UdpChecksum,
            );
        }
        match self
            .encryption
            .iter()
            .find(|offered| offered.encryption == suite.encryption)
        {
            None => check(false, WhyNot::Encryption(suite.encryption)),
            Some(offered) => {
                check(
                    offered.key_lens.contains(&suite.key_len),
                    WhyNot::KeyLength(suite.key_len),
                );
                check(
                    !suite.is_aead() || offered.icv_lens.contains(&suite.icv_len),
                    WhyNot::IcvLength(suite.icv_len),
                );
            }
        }
        if let Some(integrity) = suite.integrity {
            check(
                self.integrity.contains(&integrity),
                WhyNot::Integrity(integrity),
            );
        }
        match mode {
            OffloadMode::Crypto => check(
                !(params.esn && suite.is_aead() && suite.iv_len == 0),
                WhyNot::ImplicitIv,
            ),
            OffloadMode::Packet => reasons.extend(self.why_not_packet(params)),
        }
        reasons
    }

    fn why_not_packet(&self, params: &SaParams) -> Vec<WhyNot> {
        let mut reasons = Vec::new();
        if params.direction == Direction::Inbound {
            let (min, max) = self.replay_window;
            match params.replay {
                ReplayProtection::Window(window) => {
                    let asked = window.get();
                    if asked < min || asked > max {
                        reasons.push(WhyNot::ReplayWindow { asked, min, max });
                    }
                }
                ReplayProtection::Off if !self.replay_off => reasons.push(WhyNot::ReplayOff),
                ReplayProtection::Off => {}
            }
        }
        let limits = [params.lifetime.soft, params.lifetime.hard];
        if !self.lifetimes
            && limits
                .iter()
                .any(|l| l.bytes.is_some() || l.packets.is_some())
        {
            reasons.push(WhyNot::Lifetimes);
        }
        if !self.time_lifetimes && limits.iter().any(|l| l.time.is_some() || l.idle.is_some()) {
            reasons.push(WhyNot::TimeLifetimes);
        }
        if !self.tfc_padding && params.tfc_pad != 0 {
            reasons.push(WhyNot::TfcPadding);
        }
        reasons
    }

    /// Whether the adapter can protect, or open, this IP packet at all: some stop at options and
    /// extension headers in transport mode.
    pub fn carries(&self, mode: Mode, packet: &[u8]) -> bool {
        match (mode, packet) {
            (Mode::Tunnel, _) | (_, []) => true,
            (Mode::Transport, [first, ..]) if first >> 4 == 4 => {
                self.ipv4_options || first & 0xf == 5
            }
            (Mode::Transport, _) => {
                const EXTENSIONS: [u8; 4] = [
                    protocol::HOP_BY_HOP,
                    protocol::ROUTING,
                    protocol::FRAGMENT,
                    protocol::DESTINATION_OPTIONS,
                ];
                let next = packet.get(6);
                self.ipv6_extension_headers || !next.is_some_and(|next| EXTENSIONS.contains(next))
            }
        }
    }

    /// What both of two sets offer: the way in which a driver in between shrinks capabilities.
    pub fn restricted_to(&self, other: &Capabilities) -> Capabilities {
        Capabilities {
            encapsulation_ethernet: self.encapsulation_ethernet && other.encapsulation_ethernet,
            ipv6: self.ipv6 && other.ipv6,
            ipv4_options: self.ipv4_options && other.ipv4_options,
            ipv6_extension_headers: self.ipv6_extension_headers && other.ipv6_extension_headers,
            ah: self.ah && other.ah,
            esp: self.esp && other.esp,
            ah_esp_combined: self.ah_esp_combined && other.ah_esp_combined,
            transport: self.transport && other.transport,
            tunnel: self.tunnel && other.tunnel,
            transport_tunnel_combined: self.transport_tunnel_combined
                && other.transport_tunnel_combined,
            large_send: self.large_send && other.large_send,
            esn: self.esn && other.esn,
            udp_transport: self.udp_transport && other.udp_transport,
            udp_tunnel: self.udp_tunnel && other.udp_tunnel,
            integrity: self
                .integrity
                .iter()
                .copied()
                .filter(|integrity| other.integrity.contains(integrity))
                .collect(),
            encryption: self
                .encryption
                .iter()
                .flat_map(|ours| {
                    let theirs = other.encryption.iter();
                    theirs
                        .filter(|theirs| theirs.encryption == ours.encryption)
                        .map(|theirs| ours.restricted_to(theirs))
                })
                .collect(),
            sa_capacity: self.sa_capacity.min(other.sa_capacity),
            crypto_mode: self.crypto_mode && other.crypto_mode,
            packet_mode: self.packet_mode && other.packet_mode,
            replay_window: (
                self.replay_window.0.max(other.replay_window.0),
                self.replay_window.1.min(other.replay_window.1),
            ),
            replay_off: self.replay_off && other.replay_off,
            lifetimes: self.lifetimes && other.lifetimes,
            time_lifetimes: self.time_lifetimes && other.time_lifetimes,
            tfc_padding: self.tfc_padding && other.tfc_padding,
            inner_checksum: self.inner_checksum && other.inner_checksum,
        }
    }
}
