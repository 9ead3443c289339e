//! Uploads that are being received: a component in pieces, within bounds of size, number and time, so that uploads which never end take
//! neither the memory nor the places of others.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use witan_kernel::class::Class;
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

/// The places of uploads. Each holds as many bytes as a component of class standard may have; what is larger takes the rest from a stock
/// that all share, as it arrives.
#[derive(Debug)]
pub(crate) struct Uploads {
    places: Arc<Semaphore>,
    /// In units of [`UNIT_BYTES`].
    stock: Arc<Semaphore>,
    of_place: usize,
    most: usize,
}

/// In these units uploads take from the stock, in bytes: the size of a chunk.
const UNIT_BYTES: usize = 1 << 20;

/// An upload that is being received, until its component is staged.
#[derive(Debug)]
pub struct Upload {
    /// What was received, in pieces of [`UNIT_BYTES`]: one that grows would be copied, and take twice its bytes while it is.
    pieces: Vec<Vec<u8>>,
    /// The bytes of all pieces.
    received: usize,
    /// How many bytes there is room for: those of its place, and what it has taken from the stock.
    room: usize,
    of_place: usize,
    most: usize,
    /// A tenant that does not have class interpreted, for which it would have to be.
    without_class: Option<TenantId>,
    until: Instant,
    stock: Arc<Semaphore>,
    _place: OwnedSemaphorePermit,
    taken: Option<OwnedSemaphorePermit>,
}

impl Uploads {
    pub(crate) fn new(limits: &Limits) -> Self {
        let of_place = limits.standard.component();
        let places = (limit::UPLOAD_BYTES / of_place.max(1)).clamp(1, limit::CHANGES_QUEUE);
        let stock = Arc::new(Semaphore::new(limit::UPLOAD_STOCK_BYTES / UNIT_BYTES));
        Self { places: Arc::new(Semaphore::new(places)), stock, of_place, most: limits.largest_component() }
    }

