//! Capture files as a port: frames from one, frames into another. Files are read and written by
//! threads of their own, so that a worker never waits for a disk.

use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rtrb::{Consumer, Producer, RingBuffer};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use vesper_esp::{Buffer, PacketBuf};
use vesper_sa::Timestamp;
use vesper_verify::capture::{CaptureReader, LinkType};

use super::{Incoming, Place, Pool, Port, PortError, PortStatus};
use crate::config::PcapConfig;

/// Frames that are read ahead, or wait to be written.
const AHEAD: usize = 1024;

/// How long a thread pauses that has nothing to do.
const PAUSE: Duration = Duration::from_millis(1);

/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// The longest frame that a capture describes.
const SNAP_LEN: u32 = 262_144;

/// A port made of capture files.
#[derive(Debug)]
pub struct Pcap {
    source: Option<Source>,
    target: Option<Target>,
    timer: OwnedFd,
    status: PortStatus,
}

/// A frame, and when it was captured, in nanoseconds.
type Captured = (u64, Vec<u8>);

/// Frames that a thread reads.
#[derive(Debug)]
struct Source {
    frames: Consumer<Captured>,
    used: Producer<Vec<u8>>,
    /// Frames a second; `None` as they were captured, 0 as fast as possible.
    rate: Option<u64>,
    /// When the first one was sent, and when it was captured.
    began: Option<(u64, u64)>,
    /// When the next one is due.
    due: u64,
    thread: Thread,
}

/// Frames that a thread writes.
#[derive(Debug)]
struct Target {
    frames: Producer<Captured>,
    free: Consumer<Vec<u8>>,
    thread: Thread,
}

/// A thread that ends with the port.
#[derive(Debug)]
struct Thread {
    ended: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

impl Pcap {
    /// Opens the files. A file that is written is made anew.
    pub fn open(config: &PcapConfig, place: &Place) -> Result<Self, PortError> {
        let source = match &config.read {
            Some(path) => Some(Source::open(path, config.rate, config.repeat)?),
            None => None,
        };
        let target = match &config.write {
            Some(path) => Some(Target::open(path, config.limit, place.frame)?),
            None => None,
        };
        Ok(Self {
            source,
            target,
            timer: timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )
            .map_err(|error| PortError::System(error.into()))?,
            status: PortStatus {
                up: true,
                mtu: place.mtu(),
                ..PortStatus::default()
            },
        })
    }
}

impl Port for Pcap {
    fn receive(
        &mut self,
        now: Timestamp,
        pool: &mut Pool,
        most: usize,
        into: &mut Vec<Incoming>,
    ) -> usize {
        let Some(source) = &mut self.source else {
            return 0;
        };
        let mut count = 0;
        while count < most && pool.free() > 0 && source.is_due(now) {
            let Ok((_, frame)) = source.frames.pop() else {
                break;
            };
            match pool.copy(&frame) {
                Some(buffer) => {
                    self.status.received += 1;
                    self.status.received_bytes += frame.len() as u64;
                    into.push(Incoming::new(buffer));
                    count += 1;
                }
                // Longer than the host's buffers.
                None => self.status.malformed += 1,
            }
            // The reader makes a new one if there is no room.
            let _ = source.used.push(frame);
        }
        count
    }

    fn send(&mut self, _: Timestamp, pool: &mut Pool, frames: &mut Vec<PacketBuf>) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        for frame in frames.drain(..) {
            let data = frame.data();
            let is_taken = match &mut self.target {
                Some(target) => target.take(time, data),
                None => true,
            };
            match is_taken {
                true => {
                    self.status.sent += 1;
                    self.status.sent_bytes += data.len() as u64;
                }
                // The disk does not keep up, or the file is as long as it may be.
                false => self.status.dropped += 1,
            }
            pool.give(frame);
        }
    }

    fn status(&self) -> PortStatus {
        self.status.clone()
    }

    fn wake(&self) -> Option<BorrowedFd<'_>> {
        Some(self.timer.as_fd())
    }

    fn prepare_sleep(&mut self, sleeping: bool) -> bool {
        let Some(source) = self.source.as_mut().filter(|source| !source.is_over()) else {
            return false;
        };
        let is_ready = source.rate == Some(0) && !source.frames.is_empty();
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // Frames are due within a pause, or are being read: it is looked at that often.
        let wait = match sleeping {
            true => Timespec {
                tv_sec: 0,
                tv_nsec: PAUSE.subsec_nanos().into(),
            },
            false => zero,
        };
        let timer = Itimerspec {
            it_interval: zero,
            it_value: wait,
        };
        // Without the timer the worker's own one wakes it, later.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer);
        sleeping && is_ready
    }
}

