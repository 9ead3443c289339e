//! The secret by which nodes recognize coordinators where they do not use client certificates.

use std::fmt;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};

use crate::file::{FileError, Named};
use crate::reload::{Made, Reloaded, Watched};
use crate::watch::Snapshot;

/// The metadata key under which a coordinator sends it.
pub const HEADER: &str = "witan-node-secret";

/// Shortest secret, in bytes: shorter ones can be guessed.
const LEAST_BYTES: usize = 16;
/// Longest secret, in bytes: what fits comfortably into a header.
const MOST_BYTES: usize = 512;
/// Most secrets in a file: the one that is sent, and others that are still accepted.
const MOST_LINES: usize = 4;

/// A shared secret, reloaded when its file changes. A coordinator sends the first line of the file and a node accepts any line, so
/// a secret can be changed without an interruption: add the new one as a second line at the nodes, then replace it at the
/// coordinators, then remove the old one at the nodes.
#[derive(Clone)]
pub struct SharedSecret(Arc<Reloaded<Vec<HeaderValue>>>);

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedSecret(***)")
    }
}

impl SharedSecret {
    /// Reads the file, which the setting `field` names, and starts watching it. Blocks: for the start of a process.
    pub fn open(path: &Path, field: &'static str) -> Result<Self, FileError> {
        let file = Named::new(field, path);
        let paths = vec![file.path.clone()];
        let make = move |snapshot: &Snapshot| {
            let lines = parse(snapshot.content(&file)?);
            let value = lines.map_err(|why| FileError::Unusable { file: file.clone(), why })?;
            Ok(Made { value, expiries: Vec::new() })
        };
        Reloaded::open("the secret that coordinators and nodes share", paths, make).map(Self)
    }

    /// Adds the secret to the headers of a call.
    pub fn show(&self, headers: &mut HeaderMap) {
        if let Some(shown) = self.0.current().value.first() {
            headers.insert(HEADER, shown.clone());
        }
    }

    /// Whether the headers of a call contain an accepted secret. Takes the same time wherever a wrong one differs.
    pub fn is_shown(&self, headers: &HeaderMap) -> bool {
        let Some(shown) = headers.get(HEADER) else { return false };
        let known = self.0.current();
        known.value.iter().fold(false, |found, known| equal(shown.as_bytes(), known.as_bytes()) | found)
    }

    /// For metrics.
    pub fn watched(&self) -> Arc<dyn Watched> {
        Arc::clone(&self.0) as Arc<dyn Watched>
    }
}

fn parse(content: &[u8]) -> Result<Vec<HeaderValue>, String> {
    const REMEDY: &str = "make one with: openssl rand -hex 32";
    let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let secrets: Vec<HeaderValue> = lines
        .take(MOST_LINES + 1)
        .map(|line| match line.len() {
            0..LEAST_BYTES => Err(format!("a secret has at least {LEAST_BYTES} characters; {REMEDY}")),
            LEAST_BYTES..=MOST_BYTES => secret(line).ok_or_else(|| format!("a secret must be visible ASCII; {REMEDY}")),
            _ => Err(format!("a secret has at most {MOST_BYTES} characters; {REMEDY}")),
        })
        .collect::<Result<_, _>>()?;
    match secrets.len() {
        0 => Err(format!("is empty; {REMEDY}")),
        1..=MOST_LINES => Ok(secrets),
        _ => Err(format!("has more than {MOST_LINES} lines; the first is sent, the others are still accepted")),
    }
}

fn secret(line: &[u8]) -> Option<HeaderValue> {
    let visible = line.iter().all(u8::is_ascii_graphic);
    let mut value = HeaderValue::from_bytes(line).ok().filter(|_| visible)?;
    value.set_sensitive(true);
    Some(value)
}

/// Compares in constant time.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0_u8, |differing, (a, b)| black_box(differing | (a ^ b)));
    a.len() == b.len() && black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_line_is_taken_and_the_first_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "first-secret-0000\n\nother-secret-0000\n").unwrap();
        let secret = SharedSecret::open(&path, "--shared-secret-file").unwrap();
        let mut headers = HeaderMap::new();
        assert!(!secret.is_shown(&headers));
        secret.show(&mut headers);
        assert_eq!(headers[HEADER], "first-secret-0000");
        assert!(secret.is_shown(&headers));
        for (shown, taken) in
            [("other-secret-0000", true), ("other-secret-0001", false), ("other-secret-000", false), ("", false)]
        {
            headers.insert(HEADER, HeaderValue::from_static(shown));
            assert_eq!(secret.is_shown(&headers), taken, "{shown}");
        }
        assert!(!format!("{secret:?} {headers:?}").contains("first"), "{secret:?}");
    }

    #[test]
    fn what_is_no_secret_is_refused_with_a_remedy() {
        for wrong in [
            "",
            "\n \n",
            "short",
            "with a blank in the middle",
            "ümlaut-ümlaut-ümlaut",
            "one-line-too-many\n".repeat(5).as_str(),
        ] {
            let why = parse(wrong.as_bytes()).unwrap_err();
            assert!(why.contains("openssl") || why.contains("lines"), "{wrong:?}: {why}");
        }
        assert!(parse(&[b'x'; 600]).is_err());
    }
}