    pub(crate) fn begin(&self) -> Result<Upload, PluginError> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| PluginError::Busy)?;
        Ok(Upload {
            pieces: Vec::new(),
            received: 0,
            room: self.of_place,
            of_place: self.of_place,
            most: self.most,
            without_class: None,
            until: Instant::now() + limit::UPLOAD,
            stock: Arc::clone(&self.stock),
            _place: place,
            taken: None,
        })
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

    /// Whether it may be too large for class standard, if it has this number of bytes (0: that is not known).
    pub fn may_be_large(&self, bytes: u64) -> bool {
        bytes == 0 || bytes > self.of_place as u64
    }

    /// It is for this tenant, which has class standard alone: what is larger is not received.
    pub fn only_standard(&mut self, tenant: TenantId) {
        self.without_class = Some(tenant);
    }

    /// It will have this number of bytes in all.
    ///
    /// # Errors
    /// When a component may not have that many.
    pub fn expect(&self, bytes: u64) -> Result<(), PluginError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.may_have(bytes)
    }

    /// The next piece.
    ///
    /// # Errors
    /// When it makes the component larger than one may be: the rest need not be sent. [`PluginError::Busy`] when large components take all
    /// the room that there is for them.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), PluginError> {
        let bytes = self.received + piece.len();
        self.may_have(bytes)?;
        if bytes > self.room {
            let units = (bytes - self.room).div_ceil(UNIT_BYTES);
            let units = u32::try_from(units).map_err(|_| PluginError::Busy)?;
            let more = Arc::clone(&self.stock).try_acquire_many_owned(units).map_err(|_| PluginError::Busy)?;
            match &mut self.taken {
                Some(taken) => taken.merge(more),
                None => self.taken = Some(more),
            }
            self.room += units as usize * UNIT_BYTES;
        }
        self.add(piece);
        Ok(())
    }

    fn add(&mut self, mut rest: &[u8]) {
        self.received += rest.len();
        while !rest.is_empty() {
            let last = match self.pieces.last_mut().filter(|last| last.len() < last.capacity()) {
                Some(last) => last,
                None => {
                    self.pieces.push(Vec::with_capacity(UNIT_BYTES));
                    continue;
                }
            };
            let (now, later) = rest.split_at(rest.len().min(last.capacity() - last.len()));
            last.extend_from_slice(now);
            rest = later;
        }
    }

    /// What was received so far, joined.
    pub fn received(&mut self) -> &[u8] {
        if self.pieces.len() > 1 {
            let mut whole = Vec::with_capacity(self.received);
            self.pieces.drain(..).for_each(|piece| whole.extend_from_slice(&piece));
            self.pieces.push(whole);
        }
        self.pieces.first().map_or(&[], |whole| &whole[..])
    }

    /// Takes what was received.
    pub fn take(&mut self) -> Bytes {
        self.received();
        let mut whole = self.pieces.pop().unwrap_or_default();
        self.received = 0;
        whole.shrink_to_fit();
        whole.into()
    }

    fn may_have(&self, bytes: usize) -> Result<(), PluginError> {
        if bytes > self.most {
            return Err(PluginError::refused(ComponentError::bytes(bytes, self.most)));
        }
        match &self.without_class {
            Some(tenant) if bytes > self.of_place => Err(PluginError::ClassNotGranted {
                what: "the component".to_owned(),
                tenant: tenant.clone(),
                class: Class::Interpreted,
                reason: format!("{} in class {}", ComponentError::bytes(bytes, self.of_place), Class::Standard),
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uploads_are_bounded_in_number_and_each_in_size() {
        let limits = Limits::default();
        let uploads = Uploads::new(&limits);
        let mut begun: Vec<Upload> = std::iter::from_fn(|| uploads.begin().ok()).collect();
        assert_eq!(begun.len(), limit::CHANGES_QUEUE);
        assert!(matches!(uploads.begin(), Err(PluginError::Busy)), "all places are taken");
        begun.pop();
        let mut first = uploads.begin().expect("a place is free again");
        let most = limits.largest_component();
        assert!(first.expect(most as u64).is_ok() && first.expect(most as u64 + 1).is_err());
        for _ in 0..most / UNIT_BYTES {
            first.push(&[7; UNIT_BYTES]).unwrap();
        }
        let refused = first.push(&[7]).unwrap_err().to_string();
        assert!(refused.contains("at most") && refused.contains(&most.to_string()), "{refused}");
        assert_eq!(first.take().len(), most);
    }

    #[test]
    fn what_is_received_takes_no_more_than_its_pieces() {
        let mut upload = Uploads::new(&Limits::default()).begin().unwrap();
        let sent: Vec<u8> = (0..3 * UNIT_BYTES + 5).map(|at| (at / 7) as u8).collect();
        for (number, piece) in sent.chunks(700_001).enumerate() {
            upload.push(piece).unwrap();
            let kept: usize = upload.pieces.iter().map(Vec::capacity).sum();
            assert!(kept < upload.received + UNIT_BYTES, "{number}: {kept}");
        }
        assert_eq!(upload.received(), sent);
        upload.push(b"and more").unwrap();
        assert_eq!(upload.take(), [&sent[..], b"and more"].concat());
        assert!(upload.take().is_empty() && upload.received().is_empty());
    }

    #[test]
    fn large_uploads_are_bounded_in_their_bytes_and_small_ones_have_room_beside_them() {
        let uploads = Uploads::new(&Limits::default());
        let large = |mut upload: Upload| {
            let pieces = limit::INTERPRETED_BYTES / UNIT_BYTES;
            let pushed = (0..pieces).try_for_each(|_| upload.push(&[7; UNIT_BYTES]));
            pushed.map(|()| upload)
        };
        let (first, second) = (large(uploads.begin().unwrap()).unwrap(), large(uploads.begin().unwrap()).unwrap());
        assert!(matches!(large(uploads.begin().unwrap()), Err(PluginError::Busy)));
        uploads.begin().unwrap().push(&[7; UNIT_BYTES]).unwrap();
        drop(first);
        let third = large(uploads.begin().unwrap()).unwrap();
        drop((second, third));
    }
}
