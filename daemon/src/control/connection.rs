//! One connection: who waits for it, and for how long.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tower::ServiceExt;

use super::slots::Slot;
use super::{ControlLimits, api};
use crate::plane::Scope;

/// The longest head of a request, in bytes.
const HEAD: usize = 16 << 10;

/// What the answer of an event stream carries: its connection keeps its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lasting;

/// Who asks, as the connection knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Everything of this scope.
    Within(Scope),
    /// Nothing: wrong credentials.
    Stranger {
        /// The user that was refused.
        uid: u32,
    },
}

/// Serves one connection until it ends, is idle or slow for too long, or has to make room.
pub(super) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    slot: Slot,
    caller: Caller,
    router: Router,
    limits: ControlLimits,
) {
    let slot = Arc::new(slot);
    let asked = Arc::clone(&slot);
    let service = service_fn(move |request: Request<Incoming>| {
        let slot = Arc::clone(&asked);
        let router = router.clone();
        async move {
            // Who sends slowly still waits: its place can be taken.
            let mut request = match whole(request, caller, &limits).await {
                Ok(request) => request,
                Err(response) => return Ok(response),
            };
            slot.begin_request();
            request.extensions_mut().insert(caller);
            let Ok(response): Result<Response<Body>, Infallible> = router.oneshot(request).await;
            if response.extensions().get::<Lasting>().is_none() {
                slot.end_request();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.patience)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(Timed::new(stream, limits.patience)), service);
    tokio::select! {
        // Whatever was wrong with it, the connection is gone.
        _ = connection => {}
        () = slot.evicted() => {}
    }
}

/// A request with all of its body, or the answer to one that is too long or too slow.
async fn whole(
    request: Request<Incoming>,
    caller: Caller,
    limits: &ControlLimits,
) -> Result<Request<Body>, Response<Body>> {
    let (head, body) = request.into_parts();
    if matches!(caller, Caller::Stranger { .. }) {
        return Ok(Request::from_parts(head, Body::empty()));
    }
    let (most, patience) = match head.uri.path() {
        // More may come than fits into a packet or two.
        "/v1/sas/import" => (limits.import, limits.patience * 6),
        _ => (limits.body, limits.patience),
    };
    match api::whole(Body::new(body), most, patience).await {
        // Wiped when the last part of it is dropped.
        Ok(body) => Ok(Request::from_parts(
            head,
            Body::from(Bytes::from_owner(body)),
        )),
        Err(refused) => Err(refused),
    }
}

/// A stream whose peer has to take what is written within a time.
struct Timed<S> {
    stream: S,
    patience: Duration,
    overdue: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S> Timed<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            overdue: Box::pin(tokio::time::sleep(patience)),
            waiting: false,
        }
    }

    /// Turns waiting into an error once it has taken too long.
    fn hurry<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = false;
            return written;
        }
        if !self.waiting {
            self.waiting = true;
            let deadline = Instant::now() + self.patience;
            self.overdue.as_mut().reset(deadline);
        }
        ready!(self.overdue.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.hurry(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.hurry(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.hurry(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.hurry(context, shut)
    }
}
