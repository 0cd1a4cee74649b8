//! Whole packets: each is opened by the engine, and what was opened is sealed again.

use vesper_esp::aead::{Cipher, Implementation, Job, open_batch, seal_batch};
use vesper_esp::wire::{EncapsulationPorts, EspLocation, Located, locate};
use vesper_esp::{EspSa, Verdict};
use vesper_sa::{Spi, Timestamp};

use super::{Outcome, Skip};
use crate::formats::{PacketTest, Step, Wanted};
use crate::opener::{Opener, count_name};
use crate::xfrm::Entry;

/// Lets the packets arrive one after the other.
pub(super) fn run(test: &PacketTest, implementation: Implementation) -> Outcome {
    let mut opener = match opener(&test.associations, implementation) {
        Ok(opener) => opener,
        Err(outcome) => return outcome,
    };
    for (index, step) in test.steps.iter().enumerate() {
        if let Err(reason) = arrive(&mut opener, implementation, step) {
            return Outcome::Failed(format!("packet {}: {reason}", index + 1));
        }
    }
    Outcome::Passed
}

/// A receiver on one implementation, or why the test cannot be run on it.
pub(super) fn opener(entries: &[Entry], implementation: Implementation) -> Result<Opener, Outcome> {
    let suites = entries.iter().map(|entry| entry.keys().suite());
    for suite in suites {
        if !implementation.supports(suite) {
            return Err(Outcome::Skipped(Skip::Suite(suite.name)));
        }
    }
    Opener::new(entries.to_vec(), &[implementation])
        .map_err(|error| Outcome::Failed(error.to_string()))
}

fn arrive(opener: &mut Opener, implementation: Implementation, step: &Step) -> Result<(), String> {
    let opening = opener
        .open(Timestamp::ZERO, &step.outer)
        .map_err(|error| error.to_string())?;
    let sequence = opening.sequence;
    match (&step.wanted, opening.verdict) {
        (Wanted::Inner(inner), Verdict::Opened(_)) if inner == opening.inner => {
            resealed(opener, implementation, &step.outer, sequence)
        }
        (Wanted::Inner(_), Verdict::Opened(_)) => Err("opened to another inner packet".to_owned()),
        (Wanted::Drop(name), Verdict::Drop(reason)) if *name == count_name(reason) => Ok(()),
        (Wanted::NotEsp, Verdict::NotEsp(_)) => Ok(()),
        (_, verdict) => Err(format!("{}, which is wrong", described(verdict))),
    }
}

/// Opens the packet once more below the engine and seals the clear text again with the same
/// sequence number and IV, which has to give every byte of the packet again.
pub(super) fn resealed(
    opener: &Opener,
    implementation: Implementation,
    outer: &[u8],
    sequence: u64,
) -> Result<(), String> {
    let Some((location, sa)) = located(opener, implementation, outer) else {
        return Ok(());
    };
    let original = &outer[location.esp_at..location.esp_at + location.esp_len];
    let mut esp = original.to_vec();
    let cipher = sa.context().cipher();
    let mut jobs = [job(cipher, sequence, sa.esn(), &mut esp)];
    open_batch(&mut jobs);
    if !jobs[0].authentic {
        return Err("accepted by the engine, refused by the cipher".to_owned());
    }
    seal_batch(&mut [job(cipher, sequence, sa.esn(), &mut esp)]);
    if esp == original {
        Ok(())
    } else {
        Err("sealed again to other bytes".to_owned())
    }
}

fn job<'a>(cipher: &'a Cipher, sequence: u64, esn: bool, esp: &'a mut [u8]) -> Job<'a> {
    Job {
        cipher,
        sequence,
        esn,
        esp,
        authentic: false,
    }
}

fn located<'a>(
    opener: &'a Opener,
    implementation: Implementation,
    outer: &[u8],
) -> Option<(EspLocation, &'a EspSa)> {
    let ports: &EncapsulationPorts = opener.ports();
    let Located::Esp(location) = locate(outer, ports) else {
        return None;
    };
    let spi = Spi::new(location.spi)?;
    let sa = opener.find(implementation, location.destination, spi)?;
    Some((location, sa))
}

/// A verdict as a part of a sentence.
pub(super) fn described(verdict: Verdict) -> String {
    match verdict {
        Verdict::Opened(_) => "accepted".to_owned(),
        Verdict::NotEsp(_) => "not taken for ESP".to_owned(),
        Verdict::Drop(reason) => format!("dropped ({reason})"),
        Verdict::Pending | Verdict::Sealed { .. } | Verdict::TooBig { .. } => {
            "not processed".to_owned()
        }
    }
}
