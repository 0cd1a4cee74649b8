//! Associations and policies of the configuration, by the words of `ip xfrm`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vesper_verify::xfrm::{Line, PolicyLine, SaFileError, State, parse_lines, parse_policies};
use zeroize::Zeroizing;

use super::error::Problem;
use super::model::{HostConfig, VmConfig};
use crate::secret_file;

impl VmConfig {
    /// The associations of the machine: those in the configuration, then those in its file.
    ///
    /// # Errors
    /// Every line that can not be honoured, and a file that others can read.
    pub fn states(&self, host: &HostConfig) -> Result<Vec<State>, Vec<Problem>> {
        let mut states = Vec::new();
        let mut problems = Vec::new();
        for words in &self.sa {
            match parse_lines(words.expose(), "sa") {
                Ok(lines) => self.own(host, lines, words.at(), &mut states, &mut problems),
                Err(error) => problems.push(fault(words.at(), "sa", &error)),
            }
        }
        if let Some(path) = &self.sa_file {
            let name = path.display().to_string();
            match read_secret(path) {
                Err(message) => problems.push(Problem {
                    at: path.at(),
                    message: format!("sa_file {name}: {message}"),
                }),
                Ok(text) => match parse_lines(&text, &name) {
                    Ok(lines) => self.own(host, lines, path.at(), &mut states, &mut problems),
                    Err(error) => problems.push(Problem {
                        at: path.at(),
                        message: error.to_string(),
                    }),
                },
            }
        }
        match problems.is_empty() {
            true => Ok(states),
            false => Err(problems),
        }
    }

    /// The policies of the machine.
    ///
    /// # Errors
    /// Every line that can not be honoured.
    pub fn policies(&self, host: &HostConfig) -> Result<Vec<PolicyLine>, Vec<Problem>> {
        let mut policies = Vec::new();
        let mut problems = Vec::new();
        for words in &self.policy {
            match parse_policies(words, "policy") {
                Ok(lines) => policies.extend(lines.into_iter().map(|line| PolicyLine {
                    host: Some(host.name.to_string()),
                    vm: Some(self.name.to_string()),
                    ..line
                })),
                Err(error) => problems.push(fault(words.at(), "policy", &error)),
            }
        }
        match problems.is_empty() {
            true => Ok(policies),
            false => Err(problems),
        }
    }

    /// They stand with the machine, so they are the machine's.
    fn own(
        &self,
        host: &HostConfig,
        lines: Vec<Line>,
        at: usize,
        states: &mut Vec<State>,
        problems: &mut Vec<Problem>,
    ) {
        for line in lines {
            match line {
                Line::State(state) => states.push(State {
                    host: Some(host.name.to_string()),
                    vm: Some(self.name.to_string()),
                    ..*state
                }),
                Line::Policy(policy) => problems.push(Problem {
                    at,
                    message: format!(
                        "line {}: a policy among associations; put it into `policy`",
                        policy.line
                    ),
                }),
            }
        }
    }
}

/// Reads a file of secrets, which nobody but its owner may be able to read.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<String>, String> {
    let path = secret_file::resolve(path)?;
    let (file, metadata) = secret_file::open(&path).map_err(|error| error.to_string())?;
    let mode = metadata.mode() & 0o777;
    if secret_file::is_open_to_others(&path, &metadata) {
        return Err(format!(
            "mode {mode:04o} lets others read keys; chmod 0600 it"
        ));
    }
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me && metadata.uid() != 0 {
        return Err(format!(
            "belongs to user {}, who could change it; chown it",
            metadata.uid()
        ));
    }
    secret_file::read_text((file, metadata)).map_err(|error| error.to_string())
}

/// What is wrong with words that stand in the configuration itself.
fn fault(at: usize, key: &str, error: &SaFileError) -> Problem {
    let text = error.to_string();
    // "sa:1: word: reason": file and line are those of the configuration.
    let reason = text.splitn(3, ':').nth(2).unwrap_or(&text);
    Problem {
        at,
        message: format!("{key}:{reason}"),
    }
}
