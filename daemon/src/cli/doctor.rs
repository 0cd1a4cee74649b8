//! `vesper doctor` and `vesper reload`.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use hyper::Method;
use owo_colors::{OwoColorize, Stream};

use super::answer::{Stop, json};
use super::{Format, Reload};
use crate::control::client::{Client, ClientError};
use crate::control::types::{self, Finding, Findings};

/// Says what is wrong here; the status is 1 if there is a problem.
pub(super) fn run(
    client: &Client,
    socket: &Path,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Stop> {
    let mut findings = rights(socket);
    match client.get::<Findings>("/v1/doctor") {
        Ok(found) => findings.extend(found.findings),
        Err(ClientError::NotReachable(..)) if !socket.exists() => findings.push(Finding {
            severity: "problem".to_owned(),
            about: "daemon".to_owned(),
            text: format!("there is no socket {}", socket.display()),
            remedy: "start vesperd, or name its socket with --socket".to_owned(),
        }),
        Err(error) => return Err(error.into()),
    }
    findings.sort_by_key(|finding| match finding.severity.as_str() {
        "problem" => 0,
        "warning" => 1,
        _ => 2,
    });
    let has_problem = findings.iter().any(|finding| finding.severity == "problem");
    let printed = match format.json {
        true => json(out, &Findings { findings }),
        false => (findings.iter())
            .try_for_each(|finding| print(out, finding))
            .map_err(Stop::from),
    };
    match printed {
        // Whoever has seen enough may still ask what was found.
        Err(Stop::System(error)) if has_problem && error.kind() == io::ErrorKind::BrokenPipe => {
            Err(Stop::Found)
        }
        Ok(()) if has_problem => Err(Stop::Found),
        printed => printed,
    }
}

pub(super) fn reload(client: &Client, reload: &Reload, out: &mut dyn Write) -> Result<(), Stop> {
    let path = match reload.check {
        true => "/v1/reload?check=true",
        false => "/v1/reload",
    };
    let diff: types::Diff = client.send_for(Method::POST, path, &[])?;
    if reload.format.json {
        return json(out, &diff);
    }
    for (sign, lines) in [
        ('-', &diff.removed),
        ('~', &diff.changed),
        ('+', &diff.added),
    ] {
        for line in lines {
            writeln!(out, "{sign} {line}")?;
        }
    }
    if diff == types::Diff::default() {
        writeln!(out, "nothing has changed")?;
    }
    Ok(())
}

/// Whether others could use the socket.
fn rights(socket: &Path) -> Vec<Finding> {
    let Ok(metadata) = std::fs::metadata(socket) else {
        return Vec::new();
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o007 == 0 {
        return Vec::new();
    }
    vec![Finding {
        severity: "warning".to_owned(),
        about: "rights".to_owned(),
        text: format!(
            "everybody may connect to {} (mode {mode:o})",
            socket.display()
        ),
        remedy: format!("chmod 660 {}", socket.display()),
    }]
}

fn print(out: &mut dyn Write, finding: &Finding) -> io::Result<()> {
    let severity = format!("{:8}", finding.severity);
    let text = match finding.severity.as_str() {
        "problem" => severity
            .if_supports_color(Stream::Stdout, |text| text.red())
            .to_string(),
        "warning" => severity
            .if_supports_color(Stream::Stdout, |text| text.yellow())
            .to_string(),
        _ => severity
            .if_supports_color(Stream::Stdout, |text| text.green())
            .to_string(),
    };
    writeln!(out, "{text} {}: {}", finding.about, finding.text)?;
    if !finding.remedy.is_empty() {
        writeln!(out, "{:9}{}", "", finding.remedy)?;
    }
    Ok(())
}
