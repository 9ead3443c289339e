//! Generated from the WIT world `routing-hook`. Each world has a separate crate, because the macros of two worlds
//! would collide in one. The types that worlds share come from the crate of `consistency-policy`.
wit_bindgen::generate!({
    path: "../../../../wit/0.2.0",
    world: "routing-hook",
    pub_export_macro: true,
    default_bindings_module: "witan_world_routing_hook",
    with: {
        "witan:plugin/types@0.2.0": witan_world_consistency_policy::witan::plugin::types,
        "witan:plugin/host@0.2.0": witan_world_consistency_policy::witan::plugin::host,
    },
});
