//! A VPP process and its command line, which is at its standard input.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::contest::Fault;

use super::NAME;

/// What ends the answer to a command where standard input is no terminal.
const END: u8 = 0;
/// How long a process that has been told to leave may take.
const LEAVE: Duration = Duration::from_secs(2);
/// Lines of its messages that are shown when something went wrong.
const LAST_MESSAGES: usize = 5;

/// A running VPP. It inherits the core of the thread that starts it.
pub(super) struct Console {
    child: Child,
    /// The other end of its standard input: VPP answers where it is asked.
    line: BufReader<UnixStream>,
    /// Where its standard output and error go.
    log: PathBuf,
}

impl Console {
    /// Starts `program` with this start-up configuration.
    pub(super) fn start(program: &Path, configuration: &Path, log: PathBuf) -> Result<Self, Fault> {
        let called = program.display().to_string();
        let fault = |error: std::io::Error| Fault::new(&called, error);
        let (ours, theirs) = UnixStream::pair().map_err(fault)?;
        let messages = File::create(&log).map_err(fault)?;
        let child = Command::new(program)
            .env("LD_LIBRARY_PATH", library_path(program))
            .arg("-c")
            .arg(configuration)
            .stdin(OwnedFd::from(theirs))
            .stdout(messages.try_clone().map_err(fault)?)
            .stderr(messages)
            .spawn()
            .map_err(fault)?;
        Ok(Self {
            child,
            line: BufReader::new(ours),
            log,
        })
    }

    /// The answer to a command.
    pub(super) fn ask(&mut self, command: &str) -> Result<String, Fault> {
        self.send(command)?;
        self.receive()
    }

    /// Gives a command without waiting for the answer, for which the caller calls `receive`.
    pub(super) fn send(&mut self, command: &str) -> Result<(), Fault> {
        // One write: VPP takes what it reads at once for one command.
        let line = format!("{command}\n");
        let sent = self.line.get_mut().write_all(line.as_bytes());
        sent.map_err(|error| self.fault(&error))
    }

    /// The answer to the oldest command that was sent.
    pub(super) fn receive(&mut self) -> Result<String, Fault> {
        let mut answer = Vec::new();
        match self.line.read_until(END, &mut answer) {
            Ok(_) if answer.pop() == Some(END) => {
                Ok(String::from_utf8_lossy(&answer).trim().into())
            }
            Ok(_) => Err(self.fault(&"it has ended")),
            Err(error) => Err(self.fault(&error)),
        }
    }

    /// Gives a command that answers nothing, or a name, if all is well.
    pub(super) fn tell(&mut self, command: &str) -> Result<(), Fault> {
        let answer = self.ask(command)?;
        if answer.contains(char::is_whitespace) {
            return Err(self.fault(&format_args!("`{command}`: {answer}")));
        }
        Ok(())
    }

    /// How often the scheduler has taken the core away from it so far; 0 where the system does
    /// not tell.
    pub(super) fn preemptions(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        std::fs::read_to_string(path)
            .ok()
            .and_then(|status| {
                let mut lines = status.lines();
                lines.find_map(|line| {
                    let count = line.strip_prefix("nonvoluntary_ctxt_switches:")?;
                    count.trim().parse().ok()
                })
            })
            .unwrap_or(0)
    }

    /// What went wrong, with its last messages: their file does not outlive the process.
    pub(super) fn fault(&self, what: &dyn std::fmt::Display) -> Fault {
        let messages = std::fs::read(&self.log).unwrap_or_default();
        let messages = String::from_utf8_lossy(&messages);
        let lines: Vec<_> = messages.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_MESSAGES)..];
        Fault::new(
            NAME,
            format_args!("{what}; its last messages:\n{}", last.join("\n")),
        )
    }
}

/// Where its shared libraries are looked for first: `lib` beside the directory of the program, and
/// what is in it, because a build with `cmake` writes no search path into the program.
fn library_path(program: &Path) -> OsString {
    let prefix = program.parent().and_then(Path::parent);
    let lib = prefix.unwrap_or(program).join("lib");
    let inside = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    let mut path = lib.clone().into_os_string();
    for directory in inside
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
    {
        path.push(":");
        path.push(directory);
    }
    let inherited = std::env::var_os("LD_LIBRARY_PATH");
    if let Some(inherited) = inherited.filter(|path| !path.is_empty()) {
        path.push(":");
        path.push(inherited);
    }
    path
}

impl Drop for Console {
    /// The end of its input tells VPP to leave.
    fn drop(&mut self) {
        let _ = self.line.get_ref().shutdown(Shutdown::Both);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if began.elapsed() > LEAVE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
