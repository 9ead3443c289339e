//! Generated from the WIT world `consistency-policy`. A crate of its own, because two worlds' macros would collide in one.
//! The other worlds' crates take the shared types from here.
wit_bindgen::generate!({
    path: "../../../../wit/0.1.0",
    world: "consistency-policy",
    pub_export_macro: true,
    default_bindings_module: "witan_world_consistency_policy",
});
