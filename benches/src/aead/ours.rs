//! Our own batch interface, with each implementation by name.

use std::sync::Arc;

use vesper_esp::aead::{Cipher, Implementation, Job, open_batch, seal_batch};

use super::{Backend, InProcess, Packet};
use crate::case::{BURST, Case, Direction};
use crate::contest::Contestant;
use crate::lanes::{Cores, Gate, Lap};
use crate::report::OURS;
use crate::sys;

/// Our implementations with these names.
pub(crate) fn ours(
    implementations: &[Implementation],
    cores: &Arc<Cores>,
) -> Vec<Box<dyn Contestant>> {
    implementations
        .iter()
        .map(|&implementation| -> Box<dyn Contestant> {
            let ours = Ours {
                implementation,
                name: format!("{OURS}{}", implementation.name()),
            };
            Box::new(InProcess::new(ours, cores))
        })
        .collect()
}

struct Ours {
    implementation: Implementation,
    name: String,
}

impl Backend for Ours {
    type Key = Cipher;

    fn name(&self) -> &str {
        &self.name
    }

    fn key(&self, case: &Case, key: &[u8], auth_key: &[u8]) -> Result<Cipher, String> {
        Cipher::with_implementation(case.suite, key, auth_key, self.implementation)
            .map_err(|error| error.to_string())
    }

    fn process(
        _: &Case,
        direction: Direction,
        packets: Vec<Packet<'_, Cipher>>,
        gate: &Gate,
    ) -> Option<Lap> {
        let mut jobs: Vec<_> = packets
            .into_iter()
            .map(|packet| Job {
                cipher: packet.key,
                sequence: packet.sequence,
                esn: false,
                esp: packet.esp,
                authentic: false,
            })
            .collect();
        gate.pass();
        let start = sys::ticks();
        for burst in jobs.chunks_mut(BURST) {
            match direction {
                Direction::Out => seal_batch(burst),
                Direction::In => open_batch(burst),
            }
        }
        let end = sys::ticks();
        let authentic = direction == Direction::Out || jobs.iter().all(|job| job.authentic);
        authentic.then_some(Lap { start, end })
    }
}
