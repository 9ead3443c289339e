//! Reads numbers, ids and values from the front of some bytes.

/// Bytes that are read from front to back.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn skip(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (skipped, rest) = self.0.split_at_checked(count).ok_or("it is cut off")?;
        self.0 = rest;
        Ok(skipped)
    }

    pub(super) fn byte(&mut self) -> Result<u8, String> {
        Ok(self.skip(1)?[0])
    }

    /// Seven bits a byte, the lowest first; the eighth says that there are more.
    pub(super) fn number(&mut self) -> Result<u64, String> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = self.byte()?;
            if shift > 63 {
                return Err("a number with too many bytes".to_owned());
            }
            number |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(number);
            }
            shift += 7;
        }
    }

    pub(super) fn id(&mut self) -> Result<[u8; 16], String> {
        let mut id = [0; 16];
        id.copy_from_slice(self.skip(16)?);
        Ok(id)
    }

    /// 0, or the length plus one and the bytes.
    pub(super) fn value(&mut self) -> Result<Option<Vec<u8>>, String> {
        match self.number()? {
            0 => Ok(None),
            length => Ok(Some(self.skip(length as usize - 1)?.to_vec())),
        }
    }

    pub(super) fn end(&self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err("there is something after its end".to_owned()) }
    }
}
