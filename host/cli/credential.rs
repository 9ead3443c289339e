//! What the command line shows of itself: an API token or a web token, from a file or the environment. Never from an argument,
//! which everybody on the machine can read.

use std::path::Path;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Global;

/// The variable that holds a token.
const VARIABLE: &str = "WITAN_TOKEN";
/// Largest file of a token, in bytes: a web token has some kilobytes.
const FILE_BYTES: u64 = 64 << 10;

/// What is shown with every call; by default, nothing.
#[derive(Clone, Default)]
pub struct Shown(Option<MetadataValue<Ascii>>);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Shown(***)" } else { "Shown(nothing)" })
    }
}

impl Shown {
    /// What `--token-file` or the environment says.
    ///
    /// # Errors
    /// When there is a token that cannot be used; never shows it.
    pub fn of(global: &Global) -> Result<Self, String> {
        match &global.token_file {
            Some(file) => read(file).and_then(|text| Self::token(&text, &format!("--token-file {}", file.display()))),
            None => std::env::var(VARIABLE).map_or_else(|_| Ok(Self::default()), |text| Self::token(&text, VARIABLE)),
        }
    }

    fn token(text: &str, source: &str) -> Result<Self, String> {
        match text.trim() {
            "" if source == VARIABLE => Ok(Self::default()),
            "" => Err(format!("{source}: is empty; put the token into it that `witan token create` has shown")),
            text => {
                let mut value: MetadataValue<Ascii> = format!("Bearer {text}").parse().map_err(|_| {
                    format!("{source}: is no token; put the text into it that was shown, and nothing else")
                })?;
                value.set_sensitive(true);
                Ok(Self(Some(value)))
            }
        }
    }

    /// The header `authorization`, for clients that write their headers themselves.
    pub fn header(&self) -> Option<http::HeaderValue> {
        let value = http::HeaderValue::from_bytes(self.0.as_ref()?.as_bytes());
        value.ok().map(|mut value| {
            value.set_sensitive(true);
            value
        })
    }
}

fn read(file: &Path) -> Result<String, String> {
    let wrong = |error: std::io::Error| format!("--token-file {}: {error}", file.display());
    let length = std::fs::metadata(file).map_err(wrong)?.len();
    if length > FILE_BYTES {
        return Err(format!("--token-file {}: has {length} bytes, and no token has", file.display()));
    }
    std::fs::read_to_string(file).map_err(wrong)
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
            let error = Shown::token(wrong, "--token-file x").unwrap_err();
            assert!(error.contains("--token-file x") && !error.contains("two"), "{error}");
        }
        assert!(Shown::token("", VARIABLE).unwrap().0.is_none());
    }
}
