//! Completions and manual pages, made of the definition of the command line.

use std::fs;
use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Arguments;
use super::answer::Stop;
use crate::vesperd;

pub(super) fn completions(shell: Shell, out: &mut dyn Write) -> Result<(), Stop> {
    // In memory first: the generator would panic on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "vesper", &mut script);
    out.write_all(&script)?;
    Ok(())
}

/// The page of the command itself, or a page for each of its commands, and that of the daemon,
/// into a directory.
pub(super) fn manual(directory: Option<&Path>, out: &mut dyn Write) -> Result<(), Stop> {
    match directory {
        None => clap_mangen::Man::new(Arguments::command()).render(&mut &mut *out)?,
        Some(directory) => {
            fs::create_dir_all(directory)?;
            clap_mangen::generate_to(Arguments::command(), directory)?;
            let daemon = clap_mangen::Man::new(vesperd::Arguments::command()).section("8");
            daemon.render(&mut fs::File::create(directory.join("vesperd.8"))?)?;
        }
    }
    Ok(())
}
