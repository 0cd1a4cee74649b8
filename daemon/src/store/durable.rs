//! The store as the plane uses it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vesper_esp::EspSa;
use vesper_offload::NicSwitchParams;
use vesper_sa::{Event, SaIdentity, Timestamp, VmId};
use vesper_verify::xfrm::{Keys, Line, parse_lines};
use zeroize::Zeroizing;

use super::{
    Alarm, Change, Files, Fingerprint, Kek, KekError, Loss, Origin, RecoveredSa, Refill,
    RefillSettings, SaName, Standing, Store, StoreError, StoredSa, Watched,
};
use crate::plane::{self, Persistence, PersistenceError, Volatile};
use crate::secret_file;

/// Where a daemon keeps its state.
#[derive(Clone, Debug)]
pub struct StorePaths {
    /// Database and anchor.
    pub files: Files,
    /// The key-encryption key; made with the store, unless it is a credential of systemd.
    pub kek: PathBuf,
}

/// What the plane keeps, in a [`Store`] with its [`Refill`] thread.
pub struct Durable {
    store: Store,
    /// `None` once it is closed.
    refill: Mutex<Option<(Refill, JoinHandle<()>)>>,
    known: Mutex<Known>,
    /// The associations whose keys end with the process.
    passing: Volatile,
    /// What comes from files now may have been in use before this start.
    starting: AtomicBool,
    loss: Option<(Loss, String)>,
    /// Why nothing can be made durable, as long as that is so.
    trouble: Arc<Mutex<Option<String>>>,
}

/// What was found at start and is not in use yet, and what belongs to names.
#[derive(Default)]
struct Known {
    recovered: HashMap<SaName, RecoveredSa>,
    /// How associations began that are not watched yet.
    standings: HashMap<SaName, Standing>,
    vms: HashMap<(String, String), VmId>,
    /// Keys that end with the process.
    passing_keys: HashSet<Fingerprint>,
    policies: Vec<String>,
    /// Machines that were added by request: host, name, what describes them.
    machines: Vec<(String, String, String)>,
    switches: Vec<(String, NicSwitchParams)>,
}

/// Why there is no store to be had.
#[derive(Debug)]
pub enum OpenError {
    /// The key-encryption key.
    Kek(KekError),
    /// The store.
    Store(StoreError),
    /// The thread that renews leases.
    Thread(std::io::Error),
}

const VM_NUMBER: &str = "vm number ";
const SWITCH: &str = "nic switch ";

