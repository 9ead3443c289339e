//! The command line's credential: an API token or a web token, from a file or the environment. Never from an argument, which
//! every process on the machine can read.

use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Global;

/// Environment variable that may hold a token.
const VARIABLE: &str = "WITAN_TOKEN";
/// Largest token file, in bytes: a web token has a few kilobytes.
const FILE_BYTES: u64 = 64 << 10;

/// Why a token cannot be shown. Never contains the token.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file cannot be read.
    #[error("--token-file {}: {error}", .file.display())]
    Unreadable {
        /// The file's name.
        file: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is far longer than any token.
    #[error("--token-file {}: has {bytes} bytes, more than any token", .file.display())]
    TooLong {
        /// The file's name.
        file: PathBuf,
        /// Its length, in bytes.
        bytes: u64,
    },
    /// The file is empty.
    #[error("{0}: is empty; put the token into it that `witan token create` has shown")]
    Empty(String),
    /// Its text cannot be a header.
    #[error("{0}: is not a token; put the text into it that was shown, and nothing else")]
    NotAToken(String),
}

/// The token sent with every call; by default, none.
#[derive(Clone, Default)]
pub struct Shown(Option<MetadataValue<Ascii>>);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Shown(***)" } else { "Shown(nothing)" })
    }
}

impl Shown {
    /// The token of `--token-file` or of the environment.
    ///
    /// # Errors
    /// When there is a token that cannot be used. The message never contains it.
    pub fn of(global: &Global) -> Result<Self, Unusable> {
        match &global.token_file {
            Some(file) => read(file).and_then(|text| Self::token(&text, &format!("--token-file {}", file.display()))),
            None => std::env::var(VARIABLE).map_or_else(|_| Ok(Self::default()), |text| Self::token(&text, VARIABLE)),
        }
    }

    fn token(text: &str, source: &str) -> Result<Self, Unusable> {
        match text.trim() {
            "" if source == VARIABLE => Ok(Self::default()),
            "" => Err(Unusable::Empty(source.to_owned())),
            text => {
                let value = format!("Bearer {text}").parse();
                let mut value: MetadataValue<Ascii> = value.map_err(|_| Unusable::NotAToken(source.to_owned()))?;
                value.set_sensitive(true);
                Ok(Self(Some(value)))
            }
        }
    }

    /// The header `authorization`, for clients that write their own headers.
    pub fn header(&self) -> Option<http::HeaderValue> {
        let value = http::HeaderValue::from_bytes(self.0.as_ref()?.as_bytes());
        value.ok().map(|mut value| {
            value.set_sensitive(true);
            value
        })
    }
}

fn read(file: &Path) -> Result<String, Unusable> {
    let unreadable = |error| Unusable::Unreadable { file: file.to_owned(), error };
    let bytes = std::fs::metadata(file).map_err(unreadable)?.len();
    if bytes > FILE_BYTES {
        return Err(Unusable::TooLong { file: file.to_owned(), bytes });
    }
    std::fs::read_to_string(file).map_err(unreadable)
}

impl Interceptor for Shown {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_and_not_printed() {
        let mut shown = Shown::token(" witan_a_b\n", "test").unwrap();
        assert_eq!(format!("{shown:?}"), "Shown(***)");
        let request = shown.call(Request::new(())).unwrap();
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer witan_a_b");
        assert!(!format!("{request:?}").contains("witan_a_b"));
        assert_eq!(shown.header().unwrap(), "Bearer witan_a_b");
    }

    #[test]
    fn what_is_no_token_is_refused_without_being_shown() {
        for wrong in ["", " \n", "two\nlines"] {
            let error = Shown::token(wrong, "--token-file x").unwrap_err().to_string();
            assert!(error.contains("--token-file x") && !error.contains("two"), "{error}");
        }
        assert!(Shown::token("", VARIABLE).unwrap().0.is_none());
    }
}
