//! Building the programs with the compiler and the libraries that are there.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{PeersError, Program};

const COMPILER: &[&str] = &[
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-Wno-deprecated-declarations",
];
const HEADER: (&str, &str) = ("peer.h", include_str!("../../peers/peer.h"));

/// Packages that would have to be installed.
#[derive(Default)]
pub(super) struct Missing(Vec<&'static str>);

impl Missing {
    fn add(&mut self, packages: &[&'static str]) {
        for &package in packages {
            if !self.0.contains(&package) {
                self.0.push(package);
            }
        }
    }

    pub(super) fn into_result(self) -> Result<(), PeersError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(PeersError::Missing(self.0))
        }
    }
}

/// Where the programs are put: beside this executable, so in cargo's target directory.
pub(super) fn directory() -> Result<PathBuf, PeersError> {
    let failed = |path: &Path, error| PeersError::Directory(path.into(), error);
    let mut path = std::env::current_exe().map_err(|error| failed(Path::new("."), error))?;
    path.pop();
    path.push("peers");
    std::fs::create_dir_all(&path).map_err(|error| failed(&path, error))?;
    let (name, text) = HEADER;
    std::fs::write(path.join(name), text).map_err(|error| failed(&path, error))?;
    Ok(path)
}

impl Program {
    /// Builds with the system's library; `None` if that is not there, which is added to
    /// `missing`.
    pub(super) fn build(
        &self,
        directory: &Path,
        missing: &mut Missing,
    ) -> Result<Option<PathBuf>, PeersError> {
        if !runs("cc", "--version") {
            missing.add(&["gcc"]);
        }
        if !runs("pkg-config", "--version") {
            missing.add(&["pkg-config"]);
        }
        let Some(flags) = self.pkg_config_flags() else {
            missing.add(self.packages);
            return Ok(None);
        };
        let output = directory.join(self.stem());
        match self.compile(directory, &output, &flags)? {
            Ok(()) => Ok(Some(output)),
            Err(_) => {
                missing.add(self.packages);
                Ok(None)
            }
        }
    }

    /// Builds with another build of the library, if the user gave its prefix.
    pub(super) fn build_with_prefix(
        &self,
        directory: &Path,
    ) -> Result<Option<PathBuf>, PeersError> {
        let Some((variable, proof)) = self.prefix else {
            return Ok(None);
        };
        let Some(prefix) = std::env::var_os(variable).map(PathBuf::from) else {
            return Ok(None);
        };
        let shown = prefix.display();
        let mut flags = vec![format!("-I{shown}/include")];
        for library in ["lib", "lib64", "lib/x86_64-linux-gnu"] {
            flags.push(format!("-L{shown}/{library}"));
            flags.push(format!("-Wl,-rpath,{shown}/{library}"));
        }
        let output = directory.join(format!("{}-prefix", self.stem()));
        let compiled = if prefix.join(proof).is_file() {
            self.compile(directory, &output, &flags)?
        } else {
            Err(format!("it has no {proof}"))
        };
        match compiled {
            Ok(()) => Ok(Some(output)),
            Err(log) => Err(PeersError::Prefix {
                variable,
                prefix,
                log,
            }),
        }
    }

    fn stem(&self) -> &str {
        self.source.trim_end_matches(".c")
    }

    fn pkg_config_flags(&self) -> Option<Vec<String>> {
        if self.pkg_config.is_empty() {
            return Some(Vec::new());
        }
        let output = Command::new("pkg-config")
            .args(["--cflags", "--libs", self.pkg_config])
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let text = String::from_utf8_lossy(&output.stdout);
        Some(text.split_whitespace().map(String::from).collect())
    }

    /// Compiles; the inner error is what the compiler said.
    fn compile(
        &self,
        directory: &Path,
        output: &Path,
        flags: &[String],
    ) -> Result<Result<(), String>, PeersError> {
        let source = directory.join(self.source);
        std::fs::write(&source, self.text)
            .map_err(|error| PeersError::Directory(source.clone(), error))?;
        let done = Command::new("cc")
            .args(COMPILER)
            .arg("-o")
            .arg(output)
            .arg(&source)
            .args(flags)
            .args(self.flags)
            .output();
        Ok(match done {
            Ok(done) if done.status.success() => Ok(()),
            Ok(done) => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
            Err(error) => Err(format!("cc: {error}")),
        })
    }
}

fn runs(program: &str, argument: &str) -> bool {
    Command::new(program)
        .arg(argument)
        .output()
        .is_ok_and(|output| output.status.success())
}
