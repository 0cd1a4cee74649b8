//! `/v1/sas`: associations.

use std::mem;
use std::sync::Arc;
use std::time::SystemTime;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use vesper_verify::xfrm::{self, Line, State as SaWords};
use zeroize::Zeroizing;

use super::answer::Refused;
use super::body::Named;
use super::{Api, body, view};
use crate::control::types;
use crate::plane::{Origin, Plane, Refusal, SaFilter, SaId, SaRecord, SaSpec, Scope};

/// How many associations are put into words at a time.
const CHUNK: usize = 100;

/// What a query means.
struct Query {
    filter: SaFilter,
    keys: bool,
    all: bool,
}

/// The associations that have everything that the query names.
#[utoipa::path(
    get, path = "/v1/sas", tag = "sas",
    params(
        ("host" = Option<String>, Query, description = "host"),
        ("vm" = Option<String>, Query, description = "machine, as NAME or HOST/NAME"),
        ("src" = Option<String>, Query, description = "outer source address"),
        ("dst" = Option<String>, Query, description = "outer destination address"),
        ("spi" = Option<String>, Query, description = "SPI, such as 0x1000"),
        ("reqid" = Option<u32>, Query, description = "reqid"),
        ("mode" = Option<String>, Query, description = "tunnel or transport"),
        ("dir" = Option<String>, Query, description = "in or out"),
        ("keys" = Option<bool>, Query, description = "true: words with keys; not for machines")
    ),
    responses((status = 200, body = types::Sas), (status = 400, body = types::Error))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(scope): Extension<Scope>,
    uri: Uri,
) -> Result<Response, Refused> {
    let query = query(&uri, scope)?;
    let records: Arc<[_]> = api.0.service.plane.sas(scope, &query.filter).into();
    let begins = (0..records.len()).step_by(CHUNK);
    // In parts, so that a long list is never in memory as a whole, and others are served between
    // two of them.
    let parts = stream::iter(begins).then(move |begin| {
        let (api, records) = (api.clone(), Arc::clone(&records));
        async move {
            let some = begin..records.len().min(begin + CHUNK);
            if !query.keys {
                // What is told is in memory and waits for nobody.
                return listed(&records[some], begin == 0, None);
            }
            let words =
                api.run(move |service| listed(&records[some], begin == 0, Some(&*service.plane)));
            words.await.map_err(|refused| refused.0)
        }
    });
    let begin = stream::once(async { Ok(Bytes::from_static(b"{\"sas\":[")) });
    let end = stream::once(async { Ok(Bytes::from_static(b"]}\n")) });
    let body = Body::from_stream(begin.chain(parts).chain(end));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// A part of a list, `first` or not, with keys if there is somebody to ask for them.
fn listed(records: &[Arc<SaRecord>], first: bool, keys: Option<&Plane>) -> Result<Bytes, Refusal> {
    let now = SystemTime::now();
    // With keys it does not grow, which would leave a part of them behind.
    let room = if keys.is_some() { 2048 } else { 640 };
    let mut out = Zeroizing::new(Vec::with_capacity(records.len() * room));
    for (place, record) in records.iter().enumerate() {
        if !first || place > 0 {
            out.push(b',');
        }
        let secret = match keys {
            Some(plane) => plane.secret_words(record)?,
            None => None,
        };
        let view = view::sa(record, secret.as_ref().map(|words| words.as_str()), now);
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut *out, &view);
    }
    Ok(match keys {
        Some(_) => Bytes::from_owner(out),
        None => Bytes::from(mem::take(&mut *out)),
    })
}

/// Adds an association.
#[utoipa::path(
    post, path = "/v1/sas", tag = "sas",
    request_body = types::Words,
    responses(
        (status = 201, body = types::Added),
        (status = 400, body = types::Error), (status = 404, body = types::Error),
        (status = 409, body = types::Error)
    )
)]
pub(super) async fn add(
    State(api): State<Api>,
    Extension(scope): Extension<Scope>,
    body: Body,
) -> Result<(StatusCode, Json<types::Added>), Refused> {
    let state = one(words(&api, body).await?)?;
    let ids = api
        .run(move |service| {
            let specs = vec![SaSpec::new(state)];
            service.plane.add_sas(scope, specs, Origin::Requested)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(added(&ids))))
}

