//! The verbs of IPsec offload as a trait: what a host needs of an adapter, simulated or real.

use std::sync::Arc;

use vesper_esp::{Buffer, EspSa, Suite};
use vesper_sa::{SaIdentity, SaParams, SaStatistics, Spd, Timestamp, VmId};

use crate::capability::WhyNot;
use crate::nic::Nic;
use crate::unit::{AddSaError, OffloadHandle, SaOffload, UpdateSaError};

/// An adapter with IPsec offload.
///
/// | verb | Linux `xfrmdev_ops` | DPDK `rte_security` | NDIS 6.30 |
/// | --- | --- | --- | --- |
/// | [`why_not`](Self::why_not) | `extack` of `xdo_dev_state_add` | `rte_security_capability_get` | `NDIS_IPSEC_OFFLOAD_V2` |
/// | [`add_sa`](Self::add_sa) | `xdo_dev_state_add` | `rte_security_session_create` | `..._ADD_SA_EX` |
/// | [`update_sa`](Self::update_sa) | `xdo_dev_state_advance_esn` | `rte_security_session_update` | `..._UPDATE_SA` |
/// | [`delete_sa`](Self::delete_sa) | `xdo_dev_state_delete` | `rte_security_session_destroy` | `..._DELETE_SA` |
/// | [`reap_sas`](Self::reap_sas) | `xdo_dev_state_free` | return of `..._session_destroy` | completion of `..._DELETE_SA` |
/// | [`offload_ok`](Self::offload_ok) | `xdo_dev_offload_ok` | - | `IPv4Options`, `IPv6NonIPsecExtensionHeaders` |
/// | [`set_policies`](Self::set_policies) | `xdo_dev_policy_add`, `_delete`, `_free` | - | - |
/// | [`sa_statistics`](Self::sa_statistics) | `xdo_dev_state_update_stats` | `rte_security_session_stats_get` | - |
pub trait IpsecDriver {
    /// Every reason why the adapter would not take this association now; none: it would.
    fn why_not(&self, params: &SaParams, suite: &Suite, offload: &SaOffload) -> Vec<WhyNot>;

    /// Takes an association, which the host keeps as well.
    fn add_sa(&self, sa: Arc<EspSa>, offload: SaOffload) -> Result<OffloadHandle, AddSaError>;

    /// Crypto mode with ESN: the 64-bit number that the association has got to.
    fn update_sa(
        &self,
        owner: VmId,
        handle: OffloadHandle,
        sequence: u64,
        now: Timestamp,
    ) -> Result<(), UpdateSaError>;

    /// Stops the use of an association by packets to come.
    fn delete_sa(&self, owner: VmId, handle: OffloadHandle) -> Result<(), UpdateSaError>;

    /// Lets go of deleted associations that no packet in flight uses any more.
    fn reap_sas(&self) -> Vec<(OffloadHandle, SaIdentity)>;

    /// Whether the adapter can protect this IP packet; if not, software has to.
    fn offload_ok(&self, owner: VmId, handle: OffloadHandle, packet: &[u8]) -> bool;

    /// Sets the policies that the adapter applies to a machine's packets.
    fn set_policies(&self, owner: VmId, policies: Option<Arc<Spd>>);

    /// What an association has done.
    fn sa_statistics(&self, owner: VmId, handle: OffloadHandle) -> Option<SaStatistics>;
}

impl<B: Buffer> IpsecDriver for Nic<B> {
    fn why_not(&self, params: &SaParams, suite: &Suite, offload: &SaOffload) -> Vec<WhyNot> {
        Nic::why_not(self, params, suite, offload)
    }

    fn add_sa(&self, sa: Arc<EspSa>, offload: SaOffload) -> Result<OffloadHandle, AddSaError> {
        Nic::add_sa(self, sa, offload)
    }

    fn update_sa(
        &self,
        owner: VmId,
        handle: OffloadHandle,
        sequence: u64,
        now: Timestamp,
    ) -> Result<(), UpdateSaError> {
        Nic::update_sa(self, owner, handle, sequence, now)
    }

    fn delete_sa(&self, owner: VmId, handle: OffloadHandle) -> Result<(), UpdateSaError> {
        Nic::delete_sa(self, owner, handle)
    }

    fn reap_sas(&self) -> Vec<(OffloadHandle, SaIdentity)> {
        Nic::reap_sas(self)
    }

    fn offload_ok(&self, owner: VmId, handle: OffloadHandle, packet: &[u8]) -> bool {
        Nic::offload_ok(self, owner, handle, packet)
    }

    fn set_policies(&self, owner: VmId, policies: Option<Arc<Spd>>) {
        Nic::set_policies(self, owner, policies);
    }

    fn sa_statistics(&self, owner: VmId, handle: OffloadHandle) -> Option<SaStatistics> {
        Nic::sa_statistics(self, owner, handle)
    }
}
