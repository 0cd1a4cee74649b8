//! The configuration: one TOML file. What is wrong in it is said with file, line and a way out.

mod check;
mod diff;
mod error;
mod model;
mod value;
mod words;

use std::path::Path;

use crate::secret_file;

pub use diff::{Change, Diff};
pub use error::{ConfigError, Problem};
pub use model::{
    AfPacketConfig, CableConfig, Config, ControlConfig, DaemonConfig, EdgeConfig, GeneratorConfig,
    HostConfig, LogFormat, NicSwitchConfig, OffloadModeConfig, PairConfig, PcapConfig, PortConfig,
    Sizes, SwitchConfig, TapConfig, TcpConfig, TunnelConfig, UserConfig, VhostUserConfig,
    VhostUserMode, VmConfig,
};
pub use value::{Located, Mac, Period, Secret, Vlan};

/// The configuration that vesperd has without a file, with its explanations.
pub const DEFAULT: &str = include_str!("default.toml");

impl Config {
    /// Reads and checks a file. Lines of secrets that it names are read later, by whoever
    /// needs them.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = match secret_file::open(path).and_then(secret_file::read_text) {
            Ok(text) => text,
            Err(error) => return Err(ConfigError::unreadable(&name, &error)),
        };
        Self::parse(&text, &name)
    }

    /// Parses and checks a text; `name` is that of the file for messages.
    ///
    /// # Errors
    /// The first error of syntax, or everything that does not fit together.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| ConfigError::syntax(name, text, &error))?;
        let problems = check::check(&config);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::problems(name, text, problems))
        }
    }

    /// The configuration that vesperd has without a file: two hosts back to back.
    pub fn embedded() -> Self {
        Self::parse(DEFAULT, "the embedded configuration")
            .unwrap_or_else(|error| unreachable!("{error}"))
    }
}

#[cfg(test)]
mod tests;