/// Changes the limits of an association (`ip xfrm state update`).
#[utoipa::path(
    put, path = "/v1/sas", tag = "sas",
    request_body = types::Words,
    responses(
        (status = 200, body = types::Added),
        (status = 400, body = types::Error), (status = 404, body = types::Error)
    )
)]
pub(super) async fn update(
    State(api): State<Api>,
    Extension(scope): Extension<Scope>,
    body: Body,
) -> Result<Json<types::Added>, Refused> {
    let state = one(words(&api, body).await?)?;
    let id = api
        .run(move |service| service.plane.update_sa(scope, &state))
        .await?;
    Ok(Json(added(&[id])))
}

/// Adds the associations of a file of `ip xfrm state add` lines, all or none. Lines of
/// `ip xfrm policy add` may be among them, except on the socket of a machine.
#[utoipa::path(
    post, path = "/v1/sas/import", tag = "sas",
    params(
        ("host" = Option<String>, Query, description = "host of lines that name none"),
        ("vm" = Option<String>, Query, description = "machine of lines that name none")
    ),
    request_body(content = String, content_type = "text/plain"),
    responses(
        (status = 201, body = types::Count),
        (status = 400, body = types::Error), (status = 404, body = types::Error),
        (status = 409, body = types::Error)
    )
)]
pub(super) async fn import(
    State(api): State<Api>,
    Extension(scope): Extension<Scope>,
    uri: Uri,
    body: Body,
) -> Result<(StatusCode, Json<types::Count>), Refused> {
    let (mut host, mut vm) = (None, None);
    for (word, value) in body::pairs(&uri)? {
        match word.as_str() {
            "host" => host = Some(value),
            "vm" => vm = Some(value),
            _ => {
                return Err(Refused(Refusal::words(
                    &word,
                    value,
                    "not a word of an import",
                    "use host and vm",
                )));
            }
        }
    }
    let limits = api.0.limits;
    // More may come than fits into a packet or two.
    let text = body::whole(body, limits.import, limits.patience * 6).await?;
    let count = api
        .run(move |service| {
            let (mut specs, mut policies) = (Vec::new(), Vec::new());
            for line in lines(&text)? {
                match line {
                    Line::State(mut state) => {
                        owner(&mut state.host, &mut state.vm, &host, &vm);
                        specs.push(SaSpec::new(*state));
                    }
                    Line::Policy(_) if scope != Scope::All => {
                        return Err(Refusal::not_found("policy", ""));
                    }
                    Line::Policy(mut policy) => {
                        owner(&mut policy.host, &mut policy.vm, &host, &vm);
                        policies.push(*policy);
                    }
                }
            }
            let count = specs.len() + policies.len();
            service
                .plane
                .import(scope, specs, policies, Origin::Requested)?;
            Ok(count)
        })
        .await?;
    Ok((StatusCode::CREATED, Json(types::Count { count })))
}

/// Deletes the one association that has everything that the query names; with `all=true` all of
/// them.
#[utoipa::path(
    delete, path = "/v1/sas", tag = "sas",
    params(
        ("host" = Option<String>, Query, description = "host"),
        ("vm" = Option<String>, Query, description = "machine, as NAME or HOST/NAME"),
        ("src" = Option<String>, Query, description = "outer source address"),
        ("dst" = Option<String>, Query, description = "outer destination address"),
        ("spi" = Option<String>, Query, description = "SPI, such as 0x1000"),
        ("reqid" = Option<u32>, Query, description = "reqid"),
        ("mode" = Option<String>, Query, description = "tunnel or transport"),
        ("dir" = Option<String>, Query, description = "in or out"),
        ("all" = Option<bool>, Query, description = "true: also if they are several, or none")
    ),
    responses(
        (status = 200, body = types::Count),
        (status = 400, body = types::Error), (status = 404, body = types::Error),
        (status = 409, body = types::Error)
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(scope): Extension<Scope>,
    uri: Uri,
) -> Result<Json<types::Count>, Refused> {
    let query = query(&uri, scope)?;
    if query.filter.is_empty() && !query.all {
        return Err(Refused(Refusal::words(
            "spi",
            "",
            "missing: nothing says which SA is meant",
            "name it by spi, dst, dir and the like, or say all=true",
        )));
    }
    let count = api
        .run(move |service| match query.all {
            true => service.plane.delete_sas(scope, &query.filter),
            false => service.plane.delete_one(scope, &query.filter).map(|()| 1),
        })
        .await?;
    Ok(Json(types::Count { count }))
}

