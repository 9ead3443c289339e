//! The services of every server besides its own: health and reflection.

use std::net::SocketAddr;

use tokio_stream::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use crate::harness::{Dev, channel};

#[tokio::test]
async fn servers_tell_their_health_and_their_services() {
    let dev = Dev::start().await;
    let coordinator = ["witan.v1.CoordinatorService", "witan.v1.PluginService", "witan.v1.AccessService"];
    let node = ["witan.v1.StorageNodeService"];
    let mut servers: Vec<(SocketAddr, &[&str])> = vec![(dev.address(), &coordinator)];
    servers.extend(dev.nodes().into_iter().map(|address| (address, node.as_slice())));
    for (address, services) in servers {
        for service in services.iter().copied().chain([""]) {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = HealthClient::new(channel(address)).check(request).await.expect("check health").into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{service:?} at {address}");
        }
        let (v1, v1alpha) = (listed_v1(address).await, listed_v1alpha(address).await);
        for listed in [&v1, &v1alpha] {
            for service in services.iter().copied().chain(["grpc.health.v1.Health"]) {
                assert!(listed.iter().any(|name| name == service), "{service} at {address}: {listed:?}");
            }
        }
        for service in services {
            assert!(described(address, service).await > 0, "{service} at {address}");
        }
    }
}

async fn ask_v1(
    address: SocketAddr,
    ask: v1::server_reflection_request::MessageRequest,
) -> v1::ServerReflectionResponse {
    let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel(address));
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("reflection v1");
    answers.into_inner().next().await.expect("an answer").expect("a good one")
}

async fn listed_v1(address: SocketAddr) -> Vec<String> {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    match ask_v1(address, MessageRequest::ListServices(String::new())).await.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => list.service.into_iter().map(|s| s.name).collect(),
        other => panic!("{other:?}"),
    }
}

/// Number of files that describe a symbol.
async fn described(address: SocketAddr, symbol: &str) -> usize {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;
    match ask_v1(address, MessageRequest::FileContainingSymbol(symbol.to_owned())).await.message_response {
        Some(MessageResponse::FileDescriptorResponse(files)) => files.file_descriptor_proto.len(),
        other => panic!("{other:?}"),
    }
}

async fn listed_v1alpha(address: SocketAddr) -> Vec<String> {
    use v1alpha::server_reflection_request::MessageRequest;
    use v1alpha::server_reflection_response::MessageResponse;
    let ask = MessageRequest::ListServices(String::new());
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(ask) };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel(address));
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("reflection v1alpha");
    let answer = answers.into_inner().next().await.expect("an answer").expect("a good one");
    match answer.message_response {
        Some(MessageResponse::ListServicesResponse(list)) => list.service.into_iter().map(|s| s.name).collect(),
        other => panic!("{other:?}"),
    }
}
