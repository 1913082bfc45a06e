//! `completions` and `man`: shell completions and manual pages, generated from the definition of the command line.

use std::{fs, path::PathBuf};

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Failure, terminal::write};

/// Print a script with completions for a shell
#[derive(Args)]
pub(super) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, mut command: Command) {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "clerk-sync", &mut script);
        write(&script);
    }
}

/// Print the manual page, or write the pages of all commands to a folder
#[derive(Args)]
pub(super) struct Manual {
    /// The folder; created if it is missing
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
}

impl Manual {
    pub(super) fn run(self, command: Command) -> Result<(), Failure> {
        let Some(folder) = self.dir else {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            write(&page);
            return Ok(());
        };
        let place = folder.display();
        fs::create_dir_all(&folder).with_context(|| format!("the folder {place} cannot be created"))?;
        clap_mangen::generate_to(command, &folder)
            .with_context(|| format!("the pages cannot be written to {place}"))?;
        Ok(())
    }
}