/// One association.
#[utoipa::path(
    get, path = "/v1/sas/{id}", tag = "sas",
    params(
        ("id" = u64, Path, description = "number of the association"),
        ("keys" = Option<bool>, Query, description = "true: words with keys; not for machines")
    ),
    responses((status = 200, body = types::Sa), (status = 404, body = types::Error))
)]
pub(super) async fn show(
    State(api): State<Api>,
    Extension(scope): Extension<Scope>,
    Named(id): Named<String>,
    uri: Uri,
) -> Result<Response, Refused> {
    let query = query(&uri, scope)?;
    let record = record(&api, scope, &id)?;
    let one = match query.keys {
        true => {
            api.run(move |service| listed(&[record], true, Some(&*service.plane)))
                .await?
        }
        // What is told is in memory and waits for nobody.
        false => listed(&[record], true, None)?,
    };
    Ok(([(header::CONTENT_TYPE, "application/json")], one).into_response())
}

/// Deletes one association.
#[utoipa::path(
    delete, path = "/v1/sas/{id}", tag = "sas",
    params(("id" = u64, Path, description = "number of the association")),
    responses((status = 200, body = types::Count), (status = 404, body = types::Error))
)]
pub(super) async fn delete_one(
    State(api): State<Api>,
    Extension(scope): Extension<Scope>,
    Named(id): Named<String>,
) -> Result<Json<types::Count>, Refused> {
    let id = record(&api, scope, &id)?.id;
    api.run(move |service| service.plane.delete_sa(scope, id))
        .await?;
    Ok(Json(types::Count { count: 1 }))
}

fn record(api: &Api, scope: Scope, id: &str) -> Result<Arc<SaRecord>, Refused> {
    id.parse()
        .ok()
        .and_then(|number| api.0.service.plane.sa(scope, SaId(number)))
        .ok_or_else(|| Refused(Refusal::not_found("sa", id)))
}

fn query(uri: &Uri, scope: Scope) -> Result<Query, Refused> {
    let mut query = Query {
        filter: SaFilter::default(),
        keys: false,
        all: false,
    };
    for (word, value) in body::pairs(uri)? {
        match word.as_str() {
            "keys" => query.keys = body::flag(&word, &value)?,
            "all" => query.all = body::flag(&word, &value)?,
            _ => query.filter.set(&word, &value)?,
        }
    }
    if query.keys && scope != Scope::All {
        return Err(Refused(Refusal::not_permitted(
            "keys are not shown on the socket of a machine",
            "ask on the control socket",
        )));
    }
    Ok(query)
}

/// The words of a body.
pub(super) async fn words(api: &Api, body: Body) -> Result<Vec<Line>, Refused> {
    let limits = api.0.limits;
    let types::Words { words } = body::json(body, limits.body, limits.patience).await?;
    let words = zeroize::Zeroizing::new(words);
    Ok(lines(words.as_bytes())?)
}

fn lines(text: &[u8]) -> Result<Vec<Line>, Refusal> {
    let text = std::str::from_utf8(text)
        .map_err(|_| Refusal::words("body", "", "not text", "send UTF-8"))?;
    Ok(xfrm::parse_lines(text, "words")?)
}

fn one(mut lines: Vec<Line>) -> Result<SaWords, Refusal> {
    match (lines.pop(), lines.is_empty()) {
        (Some(Line::State(state)), true) => Ok(*state),
        (Some(Line::Policy(_)), true) => Err(Refusal::words(
            "words",
            "",
            "the words of a policy",
            "send them to /v1/policies",
        )),
        _ => Err(Refusal::words(
            "words",
            "",
            "expected the words of one SA on one line",
            "use /v1/sas/import for several",
        )),
    }
}

/// Fills in whose a line is, if it does not say.
fn owner(
    line_host: &mut Option<String>,
    line_vm: &mut Option<String>,
    host: &Option<String>,
    vm: &Option<String>,
) {
    if line_host.is_none() && line_vm.is_none() {
        line_host.clone_from(host);
        line_vm.clone_from(vm);
    }
}

fn added(ids: &[SaId]) -> types::Added {
    types::Added {
        ids: ids.iter().map(|id| id.0).collect(),
    }
}
