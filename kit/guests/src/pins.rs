//! The pinned versions of other people's tools: one file, `pins.txt`.

/// The file.
const PINS: &str = include_str!("../pins.txt");

/// A package of a registry, at the version that this repository uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin {
    /// `pypi` or `npm`.
    pub registry: &'static str,
    /// Its name there.
    pub package: &'static str,
    /// Its version there.
    pub version: &'static str,
}

impl Pin {
    /// The pin of a package, if there is one.
    pub fn of(package: &str) -> Option<Self> {
        all().find(|pin| pin.package == package)
    }

    /// The package and its version as its installer spells them.
    pub fn spelt(&self) -> String {
        let equals = if self.registry == "npm" { "@" } else { "==" };
        format!("{}{equals}{}", self.package, self.version)
    }

    /// The command that installs it for one user.
    pub fn command(&self) -> String {
        match self.registry {
            "npm" => format!("npm install {}", self.spelt()),
            _ => format!("python3 -m pip install {}", self.spelt()),
        }
    }
}

/// Every pin.
pub fn all() -> impl Iterator<Item = Pin> {
    let lines = PINS.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        Some(Pin { registry: words.next()?, package: words.next()?, version: words.next()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_pin() {
        assert_eq!(all().count(), PINS.lines().filter(|line| !line.starts_with('#')).count());
        for pin in all() {
            assert!(["pypi", "npm"].contains(&pin.registry), "{pin:?}");
            assert!(pin.version.starts_with(|c: char| c.is_ascii_digit()), "{pin:?}");
            assert_eq!(Pin::of(pin.package), Some(pin));
        }
        assert_eq!(Pin::of("gcc"), None);
    }

    #[test]
    fn commands_name_the_version() {
        let zig = Pin::of("ziglang").unwrap();
        assert_eq!(zig.command(), format!("python3 -m pip install ziglang=={}", zig.version));
        let js = Pin { registry: "npm", package: "p", version: "1.0.0" };
        assert_eq!(js.command(), "npm install p@1.0.0");
    }
}