impl Source {
    fn open(path: &Path, rate: Option<u64>, repeat: bool) -> Result<Self, PortError> {
        let reader = open(path)?;
        let (to_port, frames) = RingBuffer::new(AHEAD);
        let (used, from_port) = RingBuffer::new(AHEAD);
        let path = path.to_owned();
        let thread = Thread::spawn("pcap-read", move |ended| {
            read(&path, reader, repeat, to_port, from_port, ended);
        })?;
        Ok(Self {
            frames,
            used,
            rate,
            began: None,
            due: 0,
            thread,
        })
    }

    /// Whether the next frame is to be sent now; counts it as sent.
    fn is_due(&mut self, now: Timestamp) -> bool {
        let now = now.as_nanos();
        let Ok((time, _)) = self.frames.peek() else {
            return false;
        };
        match self.rate {
            Some(0) => true,
            Some(rate) => {
                // What was missed is not made up for beyond a pause.
                self.due = self.due.max(now.saturating_sub(PAUSE.as_nanos() as u64));
                let is_due = self.due <= now;
                if is_due {
                    self.due += 1_000_000_000 / rate;
                }
                is_due
            }
            None => {
                let (began, first) = *self.began.get_or_insert((now, *time));
                match time.checked_sub(first) {
                    Some(after) => began + after <= now,
                    // From the beginning again.
                    None => {
                        self.began = Some((now, *time));
                        true
                    }
                }
            }
        }
    }

    /// Nothing will come any more.
    fn is_over(&self) -> bool {
        self.frames.is_empty() && self.thread.has_ended()
    }
}

impl Target {
    fn open(path: &Path, limit: u64, frame: u32) -> Result<Self, PortError> {
        let failed = |error| PortError::File {
            path: path.to_owned(),
            error,
        };
        let mut file = BufWriter::new(File::create(path).map_err(failed)?);
        file.write_all(&header()).map_err(failed)?;
        let (frames, from_port) = RingBuffer::<Captured>::new(AHEAD);
        let (mut to_port, free) = RingBuffer::new(AHEAD);
        for _ in 0..AHEAD {
            // There is room for all of them.
            let _ = to_port.push(Vec::with_capacity(frame as usize));
        }
        let name = path.to_owned();
        let thread = Thread::spawn("pcap-write", move |ended| {
            if let Err(error) = write(file, limit, from_port, to_port, ended) {
                tracing::error!("{}: {error}; nothing more is written", name.display());
            }
        })?;
        Ok(Self {
            frames,
            free,
            thread,
        })
    }

    fn take(&mut self, time: u64, data: &[u8]) -> bool {
        if self.thread.has_ended() || self.frames.is_full() {
            return false;
        }
        let Ok(mut copy) = self.free.pop() else {
            return false;
        };
        copy.clear();
        copy.extend_from_slice(data);
        self.frames.push((time, copy)).is_ok()
    }
}

impl Thread {
    fn spawn(
        name: &str,
        work: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> Result<Self, PortError> {
        let ended = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&ended);
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&flag))
            .map_err(PortError::System)?;
        Ok(Self {
            ended,
            handle: Some(handle),
        })
    }

    fn has_ended(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Thread {
    /// What was handed over is written before the port is gone.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(handle) = self.handle.take() {
            // A panic was reported where it happened.
            let _ = handle.join();
        }
    }
}

type Reader = CaptureReader<io::BufReader<File>>;

fn open(path: &Path) -> Result<Reader, PortError> {
    CaptureReader::open(path).map_err(|error| PortError::File {
        path: path.to_owned(),
        error: io::Error::new(ErrorKind::InvalidData, error.reason.to_string()),
    })
}

fn read(
    path: &Path,
    mut reader: Reader,
    repeat: bool,
    mut to_port: Producer<Captured>,
    mut from_port: Consumer<Vec<u8>>,
    ended: &AtomicBool,
) {
    let mut any = false;
    loop {
        match reader.next_record() {
            Ok(Some(record)) if record.link == LinkType::Ethernet => {
                let mut frame = from_port.pop().unwrap_or_default();
                frame.clear();
                frame.extend_from_slice(record.data);
                let mut captured = (record.timestamp, frame);
                any = true;
                while let Err(rtrb::PushError::Full(back)) = to_port.push(captured) {
                    if ended.load(Ordering::Acquire) {
                        return;
                    }
                    captured = back;
                    thread::sleep(PAUSE);
                }
            }
            // Not a frame of Ethernet.
            Ok(Some(_)) => {}
            Ok(None) if repeat && any => match open(path) {
                Ok(again) => reader = again,
                Err(error) => return tracing::error!("{error}; nothing more is sent"),
            },
            Ok(None) => return,
            Err(error) => return tracing::error!("{error}; nothing more is sent"),
        }
    }
}

