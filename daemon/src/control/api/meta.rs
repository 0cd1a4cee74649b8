//! `/v1/reload`, `/v1/doctor`, `/v1/openapi.json`.

use axum::Json;
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::IntoResponse;

use super::answer::Refused;
use super::{Api, body, view};
use crate::control::types;
use crate::plane::Refusal;

/// Reads the configuration anew and puts it in force as a whole, or not at all; with
/// `check=true` only tells what would change.
#[utoipa::path(
    post, path = "/v1/reload", tag = "daemon",
    params(("check" = Option<bool>, Query, description = "true: change nothing")),
    responses(
        (status = 200, body = types::Diff),
        (status = 400, body = types::Error), (status = 409, body = types::Error)
    )
)]
pub(super) async fn reload(State(api): State<Api>, uri: Uri) -> Result<Json<types::Diff>, Refused> {
    let pairs = body::pairs(&uri)?;
    let mut only_check = false;
    for (word, value) in pairs {
        match word.as_str() {
            "check" => only_check = body::flag(&word, &value)?,
            _ => {
                let reason = "not a word of a reload";
                return Err(Refused(Refusal::words(&word, value, reason, "use check")));
            }
        }
    }
    let diff = api.run(move |service| (service.reload)(only_check)).await?;
    Ok(Json(types::Diff {
        added: diff.added,
        changed: diff.changed,
        removed: diff.removed,
    }))
}

/// What is wrong here, and how to mend it.
#[utoipa::path(
    get, path = "/v1/doctor", tag = "daemon",
    responses((status = 200, body = types::Findings))
)]
pub(super) async fn doctor(State(api): State<Api>) -> Result<Json<types::Findings>, Refused> {
    let findings = api.run(|service| Ok(service.plane.doctor())).await?;
    Ok(Json(types::Findings {
        findings: findings.into_iter().map(view::finding).collect(),
    }))
}

/// This description.
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "daemon",
    responses((status = 200, description = "OpenAPI document", content_type = "application/json"))
)]
pub(super) async fn openapi() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, "application/json")],
        super::openapi(),
    )
}
