//! The TCP side: TLS with certificates on both ends.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::ControlError;
use crate::secret_file;

/// A TCP address for holders of certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// Where to listen.
    pub address: SocketAddr,
    /// The certificate of the daemon with its chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM; readable by nobody but its owner.
    pub key: PathBuf,
    /// The authorities of which a client needs a certificate, PEM.
    pub client_authorities: PathBuf,
}

/// What makes TLS out of TCP connections; only clients with a certificate of the authorities
/// get through.
pub(super) fn acceptor(settings: &TcpSettings) -> Result<TlsAcceptor, ControlError> {
    let fault = |path: &Path, error: &dyn std::fmt::Display| {
        ControlError::Tls(path.to_owned(), error.to_string())
    };
    let read =
        |path: &Path| fs::read(path).map_err(|error| ControlError::Path(path.to_owned(), error));
    let certificates = |path: &Path| {
        let pem = read(path)?;
        rustls_pemfile::certs(&mut pem.as_slice())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| fault(path, &error))
    };
    let key = secret_file::resolve(&settings.key).map_err(|error| fault(&settings.key, &error))?;
    check_mode(&key)?;
    let pem = zeroize::Zeroizing::new(read(&key)?);
    let key = rustls_pemfile::private_key(&mut pem.as_slice())
        .map_err(|error| fault(&settings.key, &error))?
        .ok_or_else(|| fault(&settings.key, &"holds no private key in PEM"))?;
    let mut authorities = RootCertStore::empty();
    for authority in certificates(&settings.client_authorities)? {
        authorities
            .add(authority)
            .map_err(|error| fault(&settings.client_authorities, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider))
            .build()
            .map_err(|error| fault(&settings.client_authorities, &error))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(&settings.certificate, &error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&settings.certificate)?, key)
        .map_err(|error| fault(&settings.certificate, &error))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn check_mode(path: &Path) -> Result<(), ControlError> {
    use std::os::unix::fs::MetadataExt;
    let metadata =
        fs::metadata(path).map_err(|error| ControlError::Path(path.to_owned(), error))?;
    if secret_file::is_open_to_others(path, &metadata) {
        return Err(ControlError::Tls(
            path.to_owned(),
            format!(
                "others may read it (mode {:o}); chmod 600",
                metadata.mode() & 0o777
            ),
        ));
    }
    Ok(())
}
