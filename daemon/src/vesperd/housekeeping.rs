//! Where the threads run that carry no packets.

use std::fs;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::node::Statistics;

/// Moves all threads of this process but the workers, and those that they will start, to the
/// CPUs that no worker has. If every CPU has one, the system spreads them as it likes.
///
/// Packets then wait for nothing that is not theirs. A thread that can not be moved stays.
pub(super) fn keep_off_workers(statistics: &Statistics) {
    let Ok(mut others) = sched_getaffinity(None) else {
        return;
    };
    for cpu in statistics.workers.iter().filter_map(|worker| worker.cpu) {
        if cpu < CpuSet::MAX_CPU {
            others.unset(cpu);
        }
    }
    if others.count() == 0 {
        return;
    }
    for task in fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten()
    {
        let worker = || {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            let number = name.trim_end().strip_prefix("worker-")?.parse().ok();
            statistics.workers.get::<usize>(number?)
        };
        let id = task.file_name().to_str().and_then(|id| id.parse().ok());
        let Some(id) = id.and_then(Pid::from_raw).filter(|_| worker().is_none()) else {
            continue;
        };
        let _ = sched_setaffinity(Some(id), &others);
        // One that has only now got its name has perhaps found its place before, and else does so
        // from here.
        if let Some(cpu) = worker().and_then(|worker| worker.cpu) {
            let mut own = CpuSet::new();
            own.set(cpu);
            let _ = sched_setaffinity(Some(id), &own);
        }
    }
}
