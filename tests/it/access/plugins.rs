//! Plugins of tenants: what their administrators may do, and what they learn of others, which is nothing. And signatures.

use bytes::Bytes;
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;
use witan_plugin::Digest;
use witan_plugin::signature::{Statement, public_key};
use witan_wire::v1;
use witan_wire::v1::plugin_service_client::PluginServiceClient;
use witan_wire::v1::upload_plugin_request::Part;

use super::{Guarded, Link, made_beside, text};
use crate::harness::{Guest, Process};

const TOKENS: &str = "  tokens: true\n";
const HOOK: &str = "consistency-policy";

/// The plugin service, as somebody sees it.
pub(super) struct Seen(pub(super) PluginServiceClient<Link>);

pub(super) type Refused = (Code, String);

fn refusal(status: &Status) -> Refused {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> Refused {
    refusal(&result.expect_err("it is refused"))
}

pub(super) fn because(code: Code, reason: &str) -> Refused {
    (code, reason.to_owned())
}

impl Seen {
    async fn send(&self, manifest: v1::UploadPluginManifest, component: &[u8]) -> Result<v1::PluginInfo, Status> {
        let part = |part| v1::UploadPluginRequest { part: Some(part) };
        let chunk = part(Part::Chunk(Bytes::copy_from_slice(component)));
        let parts = tokio_stream::iter([part(Part::Manifest(manifest)), chunk]);
        let answer = self.0.clone().upload_plugin(parts).await?.into_inner();
        Ok(answer.plugin.expect("a plugin"))
    }

    pub(super) async fn upload(&self, tenant: &str, component: &[u8]) -> Result<v1::PluginInfo, Status> {
        let tenant_id = tenant.to_owned();
        self.send(v1::UploadPluginManifest { tenant_id, ..Default::default() }, component).await
    }

    async fn list(&self, tenant: &str) -> Result<Vec<(String, String)>, Status> {
        let request = v1::ListPluginsRequest { tenant_id: tenant.to_owned() };
        let plugins = self.0.clone().list_plugins(request).await?.into_inner().plugins;
        Ok(plugins.into_iter().map(|plugin| (plugin.tenant_id, plugin.name)).collect())
    }

    pub(super) async fn get(&self, tenant: &str, plugin: &str) -> Result<v1::PluginInfo, Status> {
        let request = v1::GetPluginRequest { tenant_id: tenant.to_owned(), plugin: plugin.to_owned() };
        Ok(self.0.clone().get_plugin(request).await?.into_inner().plugin.expect("a plugin"))
    }

    async fn remove(&self, tenant: &str, plugin: &str) -> Result<(), Status> {
        let request = v1::RemovePluginRequest { tenant_id: tenant.to_owned(), plugin: plugin.to_owned() };
        self.0.clone().remove_plugin(request).await.map(drop)
    }

    pub(super) async fn bind(&self, tenant: &str, plugin: &str) -> Result<v1::BindPluginResponse, Status> {
        let (tenant_id, hook, plugin) = (tenant.to_owned(), HOOK.to_owned(), plugin.to_owned());
        let request = v1::BindPluginRequest { tenant_id, hook, plugin, ..Default::default() };
        self.0.clone().bind_plugin(request).await.map(Response::into_inner)
    }

    async fn roll_back(&self, tenant: &str) -> Result<v1::BindPluginResponse, Status> {
        let request =
            v1::RollbackBindingRequest { tenant_id: tenant.to_owned(), hook: HOOK.to_owned(), ..Default::default() };
        self.0.clone().rollback_binding(request).await.map(Response::into_inner)
    }
}

/// Two tenants, whose administrators have a token each, and an operator.
pub(super) struct Scene {
    pub(super) guarded: Guarded,
    pub(super) acme: Seen,
    pub(super) other: Seen,
    pub(super) operator: Seen,
}

impl Scene {
    pub(super) async fn start(more: &str) -> Self {
        let guarded = Guarded::start_with(TOKENS, more).await;
        let admin = async |tenant: &str| {
            guarded.tenant(tenant).await;
            let token = text(&made_beside(&guarded.data(), &["--tenant", tenant, "--scope", "admin"]));
            Seen(guarded.plugins(&token))
        };
        let (acme, other) = (admin("acme").await, admin("other").await);
        let operator = Seen(guarded.plugins(&guarded.operator));
        Self { guarded, acme, other, operator }
    }
}

fn policy(name: &str, required: u8) -> Vec<u8> {
    Guest::policy(name, required).build()
}

fn names(listed: &[(String, String)]) -> Vec<(&str, &str)> {
    let mut names: Vec<_> = listed.iter().map(|(tenant, name)| (tenant.as_str(), name.as_str())).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn an_administrator_has_plugins_of_its_tenant_and_sees_the_operators() {
    let Scene { guarded: _guarded, acme, other, operator } = Scene::start("").await;
    let shared = operator.upload("", &policy("shared", 1)).await.expect("uploaded");
    let own = acme.upload("acme", &policy("own", 1)).await.expect("uploaded");
    assert_eq!((own.tenant_id.as_str(), own.name.as_str(), own.state.as_str()), ("acme", "own", "ready"));
    let newer = acme.upload("acme", &policy("own", 2)).await.expect("uploaded");

    let all = [("", "shared"), ("acme", "own"), ("acme", "own")];
    for tenant in ["", "acme"] {
        assert_eq!(names(&acme.list(tenant).await.expect("listed")), all, "{tenant:?}");
        assert_eq!(acme.get(tenant, "own").await.expect("shown").digest, newer.digest);
        assert_eq!(acme.get(tenant, &own.digest[..10]).await.expect("shown").digest, own.digest);
        assert_eq!(acme.get(tenant, "operator/shared").await.expect("shown").digest, shared.digest);
    }
    assert_eq!(names(&operator.list("").await.expect("listed")), all);
    assert_eq!(names(&operator.list("other").await.expect("listed")), [("", "shared")]);
    assert_eq!(refused(operator.get("", "own").await), because(Code::NotFound, "PLUGIN_NOT_FOUND"));
    assert_eq!(operator.get("acme", "own").await.expect("shown").digest, newer.digest);

    // Bound, replaced, taken back, unbound and removed, all by the tenant itself.
    for plugin in ["own@1.0.0", &own.digest, "shared", "operator/shared"] {
        acme.bind("acme", plugin).await.expect(plugin);
    }
    assert_eq!(refused(acme.remove("acme", &own.digest).await), because(Code::FailedPrecondition, "PLUGIN_IN_USE"));
    let back = acme.roll_back("acme").await.expect("rolled back").binding.expect("a binding");
    assert_eq!(back.digest, own.digest);
    acme.bind("acme", "").await.expect("unbound");
    acme.remove("acme", &own.digest).await.expect("removed");

    // What is for all tenants is the operator's.
    let forbidden = because(Code::PermissionDenied, "FORBIDDEN");
    assert_eq!(refused(acme.upload("", &policy("default", 1)).await), forbidden);
    assert_eq!(refused(acme.remove("", "shared").await), forbidden);
    assert_eq!(refused(acme.bind("", "shared").await), forbidden);
    let unknown = refused(operator.bind("", &newer.digest).await);
    assert_eq!(unknown, because(Code::NotFound, "PLUGIN_NOT_FOUND"), "a default takes the operator's alone");
    let taken = because(Code::AlreadyExists, "PLUGIN_NAME_TAKEN");
    assert_eq!(refused(acme.upload("acme", &policy("shared", 3)).await), taken);
    assert_eq!(refused(operator.upload("", &policy("own", 3)).await), taken);
    other.upload("other", &policy("own", 3)).await.expect("names of tenants are apart");
    let nobody = operator.upload("nobody", &policy("x", 1)).await;
    assert_eq!(refused(nobody), because(Code::NotFound, "TENANT_NOT_FOUND"));
}

#[tokio::test]
async fn a_tenant_learns_nothing_of_the_plugins_of_another() {
    let Scene { guarded: _guarded, acme, other, .. } = Scene::start("").await;
    let component = policy("secret-name", 1);
    let events = v1::WatchPluginEventsRequest { recent: true, tenant_id: "other".to_owned() };
    let mut events = other.0.clone().watch_plugin_events(events).await.expect("watched").into_inner();
    let own = acme.upload("acme", &component).await.expect("uploaded");
    acme.bind("acme", "secret-name").await.expect("bound");

    assert_eq!(other.list("").await.expect("listed"), []);
    // Guesses at what another has fail as those at what nobody has.
    let nothing = Digest::of(b"nothing").to_string();
    let unquoted = |status: Status, guess: &str| (status.code(), status.message().replace(guess, "GUESS"));
    for (guess, never) in [(&own.digest, &nothing), (&"secret-name".to_owned(), &"never-there".to_owned())] {
        for tenant in ["", "other"] {
            let seen = other.get(tenant, guess).await.expect_err("unknown");
            assert_eq!(unquoted(seen, &guess[..16.min(guess.len())]).0, Code::NotFound);
        }
        let (seen, none) = (other.bind("other", guess).await, other.bind("other", never).await);
        let (seen, none) = (seen.expect_err("unknown"), none.expect_err("unknown"));
        assert_eq!(unquoted(seen, guess), unquoted(none, never));
        let (seen, none) = (other.remove("other", guess).await, other.remove("other", never).await);
        let (seen, none) = (seen.expect_err("unknown"), none.expect_err("unknown"));
        assert_eq!(unquoted(seen, guess), unquoted(none, never));
    }
    // The first digits of a digest mean nothing, either.
    let (seen, none) = (other.get("other", &own.digest[..12]).await, other.get("other", &nothing[..12]).await);
    let (seen, none) = (seen.expect_err("unknown"), none.expect_err("unknown"));
    assert_eq!(unquoted(seen, &own.digest[..12]), unquoted(none, &nothing[..12]));
    let forbidden = because(Code::PermissionDenied, "FORBIDDEN");
    assert_eq!(refused(other.get("acme", "secret-name").await), forbidden);
    assert_eq!(refused(other.list("acme").await), forbidden);
    assert_eq!(refused(other.remove("acme", &own.digest).await), forbidden);
    assert_eq!(refused(other.bind("acme", &own.digest).await), forbidden);
    assert_eq!(refused(other.upload("acme", &component).await), forbidden);
    for tenant in ["acme", ""] {
        let request = v1::WatchPluginEventsRequest { recent: true, tenant_id: tenant.to_owned() };
        assert_eq!(refused(other.0.clone().watch_plugin_events(request).await), forbidden);
    }

    // The same bytes are answered as if nobody had them, and removing them takes them from nobody else.
    let theirs = other.upload("other", &component).await.expect("uploaded");
    assert_eq!(v1::PluginInfo { tenant_id: "acme".to_owned(), ..theirs.clone() }, own);
    let mut kinds = Vec::new();
    while kinds.last().is_none_or(|kind| kind != "ready") {
        let event = events.message().await.expect("an event").expect("more");
        assert_eq!(event.tenant_id, "other");
        // Its own guesses, which were refused, name no component.
        if event.kind != "refused" {
            assert_eq!(event.digest, own.digest);
            kinds.push(event.kind);
        }
    }
    assert_eq!(kinds, ["staged", "compiled", "ready"]);
    other.remove("other", &own.digest).await.expect("removed");
    assert_eq!(acme.get("acme", "secret-name").await.expect("still there").digest, own.digest);
}

#[tokio::test]
async fn storms_of_a_tenant_end_at_its_quota() {
    let Scene { guarded: _guarded, acme, other, operator } = Scene::start("").await;
    operator.upload("", &policy("shared", 1)).await.expect("uploaded");
    let mut reasons = Vec::new();
    for number in 0..40 {
        reasons.extend(acme.upload("acme", &policy(&format!("storm-{number}"), 1)).await.err());
    }
    assert_eq!(reasons.len(), 8, "{reasons:?}");
    for reason in &reasons {
        assert_eq!(refusal(reason), because(Code::ResourceExhausted, "PLUGIN_QUOTA_EXCEEDED"));
        assert!(reason.message().contains("32 plugins"), "{reason}");
    }
    // Uploads that never end hold as many places as one tenant may have, and not one beyond.
    let part = |part| v1::UploadPluginRequest { part: Some(part) };
    let manifest = v1::UploadPluginManifest { tenant_id: "acme".to_owned(), ..Default::default() };
    let unfinished = async || {
        let begun = tokio_stream::iter([part(Part::Manifest(manifest.clone()))]);
        let endless = tokio_stream::StreamExt::chain(begun, futures::stream::pending());
        acme.0.clone().upload_plugin(endless).await.map(drop)
    };
    let mut open: Vec<_> = (0..12).map(|_| Box::pin(unfinished())).collect();
    for _ in 0..8 {
        let (ended, _, others) = futures::future::select_all(open).await;
        assert_eq!(refused(ended), because(Code::ResourceExhausted, "OVERLOADED"));
        open = others;
    }
    other.upload("other", &policy("theirs", 1)).await.expect("other tenants have room");
    operator.upload("", &policy("more", 1)).await.expect("and the operator");
    drop(open);
    assert_eq!(acme.list("acme").await.expect("listed").len(), 32 + 2);
}

/// What is written to terminals and logs is chosen by whoever uploads.
#[tokio::test]
async fn names_with_control_characters_and_escapes_are_refused() {
    let Scene { guarded: _guarded, acme, operator, .. } = Scene::start("").await;
    let hostile =
        ["\u{1b}[2J", "a\nb", "a\tb", "a/b", "operator/x", "../x", "a@1", "\u{202e}x", "A", " ", "a\0", "\u{e9}", ""];
    for name in hostile {
        let refused = acme.upload("acme", &policy(name, 1)).await.expect_err(name);
        assert_eq!(refusal(&refused), because(Code::FailedPrecondition, "PLUGIN_REFUSED"), "{name:?}");
        assert!(!refused.message().chars().any(char::is_control), "{refused:?}");
        for tenant in ["", "acme"] {
            let unknown = acme.get(tenant, name).await.expect_err(name);
            assert!(matches!(unknown.code(), Code::InvalidArgument | Code::NotFound), "{name:?}: {unknown}");
            assert!(!unknown.message().chars().any(char::is_control), "{unknown:?}");
        }
        if !name.is_empty() {
            assert!(acme.bind("acme", name).await.is_err() && acme.remove("acme", name).await.is_err(), "{name:?}");
        }
    }
    for tenant in ["a:b", "\u{1b}[2J", "a\nb", &"x".repeat(257)] {
        let invalid = operator.upload(tenant, &policy("x", 1)).await;
        assert_eq!(refused(invalid), because(Code::InvalidArgument, "INVALID_REQUEST"), "{tenant:?}");
    }
    assert_eq!(acme.list("acme").await.expect("listed"), []);
}

const PRIVATE: [u8; 32] = [7; 32];

/// A manifest with a signature of this component, named `own`, for a tenant or for the operator.
fn signed(component: &[u8], tenant: &str, key: &str) -> v1::UploadPluginManifest {
    let owner = (!tenant.is_empty()).then(|| witan_kernel::name::TenantId::new(tenant).expect("valid"));
    let digest = Digest::of(component);
    let said = Statement { digest, name: "own", version: "1.0.0", owner: owner.as_ref() };
    let signature = said.sign(&PRIVATE, key).expect("signed");
    v1::UploadPluginManifest {
        tenant_id: tenant.to_owned(),
        signature: Bytes::copy_from_slice(signature.bytes()),
        key_id: key.to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn where_signatures_are_required_nothing_else_is_accepted() {
    let Scene { guarded: _guarded, acme, other, operator } = Scene::start("plugins:\n  signatures: required\n").await;
    let component = policy("own", 1);
    let not_signed = because(Code::FailedPrecondition, "PLUGIN_SIGNATURE_REFUSED");
    assert_eq!(refused(acme.upload("acme", &component).await), not_signed);
    assert_eq!(refused(acme.send(signed(&component, "acme", "release"), &component).await), not_signed, "no key");
    let add = async |by: &Seen, tenant: &str, id: &str, public: &[u8]| {
        let (tenant_id, key_id, public_key) = (tenant.to_owned(), id.to_owned(), Bytes::copy_from_slice(public));
        let request = v1::AddSigningKeyRequest { tenant_id, key_id, public_key };
        by.0.clone().add_signing_key(request).await.map(drop)
    };
    let public = public_key(&PRIVATE);
    let forbidden = because(Code::PermissionDenied, "FORBIDDEN");
    for tenant in ["", "acme"] {
        assert_eq!(refused(add(&other, tenant, "release", &public).await), forbidden);
    }
    for (id, key) in [("release", &public[1..]), ("release", &[0; 32]), ("re lease", &public), ("\u{1b}[2J", &public)] {
        let invalid = because(Code::InvalidArgument, "INVALID_REQUEST");
        assert_eq!(refused(add(&acme, "acme", id, key).await), invalid, "{id:?}");
    }
    add(&acme, "acme", "release", &public).await.expect("added");
    add(&acme, "acme", "release", &public).await.expect("the same");
    let exists = because(Code::AlreadyExists, "SIGNING_KEY_EXISTS");
    assert_eq!(refused(add(&acme, "acme", "release", &public_key(&[8; 32])).await), exists);
    let listed = async |by: &Seen, tenant: &str| {
        let request = v1::ListSigningKeysRequest { tenant_id: tenant.to_owned() };
        let keys = by.0.clone().list_signing_keys(request).await?.into_inner().keys;
        Ok::<_, Status>(keys.into_iter().map(|key| (key.tenant_id, key.key_id)).collect::<Vec<_>>())
    };
    assert_eq!(listed(&acme, "acme").await.expect("listed"), [("acme".to_owned(), "release".to_owned())]);
    assert_eq!(listed(&other, "other").await.expect("listed"), []);
    assert_eq!(refused(listed(&other, "acme").await), forbidden);

    // Signatures of another component, for another tenant, and for everybody.
    for manifest in [
        signed(&policy("own", 2), "acme", "release"),
        v1::UploadPluginManifest { tenant_id: "acme".to_owned(), ..signed(&component, "other", "release") },
        v1::UploadPluginManifest { tenant_id: "acme".to_owned(), ..signed(&component, "", "release") },
        v1::UploadPluginManifest { key_id: "other".to_owned(), ..signed(&component, "acme", "release") },
    ] {
        assert_eq!(refused(acme.send(manifest, &component).await), not_signed);
    }
    let cut =
        v1::UploadPluginManifest { signature: Bytes::from_static(&[1; 63]), ..signed(&component, "acme", "release") };
    assert_eq!(refused(acme.send(cut, &component).await), because(Code::InvalidArgument, "INVALID_REQUEST"));
    assert_eq!(refused(operator.send(signed(&component, "", "release"), &component).await), not_signed, "its own keys");
    assert_eq!(acme.list("acme").await.expect("listed"), [], "nothing was kept");

    let own = acme.send(signed(&component, "acme", "release"), &component).await.expect("accepted");
    assert_eq!(own.signed_by, "release");
    acme.bind("acme", "own").await.expect("bound");
    let remove = v1::RemoveSigningKeyRequest { tenant_id: "acme".to_owned(), key_id: "release".to_owned() };
    acme.0.clone().remove_signing_key(remove.clone()).await.expect("removed");
    let gone = because(Code::NotFound, "SIGNING_KEY_NOT_FOUND");
    assert_eq!(refused(acme.0.clone().remove_signing_key(remove).await), gone);
    assert_eq!(refused(acme.send(signed(&component, "acme", "release"), &component).await), not_signed);
    assert_eq!(
        refused(acme.bind("acme", &own.digest).await),
        not_signed,
        "bound by digest, it would be another binding"
    );
}

#[tokio::test]
async fn the_command_line_signs_and_manages_keys() {
    let folder = tempfile::tempdir().expect("make a folder");
    let (component, key) = (folder.path().join("own.wasm"), folder.path().join("release.key"));
    std::fs::write(&component, policy("own", 1)).expect("write a file");
    let mut sign = Process::witan();
    sign.args(["plugin", "sign", "--output", "json", "--generate", "--tenant", "acme", "--key"])
        .arg(&key)
        .arg(&component);
    let signed = super::object(&mut sign);
    let public = signed["public_key"].as_str().expect("a public key");
    assert_eq!((signed["key_id"].as_str(), signed["signed"][0]["name"].as_str()), (Some("release"), Some("own")));

    let Scene { guarded, .. } =
        Scene::start(&format!("plugins:\n  signatures: required\n  signing_keys: ['base={public}']\n")).await;
    let token = folder.path().join("operator.token");
    std::fs::write(&token, &guarded.operator).expect("write a file");
    let endpoint = format!("http://{}", guarded.address());
    let witan = |arguments: &[&str]| {
        let mut command = Process::witan();
        command.args(["--endpoint", &endpoint, "--output", "json", "--timeout", "60s", "--token-file"]).arg(&token);
        command.args(arguments);
        command
    };
    let (component, signature) = (component.display().to_string(), format!("{}.sig", component.display()));
    let push = ["plugin", "push", &component, "--tenant", "acme", "--signature", &signature];
    let refused = witan(&push).output().expect("run witan");
    let said = String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("PLUGIN_SIGNATURE_REFUSED"), "{said}");
    super::object(&mut witan(&["plugin", "keys", "add", "release", public, "--tenant", "acme"]));
    let pushed = super::object(&mut witan(&push));
    assert_eq!(pushed["plugins"][0]["signed_by"], "release");
    let shown = super::object(&mut witan(&["plugin", "show", "own", "--tenant", "acme"]));
    assert_eq!((shown["tenant_id"].as_str(), shown["signed_by"].as_str()), (Some("acme"), Some("release")));
    let listed = super::object(&mut witan(&["plugin", "keys", "list"]));
    let ids: Vec<_> = listed["keys"].as_array().expect("keys").iter().map(|key| key["key_id"].as_str()).collect();
    assert_eq!(ids, [Some("base"), Some("release")]);
    super::object(&mut witan(&["plugin", "keys", "remove", "release", "--tenant", "acme"]));
    super::object(&mut witan(&["plugin", "remove", "own", "--tenant", "acme"]));
    let configured = witan(&["plugin", "keys", "remove", "base"]).output().expect("run witan");
    assert!(!configured.status.success());
}

#[tokio::test]
async fn a_tenants_pushes_that_nobody_waits_for_are_bounded_too() {
    let Scene { guarded: _guarded, acme, other, .. } = Scene::start("").await;
    let sum = "(i32.add (local.get 0) (i32.mul (local.get 0) ".repeat(40) + "(local.get 0)" + &"))".repeat(40);
    let function = format!("(func (param i32) (result i32) {sum})");
    let slow = |number: usize| {
        let guest = Guest::policy(&format!("slow-{number}"), 1);
        guest.with(|guest| guest.fields += &function.repeat(1500)).build()
    };
    let components: Vec<Vec<u8>> = (0..5).map(slow).collect();
    let manifest = |tenant: &str| v1::UploadPluginManifest {
        tenant_id: tenant.to_owned(),
        wait: Some(false),
        ..Default::default()
    };
    for component in &components[..4] {
        let begun = acme.send(manifest("acme"), component).await.expect("begun");
        assert_eq!(begun.state, "staged");
    }
    let fifth = acme.send(manifest("acme"), &components[4]).await;
    assert_eq!(refused(fifth), because(Code::ResourceExhausted, "OVERLOADED"), "each holds a place until it has ended");
    let elsewhere = other.send(manifest("other"), &policy("own", 1)).await.expect("another tenant has its own share");
    assert!(refused(acme.get("acme", &elsewhere.digest).await).0 == Code::NotFound, "and nobody else's are seen");
}