impl Durable {
    /// Opens the store, or makes one, and starts the thread that renews leases. `alarm` is
    /// called from that thread and must not block.
    pub fn open(
        paths: &StorePaths,
        settings: RefillSettings,
        mut alarm: impl FnMut(Alarm) + Send + 'static,
    ) -> Result<Self, OpenError> {
        let trouble = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&trouble);
        let alarm = move |it: Alarm| {
            match &it {
                Alarm::Failing { reason } => *locked(&noted) = Some(reason.clone()),
                Alarm::Mended => *locked(&noted) = None,
                Alarm::NeedsRekey { .. } => {}
            }
            alarm(it);
        };
        // Another key than the one that it was written with would be of no use to a store.
        let is_written = fs::metadata(&paths.files.store).is_ok_and(|store| store.len() > 0);
        let kek = match is_written || secret_file::is_credential(&paths.kek) {
            true => Kek::read(&paths.kek),
            false => Kek::read_or_create(&paths.kek),
        };
        let kek = kek.map_err(|error| OpenError::Kek(error.or_missing(is_written)))?;
        let (store, found) = Store::open(paths.files.clone(), &kek).map_err(OpenError::Store)?;
        let refill = Refill::start(store.clone(), settings, alarm).map_err(OpenError::Thread)?;
        let mut known = Known::default();
        for sa in found.sas {
            known.recovered.insert(sa.sa.name.clone(), sa);
        }
        for (name, value) in found.settings {
            let vm = name
                .strip_prefix(VM_NUMBER)
                .and_then(|name| name.split_once('/'));
            if let (Some((host, vm)), Ok(number)) = (vm, value.parse()) {
                let name = (host.to_owned(), vm.to_owned());
                known.vms.insert(name, VmId(number));
            }
            if let Some(host) = name.strip_prefix(SWITCH) {
                known.switches.extend(switch(host, &value));
            }
        }
        known.machines = found.vms;
        for (_, _, words) in found.policies {
            known.policies.extend(words);
        }
        Ok(Self {
            store,
            refill: Mutex::new(Some(refill)),
            known: Mutex::new(known),
            passing: Volatile::default(),
            starting: AtomicBool::new(true),
            loss: found.loss.map(|loss| (loss, found.detail)),
            trouble,
        })
    }

    /// How the store lost its memory before this start, if it did, and what exactly was found.
    pub fn loss(&self) -> Option<(Loss, &str)> {
        let (loss, detail) = self.loss.as_ref()?;
        Some((*loss, detail))
    }

    /// The words, keys included, of the associations that were added by request before this
    /// start: to be added to the plane again, which then asks for their standing.
    pub fn requested_sas(&self) -> Vec<Zeroizing<String>> {
        let known = self.known();
        let requested = known.recovered.values().filter(|sa| !sa.sa.configured);
        requested.map(|sa| sa.sa.words.clone()).collect()
    }

    /// The policies that were added by request before this start, as words with their machine.
    pub fn requested_policies(&self) -> Vec<String> {
        self.known().policies.clone()
    }

    /// The machines that were added by request before this start: host, name, and what
    /// [`Plane::restore_vm`](crate::plane::Plane::restore_vm) makes them of.
    pub fn requested_vms(&self) -> Vec<(String, String, String)> {
        self.known().machines.clone()
    }

    /// The NIC switches that were made by request before this start, by host.
    pub fn requested_switches(&self) -> Vec<(String, NicSwitchParams)> {
        self.known().switches.clone()
    }

    /// Associations with these keys are not kept: the keys were made for this process.
    pub fn do_not_keep(&self, keys: &Keys) {
        let key = self.store.fingerprint(keys);
        self.known().passing_keys.insert(key);
    }

    /// Everything that was in use before and still is wanted has been added again: forgets the
    /// rest, and from now on believes that keys in files are new. What belongs to machines that
    /// are `waiting`, because they could not be added this time, is kept for another start.
    pub fn started(&self, waiting: &[VmId]) -> Result<(), StoreError> {
        self.starting.store(false, Ordering::Relaxed);
        let mut known = self.known();
        known.policies.clear();
        let names = known.recovered.keys();
        let names: Vec<SaName> = names
            .filter(|name| !waiting.contains(&name.sa.owner))
            .cloned()
            .collect();
        let unclaimed: Vec<Change> = names.into_iter().map(Change::DeleteSa).collect();
        self.store.apply(&unclaimed)?;
        known.recovered.clear();
        Ok(())
    }

    /// Ends all associations and keeps their state, so that the next start goes on without a
    /// gap. The workers must have ended.
    pub fn close(&self, now: Timestamp) -> Result<(), StoreError> {
        let refill = self.refill().take();
        let Some((refill, thread)) = refill else {
            return Ok(());
        };
        let outcome = refill.finish(now);
        drop(refill);
        // It has nothing to say that the alarm has not said.
        let _ = thread.join();
        outcome
    }

    /// The store behind it.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refill(&self) -> MutexGuard<'_, Option<(Refill, JoinHandle<()>)>> {
        self.refill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn origin(&self, configured: bool) -> Origin {
        if configured && self.starting.load(Ordering::Relaxed) {
            Origin::File
        } else {
            Origin::Request
        }
    }

    fn changes(&self, changes: &[plane::Change<'_>]) -> Result<Vec<Change>, PersistenceError> {
        let changes = changes.iter();
        changes
            .filter_map(|change| self.change(change).transpose())
            .collect()
    }

    /// What is to be made durable of a change.
    fn change(&self, change: &plane::Change<'_>) -> Result<Option<Change>, PersistenceError> {
        Ok(Some(match change {
            plane::Change::PutSa {
                host,
                sa,
                words,
                configured,
            } => {
                let lines = parse_lines(words.0, "store").map_err(|error| failed(&error))?;
                let [Line::State(state)] = &lines[..] else {
                    return Err(PersistenceError("not the words of one SA".to_owned()));
                };
                let key = self.store.fingerprint(&state.keys);
                if self.known().passing_keys.contains(&key) {
                    self.passing.commit(slice::from_ref(change))?;
                    return Ok(None);
                }
                // One of the same name that is replaced is in use for another moment, and
                // its key comes from nowhere again.
                self.passing.end(host, sa);
                Change::PutSa(StoredSa {
                    name: name(host, sa),
                    key,
                    sequence: state.params(sa.direction).sequence,
                    origin: self.origin(*configured),
                    configured: *configured,
                    words: Zeroizing::new(words.0.to_owned()),
                })
            }
            plane::Change::DeleteSa { host, sa } => {
                if self.passing.knows(host, sa) {
                    self.passing.commit(slice::from_ref(change))?;
                    return Ok(None);
                }
                Change::DeleteSa(name(host, sa))
            }
            plane::Change::PutVm { host, vm, settings } => Change::PutVm {
                node: (*host).to_owned(),
                vm: (*vm).to_owned(),
                settings: settings.clone(),
            },
            plane::Change::DeleteVm { host, vm } => Change::DeleteVm {
                node: (*host).to_owned(),
                vm: (*vm).to_owned(),
            },
            plane::Change::PutSwitch { host, params } => Change::PutSetting {
                name: format!("{SWITCH}{host}"),
                value: format!(
                    "{} {}",
                    params.virtual_functions, params.default_queue_pairs
                ),
            },
            plane::Change::SetPolicies { host, vm, policies } => Change::PutPolicies {
                node: (*host).to_owned(),
                vm: (*vm).to_owned(),
                // Those of the configuration come from there at every start.
                words: policies
                    .iter()
                    .filter(|(_, configured)| !configured)
                    .map(|(words, _)| words.clone())
                    .collect(),
            },
        }))
    }
}

