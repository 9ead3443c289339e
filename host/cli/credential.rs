//! The command line's credential: an API token or a web token, from a file or the environment. Never from an argument, which
//! every process on the machine can read.

use std::env::VarError;
use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Global;
use super::endpoint::{self, Endpoint};

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
    /// Whoever is between this machine and the coordinator could read it.
    #[error(
        "--endpoint {0}: the token would be sent in plain text, and everybody on the way could read it and use it; use an https:// \
         endpoint, or pass --allow-plaintext-token (WITAN_ALLOW_PLAINTEXT_TOKEN=true) if the network is trusted"
    )]
    InTheClear(String),
    /// The address to send it to cannot be used.
    #[error(transparent)]
    Endpoint(#[from] endpoint::Unusable),
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
    /// When there is a token that cannot be used, or must not be sent to this endpoint. The message never contains it.
    pub fn of(global: &Global) -> Result<Self, Unusable> {
        let shown = match &global.token_file {
            Some(file) => read(file).and_then(|text| Self::token(&text, &format!("--token-file {}", file.display()))),
            None => match std::env::var(VARIABLE) {
                Ok(text) => Self::token(&text, VARIABLE),
                Err(VarError::NotPresent) => Ok(Self::default()),
                Err(VarError::NotUnicode(_)) => Err(Unusable::NotAToken(VARIABLE.to_owned())),
            },
        }?;
        shown.may_be_sent(&global.endpoint, global.allow_plaintext_token)
    }

    fn may_be_sent(self, endpoint: &str, in_the_clear: bool) -> Result<Self, Unusable> {
        if self.0.is_none() || in_the_clear || Endpoint::parse(endpoint)?.is_private() {
            return Ok(self);
        }
        Err(Unusable::InTheClear(endpoint.to_owned()))
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
    fn a_token_does_not_leave_this_machine_in_plain_text() {
        let send = |endpoint: &str, allowed: bool| {
            Shown::token("witan_a_b", "test")
                .unwrap()
                .may_be_sent(endpoint, allowed)
                .map(drop)
                .map_err(|e| e.to_string())
        };
        for (endpoint, allowed) in
            [("https://far:1", false), ("HTTPS://far:1", false), ("http://[::1]:1", false), ("http://far:1", true)]
        {
            assert_eq!(send(endpoint, allowed), Ok(()), "{endpoint}");
        }
        for endpoint in ["http://far:1", "HTTP://far:1", "http://10.0.0.1:1"] {
            let refused = send(endpoint, false).unwrap_err();
            assert!(refused.contains(endpoint) && refused.contains("--allow-plaintext-token"), "{refused}");
            assert!(!refused.contains("witan_a_b"), "{refused}");
        }
        for endpoint in ["grpcs://far:1", "far:1"] {
            assert!(send(endpoint, false).is_err(), "{endpoint}");
        }
        assert!(Shown::default().may_be_sent("http://far:1", false).is_ok(), "there is nothing to read");
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
