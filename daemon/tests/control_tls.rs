//! The control interface over TCP: only with a certificate of the configured authority.

mod common;
mod process;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::Served;
use process::Daemon;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use vesper_daemon::control::{ControlError, TcpSettings};

/// Runs `openssl` in a directory; false if there is none.
fn openssl(directory: &Path, arguments: &str) -> bool {
    let status = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) => {
            assert!(status.success(), "openssl {arguments}");
            true
        }
        Err(_) => false,
    }
}

/// Two authorities, a certificate of the first for `server`, and one of each for a client.
fn certificates(directory: &Path) -> bool {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for authority in ["ca", "other"] {
        let made = openssl(
            directory,
            &format!(
                "req -x509 {key} -subj /CN={authority} -keyout {authority}.key -out {authority}.pem"
            ),
        );
        if !made {
            return false;
        }
    }
    fs::write(directory.join("san"), "subjectAltName=DNS:vesper.test\n").unwrap();
    for (name, authority) in [("server", "ca"), ("client", "ca"), ("stranger", "other")] {
        openssl(
            directory,
            &format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
        );
        openssl(
            directory,
            &format!(
                "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key \
                 -CAcreateserial -days 2 -extfile san -out {name}.pem"
            ),
        );
    }
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(directory.join("server.key"), mode).unwrap();
    true
}

fn pem(path: &Path) -> Vec<CertificateDer<'static>> {
    let text = fs::read(path).unwrap();
    rustls_pemfile::certs(&mut text.as_slice())
        .collect::<Result<_, _>>()
        .unwrap()
}

fn key(path: &Path) -> PrivateKeyDer<'static> {
    let text = fs::read(path).unwrap();
    rustls_pemfile::private_key(&mut text.as_slice())
        .unwrap()
        .unwrap()
}

/// What a client with this certificate is answered; empty if nothing.
fn ask(directory: &Path, address: SocketAddr, client: Option<&str>) -> String {
    let mut roots = RootCertStore::empty();
    for authority in pem(&directory.join("ca.pem")) {
        roots.add(authority).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(name) => builder
            .with_client_auth_cert(
                pem(&directory.join(format!("{name}.pem"))),
                key(&directory.join(format!("{name}.key"))),
            )
            .unwrap(),
    };
    let server = ServerName::try_from("vesper.test").unwrap();
    let connection = ClientConnection::new(Arc::new(config), server).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(8)))
        .unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    let request = b"GET /v1/vms HTTP/1.1\r\nhost: v\r\nconnection: close\r\n\r\n";
    let mut answer = Vec::new();
    if stream.write_all(request).is_ok() {
        let _ = stream.read_to_end(&mut answer);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn only_holders_of_a_certificate_get_through() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    if !certificates(path) {
        println!("skipped: there is no openssl to make certificates with");
        return;
    }
    // A port that is free right now.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let tcp = TcpSettings {
        address,
        certificate: path.join("server.pem"),
        key: path.join("server.key"),
        client_authorities: path.join("ca.pem"),
    };
    let served = Served::with(|settings| settings.tcp = Some(tcp.clone()));
    let answer = ask(path, address, Some("client"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"web1\""), "{answer}");
    assert_eq!(ask(path, address, Some("stranger")), "");
    assert_eq!(ask(path, address, None), "");
    // Without TLS there is no answer that makes sense, and none that tells anything.
    let mut plain = TcpStream::connect(address).unwrap();
    plain
        .set_read_timeout(Some(Duration::from_secs(8)))
        .unwrap();
    plain
        .write_all(b"GET /v1/vms HTTP/1.1\r\nhost: v\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("web1"));
    drop(served);

    // A key that others can read is refused.
    let mode = fs::Permissions::from_mode(0o644);
    fs::set_permissions(path.join("server.key"), mode).unwrap();
    let settings = vesper_daemon::control::ControlSettings {
        tcp: Some(tcp),
        ..vesper_daemon::control::ControlSettings::at(path.join("control.sock"))
    };
    let service = vesper_daemon::control::Service {
        plane: common::Bed::new().plane.clone(),
        statistics: Arc::new(Default::default),
        reload: Arc::new(|_| Ok(Default::default())),
    };
    let refused = vesper_daemon::control::Control::start(&settings, service).unwrap_err();
    assert!(matches!(refused, ControlError::Tls(..)), "{refused}");
    assert!(
        refused
            .to_string()
            .contains("others may read it (mode 644); chmod 600")
    );
}

/// The same through the configuration, with the program: what `[control.tcp]` says is in force.
#[test]
fn the_configuration_opens_it_to_holders_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    if !certificates(path) {
        println!("skipped: there is no openssl to make certificates with");
        return;
    }
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let at = |name: &str| path.join(name);
    let machine = process::machine(1, 1, "\"sink\"", "");
    let configuration = format!(
        "{}[control.tcp]\naddress = \"{address}\"\ncertificate = {:?}\nkey = {:?}\n\
         client_authorities = {:?}\n{}{machine}",
        process::head(path),
        at("server.pem"),
        at("server.key"),
        at("ca.pem"),
        process::host(1, "\"loopback\"", ""),
    );
    let daemon = Daemon::start(path, &configuration);
    let answer = ask(path, address, Some("client"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("\"vm1\""), "{answer}");
    assert_eq!(ask(path, address, Some("stranger")), "");
    assert_eq!(ask(path, address, None), "");
    // It does not end for all that.
    assert!(ask(path, address, Some("client")).starts_with("HTTP/1.1 200"));
    assert!(daemon.stop().0);
}
