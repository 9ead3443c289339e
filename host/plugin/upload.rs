//! Uploads that are being received: a component in pieces, within bounds of size, number and time, so that uploads which never end take
//! neither the memory nor the places of others.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use witan_kernel::name::TenantId;

use crate::error::PluginError;
use crate::limit::{self, Limits};
use crate::signature::Signature;
use crate::validate::ComponentError;

/// A component that is to be staged.
#[derive(Debug, Clone)]
pub struct Push {
    /// The tenant that it will belong to; `None`: the operator.
    pub owner: Option<TenantId>,
    /// The component.
    pub bytes: Bytes,
    /// Its signature, if it is signed.
    pub signature: Option<Signature>,
}

/// One of the operator's, not signed.
impl From<Bytes> for Push {
    fn from(bytes: Bytes) -> Self {
        Self { owner: None, bytes, signature: None }
    }
}

/// The places of uploads. Each holds as many bytes as a component may have.
#[derive(Debug)]
pub(crate) struct Uploads {
    places: Arc<Semaphore>,
    most: usize,
}

/// An upload that is being received, until its component is staged.
#[derive(Debug)]
pub struct Upload {
    bytes: BytesMut,
    most: usize,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

impl Uploads {
    pub(crate) fn new(limits: &Limits) -> Self {
        let places = (limit::UPLOAD_BYTES / limits.artifact.max(1)).clamp(1, limit::CHANGES_QUEUE);
        Self { places: Arc::new(Semaphore::new(places)), most: limits.artifact }
    }

    pub(crate) fn begin(&self) -> Result<Upload, PluginError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| PluginError::Busy)?;
        Ok(Upload { bytes: BytesMut::new(), most: self.most, until: Instant::now() + limit::UPLOAD, _place: place })
    }
}

impl Upload {
    /// When it is given up if it is not complete.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// The time that it has in all.
    pub fn within(&self) -> Duration {
        limit::UPLOAD
    }

    /// It will have this number of bytes in all.
    ///
    /// # Errors
    /// When a component may not have that many.
    pub fn expect(&self, bytes: u64) -> Result<(), PluginError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > self.most { Err(self.too_large(bytes)) } else { Ok(()) }
    }

    /// The next piece.
    ///
    /// # Errors
    /// When it makes the component larger than one may be: the rest need not be sent.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), PluginError> {
        let bytes = self.bytes.len() + piece.len();
        if bytes > self.most {
            return Err(self.too_large(bytes));
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// What was received so far.
    pub fn received(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes what was received.
    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes).freeze()
    }

    fn too_large(&self, bytes: usize) -> PluginError {
        PluginError::refused(ComponentError::Bytes { bytes, limit: self.most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_bounded_in_number_and_each_in_size() {
        let limits = Limits { artifact: limit::UPLOAD_BYTES / 2, ..Limits::default() };
        let uploads = Uploads::new(&limits);
        let (mut first, second) = (uploads.begin().unwrap(), uploads.begin().unwrap());
        assert!(matches!(uploads.begin(), Err(PluginError::Busy)), "all bytes are spoken for");
        drop(second);
        uploads.begin().expect("its place is free again");
        first.push(&vec![7; limits.artifact]).unwrap();
        let refused = first.push(&[7]).unwrap_err().to_string();
        assert!(refused.contains("at most") && refused.contains(&limits.artifact.to_string()), "{refused}");
        assert!(first.expect(limits.artifact as u64).is_ok() && first.expect(limits.artifact as u64 + 1).is_err());
        assert_eq!(first.take().len(), limits.artifact);
    }
}
