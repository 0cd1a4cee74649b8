//! What crypto mode tells the host about a received packet, in the words of NDIS IPsecOV2.

use vesper_sa::Mode;

/// How the cryptography of a received packet went. Meaningless where crypto is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CryptoStatus {
    /// Authentic and decrypted.
    Success,
    /// Anything else.
    GenericError,
    /// AH of a transport-mode association; this adapter has none.
    TransportAhAuthFailed,
    /// The ICV of a transport-mode association is wrong.
    TransportEspAuthFailed,
    /// AH of a tunnel-mode association; this adapter has none.
    TunnelAhAuthFailed,
    /// The ICV of a tunnel-mode association is wrong.
    TunnelEspAuthFailed,
    /// Too short for the association.
    InvalidPacketSyntax,
    /// Another protocol than the association's.
    InvalidProtocol,
}

impl CryptoStatus {
    /// A wrong ICV.
    pub const fn authentication_failed(mode: Mode) -> Self {
        match mode {
            Mode::Transport => Self::TransportEspAuthFailed,
            Mode::Tunnel => Self::TunnelEspAuthFailed,
        }
    }
}

/// The information beside a received packet (`NDIS_IPSEC_OFFLOAD_V2_NET_BUFFER_LIST_INFO` and
/// its HEADER companion).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CryptoInfo {
    /// The association.
    pub handle: crate::OffloadHandle,
    /// How it went.
    pub status: CryptoStatus,
    /// The sequence number that was authenticated.
    pub sequence: u64,
    /// Offset of the ESP header in the packet.
    pub esp_offset: u16,
    /// From the trailer: what the payload is. 0 unless the status is success.
    pub next_header: u8,
    /// From the trailer: bytes of padding. 0 unless the status is success.
    pub pad_length: u8,
    /// The adapter asks the host to delete the association (`SaDeleteReq`): it has reached a hard
    /// limit and only takes up room.
    pub sa_delete_req: bool,
}
