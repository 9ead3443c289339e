use std::convert::Infallible;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::body::Body;
use tonic::codec::Codec;
use tonic_types::StatusExt;
use witan_kernel::name::NodeId;
use witan_memory::MemoryPlugins;
use witan_plugin::signature::Signatures;
use witan_plugin::{Limits, Settings};
use witan_wire::codec::WeighingCodec;
use witan_wire::v1::upload_plugin_request::Part;

use super::library::{component, manifest};
use super::*;

fn framed(part: Part) -> Bytes {
    let message = v1::UploadPluginRequest { part: Some(part) };
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// Chunks that arrive one a second, and never end.
fn endless() -> Streaming<v1::UploadPluginRequest> {
    let manifest = framed(Part::Manifest(v1::UploadPluginManifest::default()));
    let chunks = futures::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((framed(Part::Chunk(Bytes::from_static(b"slow"))), ()))
    });
    let parts = tokio_stream::iter([manifest]).chain(chunks).map(Ok::<_, Infallible>);
    let body = Body::new(axum::body::Body::from_stream(parts));
    let mut codec = WeighingCodec::<v1::UploadPluginRequest, v1::UploadPluginRequest>::default();
    Streaming::new_request(codec.decoder(), body, None, None)
}

/// It holds one of a few places, so that it must not go on for ever, although something arrives all the time.
#[tokio::test(start_paused = true)]
async fn an_upload_that_does_not_end_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let (data_dir, limits) = (folder.path().to_owned(), Limits::default());
    let settings = Settings {
        data_dir,
        folder: None,
        limits,
        coordinator: NodeId::new("c").unwrap(),
        compiler: "no-compiler".into(),
        signatures: Signatures::default(),
    };
    let host = PluginHost::start(settings, Arc::new(MemoryPlugins::default())).unwrap();
    let began = tokio::time::Instant::now();
    let mut upload = host.begin_upload().unwrap();
    let mut parts = endless();
    let manifest = manifest(&mut parts, &upload).await.unwrap();
    let refused = component(&mut parts, &manifest, &mut upload).await.unwrap_err();
    let reason = refused.get_details_error_info().unwrap().reason;
    assert_eq!((refused.code(), reason.as_str()), (Code::DeadlineExceeded, "DEADLINE"), "{refused}");
    assert_eq!(began.elapsed().as_secs(), 60, "{refused}");
    assert!(upload.received().starts_with(b"slow"), "what arrived before that was received");
}
