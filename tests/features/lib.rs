//! One set of features for third-party crates, whichever packages are selected.
//!
//! Cargo compiles a dependency with the features that the selected packages ask for, together. So `cargo test -p witan-coordinate` would
//! compile tokio, syn and everything above them anew after `cargo xtask test`, which selects the whole workspace. The features that
//! other packages of the workspace bring in are asked for here, and this package is a dependency of the tests of those packages that
//! are tested alone; what they ship does not depend on it. `cargo xtask test` checks that nothing is compiled twice.
//!
//! When that check fails after a change of dependencies: `cargo tree -e features -i CRATE`, once with `--workspace` and once with
//! `-p PACKAGE`, shows which features of the named crate differ; they are added to the manifest here.
