//! Other people's implementations, as processes that take turns with ours.

mod build;
mod process;
mod vpp;

use std::fmt;
use std::path::PathBuf;

use crate::case::Level;
use crate::contest::{Contestant, Fault};

use build::Missing;
use process::Process;

/// A program of `benches/peers/` and how it is built and started.
struct Program {
    level: Level,
    source: &'static str,
    text: &'static str,
    /// For `pkg-config`; empty if the library has no file for it.
    pkg_config: &'static str,
    /// Flags beyond those of `pkg-config`.
    flags: &'static [&'static str],
    /// What Debian calls the packages that it needs, beside a compiler.
    packages: &'static [&'static str],
    /// The arguments of each variant.
    variants: &'static [&'static [&'static str]],
    /// Environment variable with the prefix of another build of the library, and a file that
    /// is there if it is one.
    prefix: Option<(&'static str, &'static str)>,
}

const PROGRAMS: &[Program] = &[
    Program {
        level: Level::Aead,
        source: "ipsec_mb.c",
        text: include_str!("../../peers/ipsec_mb.c"),
        pkg_config: "",
        flags: &["-lIPSec_MB"],
        packages: &["libipsec-mb-dev"],
        variants: &[&["direct"], &["job"], &["burst"]],
        prefix: Some(("VESPER_BENCH_IPSEC_MB_PREFIX", "include/intel-ipsec-mb.h")),
    },
    Program {
        level: Level::Aead,
        source: "openssl.c",
        text: include_str!("../../peers/openssl.c"),
        pkg_config: "libcrypto",
        flags: &[],
        packages: &["libssl-dev"],
        variants: &[&[]],
        prefix: None,
    },
    Program {
        level: Level::Esp,
        source: "dpdk.c",
        text: include_str!("../../peers/dpdk.c"),
        pkg_config: "libdpdk",
        flags: &["-DALLOW_EXPERIMENTAL_API"],
        packages: &["dpdk-dev", "libdpdk-dev"],
        variants: &[
            &["aesni_gcm", "lookaside"],
            &["aesni_gcm", "cpu"],
            &["aesni_mb", "lookaside"],
            &["aesni_mb", "cpu"],
        ],
        prefix: None,
    },
];

/// Huge pages that four DPDK processes want at least.
const DPDK_HUGE_PAGES: usize = 256;

/// Why the peers can not be measured.
#[derive(Debug)]
pub(crate) enum PeersError {
    /// These Debian packages would have to be installed.
    Missing(Vec<&'static str>),
    /// A prefix was given that holds no usable library.
    Prefix {
        variable: &'static str,
        prefix: PathBuf,
        log: String,
    },
    /// A prefix was given under which the program is not.
    Program {
        variable: &'static str,
        prefix: PathBuf,
        program: PathBuf,
    },
    /// A program that was built does not work.
    Fault(Fault),
    /// The directory for the programs can not be written.
    Directory(PathBuf, std::io::Error),
}

impl fmt::Display for PeersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(packages) => write!(
                f,
                "--peers needs packages that are not installed: apt-get install {}",
                packages.join(" ")
            ),
            Self::Prefix {
                variable,
                prefix,
                log,
            } => write!(
                f,
                "{variable}={} holds no library that the program can be built with:\n{log}",
                prefix.display()
            ),
            Self::Program {
                variable,
                prefix,
                program,
            } => write!(
                f,
                "{variable}={}: there is no program {}; give the prefix that it was installed to, \
                 or unset the variable to do without",
                prefix.display(),
                program.display()
            ),
            Self::Fault(fault) => fault.fmt(f),
            Self::Directory(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for PeersError {}

/// Builds the programs of a level and starts every variant. `notes` receives what a reader
/// of the figures should know.
pub(crate) fn start(
    level: Level,
    notes: &mut Vec<String>,
) -> Result<Vec<Box<dyn Contestant>>, PeersError> {
    let directory = build::directory()?;
    let mut missing = Missing::default();
    let mut built = Vec::new();
    for program in PROGRAMS.iter().filter(|program| program.level == level) {
        built.extend(
            program
                .build(&directory, &mut missing)?
                .map(|path| (program, path)),
        );
        if let Some(path) = program.build_with_prefix(&directory)? {
            built.push((program, path));
        }
    }
    missing.into_result()?;
    let mut peers: Vec<Box<dyn Contestant>> = Vec::new();
    let huge = huge_pages_for_dpdk(level, notes);
    for (program, path) in built {
        for variant in program.variants {
            let mut arguments = variant.to_vec();
            if program.level == Level::Esp {
                arguments.push(huge);
            }
            let log = path.with_extension(format!("{}.log", arguments.join("-")));
            let process = Process::start(&path, &arguments, log).map_err(PeersError::Fault)?;
            if peers.iter().any(|peer| peer.name() == process.name()) {
                notes.push(format!("{} is there twice, once is enough", process.name()));
            } else {
                peers.push(Box::new(process));
            }
        }
    }
    if level == Level::Esp
        && let Some(vpp) = vpp::contestant(huge == "huge")?
    {
        peers.push(Box::new(vpp));
    }
    Ok(peers)
}

/// Which memory DPDK gets, with a note if it is the slow kind.
fn huge_pages_for_dpdk(level: Level, notes: &mut Vec<String>) -> &'static str {
    let free = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("HugePages_Free:"))?;
            line.trim().parse::<usize>().ok()
        })
        .unwrap_or(0);
    if free >= DPDK_HUGE_PAGES {
        return "huge";
    }
    if level == Level::Esp {
        notes.push(format!(
            "DPDK runs without huge pages ({free} free), which costs it up to 3x at many \
             associations; `sysctl vm.nr_hugepages=700` before the run makes it fair"
        ));
    }
    "nohuge"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aead::ours;
    use crate::case::{Case, Size};
    use crate::contest::hold;
    use crate::esp::engines;
    use crate::lanes::Cores;
    use std::sync::Arc;
    use vesper_esp::Suite;
    use vesper_esp::aead::Implementation;

    /// Everybody of a level seals the same packets, or stays away; `hold` compares them.
    fn agree(level: Level, suites: &[&str]) {
        let mut peers = match start(level, &mut Vec::new()) {
            Ok(peers) => peers,
            Err(PeersError::Missing(packages)) => {
                eprintln!("not tried without {}", packages.join(", "));
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let cores = Arc::new(Cores::claim(1, None).unwrap());
        let all: Vec<_> = Implementation::available().collect();
        let mut contestants = match level {
            Level::Aead => ours(&all, &cores),
            Level::Esp => engines(&all, true, &cores),
        };
        let count = contestants.len() + peers.len();
        contestants.append(&mut peers);
        for (suite, size) in suites
            .iter()
            .zip([Size::Imix, Size::Bytes(65), Size::Bytes(2000)])
        {
            let case = Case {
                level,
                suite: Suite::by_name(suite).unwrap(),
                size,
                sas: 1500,
            };
            let outcome = hold(cores.clock(), &case, &mut contestants, 1, || ()).unwrap();
            assert_eq!(
                outcome.figures.len() + 2 * outcome.declined.len(),
                2 * count
            );
            assert!(outcome.figures.len() >= 6, "{case}: {:?}", outcome.declined);
        }
    }

    #[test]
    fn peers_agree_with_ours_on_aead() {
        agree(
            Level::Aead,
            &["aes256gcm16", "chacha20poly1305", "aes128-sha256"],
        );
    }

    #[test]
    fn peers_agree_with_ours_on_esp() {
        agree(
            Level::Esp,
            &["aes128gcm16", "aes256gcm16", "chacha20poly1305"],
        );
    }
}
