//! `/v1/events`: what happens, a JSON object a line.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::wrappers::ReceiverStream;

use super::answer::Refused;
use super::{Api, view};
use crate::control::connection::Lasting;
use crate::control::types;
use crate::plane::{Refusal, Scope};

/// Lines that wait for a slow reader before it loses some.
const BEHIND: usize = 256;

/// What happens from now on, as lines of JSON until the connection is closed. Who reads too
/// slowly loses events and is told so by an event of kind `lost`.
#[utoipa::path(
    get, path = "/v1/events", tag = "daemon",
    responses(
        (status = 200, body = types::Event, content_type = "application/x-ndjson"),
        (status = 503, body = types::Error)
    )
)]
pub(super) async fn events(
    State(api): State<Api>,
    Extension(scope): Extension<Scope>,
) -> Result<Response, Refused> {
    let place = Arc::clone(&api.0.streams).try_acquire_owned();
    let place = place.map_err(|_| {
        Refusal::unavailable(format!(
            "there are {} event streams already",
            api.0.limits.streams
        ))
    })?;
    let mut events = api.0.service.plane.events().subscribe();
    let (lines, stream) = tokio::sync::mpsc::channel::<Bytes>(BEHIND);
    tokio::spawn(async move {
        let mut told = 0;
        // Given back when the reader goes.
        let _place = place;
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = lines.closed() => return,
            };
            let line = match event {
                Ok(event) if event.is_for(scope) => {
                    let mut event = view::event(&event);
                    if scope != Scope::All {
                        // How much happens elsewhere is not for machines.
                        told += 1;
                        event.number = told;
                    }
                    line(&event)
                }
                Ok(_) => continue,
                Err(RecvError::Lagged(count)) => line(&lost(count)),
                Err(RecvError::Closed) => return,
            };
            if lines.send(line).await.is_err() {
                return;
            }
        }
    });
    let body = Body::from_stream(ReceiverStream::new(stream).map(Ok::<_, std::io::Error>));
    let mut response = ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response();
    response.extensions_mut().insert(Lasting);
    Ok(response)
}

fn line(event: &types::Event) -> Bytes {
    // It is made of text and numbers, which JSON can express.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}

fn lost(count: u64) -> types::Event {
    types::Event {
        number: 0,
        time: String::new(),
        kind: "lost".to_owned(),
        host: String::new(),
        vm: None,
        dir: None,
        spi: None,
        dst: None,
        reqid: None,
        text: format!("{count} events were lost: they came faster than they were read"),
    }
}
