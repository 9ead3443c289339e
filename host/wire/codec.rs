//! The codec of every client and every server of this package: protobuf as ever, but no message is decoded before it has been weighed.

use std::marker::PhantomData;

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::weigh::{Undecodable, Weighed};

/// Encodes messages `T` and decodes messages `U`. A message that is too heavy ends its call, or its stream, with INVALID_ARGUMENT: sent
/// again, it would be refused again. One that is not valid protobuf does with INTERNAL, as in tonic's own codec.
#[derive(Debug, Clone)]
pub struct WeighingCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for WeighingCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static, U: Weighed> Codec for WeighingCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = WeighingDecoder<U>;

    fn encoder(&mut self) -> ProstEncoder<T> {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> WeighingDecoder<U> {
        WeighingDecoder(ProstDecoder::default())
    }
}

/// A message of more bytes must consist of what it says. Parts of it, such as values, take the memory of all of it for as long as they are
/// kept, and are admitted for their own size: one of 10 bytes with 16 MiB of unknown fields around it would take 16 MiB.
const LARGE: usize = 256 << 10;

/// The decoding half.
#[derive(Debug, Clone)]
pub struct WeighingDecoder<U>(ProstDecoder<U>);

impl<U: Weighed> Decoder for WeighingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let wire = buffer.chunk();
        // What is not in this piece would not be weighed; tonic joins a message before it is decoded.
        if wire.len() < buffer.remaining() {
            return Err(Status::internal("the message is not in one piece"));
        }
        let weighed = U::SHAPE.weigh(wire).map_err(|refused| Status::invalid_argument(refused.to_string()))?;
        let bytes = wire.len();
        let decoded = self.0.decode(buffer)?;
        if bytes > LARGE && decoded.as_ref().is_some_and(|decoded| decoded.encoded_len() < bytes / 2) {
            let why = "more than half of the message is in fields that are unknown here, or that it contains again; leave them out";
            return Err(Status::invalid_argument(why));
        }
        weighed.map(|_| decoded).ok_or_else(|| Status::internal(Undecodable::Unweighed.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}
