//! Taking away from the process what it does not need: its rights, its memory in swap and core
//! dumps, and the system calls that only an intruder would want.

use std::collections::BTreeMap;
use std::fmt;

use capctl::caps::{Cap, CapSet, CapState, ambient, bounding};
use capctl::prctl;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use seccompiler::{SeccompAction, SeccompFilter, SeccompRule, TargetArch};

/// What was taken away, for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// All memory stays out of the swap.
    pub locked: bool,
    /// Capabilities that are left.
    pub capabilities: Vec<String>,
}

/// What could not be taken away.
#[derive(Debug)]
pub enum ConfineError {
    /// A call of the system failed.
    System {
        /// What was asked for.
        what: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// The filter of system calls can not be made on this machine.
    Filter(String),
}

/// Opening interfaces and packet sockets, locking memory, and the priority of the thread that
/// renews leases.
const NEEDED: [Cap; 4] = [Cap::NET_ADMIN, Cap::NET_RAW, Cap::IPC_LOCK, Cap::SYS_NICE];

impl Confinement {
    /// To be called first, while there is one thread only, since threads inherit it: no core
    /// dumps, nobody may look into the memory, programs that are started get no rights, no
    /// capability but those that ports need, and all memory in RAM if the limit allows it.
    ///
    /// `gives_groups`: sockets are given to groups, which takes a capability if the process is
    /// no member of them.
    pub fn begin(gives_groups: bool) -> Result<Self, ConfineError> {
        let system = |what| {
            move |error: nix::Error| ConfineError::System {
                what,
                error: error.into(),
            }
        };
        let call = |what| {
            move |error: capctl::Error| ConfineError::System {
                what,
                error: std::io::Error::from_raw_os_error(error.code()),
            }
        };
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(system("RLIMIT_CORE"))?;
        prctl::set_dumpable(false).map_err(call("PR_SET_DUMPABLE"))?;
        prctl::set_no_new_privs().map_err(call("PR_SET_NO_NEW_PRIVS"))?;
        let mut needed: CapSet = NEEDED.into_iter().collect();
        if gives_groups {
            needed.add(Cap::CHOWN);
        }
        let mut state = CapState::get_current().map_err(call("capget"))?;
        if state.permitted.has(Cap::SETPCAP) {
            for cap in Cap::iter().filter(|cap| !needed.has(*cap)) {
                bounding::ensure_dropped(cap).map_err(call("PR_CAPBSET_DROP"))?;
            }
        }
        if ambient::is_supported() {
            ambient::clear().map_err(call("PR_CAP_AMBIENT_CLEAR_ALL"))?;
        }
        state.permitted &= needed;
        state.effective = state.permitted;
        state.inheritable = CapSet::empty();
        state.set_current().map_err(call("capset"))?;
        Ok(Self {
            locked: lock_memory(),
            capabilities: state.permitted.iter().map(|cap| cap.to_string()).collect(),
        })
    }

    /// To be called last, when everything is open: system calls that start programs, look into
    /// other processes, change the system or the rights of this process are refused from now
    /// on, for all threads.
    pub fn complete() -> Result<(), ConfineError> {
        let filter = |error: &dyn fmt::Display| ConfineError::Filter(error.to_string());
        let architecture =
            TargetArch::try_from(std::env::consts::ARCH).map_err(|error| filter(&error))?;
        let rules: BTreeMap<i64, Vec<SeccompRule>> =
            REFUSED.iter().map(|number| (*number, Vec::new())).collect();
        let refused = SeccompAction::Errno(nix::libc::EPERM as u32);
        let program = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture)
            .map_err(|error| filter(&error))?;
        let program: seccompiler::BpfProgram = program
            .try_into()
            .map_err(|error: seccompiler::BackendError| filter(&error))?;
        seccompiler::apply_filter_all_threads(&program).map_err(|error| filter(&error))
    }
}

/// Locks memory if the limit allows it to grow: a process whose memory is locked and whose limit
/// is low would fail in the midst of its work.
fn lock_memory() -> bool {
    let unlimited =
        getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == nix::libc::RLIM_INFINITY);
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    unlimited && mlockall(flags).is_ok()
}

/// What neither the daemon nor its libraries have a use for once everything is open.
const REFUSED: [i64; 38] = {
    use nix::libc::*;
    [
        SYS_execve,
        SYS_execveat,
        SYS_ptrace,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_kcmp,
        SYS_mount,
        SYS_umount2,
        SYS_pivot_root,
        SYS_chroot,
        SYS_unshare,
        SYS_setns,
        SYS_open_by_handle_at,
        SYS_init_module,
        SYS_finit_module,
        SYS_delete_module,
        SYS_kexec_load,
        SYS_kexec_file_load,
        SYS_reboot,
        SYS_swapon,
        SYS_swapoff,
        SYS_acct,
        SYS_quotactl,
        SYS_settimeofday,
        SYS_clock_settime,
        SYS_adjtimex,
        SYS_sethostname,
        SYS_setdomainname,
        SYS_bpf,
        SYS_perf_event_open,
        SYS_userfaultfd,
        SYS_io_uring_setup,
        SYS_add_key,
        SYS_request_key,
        SYS_keyctl,
        SYS_personality,
        SYS_setuid,
        SYS_setgid,
    ]
};

impl fmt::Display for ConfineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { what, error } => write!(f, "{what}: {error}"),
            Self::Filter(error) => write!(f, "filter of system calls: {error}"),
        }
    }
}

impl std::error::Error for ConfineError {}
