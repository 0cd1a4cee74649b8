//! Bodies and queries of requests: bounded in length and time, wiped after use.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::answer::Refused;
use crate::plane::Refusal;

/// A whole body, of at most `most` bytes, which has to come within a time.
pub(super) async fn whole(
    body: Body,
    most: usize,
    patience: Duration,
) -> Result<Zeroizing<Vec<u8>>, Refused> {
    let collect = async {
        let mut stream = body.into_data_stream();
        let mut whole = Zeroizing::new(Vec::new());
        while let Some(part) = stream.next().await {
            let part = part
                .map_err(|error| Refusal::words("body", "", error.to_string(), "send all of it"))?;
            if whole.len() + part.len() > most {
                return Err(Refusal::words(
                    "body",
                    "",
                    format!("longer than {most} bytes"),
                    "send less at a time, or import it",
                ));
            }
            append(&mut whole, &part);
        }
        Ok(whole)
    };
    match tokio::time::timeout(patience, collect).await {
        Ok(whole) => Ok(whole?),
        Err(_) => Err(Refused(Refusal::words(
            "body",
            "",
            format!("did not come within {patience:?}"),
            "send it faster",
        ))),
    }
}

/// The value that a body is, as JSON.
pub(super) async fn json<T: DeserializeOwned>(
    body: Body,
    most: usize,
    patience: Duration,
) -> Result<T, Refused> {
    let whole = whole(body, most, patience).await?;
    let mut deserializer = serde_json::Deserializer::from_slice(&whole);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let word = if path == "." { "body" } else { &path };
        Refusal::words(
            word,
            "",
            plain(&error.into_inner()),
            "GET /v1/openapi.json tells what it takes",
        )
    })?;
    deserializer
        .end()
        .map_err(|error| Refusal::words("body", "", plain(&error), "send one JSON value"))?;
    Ok(value)
}

/// The pairs of a query, in their order.
pub(super) fn pairs(uri: &Uri) -> Result<Vec<(String, String)>, Refused> {
    match Query::try_from_uri(uri) {
        Ok(Query(pairs)) => Ok(pairs),
        Err(error) => Err(Refused(Refusal::words(
            "query",
            "",
            error.to_string(),
            "send WORD=VALUE&WORD=VALUE",
        ))),
    }
}

/// What a word of a query says that is either true or false.
pub(super) fn flag(word: &str, value: &str) -> Result<bool, Refusal> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Refusal::words(
            word,
            value,
            "expected true or false",
            "give one of them",
        )),
    }
}

/// The names in a path.
pub(super) struct Named<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for Named<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Self(names)),
            Err(_) => Err(Refused(Refusal::not_found("path", parts.uri.path()))),
        }
    }
}

/// Appends without leaving a part of the old text behind where it grows.
fn append(whole: &mut Zeroizing<Vec<u8>>, part: &[u8]) {
    let needed = whole.len() + part.len();
    if needed > whole.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
        larger.extend_from_slice(whole);
        *whole = larger;
    }
    whole.extend_from_slice(part);
}

/// What a JSON error says, without what it shows of a value, which may be a key.
fn plain(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    match error.classify() {
        Category::Data => {
            let text = error.to_string();
            match text.contains("invalid type") || text.contains("invalid value") {
                true => "not the kind of value that it takes".to_owned(),
                false => text,
            }
        }
        Category::Syntax => format!("not JSON at column {}", error.column()),
        Category::Eof => "ends too early".to_owned(),
        Category::Io => "could not be read".to_owned(),
    }
}