impl Persistence for Durable {
    fn vm_id(&self, host: &str, vm: &str) -> Result<VmId, PersistenceError> {
        let mut known = self.known();
        let name = (host.to_owned(), vm.to_owned());
        if let Some(id) = known.vms.get(&name) {
            return Ok(*id);
        }
        let last = known.vms.values().map(|id| id.0).max().unwrap_or(0);
        let setting = Change::PutSetting {
            name: format!("{VM_NUMBER}{host}/{vm}"),
            value: (last + 1).to_string(),
        };
        self.store
            .apply(&[setting])
            .map_err(|error| failed(&error))?;
        known.vms.insert(name, VmId(last + 1));
        Ok(VmId(last + 1))
    }

    fn standing(
        &self,
        host: &str,
        sa: &SaIdentity,
        keys: &Keys,
        configured: bool,
    ) -> Result<Standing, PersistenceError> {
        let name = name(host, sa);
        let key = self.store.fingerprint(keys);
        let mut known = self.known();
        if known.passing_keys.contains(&key) {
            return self.passing.standing(host, sa, keys, configured);
        }
        let standing = match known.recovered.remove(&name) {
            Some(found) if found.sa.key == key => found.standing,
            _ => {
                let asked = StoredSa {
                    name: name.clone(),
                    words: Zeroizing::default(),
                    key,
                    sequence: 0,
                    origin: self.origin(configured),
                    configured,
                };
                self.store
                    .standing(&asked)
                    .map_err(|error| failed(&error))?
            }
        };
        known.standings.insert(name, standing.clone());
        Ok(standing)
    }

