//! What interfaces are like, and TAP interfaces.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use vesper_offload::MacAddress;

/// An interface as the kernel describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::port) struct Interface {
    pub(in crate::port) mac: MacAddress,
    /// Bytes of the longest IP packet.
    pub(in crate::port) mtu: u32,
    /// It is up and has a carrier.
    pub(in crate::port) running: bool,
}

/// One queue of a TAP interface. Ends with it.
#[derive(Debug)]
pub(in crate::port) struct TapQueue(File);

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Asks the kernel about an interface, through any socket.
pub(in crate::port) fn interface(socket: BorrowedFd<'_>, name: &str) -> io::Result<Interface> {
    let socket = socket.as_raw_fd();
    let mut request = request(name)?;
    ioctl(socket, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: SIOCGIFHWADDR fills in this member.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address) {
        *to = from as u8;
    }
    ioctl(socket, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: SIOCGIFMTU fills in this member.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    ioctl(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS fills in this member.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_UP | libc::IFF_RUNNING;
    Ok(Interface {
        mac: MacAddress(mac),
        mtu: mtu.unsigned_abs(),
        running: flags & wanted == wanted,
    })
}

/// Sets the MTU of an interface.
pub(in crate::port) fn set_mtu(socket: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &mut request)
}

/// Switches an interface on.
pub(in crate::port) fn set_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS fills in this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &mut request)
}

/// Opens the queues of a TAP interface, which is made if there is none of this name. Frames have
/// a virtio-net header of `header_len` bytes in front, and whoever is behind the interface may
/// leave checksums and segmentation to us.
pub(in crate::port) fn open_tap(
    name: &str,
    queues: u16,
    header_len: usize,
) -> io::Result<Vec<TapQueue>> {
    (0..queues.max(1))
        .map(|_| {
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            let file = options
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open("/dev/net/tun")?;
            let fd = file.as_raw_fd();
            let mut request = request(name)?;
            let several = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
            let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
            request.ifr_ifru.ifru_flags = flags as libc::c_short;
            ioctl(fd, libc::TUNSETIFF, &mut request)?;
            ioctl(fd, libc::TUNSETVNETHDRSZ, &mut (header_len as libc::c_int))?;
            let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
            // SAFETY: this request takes a number in place of a pointer.
            let result =
                unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
            check(result)?;
            Ok(TapQueue(file))
        })
        .collect()
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all of its members are numbers and arrays of numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays zero.
    if name.is_empty() || name.len() >= request.ifr_name.len() || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ioctl<T>(fd: RawFd, code: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: each caller passes the type that its request reads and writes, and it lives until
    // the call returns.
    check(unsafe { libc::ioctl(fd, code, std::ptr::from_mut(argument)) })
}

pub(super) fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
