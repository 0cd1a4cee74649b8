//! `/v1/vms`: virtual machines.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use serde::de::DeserializeOwned;
use vesper_offload::{VlanId, VmAddress};

use super::answer::Refused;
use super::body::Named;
use super::{Api, body, view};
use crate::config::Mac;
use crate::control::types;
use crate::plane::{MachineSpec, Origin, Plane, Refusal, VmChange};

/// All machines.
#[utoipa::path(
    get, path = "/v1/vms", tag = "vms",
    responses((status = 200, body = types::Vms))
)]
pub(super) async fn list(State(api): State<Api>) -> Json<types::Vms> {
    let plane = &api.0.service.plane;
    Json(types::Vms {
        vms: plane.vms().iter().map(|vm| view::vm(plane, vm)).collect(),
    })
}

/// Adds a machine with its port.
#[utoipa::path(
    post, path = "/v1/vms", tag = "vms",
    request_body = types::NewVm,
    responses(
        (status = 201, body = types::Vm),
        (status = 400, body = types::Error), (status = 404, body = types::Error),
        (status = 409, body = types::Error)
    )
)]
pub(super) async fn add(
    State(api): State<Api>,
    body: Body,
) -> Result<(StatusCode, Json<types::Vm>), Refused> {
    let limits = api.0.limits;
    let new: types::NewVm = body::json(body, limits.body, limits.patience).await?;
    let vm = api
        .run(move |service| {
            let plane = &service.plane;
            let spec = spec(plane, &new)?;
            let port = match &new.port {
                Some(port) => Some(plane.open_port(&spec.host, spec.address.mac, port)?),
                None => None,
            };
            let record = plane.add_vm_behind(spec, port, new.port, Origin::Requested)?;
            Ok(view::vm(plane, &record))
        })
        .await?;
    Ok((StatusCode::CREATED, Json(vm)))
}

/// One machine.
#[utoipa::path(
    get, path = "/v1/vms/{host}/{name}", tag = "vms",
    params(("host" = String, Path, description = "host"), ("name" = String, Path, description = "machine")),
    responses((status = 200, body = types::Vm), (status = 404, body = types::Error))
)]
pub(super) async fn show(
    State(api): State<Api>,
    Named((host, name)): Named<(String, String)>,
) -> Result<Json<types::Vm>, Refused> {
    let plane = &api.0.service.plane;
    let record = plane.vm_named(Some(&host), &name)?;
    Ok(Json(view::vm(plane, &record)))
}

/// Changes a machine while its packets pass; with `port` it moves behind another port and keeps
/// its associations.
#[utoipa::path(
    patch, path = "/v1/vms/{host}/{name}", tag = "vms",
    params(("host" = String, Path, description = "host"), ("name" = String, Path, description = "machine")),
    request_body = types::VmPatch,
    responses(
        (status = 200, body = types::Vm),
        (status = 400, body = types::Error), (status = 404, body = types::Error)
    )
)]
pub(super) async fn change(
    State(api): State<Api>,
    Named((host, name)): Named<(String, String)>,
    body: Body,
) -> Result<Json<types::Vm>, Refused> {
    let limits = api.0.limits;
    let patch: types::VmPatch = body::json(body, limits.body, limits.patience).await?;
    let vm = api
        .run(move |service| {
            let plane = &service.plane;
            let vm = plane.vm_named(Some(&host), &name)?;
            let port = match &patch.port {
                Some(table) => Some((plane.open_port(&host, vm.spec.address.mac, table)?, table)),
                None => None,
            };
            let change = VmChange {
                sa_limit: patch.sa_limit,
                ipsec_offload_limit: patch.ipsec_offload_limit,
                processor: patch.processor,
                offload: None,
                require_protection: patch.require_protection,
            };
            if change != VmChange::default() {
                plane.change_vm(Some(&host), &name, &change)?;
            }
            if let Some((port, table)) = port {
                plane.move_vm(Some(&host), &name, port, table)?;
            }
            let record = plane.vm_named(Some(&host), &name)?;
            Ok(view::vm(plane, &record))
        })
        .await?;
    Ok(Json(vm))
}

/// Removes a machine with its port, policies and associations.
#[utoipa::path(
    delete, path = "/v1/vms/{host}/{name}", tag = "vms",
    params(("host" = String, Path, description = "host"), ("name" = String, Path, description = "machine")),
    responses(
        (status = 200, body = types::Count), (status = 404, body = types::Error),
        (status = 409, body = types::Error)
    )
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Named((host, name)): Named<(String, String)>,
) -> Result<Json<types::Count>, Refused> {
    api.run(move |service| service.plane.remove_vm(Some(&host), &name))
        .await?;
    Ok(Json(types::Count { count: 1 }))
}

fn spec(plane: &Plane, new: &types::NewVm) -> Result<MachineSpec, Refusal> {
    let host = plane.host_named(new.host.as_deref())?;
    let mac: Mac = parse(
        "mac",
        &new.mac.clone().into(),
        "an address such as 02:00:00:00:00:01",
    )?;
    let vlan = match new.vlan {
        None => None,
        Some(vlan) => Some(VlanId::new(vlan).ok_or_else(|| {
            Refusal::words("vlan", vlan, "expected 1 to 4094", "leave it out for none")
        })?),
    };
    let mut spec = MachineSpec::new(&host, &new.name, mac.0);
    spec.address = VmAddress { mac: mac.0, vlan };
    if let Some(limit) = new.sa_limit {
        spec.sa_limit = limit;
    }
    if let Some(limit) = new.ipsec_offload_limit {
        spec.settings.ipsec_offload_limit = limit;
    }
    if let Some(weight) = new.vmq_weight {
        spec.settings.vmq_weight = weight;
    }
    if let Some(weight) = new.iov_weight {
        spec.settings.iov_weight = weight;
    }
    if let Some(require) = new.require_protection {
        spec.require_protection = require;
    }
    Ok(spec)
}

fn parse<T: DeserializeOwned>(
    word: &str,
    value: &serde_json::Value,
    expected: &str,
) -> Result<T, Refusal> {
    T::deserialize(value)
        .map_err(|error| Refusal::words(word, value, error.to_string(), format!("give {expected}")))
}