fn write(
    mut file: BufWriter<File>,
    limit: u64,
    mut from_port: Consumer<Captured>,
    mut to_port: Producer<Vec<u8>>,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut written = header().len() as u64;
    loop {
        // Looked at first: what was handed over before the end is written.
        let is_over = ended.load(Ordering::Acquire);
        while let Ok((time, frame)) = from_port.pop() {
            written += 16 + frame.len() as u64;
            if written > limit {
                file.flush()?;
                return Err(io::Error::other(format!("has {limit} bytes, its limit")));
            }
            let seconds = u32::try_from(time / 1_000_000_000).unwrap_or(u32::MAX);
            let length = frame.len() as u32;
            for field in [seconds, (time % 1_000_000_000) as u32, length, length] {
                file.write_all(&field.to_le_bytes())?;
            }
            file.write_all(&frame)?;
            // The ring has room for every buffer that there is.
            let _ = to_port.push(frame);
        }
        if is_over {
            return file.flush();
        }
        file.flush()?;
        thread::sleep(PAUSE);
    }
}

/// Of a pcap file with nanoseconds, in little-endian.
fn header() -> [u8; 24] {
    let mut header = [0; 24];
    header[..4].copy_from_slice(&0xa1b2_3c4d_u32.to_le_bytes());
    header[4] = 2;
    header[6] = 4;
    header[16..20].copy_from_slice(&SNAP_LEN.to_le_bytes());
    header[20..].copy_from_slice(&ETHERNET.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use vesper_offload::MacAddress;

    fn open_port(config: PcapConfig) -> Pcap {
        let place = Place {
            mac: MacAddress::default(),
            gateway: MacAddress::default(),
            frame: 1600,
        };
        Pcap::open(&config, &place).unwrap()
    }

    fn config() -> PcapConfig {
        PcapConfig {
            read: None,
            rate: Some(0),
            repeat: false,
            write: None,
            limit: 1 << 20,
        }
    }

    fn write_frames(path: &Path, count: u8, limit: u64) -> PortStatus {
        let mut port = open_port(PcapConfig {
            write: Some(path.to_owned()),
            limit,
            ..config()
        });
        let mut pool = Pool::new(300, 1600);
        for index in 0..count {
            let mut frames = vec![pool.copy(&[index; 60]).unwrap()];
            port.send(Timestamp::ZERO, &mut pool, &mut frames);
        }
        port.status()
    }

    /// Takes frames until nothing comes for a while.
    fn read_frames(port: &mut Pcap, now: impl Fn(u64) -> Timestamp) -> Vec<(u64, u8)> {
        let mut pool = Pool::new(300, 1600);
        let (mut found, mut incoming) = (Vec::new(), Vec::new());
        for turn in 0..100 {
            port.receive(now(turn), &mut pool, 64, &mut incoming);
            for frame in incoming.drain(..) {
                found.push((turn, frame.frame.data()[0]));
                pool.give(frame.frame);
            }
            thread::sleep(Duration::from_millis(1));
        }
        found
    }

    #[test]
    fn what_is_written_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(write_frames(file.path(), 200, 1 << 20).sent, 200);
        let mut port = open_port(PcapConfig {
            read: Some(file.path().to_owned()),
            ..config()
        });
        let found = read_frames(&mut port, |_| Timestamp::ZERO);
        let frames: Vec<u8> = found.into_iter().map(|(_, frame)| frame).collect();
        assert_eq!(frames, (0..200).collect::<Vec<u8>>());
        assert!(!port.prepare_sleep(true), "it is over");
    }

    #[test]
    fn a_rate_is_kept_and_a_file_repeated() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_frames(file.path(), 3, 1 << 20);
        let mut port = open_port(PcapConfig {
            read: Some(file.path().to_owned()),
            rate: Some(1000),
            repeat: true,
            ..config()
        });
        thread::sleep(Duration::from_millis(50));
        // A turn is a millisecond on the clock of the port.
        let found = read_frames(&mut port, |turn| {
            Timestamp::from_nanos(1_000_000_000 + turn * 1_000_000)
        });
        assert!((99..=102).contains(&found.len()), "{}", found.len());
        let frames: Vec<u8> = found.iter().take(7).map(|(_, frame)| *frame).collect();
        assert_eq!(frames, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn a_file_does_not_grow_beyond_its_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let limit = 24 + 10 * 76;
        write_frames(file.path(), 100, limit);
        assert_eq!(file.as_file().metadata().unwrap().len(), limit);
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello, world").unwrap();
        let place = Place {
            mac: MacAddress::default(),
            gateway: MacAddress::default(),
            frame: 1600,
        };
        for path in [file.path(), Path::new("/nonexistent")] {
            let config = PcapConfig {
                read: Some(path.to_owned()),
                ..config()
            };
            let error = Pcap::open(&config, &place).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        }
    }
}
