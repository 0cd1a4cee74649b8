//! A new configuration while packets pass.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::desired;
use super::running::Paired;
use crate::config::{self, Config};
use crate::plane::{Diff, Plane, Refusal};

/// Reads the configuration anew, and puts it in force as a whole or not at all.
#[derive(Debug)]
pub(super) struct Reloader {
    file: Option<PathBuf>,
    current: Mutex<Config>,
    plane: Arc<Plane>,
    /// Pairs keep their keys.
    paired: Paired,
}

impl Reloader {
    pub(super) fn new(
        file: Option<&Path>,
        current: Config,
        plane: Arc<Plane>,
        paired: Paired,
    ) -> Self {
        Self {
            file: file.map(Path::to_owned),
            current: Mutex::new(current),
            plane,
            paired,
        }
    }

    /// What has changed, or would change; nothing has if it is refused.
    pub(super) fn reload(&self, only_check: bool) -> Result<Diff, Refusal> {
        let Some(file) = &self.file else {
            return Err(Refusal::not_permitted(
                "the embedded configuration does not change",
                "start vesperd with --config FILE; --print-default prints one to begin with",
            ));
        };
        let refuse = |reason: String| {
            let remedy = "mend it; `vesperd --check FILE` tells when it is good";
            Refusal::words("config", file.display(), reason, remedy)
        };
        let new = Config::read(file).map_err(|error| refuse(error.to_string()))?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = config::Diff::between(&current, &new).changes;
        let fixed: Vec<_> = changes
            .iter()
            .filter(|change| change.needs_restart())
            .map(ToString::to_string)
            .collect();
        if !fixed.is_empty() {
            return Err(Refusal::conflict(
                "config",
                file.display(),
                format!("can not change while packets pass: {}", fixed.join(", ")),
                "restart vesperd, or take these back",
            ));
        }
        let mut desired = desired::everything(&new).map_err(refuse)?;
        desired.sas.extend(self.paired.0.iter().cloned());
        desired.policies.extend(self.paired.1.iter().cloned());
        let diff = self.plane.reload(desired, only_check)?;
        if !only_check {
            *current = new;
        }
        Ok(diff)
    }
}
