//! What can be asked, path by path.

mod adapter;
mod answer;
mod body;
mod events;
mod meta;
mod policies;
mod sas;
mod stats;
mod view;
mod vms;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::Semaphore;
use utoipa::OpenApi;
use utoipa::openapi::{PathItem, RefOr};
use zeroize::Zeroizing;

use super::connection::Caller;
use super::{ControlLimits, Service};
use crate::plane::{Refusal, Scope};
use answer::Refused;

pub use stats::{XFRM_COUNTERS, stats_of};

/// What every handler needs.
#[derive(Clone)]
struct Api(Arc<Shared>);

struct Shared {
    service: Service,
    limits: ControlLimits,
    /// Places for event streams.
    streams: Arc<Semaphore>,
}

/// The description of the interface, as it is served at `/v1/openapi.json` and kept in
/// `docs/openapi.json`.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "vesperd control",
        description = "Security associations, policies, virtual machines and adapters of vesperd. \
            Served on the Unix socket control.sock; the socket of a machine serves /v1/sas and \
            /v1/events, limited to the associations of that machine. Every refusal is an Error."
    ),
    paths(
        sas::list,
        sas::add,
        sas::update,
        sas::import,
        sas::delete,
        sas::show,
        sas::delete_one,
        policies::list,
        policies::add,
        policies::update,
        policies::delete,
        vms::list,
        vms::add,
        vms::show,
        vms::change,
        vms::remove,
        adapter::list,
        adapter::why_not,
        adapter::switches,
        adapter::make_switch,
        stats::ports,
        stats::port_counters,
        stats::stats,
        events::events,
        meta::reload,
        meta::doctor,
        meta::openapi
    )
)]
struct Description;

/// The description of the interface as JSON.
pub fn openapi() -> String {
    let mut description = Description::openapi();
    description.info.version = env!("CARGO_PKG_VERSION").to_owned();
    for item in description.paths.paths.values_mut() {
        let PathItem {
            get,
            put,
            post,
            delete,
            patch,
            ..
        } = item;
        for operation in [get, put, post, delete, patch].into_iter().flatten() {
            // Each has to have a name of its own: `sas_list`, `vms_list`...
            if let (Some(tag), Some(name)) = (
                operation.tags.iter().flatten().next(),
                &mut operation.operation_id,
            ) {
                *name = format!("{tag}_{name}");
            }
            for (status, response) in &mut operation.responses.responses {
                describe(status, response);
            }
        }
    }
    // It is made of types that JSON can express.
    description.to_pretty_json().unwrap_or_default() + "\n"
}

/// Says of an answer what its status means, which OpenAPI wants of each.
fn describe(status: &str, response: &mut RefOr<utoipa::openapi::Response>) {
    if let RefOr::T(response) = response
        && response.description.is_empty()
    {
        response.description = match status {
            "200" => "Done",
            "201" => "Added",
            "400" => "The words or the body make no sense",
            "403" => "Not permitted",
            "404" => "There is no such thing, or it is another machine's",
            "409" => "It exists, is in use or beyond a quota, or the adapter can not",
            _ => "The daemon can not do it now",
        }
        .to_owned();
    }
}

/// Everything that can be asked.
pub(super) fn router(service: Service, limits: ControlLimits) -> Router {
    let api = Api(Arc::new(Shared {
        service,
        limits,
        streams: Arc::new(Semaphore::new(limits.streams)),
    }));
    Router::new()
        .route(
            "/v1/sas",
            get(sas::list)
                .post(sas::add)
                .put(sas::update)
                .delete(sas::delete),
        )
        .route("/v1/sas/import", post(sas::import))
        .route("/v1/sas/{id}", get(sas::show).delete(sas::delete_one))
        .route(
            "/v1/policies",
            get(policies::list)
                .post(policies::add)
                .put(policies::update)
                .delete(policies::delete),
        )
        .route("/v1/vms", get(vms::list).post(vms::add))
        .route(
            "/v1/vms/{host}/{name}",
            get(vms::show).patch(vms::change).delete(vms::remove),
        )
        .route("/v1/ports", get(stats::ports))
        .route("/v1/ports/{host}/{name}", get(stats::port_counters))
        .route(
            "/v1/switch",
            get(adapter::switches).post(adapter::make_switch),
        )
        .route("/v1/adapter", get(adapter::list))
        .route("/v1/adapter/why-not", post(adapter::why_not))
        .route("/v1/stats", get(stats::stats))
        .route("/v1/events", get(events::events))
        .route("/v1/reload", post(meta::reload))
        .route("/v1/doctor", get(meta::doctor))
        .route("/v1/openapi.json", get(meta::openapi))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(api.clone(), admit))
        .with_state(api)
}

/// A whole body, of at most `most` bytes, which has to come within a time; else the answer.
pub(super) async fn whole(
    body: Body,
    most: usize,
    patience: Duration,
) -> Result<Zeroizing<Vec<u8>>, Response> {
    let whole = body::whole(body, most, patience).await;
    whole.map_err(IntoResponse::into_response)
}

/// Lets a request through to what its scope covers, and tells its scope.
async fn admit(
    State(_): State<Api>,
    Extension(caller): Extension<Caller>,
    mut request: Request,
    next: Next,
) -> Response {
    let scope = match caller {
        Caller::Within(scope) => scope,
        Caller::Stranger { uid } => {
            let refusal = Refusal::not_permitted(
                format!("user {uid} may not use this socket"),
                "become root or the user of vesperd, or be named by its configuration, \
                 as a user or by a group",
            );
            return Refused(refusal).into_response();
        }
    };
    let path = request.uri().path();
    let is_for_machines = path == "/v1/sas"
        || path.starts_with("/v1/sas/")
        || path == "/v1/events"
        || path == "/v1/openapi.json";
    if matches!(scope, Scope::Vm(_)) && !is_for_machines {
        return no_such_path(request).await.into_response();
    }
    request.extensions_mut().insert(scope);
    next.run(request).await
}

async fn no_such_path(request: Request) -> Refused {
    Refused(Refusal::not_found("path", request.uri().path()))
}

async fn no_such_method(request: Request) -> Refused {
    Refused(Refusal::words(
        "method",
        request.method(),
        format!("{} does not take it", request.uri().path()),
        "GET /v1/openapi.json tells what each path takes",
    ))
}

impl Api {
    /// Does something that may wait for a worker or a disk.
    async fn run<R: Send + 'static>(
        &self,
        ask: impl FnOnce(&Service) -> Result<R, Refusal> + Send + 'static,
    ) -> Result<R, Refused> {
        let service = self.0.service.clone();
        let answer = tokio::task::spawn_blocking(move || ask(&service)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(Refusal::unavailable(
                "the request ended in a fault of the daemon",
            ))
        });
        answer.map_err(Refused)
    }
}
