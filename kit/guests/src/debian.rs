//! A tool chain from Debian's packages, unpacked into the user's cache folder: not installed, because the packages conflict with rustup's
//! and because that would need root. The version is whatever the distribution has.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{output, run, say};

/// The packages that are needed; their dependencies are added where [`FOLLOWED`] says so.
const WANTED: [&str; 3] = ["rustc-web", "libstd-rust-web-dev", "rust-web-src"];
/// Prefixes of the names of libraries that the compiler loads and that a machine may lack.
const FOLLOWED: [&str; 8] =
    ["libstd-rust-web-", "libllvm", "libz3-", "libedit", "libbsd", "libmd0", "libxml2", "libtinfo"];

/// Where the packages were unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    root: PathBuf,
}

/// Unpacks the packages, unless they have been already.
pub(super) fn unpacked() -> Result<Unpacked> {
    let cache = cache_folder()?;
    let apt = Apt::new(&cache)?;
    let root = cache.join(format!("rustc-web-{}", apt.version.replace(['/', ':'], "_")));
    if !root.join("complete").exists() {
        unpack(&apt, &root)?;
    }
    let unpacked = Unpacked { root };
    ensure!(unpacked.rustc().exists(), "{} is not in the packages", unpacked.rustc().display());
    Ok(unpacked)
}

fn unpack(apt: &Apt, root: &Path) -> Result<()> {
    let packages = apt.packages()?;
    say(&format!("fetching {} (about 150 MB) into {}", packages.join(", "), root.display()));
    let debs = root.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("create {}", debs.display()))?;
    run(apt.get().arg("download").args(&packages).current_dir(&debs), "download the packages")?;
    for entry in fs::read_dir(&debs)? {
        let deb = entry?.path();
        say(&format!("unpacking {}", deb.file_name().unwrap_or_default().display()));
        run(Command::new("dpkg").arg("-x").arg(&deb).arg(root), "unpack a package")?;
    }
    fs::remove_dir_all(&debs).with_context(|| format!("remove {}", debs.display()))?;
    fs::write(root.join("complete"), "").context("mark the tool chain as complete")
}

fn cache_folder() -> Result<PathBuf> {
    let user = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")));
    let cache = user.context("find the user's cache folder")?.join("witan").join("guests");
    fs::create_dir_all(&cache).with_context(|| format!("create {}", cache.display()))?;
    Ok(cache)
}

/// apt, with the machine's package lists or, if there are none, with lists that are downloaded into the cache folder.
struct Apt {
    options: Vec<OsString>,
    version: String,
}

impl Apt {
    fn new(cache: &Path) -> Result<Self> {
        let mut apt = Self { options: Vec::new(), version: String::new() };
        if let Some(version) = apt.candidate()? {
            return Ok(Self { version, ..apt });
        }
        let lists = cache.join("lists");
        fs::create_dir_all(lists.join("partial")).context("create a folder for package lists")?;
        for (key, value) in [("Dir::State::lists", &lists), ("Dir::Cache", &cache.to_path_buf())] {
            let mut option = OsString::from(format!("{key}="));
            option.push(value);
            apt.options.extend(["-o".into(), option]);
        }
        if apt.candidate()?.is_none() {
            say("fetching Debian's package lists");
            run(apt.get().arg("update"), "fetch the package lists")?;
        }
        let version = apt.candidate()?.context("rustc-web is not among this system's packages")?;
        Ok(Self { version, ..apt })
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.args(&self.options).arg("--quiet");
        command
    }

    fn cache(&self) -> Command {
        let mut command = Command::new("apt-cache");
        command.args(&self.options).env("LC_ALL", "C");
        command
    }

    /// The version of rustc-web that apt would fetch.
    fn candidate(&self) -> Result<Option<String>> {
        let policy = output(self.cache().args(["policy", WANTED[0]]))?;
        let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:")).map(str::trim);
        Ok(candidate.filter(|version| *version != "(none)").map(str::to_owned))
    }

    /// The wanted packages with their dependencies. One call of apt-cache, because each reads all lists.
    fn packages(&self) -> Result<Vec<String>> {
        let text = output(self.cache().args(["depends", "--recurse", "--important"]).args(WANTED))?;
        let mut depends: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut package = "";
        for line in text.lines() {
            match line.trim().strip_prefix("Depends:") {
                Some(name) => depends.entry(package).or_default().push(name.trim()),
                None if !line.starts_with(' ') => package = line.trim(),
                None => {}
            }
        }
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let mut next = WANTED.to_vec();
        while let Some(package) = next.pop() {
            if known.insert(package) {
                let needed = depends.get(package).into_iter().flatten();
                next.extend(needed.filter(|name| FOLLOWED.iter().any(|start| name.starts_with(start))));
            }
        }
        Ok(known.into_iter().map(str::to_owned).collect())
    }
}

impl Unpacked {
    fn rustc(&self) -> PathBuf {
        self.root.join("usr/bin/rustc")
    }

    /// The folders that hold the compiler's shared libraries.
    fn libraries(&self) -> Result<OsString> {
        let usr = self.root.join("usr/lib");
        let mut folders = vec![usr.clone()];
        for entry in fs::read_dir(&usr).with_context(|| format!("list {}", usr.display()))? {
            let path = entry?.path();
            if path.is_dir() && path.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-gnu")) {
                folders.push(path);
            }
        }
        env::join_paths(folders).context("join the library folders")
    }

    /// Makes a `cargo build` use this compiler, and build the target's standard library from source.
    pub(super) fn apply(&self, cargo: &mut Command) -> Result<()> {
        cargo
            .args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features="])
            .env("LD_LIBRARY_PATH", self.libraries()?)
            .env("RUSTC", self.rustc())
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker()?);
        Ok(())
    }
}

/// The linker of the host's tool chain, or one in the search path.
fn linker() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let host = output(Command::new(&rustc).args(["--print", "host-tuple"]))?;
    let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]))?;
    let bundled = PathBuf::from(sysroot.trim()).join("lib/rustlib").join(host.trim()).join("bin/rust-lld");
    if bundled.exists() {
        return Ok(bundled);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&path).map(|folder| folder.join("wasm-ld"));
    candidates.find(|candidate| candidate.exists()).context("find rust-lld or wasm-ld to link with; install lld")
}
