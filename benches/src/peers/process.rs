//! One peer: a child process that obeys the line protocol of `benches/peers/README.md`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::case::{Case, Digest};
use crate::contest::{Contestant, Fault, Refusal, Repetition};

/// A running peer. It inherits the core of the thread that starts it.
pub(super) struct Process {
    name: String,
    child: Child,
    /// `None` once it has been told to leave.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Where its standard error goes.
    log: PathBuf,
}

impl Process {
    /// Starts a program and waits until it has said who it is.
    pub(super) fn start(path: &Path, arguments: &[&str], log: PathBuf) -> Result<Self, Fault> {
        let called = path.display().to_string();
        let fault = |error: std::io::Error| Fault::new(&called, error);
        let mut child = Command::new(path)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(fault)?)
            .spawn()
            .map_err(fault)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Fault::new(&called, "it has no standard input and output"));
        };
        let mut process = Self {
            name: called,
            child,
            input: Some(input),
            output: BufReader::new(output),
            log,
        };
        match process.receive()?.split_whitespace().collect::<Vec<_>>()[..] {
            ["hello", name, _level] => process.name = name.into(),
            _ => return Err(process.fault("it does not say hello")),
        }
        Ok(process)
    }

    fn ask(&mut self, line: &str) -> Result<String, Fault> {
        let sent = match &mut self.input {
            Some(input) => writeln!(input, "{line}").and_then(|()| input.flush()),
            None => Ok(()),
        };
        sent.map_err(|error| self.fault(&error.to_string()))?;
        self.receive()
    }

    fn receive(&mut self) -> Result<String, Fault> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) => Err(self.fault("it has ended")),
            Ok(_) => Ok(line.trim_end().into()),
            Err(error) => Err(self.fault(&error.to_string())),
        }
    }

    fn fault(&self, what: &str) -> Fault {
        let log = self.log.display();
        Fault::new(
            &self.name,
            format_args!("{what} (its messages are in {log})"),
        )
    }
}

impl Contestant for Process {
    fn name(&self) -> &str {
        &self.name
    }

    fn prepare(&mut self, case: &Case) -> Result<Option<Digest>, Refusal> {
        let line = format!("case {} {} {}", case.suite.name, case.size, case.sas);
        let answer = self.ask(&line)?;
        match answer.split_once(' ') {
            Some(("ready", "-")) => Ok(None),
            Some(("ready", digest)) => match Digest::parse(digest) {
                Some(digest) => Ok(Some(digest)),
                None => Err(self.fault(&answer).into()),
            },
            Some(("declined", reason)) => Err(Refusal::Declined(reason.into())),
            _ => Err(self.fault(&answer).into()),
        }
    }

    fn repeat(&mut self) -> Result<Repetition, Fault> {
        let answer = self.ask("run")?;
        let numbers: Option<Vec<u64>> = answer.strip_prefix("ticks ").and_then(|numbers| {
            numbers
                .split(' ')
                .map(|number| number.parse().ok())
                .collect()
        });
        match numbers.as_deref() {
            Some(&[out, back, preemptions]) => Ok(Repetition {
                ticks: [out, back],
                disturbed: preemptions > 0,
            }),
            _ => Err(self.fault(&answer)),
        }
    }

    fn finish(&mut self) -> Result<(), Fault> {
        match self.ask("end")?.as_str() {
            "ended" => Ok(()),
            answer => Err(self.fault(answer)),
        }
    }
}

impl Drop for Process {
    /// Closing its input tells the program to leave.
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Level, Size};
    use vesper_esp::Suite;

    const CASE: Case = Case {
        level: Level::Aead,
        suite: &Suite::ALL[0],
        size: Size::Bytes(64),
        sas: 3,
    };

    /// A shell script in the role of a peer.
    fn script(name: &str, body: &str) -> Process {
        let body = format!("echo hello {name} aead\n{body}\n");
        Process::start(Path::new("/bin/sh"), &["-c", &body], "/dev/null".into()).unwrap()
    }

    #[test]
    fn obedient_program() {
        let mut peer = script(
            "obedient",
            "read l; [ \"$l\" = 'case aes128gcm16 64 3' ] && echo ready 00000000000000ff\n\
             read l; echo ticks 1234 99 0\nread l; echo ticks 1 2 3\nread l; echo ended",
        );
        assert_eq!(peer.name(), "obedient");
        assert_eq!(peer.prepare(&CASE).unwrap(), Digest::parse("ff"));
        let repetition = peer.repeat().unwrap();
        assert_eq!(
            (repetition.ticks, repetition.disturbed),
            ([1234, 99], false)
        );
        assert!(peer.repeat().unwrap().disturbed);
        peer.finish().unwrap();
    }

    #[test]
    fn reluctant_program() {
        let mut peer = script("reluctant", "read l; echo declined no such suite");
        match peer.prepare(&CASE) {
            Err(Refusal::Declined(reason)) => assert_eq!(reason, "no such suite"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn broken_programs_are_named() {
        let mut peer = script("silent", "read l");
        let fault = peer.repeat().unwrap_err().to_string();
        assert!(fault.starts_with("silent: it has ended"), "{fault}");
        let mut peer = script("faulty", "read l; echo fault 3 packets were refused");
        let fault = peer.repeat().unwrap_err().to_string();
        assert!(fault.contains("3 packets were refused"), "{fault}");
    }
}
