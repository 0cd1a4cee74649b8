//! System calls on scheduling that neither `rustix` nor `nix` has. `unsafe` may stand here.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::time::Duration;

/// Asks for a time slice of this length for the calling thread, if it is scheduled as most are
/// (`SCHED_OTHER`): who asks for a short one and wakes is let in at once (Linux 6.12 and later,
/// no privilege needed; a kernel that has no such slices takes no notice). The kernel's limits
/// are 0.1 and 100 ms. Share of the processor and nice value stay as they are.
///
/// # Errors
/// The system refuses.
pub(crate) fn set_time_slice(slice: Duration) -> io::Result<()> {
    let size = mem::size_of::<libc::sched_attr>() as libc::c_uint;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most `size` bytes into `attributes`, which has them, and a
    // `sched_attr` is valid with any bytes. 0 is the calling thread, no flags.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    if attributes.sched_policy != libc::SCHED_OTHER as u32 {
        return Ok(());
    }
    attributes.size = size;
    attributes.sched_runtime = slice.as_nanos() as u64;
    // SAFETY: the kernel reads `attributes.size` bytes, which is its size.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nice_value_and_the_policy_stay() {
        std::thread::spawn(|| {
            rustix::process::setpriority_process(None, 7).unwrap();
            set_time_slice(Duration::from_micros(100)).unwrap();
            assert_eq!(rustix::process::getpriority_process(None), Ok(7));
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // proc(5): field 41 is the policy, 3 is the first behind the name.
            let policy = stat.rsplit(')').next().unwrap().split_whitespace().nth(38);
            assert_eq!(policy, Some("0"));
        })
        .join()
        .unwrap();
    }
}
