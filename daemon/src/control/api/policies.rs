//! `/v1/policies`: policies.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use vesper_verify::xfrm::{self, PolicyLine, selector_words};

use super::answer::Refused;
use super::{Api, body, view};
use crate::control::types;
use crate::plane::{Origin, PolicyFilter, Refusal};

/// The policies that have everything that the query names.
#[utoipa::path(
    get, path = "/v1/policies", tag = "policies",
    params(
        ("host" = Option<String>, Query, description = "host"),
        ("vm" = Option<String>, Query, description = "machine, as NAME or HOST/NAME"),
        ("dir" = Option<String>, Query, description = "in or out"),
        ("index" = Option<u64>, Query, description = "number of the policy"),
        ("src" = Option<String>, Query, description = "source, as ADDRESS/LENGTH"),
        ("dst" = Option<String>, Query, description = "destination, as ADDRESS/LENGTH"),
        ("proto" = Option<String>, Query, description = "upper-layer protocol"),
        ("sport" = Option<u16>, Query, description = "source port"),
        ("dport" = Option<u16>, Query, description = "destination port")
    ),
    responses((status = 200, body = types::Policies), (status = 400, body = types::Error))
)]
pub(super) async fn list(
    State(api): State<Api>,
    uri: Uri,
) -> Result<Json<types::Policies>, Refused> {
    let (filter, _) = query(&uri)?;
    let policies = api.0.service.plane.policies(&filter);
    Ok(Json(types::Policies {
        policies: policies.iter().map(|record| view::policy(record)).collect(),
    }))
}

/// Adds policies, a line each, all or none.
#[utoipa::path(
    post, path = "/v1/policies", tag = "policies",
    request_body = types::Words,
    responses(
        (status = 201, body = types::Count),
        (status = 400, body = types::Error), (status = 404, body = types::Error),
        (status = 409, body = types::Error)
    )
)]
pub(super) async fn add(
    State(api): State<Api>,
    body: Body,
) -> Result<(StatusCode, Json<types::Count>), Refused> {
    let count = put(&api, body, false).await?;
    Ok((StatusCode::CREATED, Json(count)))
}

/// Adds policies, a line each, in the place of those for the same packets.
#[utoipa::path(
    put, path = "/v1/policies", tag = "policies",
    request_body = types::Words,
    responses(
        (status = 200, body = types::Count),
        (status = 400, body = types::Error), (status = 404, body = types::Error)
    )
)]
pub(super) async fn update(
    State(api): State<Api>,
    body: Body,
) -> Result<Json<types::Count>, Refused> {
    Ok(Json(put(&api, body, true).await?))
}

/// Deletes the policies that have everything that the query names; with `all=true` it may name
/// nothing.
#[utoipa::path(
    delete, path = "/v1/policies", tag = "policies",
    params(
        ("host" = Option<String>, Query, description = "host"),
        ("vm" = Option<String>, Query, description = "machine, as NAME or HOST/NAME"),
        ("dir" = Option<String>, Query, description = "in or out"),
        ("index" = Option<u64>, Query, description = "number of the policy"),
        ("src" = Option<String>, Query, description = "source, as ADDRESS/LENGTH"),
        ("dst" = Option<String>, Query, description = "destination, as ADDRESS/LENGTH"),
        ("proto" = Option<String>, Query, description = "upper-layer protocol"),
        ("sport" = Option<u16>, Query, description = "source port"),
        ("dport" = Option<u16>, Query, description = "destination port"),
        ("all" = Option<bool>, Query, description = "true: all policies")
    ),
    responses(
        (status = 200, body = types::Count),
        (status = 400, body = types::Error), (status = 404, body = types::Error)
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    uri: Uri,
) -> Result<Json<types::Count>, Refused> {
    let (filter, all) = query(&uri)?;
    if filter.is_empty() && !all {
        return Err(Refused(Refusal::words(
            "policy",
            "",
            "missing: nothing says which policy is meant",
            "name it by vm, dir, src, dst or index, or say all=true",
        )));
    }
    let count = api
        .run(move |service| service.plane.delete_policies(&filter))
        .await?;
    Ok(Json(types::Count { count }))
}

async fn put(api: &Api, body: Body, replace: bool) -> Result<types::Count, Refused> {
    let limits = api.0.limits;
    let types::Words { words } = body::json(body, limits.body, limits.patience).await?;
    let lines = xfrm::parse_policies(&words, "words").map_err(Refusal::from)?;
    if lines.is_empty() {
        return Err(Refused(Refusal::words(
            "words",
            "",
            "expected the words of a policy",
            "send what follows `ip xfrm policy add`",
        )));
    }
    let count = api
        .run(move |service| {
            service
                .plane
                .add_policies(lines, replace, Origin::Requested)
        })
        .await?;
    Ok(types::Count { count })
}

/// What a query means: its words are those of a policy.
fn query(uri: &Uri) -> Result<(PolicyFilter, bool), Refusal> {
    let mut filter = PolicyFilter::default();
    let mut all = false;
    let mut selector = String::new();
    let mut direction = None;
    for (word, value) in body::pairs(uri).map_err(|refused| refused.0)? {
        match word.as_str() {
            "host" => filter.host = Some(value),
            "vm" => filter.vm = Some(value),
            "dir" => direction = Some(value),
            "index" => {
                let index = value.parse().map_err(|_| {
                    Refusal::words("index", &value, "expected a number", "list the policies")
                })?;
                filter.index = Some(index);
            }
            "src" | "dst" | "proto" | "sport" | "dport" | "type" | "code" => {
                let is_plain =
                    |letter: char| letter.is_ascii_alphanumeric() || ".:/-".contains(letter);
                if value.is_empty() || !value.chars().all(is_plain) {
                    return Err(Refusal::words(
                        &word,
                        value,
                        "not what it takes",
                        "give an address with a length, a protocol or a number",
                    ));
                }
                selector.push_str(&format!(" {word} {value}"));
            }
            "all" => all = body::flag(&word, &value)?,
            _ => {
                return Err(Refusal::words(
                    &word,
                    value,
                    "not a word that names policies",
                    "use host, vm, dir, index, src, dst, proto, sport, dport",
                ));
            }
        }
    }
    // The same grammar as for adding, so that what was added can be named.
    let dir = direction.as_deref().unwrap_or("out");
    let line: Vec<PolicyLine> = xfrm::parse_policies(&format!("dir {dir}{selector}"), "query")?;
    let line = line.into_iter().next();
    filter.direction = direction.and(line.as_ref()).map(|line| line.direction);
    if !selector.is_empty() {
        filter.selector = line.map(|line| selector_words(&line.selector));
    }
    Ok((filter, all))
}
