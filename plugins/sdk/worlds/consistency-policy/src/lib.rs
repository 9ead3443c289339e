//! Generated from the WIT world `consistency-policy`. Each world has a separate crate, because the macros of two worlds
//! would collide in one. The crates of the other worlds use the shared types from here.
wit_bindgen::generate!({
    path: "../../../../wit/0.2.0",
    world: "consistency-policy",
    pub_export_macro: true,
    default_bindings_module: "witan_world_consistency_policy",
});