    fn commit(&self, changes: &[plane::Change<'_>]) -> Result<(), PersistenceError> {
        let changes = self.changes(changes)?;
        if changes.is_empty() {
            return Ok(());
        }
        self.store.apply(&changes).map_err(|error| failed(&error))?;
        Ok(())
    }

    fn prepare(&self, changes: &[plane::Change<'_>]) -> Result<(), PersistenceError> {
        let changes = self.changes(changes)?;
        if changes.is_empty() {
            return Ok(());
        }
        self.store.prepare(&changes).map_err(|error| failed(&error))
    }

    fn revert(&self, changes: &[plane::Change<'_>]) -> Result<(), PersistenceError> {
        let mut changes = self.changes(changes)?;
        // What was prepared and did not become durable may be gone.
        let mut unknown = HashSet::new();
        for change in &changes {
            if let Change::DeleteSa(name) = change
                && !self.store.knows(name).map_err(|error| failed(&error))?
            {
                unknown.insert(name.clone());
            }
        }
        // What is put back under the same name takes its place, and keeps its age.
        let put_back: HashSet<SaName> = (changes.iter())
            .filter_map(|change| match change {
                Change::PutSa(sa) => Some(sa.name.clone()),
                _ => None,
            })
            .collect();
        changes.retain(|change| match change {
            Change::DeleteSa(name) => !unknown.contains(name) && !put_back.contains(name),
            _ => true,
        });
        self.store.apply(&changes).map_err(|error| failed(&error))?;
        Ok(())
    }

    fn begin(&self, sas: &[(&str, &Arc<EspSa>)]) -> Result<(), PersistenceError> {
        let (passing, kept): (Vec<_>, Vec<_>) =
            (sas.iter()).partition(|(host, sa)| self.passing.knows(host, &sa.identity()));
        self.passing.begin(&passing)?;
        let mut watched = Vec::with_capacity(kept.len());
        {
            let mut known = self.known();
            for (host, sa) in kept {
                let name = name(host, &sa.identity());
                let standing = known.standings.remove(&name).unwrap_or(Standing::Fresh);
                watched.push(Watched::new(host, Arc::clone(sa), &standing));
            }
        }
        // Taken out of the lock: the thread may have much to do.
        let refill = self.refill().as_ref().map(|(refill, _)| refill.clone());
        let refill = refill.ok_or_else(|| failed(&StoreError::Stopped))?;
        refill.watch(watched).map_err(|error| failed(&error))?;
        // Not all of them need numbers.
        self.store.settle().map_err(|error| failed(&error))
    }

    fn notice(&self, host: &str, event: &Event) {
        self.passing.notice(host, event);
        if let Some((refill, _)) = &*self.refill() {
            refill.notice(host, event);
        }
    }

    fn end(&self, host: &str, sa: &SaIdentity) {
        self.passing.end(host, sa);
        if let Some((refill, _)) = &*self.refill() {
            refill.unwatch(name(host, sa));
        }
    }

    fn words(
        &self,
        host: &str,
        sa: &SaIdentity,
    ) -> Result<Option<Zeroizing<String>>, PersistenceError> {
        if let Some(words) = self.passing.words(host, sa)? {
            return Ok(Some(words));
        }
        self.store
            .words(&name(host, sa))
            .map_err(|error| failed(&error))
    }

    fn trouble(&self) -> Option<String> {
        locked(&self.trouble).clone()
    }
}

fn locked(trouble: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    trouble.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A NIC switch, from what was kept of it.
fn switch(host: &str, value: &str) -> Option<(String, NicSwitchParams)> {
    let (functions, pairs) = value.split_once(' ')?;
    let params = NicSwitchParams {
        virtual_functions: functions.parse().ok()?,
        default_queue_pairs: pairs.parse().ok()?,
    };
    Some((host.to_owned(), params))
}

fn name(host: &str, sa: &SaIdentity) -> SaName {
    SaName {
        node: host.to_owned(),
        sa: *sa,
    }
}

fn failed(error: &dyn std::error::Error) -> PersistenceError {
    PersistenceError(error.to_string())
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Durable")
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kek(error) => error.fmt(f),
            Self::Store(error) => error.fmt(f),
            Self::Thread(error) => write!(f, "the thread that renews leases: {error}"),
        }
    }
}

impl std::error::Error for OpenError {}
