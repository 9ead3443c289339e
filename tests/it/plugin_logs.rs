//! `TailPluginLogs`: what plugins log, for those who may see the binding, on a running cluster.

use tonic::Code;
use witan_wire::v1;

use crate::harness::{Dev, Guest, PATIENCE, Plugins, Process, Refusal, write};

const POLICY: &str = "consistency-policy";

/// Logs `out` as a warning before each write of 666 bytes.
fn logging() -> Vec<u8> {
    let imports = r#"(import "witan:plugin/host@0.1.0" "log" (func $log (param i32 i32 i32)))"#;
    let body = "(call $log (i32.const 2) (i32.const 200) (i32.const 3))";
    Guest::policy("outspoken", 2).when_triggered(body).with(|guest| guest.imports = imports.into()).build()
}

fn request(tenant: &str, follow: bool) -> v1::TailPluginLogsRequest {
    v1::TailPluginLogsRequest { tenant_id: tenant.to_owned(), hook: POLICY.to_owned(), follow }
}

#[tokio::test]
async fn lines_are_shown_and_followed_and_those_of_others_are_not() {
    let dev = Dev::start().await;
    let (api, plugins) = (dev.api(), Plugins::new(dev.address()));
    api.tenant("t", |_| {}).await;
    let none = plugins.client().tail_plugin_logs(request("t", false)).await.expect_err("nothing is bound");
    assert_eq!(Refusal::from(none).code, Code::NotFound);
    let digest = plugins.send(logging()).await.expect("upload").digest;
    plugins.bind("t", POLICY, &digest).await.expect("bound");
    let mut followed = plugins.client().tail_plugin_logs(request("t", true)).await.expect("followed").into_inner();
    api.write(write("t", "k", "x".repeat(666))).await.expect("write");
    let batch = tokio::time::timeout(PATIENCE, followed.message()).await.expect("in time").expect("a message");
    let line = &batch.expect("lines").lines[0];
    assert_eq!((&*line.severity, &*line.message, &*line.tenant_id), ("warn", "out", "t"), "{line:?}");
    assert_eq!(line.plugin, format!("outspoken@{}", &digest[..12]));

    let mut last = plugins.client().tail_plugin_logs(request("t", false)).await.expect("shown").into_inner();
    assert_eq!(last.message().await.expect("a message").expect("lines").lines.len(), 1);
    assert_eq!(last.message().await.expect("no failure"), None, "it ends after the last line that there is");
    for (tenant, hook) in [("other", POLICY), ("", POLICY), ("t", "routing-hook")] {
        let request = v1::TailPluginLogsRequest { hook: hook.to_owned(), ..request(tenant, false) };
        let refused = plugins.client().tail_plugin_logs(request).await.expect_err("there is no such binding");
        assert_eq!(Refusal::from(refused).code, Code::NotFound, "{tenant:?} {hook}");
    }

    let mut command = Process::witan();
    command.args(["plugin", "logs", POLICY, "--tenant", "t", "--timeout", "60s"]);
    command.env("WITAN_ENDPOINT", format!("http://{}", dev.address())).env_remove("RUST_LOG");
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("joined").expect("run witan");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("warn  outspoken@") && said.ends_with("tenant t: out\n"),
        "{said}"
    );
}
