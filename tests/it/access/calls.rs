//! Every call in the descriptors, with a request that is valid except for its credential.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

/// A call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// "/package.Service/Method".
    pub(super) path: String,
    input: DescriptorProto,
}

/// Every call of a coordinator.
pub(super) fn all() -> Vec<Call> {
    let sets = [witan_wire::v1::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET];
    let mut calls: Vec<Call> = sets.into_iter().flat_map(described).collect();
    calls.retain(|call| !call.path.contains("StorageNodeService"));
    for version in ["v1", "v1alpha"] {
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        calls.push(Call { path, input: DescriptorProto::default() });
    }
    calls
}

fn described(set: &[u8]) -> Vec<Call> {
    let files = FileDescriptorSet::decode(set).expect("descriptors").file;
    let messages: Vec<(String, DescriptorProto)> = files
        .iter()
        .flat_map(|file| {
            file.message_type.iter().map(|each| (format!(".{}.{}", file.package(), each.name()), each.clone()))
        })
        .collect();
    let input =
        |name: &str| messages.iter().find(|(known, _)| known == name).expect("its input is described").1.clone();
    let mut calls = Vec::new();
    for file in &files {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                calls.push(Call { path, input: input(method.input_type()) });
            }
        }
    }
    calls
}

impl Call {
    /// True when its request has a field for a tenant.
    pub(super) fn names_tenant(&self) -> bool {
        self.input.field.iter().any(|field| field.name() == "tenant_id")
    }

    /// A request about `tenant`, with all fields that are checked before access; `token` is the id of a token.
    fn request(&self, tenant: &str, token: &str) -> Bytes {
        let mut bytes = Vec::new();
        for field in &self.input.field {
            let number = u32::try_from(field.number()).expect("a field's number");
            let text = match field.name() {
                "tenant_id" | "confirm" => tenant,
                "key" => "k",
                "hook" => "conflict-resolver",
                "on_fault" => "native",
                "node_id" => "node-9",
                "token_id" => token,
                _ => "",
            };
            match field.r#type() {
                Type::String if !text.is_empty() => {
                    prost::encoding::string::encode(number, &text.to_owned(), &mut bytes)
                }
                Type::Int32 if field.name().ends_with("replication_factor") => {
                    prost::encoding::int32::encode(number, &1, &mut bytes);
                }
                _ => {}
            }
        }
        Bytes::from(bytes)
    }

    /// Makes the call about `tenant`, and returns the refusal, if any. A stream is dropped as soon as it has begun.
    pub(super) async fn make(
        &self,
        channel: &Channel,
        shown: Option<&str>,
        tenant: &str,
        token: &str,
    ) -> Result<(), Status> {
        let mut grpc = Grpc::new(channel.clone());
        grpc.ready().await.expect("the coordinator is reached");
        let mut request = Request::new(tokio_stream::once(self.request(tenant, token)));
        request.set_timeout(crate::harness::PATIENCE);
        if let Some(shown) = shown {
            request.metadata_mut().insert("authorization", shown.parse().expect("a header"));
        }
        let path = self.path.parse().expect("a path");
        grpc.streaming(request, path, Raw).await.map(drop)
    }
}

/// Messages as bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length)))
    }
}
