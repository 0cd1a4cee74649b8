//! What was added by request, as the store keeps it: machines with their ports, NIC switches.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vesper_offload::{MacAddress, NicSwitchParams, SriovError, VlanId, VmAddress};

use super::record::Origin;
use super::spec::MachineSpec;
use super::{Change, Plane, Refusal};
use crate::config::{Mac, PortConfig};
use crate::port::{Opener, Place, Port};

/// A machine in the store: what can be said of it in a request. Settings that no request can
/// have are as they are by default.
#[derive(Debug, Serialize, Deserialize)]
struct KeptMachine {
    mac: String,
    vlan: Option<u16>,
    sa_limit: u32,
    ipsec_offload_limit: u32,
    vmq_weight: u16,
    iov_weight: u16,
    require_protection: bool,
    /// What it is behind, as a table of the configuration.
    port: Option<Value>,
}

impl Plane {
    /// Opens a port that a request, or the store, describes as a table of the configuration.
    ///
    /// # Errors
    /// It is no such table, or the system refuses.
    pub fn open_port(
        &self,
        host: &str,
        mac: MacAddress,
        table: &Value,
    ) -> Result<Box<dyn Port>, Refusal> {
        let config = PortConfig::deserialize(table).map_err(|error| {
            Refusal::words(
                "port",
                table,
                error.to_string(),
                "give a port as in the configuration",
            )
        })?;
        if matches!(config, PortConfig::Cable(_)) {
            return Err(Refusal::words(
                "port",
                "cable",
                "both ends of a cable have to be there from the start",
                "write it into the configuration, and restart vesperd",
            ));
        }
        let node = self.node_spec(host)?;
        let place = Place {
            mac,
            gateway: node.mac,
            frame: node.frame,
        };
        Opener::new().open(&config, &place).map_err(|error| {
            Refusal::conflict("port", "", error.to_string(), "choose another port")
        })
    }

    /// Adds a machine that was added by request before this start, as it stood in the store.
    ///
    /// # Errors
    /// Its host is not there any more, or its port can not be opened now.
    pub fn restore_vm(&self, host: &str, name: &str, settings: &str) -> Result<(), Refusal> {
        let damaged = |reason: String| {
            let name = format!("{host}/{name}");
            Refusal::conflict("vm", name, reason, "add it again")
        };
        let kept: KeptMachine =
            serde_json::from_str(settings).map_err(|error| damaged(error.to_string()))?;
        let mac = Mac::parse(&kept.mac).ok_or_else(|| damaged("its address".to_owned()))?;
        let mut spec = MachineSpec::new(host, name, mac.0);
        spec.address = VmAddress {
            mac: mac.0,
            vlan: kept.vlan.and_then(VlanId::new),
        };
        spec.sa_limit = kept.sa_limit;
        spec.settings.ipsec_offload_limit = kept.ipsec_offload_limit;
        spec.settings.vmq_weight = kept.vmq_weight;
        spec.settings.iov_weight = kept.iov_weight;
        spec.require_protection = kept.require_protection;
        let port = match &kept.port {
            Some(table) => Some(self.open_port(host, mac.0, table)?),
            None => None,
        };
        let added = self.add_vm_behind(spec, port, kept.port, Origin::Requested);
        if let Err(refusal) = added {
            // It stays in the store, for another start.
            let (vm, settings) = (name, settings.to_owned());
            self.persistence
                .commit(&[Change::PutVm { host, vm, settings }])?;
            return Err(refusal);
        }
        Ok(())
    }

    /// Makes the NIC switch of an adapter, which has to be done before its first machine.
    ///
    /// # Errors
    /// There are one, or machines, already; the adapter has none, or less.
    pub fn make_switch(&self, host: &str, params: NicSwitchParams) -> Result<(), Refusal> {
        let _changing = self.begin_change();
        let (_, node) = self.node_named(Some(host))?;
        let nic = node.handle.nic();
        nic.create_nic_switch(params).map_err(|error| {
            let remedy = match error {
                SriovError::AlreadyCreated(_) | SriovError::InUse => {
                    "write nic_switch into the configuration, and restart vesperd"
                }
                _ => "ask for less, or use another adapter profile",
            };
            Refusal::conflict("switch", host, error.to_string(), remedy)
        })?;
        // It can not be taken back, but whoever asked hears that it ends with the process.
        Ok(self
            .persistence
            .commit(&[Change::PutSwitch { host, params }])?)
    }
}

/// A machine as the store keeps it.
pub(super) fn settings(spec: &MachineSpec, port: Option<&Value>) -> String {
    let kept = KeptMachine {
        mac: spec.address.mac.to_string(),
        vlan: spec.address.vlan.map(VlanId::get),
        sa_limit: spec.sa_limit,
        ipsec_offload_limit: spec.settings.ipsec_offload_limit,
        vmq_weight: spec.settings.vmq_weight,
        iov_weight: spec.settings.iov_weight,
        require_protection: spec.require_protection,
        port: port.cloned(),
    };
    // Numbers and texts under names: it can not fail.
    serde_json::to_string(&kept).unwrap_or_default()
}
