//! `/v1/adapter` and `/v1/switch`: what the adapters can do, and why not.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use vesper_offload::{Capabilities, NicSwitchParams};
use vesper_verify::xfrm::Line;

use super::answer::Refused;
use super::sas::words;
use super::{Api, body};
use crate::control::types;
use crate::node::NodeHandle;
use crate::plane::{Plane, Refusal};

/// The adapters: what they have, what they can do, and what of it is enabled.
#[utoipa::path(
    get, path = "/v1/adapter", tag = "adapter",
    responses((status = 200, body = types::Adapters))
)]
pub(super) async fn list(State(api): State<Api>) -> Json<types::Adapters> {
    let nodes = api.0.service.plane.nodes();
    Json(types::Adapters {
        adapters: nodes.iter().map(adapter).collect(),
    })
}

/// Whether an adapter would take an association with these words now, or every reason why not.
#[utoipa::path(
    post, path = "/v1/adapter/why-not", tag = "adapter",
    request_body = types::Words,
    responses((status = 200, body = types::WhyNot), (status = 400, body = types::Error))
)]
pub(super) async fn why_not(
    State(api): State<Api>,
    body: Body,
) -> Result<Json<types::WhyNot>, Refused> {
    let line = words(&api, body).await?.pop();
    let Some(Line::State(state)) = line else {
        return Err(Refused(Refusal::words(
            "words",
            "",
            "expected the words of an SA",
            "send what follows `ip xfrm state add`",
        )));
    };
    let modes = api
        .run(move |service| service.plane.why_not(&state))
        .await?;
    Ok(Json(types::WhyNot {
        modes: modes
            .into_iter()
            .map(|(mode, reasons)| types::ModeReasons {
                mode: mode.to_string(),
                reasons: reasons.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    }))
}

/// The NIC switches of the adapters, with their virtual functions.
#[utoipa::path(
    get, path = "/v1/switch", tag = "adapter",
    responses((status = 200, body = types::Switches))
)]
pub(super) async fn switches(State(api): State<Api>) -> Json<types::Switches> {
    let plane = &api.0.service.plane;
    let nodes = plane.nodes();
    Json(types::Switches {
        switches: nodes.iter().map(|node| switch(plane, node)).collect(),
    })
}

/// Makes the NIC switch of an adapter: once, and before the first machine.
#[utoipa::path(
    post, path = "/v1/switch", tag = "adapter",
    request_body = types::NewSwitch,
    responses(
        (status = 201, body = types::Switch),
        (status = 400, body = types::Error), (status = 409, body = types::Error)
    )
)]
pub(super) async fn make_switch(
    State(api): State<Api>,
    body: Body,
) -> Result<(StatusCode, Json<types::Switch>), Refused> {
    let limits = api.0.limits;
    let new: types::NewSwitch = body::json(body, limits.body, limits.patience).await?;
    let made = api
        .run(move |service| {
            let plane = &service.plane;
            let host = plane.host_named(new.host.as_deref())?;
            let params = NicSwitchParams {
                virtual_functions: new.virtual_functions,
                default_queue_pairs: new.queue_pairs,
            };
            plane.make_switch(&host, params)?;
            let nodes = plane.nodes();
            let node = nodes.iter().find(|node| node.name() == host);
            let node = node.ok_or_else(|| Refusal::not_found("host", &host))?;
            Ok(switch(plane, node))
        })
        .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

fn adapter(node: &NodeHandle) -> types::Adapter {
    let nic = node.nic();
    let usage = nic.usage();
    let (supported, enabled) = (describe(nic.supported()), describe(&nic.enabled()));
    types::Adapter {
        host: node.name().to_owned(),
        profile: nic.profile().name.to_owned(),
        processors: nic.processors(),
        sas: used(usage.ipsec_sas),
        queues: used(usage.queues),
        filters: used(usage.filters),
        capabilities: supported
            .into_iter()
            .zip(enabled)
            .map(|((name, supported), (_, enabled))| types::Capability {
                name,
                supported,
                enabled,
            })
            .collect(),
    }
}

fn switch(plane: &Plane, node: &NodeHandle) -> types::Switch {
    let nic = node.nic();
    let usage = nic.usage();
    let state = nic.nic_switch();
    let functions = state
        .iter()
        .flat_map(|state| &state.virtual_functions)
        .map(|(vf, vm, state)| types::Function {
            id: vf.0,
            vm: plane
                .vms()
                .iter()
                .find(|record| record.id == *vm)
                .map_or_else(|| vm.to_string(), |record| record.spec.name.clone()),
            state: format!("{state:?}").to_lowercase(),
        })
        .collect();
    types::Switch {
        host: node.name().to_owned(),
        exists: state.is_some(),
        virtual_functions: used(usage.virtual_functions),
        queue_pairs: used(usage.queue_pairs),
        functions,
    }
}

const fn used(usage: vesper_offload::Usage) -> types::Usage {
    types::Usage {
        used: usage.used,
        limit: usage.capacity,
    }
}

/// Names and values, those of `NDIS_IPSEC_OFFLOAD_V2` first.
fn describe(capabilities: &Capabilities) -> Vec<(String, String)> {
    let c = capabilities;
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let list = |items: Vec<String>| match items.is_empty() {
        true => "none".to_owned(),
        false => items.join(", "),
    };
    let ciphers = c.encryption.iter().map(|offered| {
        let bits = |bytes: &[usize]| {
            let bits: Vec<_> = bytes.iter().map(|bytes| (bytes * 8).to_string()).collect();
            bits.join("/")
        };
        format!("{:?} {}", offered.encryption, bits(&offered.key_lens))
    });
    let integrity = c.integrity.iter().map(|offered| format!("{offered:?}"));
    let rows = [
        ("esp", yes(c.esp)),
        ("ah", yes(c.ah)),
        ("tunnel", yes(c.tunnel)),
        ("transport", yes(c.transport)),
        ("ipv6", yes(c.ipv6)),
        ("ipv4-options", yes(c.ipv4_options)),
        ("ipv6-extension-headers", yes(c.ipv6_extension_headers)),
        ("udp-tunnel", yes(c.udp_tunnel)),
        ("udp-transport", yes(c.udp_transport)),
        ("esn", yes(c.esn)),
        ("large-send", yes(c.large_send)),
        ("encryption", list(ciphers.collect())),
        ("integrity", list(integrity.collect())),
        ("sa-capacity", c.sa_capacity.to_string()),
        ("crypto-mode", yes(c.crypto_mode)),
        ("packet-mode", yes(c.packet_mode)),
        (
            "replay-window",
            format!("{} to {}", c.replay_window.0, c.replay_window.1),
        ),
        ("replay-off", yes(c.replay_off)),
        ("lifetimes", yes(c.lifetimes)),
        ("time-lifetimes", yes(c.time_lifetimes)),
        ("tfc-padding", yes(c.tfc_padding)),
        ("inner-checksum", yes(c.inner_checksum)),
    ];
    rows.map(|(name, value)| (name.to_owned(), value)).to_vec()
}
