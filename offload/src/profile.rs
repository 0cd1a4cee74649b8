//! Adapters as data: what a model of adapter has.

use vesper_esp::{Encryption, Integrity};

use crate::capability::{Capabilities, EncryptionCapability};

/// A model of adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// IPsec.
    pub ipsec: Capabilities,
    /// Receive queues beside the default queue.
    pub queues: u16,
    /// Virtual functions; 0: no SR-IOV.
    pub virtual_functions: u16,
    /// Queue pairs for the NIC switch to give to its ports.
    pub queue_pairs: u16,
    /// Receive filters.
    pub filters: u16,
    /// Processors of the adapter.
    pub processors: u16,
    /// Packets that a ring holds.
    pub ring: usize,
}

const AES_KEYS: &[usize] = &[16, 24, 32];

impl Profile {
    /// Every profile.
    pub fn all() -> [Profile; 5] {
        [
            Self::basic(),
            Self::without_sriov(),
            Self::ndis(),
            Self::mlx5(),
            Self::full(),
        ]
    }

    /// The profile with this name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|profile| profile.name == name)
    }

    /// Queues and virtual functions, but no IPsec.
    pub fn basic() -> Self {
        Self {
            name: "basic",
            ipsec: Capabilities::none(),
            ..Self::full()
        }
    }

    /// Everything but SR-IOV.
    pub fn without_sriov() -> Self {
        Self {
            name: "without-sriov",
            virtual_functions: 0,
            queue_pairs: 0,
            ..Self::full()
        }
    }

    /// What `NDIS_IPSEC_OFFLOAD_V2` can express, less what RFC 8221 forbids: crypto mode alone,
    /// AES-GCM and AES-GMAC with an ICV of 16 bytes, AES-CBC with HMAC-SHA-1 or -SHA-256.
    pub fn ndis() -> Self {
        let full = Self::full();
        Self {
            name: "ndis",
            ipsec: Capabilities {
                integrity: vec![Integrity::HmacSha1_96, Integrity::HmacSha256_128],
                encryption: vec![
                    EncryptionCapability::new(Encryption::Null, &[0], &[]),
                    EncryptionCapability::new(Encryption::AesCbc, AES_KEYS, &[]),
                    EncryptionCapability::new(Encryption::AesGcm, AES_KEYS, &[16]),
                    EncryptionCapability::new(Encryption::AesGmac, AES_KEYS, &[16]),
                ],
                sa_capacity: 2048,
                packet_mode: false,
                large_send: false,
                replay_window: (0, 0),
                replay_off: false,
                lifetimes: false,
                time_lifetimes: false,
                tfc_padding: false,
                inner_checksum: false,
                ..full.ipsec
            },
            ..full
        }
    }

    /// What the driver of ConnectX adapters accepts: AES-GCM with keys of 128 and 256 bits and
    /// an ICV of 16 bytes, replay windows of 32 to 256 packets, NAT traversal in transport mode
    /// of packet offload only, no padding for traffic flow confidentiality.
    pub fn mlx5() -> Self {
        let full = Self::full();
        Self {
            name: "mlx5",
            ipsec: Capabilities {
                ipv4_options: false,
                ipv6_extension_headers: false,
                udp_tunnel: false,
                integrity: Vec::new(),
                encryption: vec![EncryptionCapability::new(
                    Encryption::AesGcm,
                    &[16, 32],
                    &[16],
                )],
                replay_window: (32, 256),
                time_lifetimes: false,
                tfc_padding: false,
                ..full.ipsec
            },
            ..full
        }
    }

    /// Everything that this adapter can do.
    pub fn full() -> Self {
        let encryption = EncryptionCapability::new;
        Self {
            name: "full",
            ipsec: Capabilities {
                encapsulation_ethernet: true,
                ipv6: true,
                ipv4_options: true,
                ipv6_extension_headers: true,
                ah: false,
                esp: true,
                ah_esp_combined: false,
                transport: true,
                tunnel: true,
                transport_tunnel_combined: false,
                large_send: true,
                esn: true,
                udp_transport: true,
                udp_tunnel: true,
                integrity: Integrity::ALL.to_vec(),
                encryption: vec![
                    encryption(Encryption::Null, &[0], &[]),
                    encryption(Encryption::AesCbc, AES_KEYS, &[]),
                    encryption(Encryption::AesCtr, AES_KEYS, &[]),
                    encryption(Encryption::AesCcm, AES_KEYS, &[8, 12, 16]),
                    encryption(Encryption::AesGcm, AES_KEYS, &[8, 12, 16]),
                    encryption(Encryption::AesGmac, AES_KEYS, &[16]),
                    encryption(Encryption::ChaCha20Poly1305, &[32], &[16]),
                    encryption(Encryption::AesGcmImplicitIv, AES_KEYS, &[16]),
                    encryption(Encryption::ChaCha20Poly1305ImplicitIv, &[32], &[16]),
                    encryption(Encryption::AesCcmImplicitIv, AES_KEYS, &[8]),
                ],
                sa_capacity: 65_536,
                crypto_mode: true,
                packet_mode: true,
                replay_window: (32, 65_536),
                replay_off: true,
                lifetimes: true,
                time_lifetimes: true,
                tfc_padding: true,
                inner_checksum: true,
            },
            queues: 64,
            virtual_functions: 64,
            queue_pairs: 128,
            filters: 256,
            processors: 2,
            ring: 1024,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::{OffloadMode, WhyNot};
    use vesper_esp::Suite;
    use vesper_sa::{Direction, Mode, SaParams, Spi, WindowSize};

    fn params(direction: Direction) -> SaParams {
        SaParams::new(
            Spi::MIN,
            direction,
            Mode::Tunnel,
            [192, 0, 2, 1].into(),
            [192, 0, 2, 2].into(),
        )
    }

    #[test]
    fn the_full_adapter_takes_every_suite() {
        let full = Profile::full().ipsec;
        for suite in Suite::ALL {
            for mode in [OffloadMode::Crypto, OffloadMode::Packet] {
                let reasons = full.why_not(&params(Direction::Inbound), suite, mode);
                assert_eq!(reasons, [], "{suite} {mode}");
            }
        }
    }

    /// `NextCryptoDone` tells of the second of two parts on one packet. An adapter that can do
    /// one part only never has to: no profile offers two.
    #[test]
    fn no_adapter_does_two_parts_of_one_packet() {
        for profile in Profile::all() {
            let Capabilities {
                ah,
                ah_esp_combined,
                transport_tunnel_combined,
                ..
            } = profile.ipsec;
            let offered = (ah, ah_esp_combined, transport_tunnel_combined);
            assert_eq!(offered, (false, false, false), "{}", profile.name);
        }
    }

    #[test]
    fn every_reason_is_named_at_once() {
        let mut params = params(Direction::Inbound);
        params.esn = true;
        params.replay = vesper_sa::ReplayProtection::Window(WindowSize::MAX);
        params.lifetime.hard.time = Some(core::time::Duration::from_secs(1));
        let suite = Suite::by_name("aes192gcm8").unwrap();
        let mut mlx5 = Profile::mlx5().ipsec;
        mlx5.esn = false;
        assert_eq!(
            mlx5.why_not(&params, suite, OffloadMode::Packet),
            [
                WhyNot::Esn,
                WhyNot::KeyLength(24),
                WhyNot::IcvLength(8),
                WhyNot::ReplayWindow {
                    asked: 65_536,
                    min: 32,
                    max: 256
                },
                WhyNot::TimeLifetimes,
            ]
        );
        let basic = Profile::basic().ipsec;
        let none = basic.why_not(&params, suite, OffloadMode::Packet);
        assert_eq!(none, [WhyNot::NoIpsec]);
        let ndis = Profile::ndis().ipsec;
        assert_eq!(
            ndis.why_not(&params, suite, OffloadMode::Packet)[0],
            WhyNot::OffloadMode(OffloadMode::Packet)
        );
    }

    #[test]
    fn an_implicit_iv_with_esn_needs_packet_mode() {
        let mut params = params(Direction::Outbound);
        params.esn = true;
        let suite = Suite::by_name("aes256gcm16iiv").unwrap();
        let full = Profile::full().ipsec;
        assert_eq!(
            full.why_not(&params, suite, OffloadMode::Crypto),
            [WhyNot::ImplicitIv]
        );
        assert_eq!(full.why_not(&params, suite, OffloadMode::Packet), []);
    }

    #[test]
    fn what_is_enabled_is_never_more_than_supported() {
        let (full, mlx5) = (Profile::full().ipsec, Profile::mlx5().ipsec);
        let both = full.restricted_to(&mlx5);
        assert_eq!(both.replay_window, (32, 256));
        assert_eq!(both.encryption, mlx5.encryption);
        assert_eq!(mlx5.restricted_to(&mlx5), mlx5);
        assert!(!full.restricted_to(&Capabilities::none()).esp);
    }
}
