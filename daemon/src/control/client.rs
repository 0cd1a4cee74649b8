//! The other end of the control socket: what the command line speaks through.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::types;

/// A client of one control socket. Each request is a connection of its own.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

/// Why there is no answer.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody serves the socket, or it broke off.
    NotReachable(PathBuf, String),
    /// The system does not let this user near the socket.
    NotPermitted(PathBuf),
    /// The daemon refused.
    Refused(u16, types::Error),
    /// The answer is not what this release understands.
    Answer(String),
}

impl Client {
    /// A client of the socket at this path. Nothing is connected yet.
    pub fn new(socket: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            socket: socket.to_owned(),
            runtime,
        })
    }

    /// Asks, and waits for the whole answer.
    pub fn ask(&self, method: Method, path: &str, body: &[u8]) -> Result<Bytes, ClientError> {
        self.runtime.block_on(async {
            let response = self.send(method, path, body).await?;
            let status = response.status();
            let body = response.into_body().collect().await;
            let body = body.map_err(|error| self.broken(&error))?.to_bytes();
            refused(status, &body)?;
            Ok(body)
        })
    }

    /// Asks, and understands the answer.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send_for(Method::GET, path, &[])
    }

    /// Asks with a body, and understands the answer.
    pub fn send_for<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> Result<T, ClientError> {
        let answer = self.ask(method, path, body)?;
        serde_json::from_slice(&answer).map_err(|error| ClientError::Answer(error.to_string()))
    }

    /// Asks for a stream and hands out each line of it until it ends, or `each` says `false`.
    pub fn follow(
        &self,
        path: &str,
        mut each: impl FnMut(&str) -> bool,
    ) -> Result<(), ClientError> {
        self.runtime.block_on(async {
            let response = self.send(Method::GET, path, &[]).await?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let body = body.collect().await;
                let body = body.map_err(|error| self.broken(&error))?.to_bytes();
                return refused(status, &body);
            }
            let mut pending = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| self.broken(&error))?;
                let Some(data) = frame.data_ref() else {
                    continue;
                };
                pending.extend_from_slice(data);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    if !each(String::from_utf8_lossy(&line).trim_end()) {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &[u8],
    ) -> Result<Response<Incoming>, ClientError> {
        let stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|error| match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        ClientError::NotPermitted(self.socket.clone())
                    }
                    _ => self.broken(&error),
                })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        // It ends with the last answer.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "vesper")
            .body(Full::new(Bytes::copy_from_slice(body)))
            .map_err(|error| ClientError::Answer(error.to_string()))?;
        sender
            .send_request(request)
            .await
            .map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &dyn fmt::Display) -> ClientError {
        ClientError::NotReachable(self.socket.clone(), error.to_string())
    }
}

fn refused(status: StatusCode, body: &[u8]) -> Result<(), ClientError> {
    if status.is_success() {
        return Ok(());
    }
    let error = serde_json::from_slice(body).unwrap_or_else(|_| types::Error {
        error: format!("{status}: {}", String::from_utf8_lossy(body)),
        word: String::new(),
        value: String::new(),
        remedy: String::new(),
    });
    Err(ClientError::Refused(status.as_u16(), error))
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReachable(socket, error) => write!(
                f,
                "{}: vesperd is not reachable: {error}; start it, or name its socket with --socket",
                socket.display()
            ),
            Self::NotPermitted(socket) => write!(
                f,
                "{}: not permitted; become root, or join the group of the socket",
                socket.display()
            ),
            Self::Refused(_, error) => f.write_str(&error.error),
            Self::Answer(error) => write!(
                f,
                "the answer of vesperd is not understood: {error}; are both of one release?"
            ),
        }
    }
}

impl std::error::Error for ClientError {}
