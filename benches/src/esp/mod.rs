//! Contestants at the level of ESP that live in this process: our engine, whole, with each
//! of our implementations of the cryptography.
//!
//! All of a user's packet is in it: sequence number, lifetimes with soft and hard limits,
//! outer header with DSCP, ECN and DF by RFC 6040, ESP header, IV, padding and trailer, ICV;
//! and back, the replay window, padding check, ECN merge, counters. Associations come with
//! the packet, as they do to librte_ipsec; one more contestant, [`WITH_SAD`], finds them in
//! the published database: outbound by handle, inbound by destination and SPI.

mod lane;
mod slot;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use vesper_esp::aead::{Cipher, Implementation};
use vesper_esp::{Encryption, EspContext, EspSa, association};
use vesper_sa::{
    Database, Direction as SaDirection, Lifetime, Limits, Mode, ReplayProtection, SaParams, Spi,
    Timestamp, WindowSize,
};

use crate::case::{Case, Digest, Direction};
use crate::contest::{Contestant, Fault, REPETITION, Refusal, Repetition};
use crate::lanes::{Cores, Lap};
use crate::report::OURS;

use lane::{Lane, Sas};

/// The name of the contestant that finds associations in the database, with the fastest
/// implementation of each suite.
const WITH_SAD: &str = "with-sad";
/// Packets of the replay window, for each core that works at once.
const WINDOW: u32 = 1024;
/// Bytes of the outer IP header, which is not compared with that of others.
const OUTER: usize = 20;
/// The time of every packet; limits in time are checked against it.
const NOW: Timestamp = Timestamp::from_secs(1);

/// Our engine with each of these implementations, and `with_sad` if that is wanted.
pub(crate) fn engines(
    implementations: &[Implementation],
    with_sad: bool,
    cores: &Arc<Cores>,
) -> Vec<Box<dyn Contestant>> {
    let named = implementations
        .iter()
        .map(|&implementation| (implementation.name(), Some(implementation)));
    named
        .chain(with_sad.then_some((WITH_SAD, None)))
        .map(|(name, implementation)| -> Box<dyn Contestant> {
            Box::new(OurEngine {
                name: format!("{OURS}{name}"),
                implementation,
                cores: Arc::clone(cores),
                prepared: None,
            })
        })
        .collect()
}

struct OurEngine {
    name: String,
    /// `None`: the fastest for the suite, and associations are found in the database.
    implementation: Option<Implementation>,
    cores: Arc<Cores>,
    prepared: Option<Prepared>,
}

struct Prepared {
    /// Where the associations are, if they have to be found; readers end with it.
    _database: Option<Database<EspContext>>,
    sas: Sas,
    order: Vec<u32>,
    lanes: Vec<Lane>,
}

impl Contestant for OurEngine {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&mut self, case: &Case) -> Result<Option<Digest>, Refusal> {
        let threads = self.cores.count();
        let (database, sas) = match self.implementation {
            Some(implementation) => (None, self.given(case, implementation)?),
            None => {
                let (database, sas) = self.published(case)?;
                (Some(database), sas)
            }
        };
        let reader = || {
            database
                .as_ref()
                .map(|database| database.readers().reader())
        };
        self.prepared = Some(Prepared {
            lanes: (0..threads).map(|_| Lane::new(case, reader())).collect(),
            _database: database,
            sas,
            order: case.order(),
        });
        let clear = self.digest(0);
        self.run(&[Direction::Out])?;
        let sealed = self.digest(OUTER);
        self.run(&[Direction::In])?;
        if clear != self.digest(0) {
            return Err(Fault::new(self.name(), "opened packets are not those sealed").into());
        }
        // With several cores, which of them gets which sequence number is left to chance.
        let comparable = case.suite.encryption != Encryption::AesCbc && threads == 1;
        Ok(comparable.then_some(sealed))
    }

    fn repeat(&mut self) -> Result<Repetition, Fault> {
        self.run(&REPETITION)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        self.prepared = None;
        Ok(())
    }
}

impl OurEngine {
    fn associations(
        &self,
        case: &Case,
        direction: SaDirection,
        implementation: Implementation,
    ) -> Result<Vec<EspSa>, Refusal> {
        let failed = |what: &dyn std::fmt::Display| Refusal::Fault(Fault::new(&self.name, what));
        (0..case.sas)
            .map(|index| {
                let (key, auth_key) = case.keys(index);
                let cipher =
                    Cipher::with_implementation(case.suite, &key, &auth_key, implementation)
                        .map_err(|error| Refusal::Declined(error.to_string()))?;
                let params = parameters(index, direction, self.cores.count())
                    .ok_or_else(|| failed(&"no such association"))?;
                association(params, cipher, NOW).map_err(|error| failed(&error))
            })
            .collect()
    }

