//! The programs that tests run besides our own: found, or installed with the system's package manager.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::run;

/// A program, and the packages that provide it.
struct Tool {
    program: &'static str,
    /// A folder with one folder per version, in whose `bin` packages put the program without adding it to the search path.
    versions: Option<&'static str>,
    /// The Debian package.
    apt: &'static str,
    /// The Homebrew formula, if there is one.
    brew: Option<&'static str>,
}

/// Servers are started by tests, on free ports and in temporary folders; those that a package starts as a service are not touched.
/// Tests that use strace to watch a node are skipped where it is missing: it has no formula.
const TOOLS: [Tool; 5] = [
    Tool { program: "mkfs.ext4", versions: None, apt: "e2fsprogs", brew: None },
    Tool { program: "strace", versions: None, apt: "strace", brew: None },
    Tool { program: "postgres", versions: Some("/usr/lib/postgresql"), apt: "postgresql", brew: Some("postgresql@17") },
    Tool { program: "pgbouncer", versions: None, apt: "pgbouncer", brew: Some("pgbouncer") },
    Tool { program: "redis-server", versions: None, apt: "redis-server", brew: Some("redis") },
];

impl Tool {
    fn is_installed(&self) -> bool {
        let folders = self.versions.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        let mut versions = folders.map(|version| version.path().join("bin").join(self.program));
        run::is_installed(self.program) || versions.any(|program| program.is_file()) || self.is_poured()
    }

    /// Homebrew does not add formulas of older versions to the search path.
    fn is_poured(&self) -> bool {
        let Some(formula) = self.brew.filter(|_| run::is_installed("brew")) else { return false };
        let listed = Command::new("brew").args(["list", "--versions", formula]).stdin(Stdio::null()).output();
        listed.is_ok_and(|listed| listed.status.success() && !listed.stdout.is_empty())
    }
}

/// Installs what is missing, and says so.
pub fn install() -> Result<()> {
    let missing: Vec<Tool> = TOOLS.into_iter().filter(|tool| !tool.is_installed()).collect();
    if missing.is_empty() {
        let names: Vec<&str> = TOOLS.iter().map(|tool| tool.program).collect();
        println!("found {}", names.join(", "));
        return Ok(());
    }
    if !run::is_installed("apt-get") && run::is_installed("brew") {
        return pour(&missing);
    }
    run::install(&missing.iter().map(|tool| tool.apt).collect::<Vec<_>>())
}

fn pour(missing: &[Tool]) -> Result<()> {
    let formulas: Vec<&str> = missing.iter().filter_map(|tool| tool.brew).collect();
    if formulas.is_empty() {
        return Ok(());
    }
    let named = formulas.join(" ");
    println!("installing {named} with brew");
    let mut brew = Command::new("brew");
    brew.arg("install").args(&formulas).stdin(Stdio::null());
    run::run(&mut brew).with_context(|| format!("install {named}; try: brew install {named}"))
}