    /// All associations, for packets to bring along.
    fn given(&self, case: &Case, implementation: Implementation) -> Result<Sas, Refusal> {
        Ok(Sas::Given {
            outbound: self.associations(case, SaDirection::Outbound, implementation)?,
            inbound: self.associations(case, SaDirection::Inbound, implementation)?,
        })
    }

    /// All associations in a database, with the fastest implementation.
    fn published(&self, case: &Case) -> Result<(Database<EspContext>, Sas), Refusal> {
        let implementation = Implementation::fastest(case.suite);
        let mut database: Database<EspContext> = Database::new();
        let mut handles = Vec::new();
        let mut change = database.change();
        for direction in [SaDirection::Outbound, SaDirection::Inbound] {
            for sa in self.associations(case, direction, implementation)? {
                let handle = change
                    .add(Arc::new(sa))
                    .map_err(|error| Fault::new(&self.name, error))?;
                handles.push(handle);
            }
        }
        change.publish();
        handles.truncate(case.sas);
        Ok((database, Sas::Found { outbound: handles }))
    }

    /// Makes these passes on all lanes; the last of each direction is measured.
    fn run(&mut self, passes: &[Direction]) -> Result<Repetition, Fault> {
        let Some(Prepared {
            sas, order, lanes, ..
        }) = &mut self.prepared
        else {
            return Err(Fault::new(&self.name, "no case was prepared"));
        };
        let repetition = self.cores.run(lanes, |lane, gate| {
            let mut laps = [Lap::default(); 2];
            for &direction in passes {
                laps[direction as usize] = match direction {
                    Direction::Out => lane.seal(sas, order, gate),
                    Direction::In => lane.open(sas, order, gate),
                };
            }
            laps
        });
        match lanes.iter().find_map(Lane::refused) {
            None => Ok(repetition),
            Some(verdict) => Err(Fault::new(&self.name, format_args!("{verdict:?}"))),
        }
    }

    /// Of the packets of the first lane, without their first `skip` bytes.
    fn digest(&mut self, skip: usize) -> Digest {
        let lanes = self
            .prepared
            .iter_mut()
            .flat_map(|prepared| &mut prepared.lanes);
        lanes
            .take(1)
            .fold(Digest::EMPTY, |digest, lane| lane.digest(digest, skip))
    }
}

/// Parameters of association `index`.
fn parameters(index: usize, direction: SaDirection, threads: usize) -> Option<SaParams> {
    let [source, destination] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
    let mut params = SaParams::new(
        Spi::new(0x1000 + index as u32)?,
        direction,
        Mode::Tunnel,
        IpAddr::V4(source),
        IpAddr::V4(destination),
    );
    params.esn = true;
    let window = WindowSize::new(WINDOW.saturating_mul(threads as u32));
    params.replay = ReplayProtection::Window(window.unwrap_or(WindowSize::MAX));
    // Limits that are checked and never reached.
    let far = Limits {
        bytes: Some(u64::MAX / 2),
        packets: Some(u64::MAX / 2),
        time: Some(Duration::from_secs(86_400)),
        idle: None,
    };
    params.lifetime = Lifetime {
        soft: far,
        hard: far,
    };
    Some(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Level, Size};
    use crate::contest::hold;
    use vesper_esp::Suite;

    fn round_trips(suite: &str, sas: usize, threads: usize) {
        let Some(cores) = Cores::claim(threads, None) else {
            eprintln!("this machine has not got {threads} cores");
            return;
        };
        let cores = Arc::new(cores);
        let case = Case {
            level: Level::Esp,
            suite: Suite::by_name(suite).unwrap(),
            size: Size::Imix,
            sas,
        };
        let all: Vec<_> = Implementation::available().collect();
        let mut contestants = engines(&all, true, &cores);
        let outcome = hold(cores.clock(), &case, &mut contestants, 1, || ()).unwrap();
        assert_eq!(
            outcome.figures.len() + 2 * outcome.declined.len(),
            2 * (all.len() + 1)
        );
        assert!(outcome.figures.len() >= 4, "{:?}", outcome.declined);
    }

    /// All implementations must agree on every byte, which `hold` checks.
    #[test]
    fn implementations_agree() {
        round_trips("aes256gcm16", 1, 1);
        round_trips("aes128gcm16", 100, 1);
        round_trips("chacha20poly1305", 3000, 1);
        round_trips("aes256-sha256", 7, 1);
    }

    #[test]
    fn two_cores_share_an_association() {
        round_trips("aes256gcm16", 1, 2);
    }
}
