//! The author's kit: everything between an empty folder and a plugin that can be bound, on the author's machine and without a coordinator.
//!
//! It is a program of its own, so that whoever only runs coordinators compiles and ships none of it. What it says about a component comes
//! from the plugin host's own code: the same rules, the same engine, the same limits, the same probe.
//!
//! Reading order: [`cli`] (the commands), [`language`], [`files`] and [`template`] (what a project is made of), [`bindings`], [`new`],
//! [`project`] (a project found again), [`make`] (`build`), [`subject`] (a component), [`class`] and [`check`], [`case`] and [`verify`]
//! (`test`), [`mod@bench`], [`dev`], [`output`].

pub mod bench;
pub mod bindings;
pub mod case;
pub mod check;
pub mod class;
pub mod cli;
pub mod dev;
pub mod files;
pub mod language;
pub mod make;
pub mod new;
pub mod output;
pub mod project;
pub mod subject;
pub mod template;
pub mod verify;

pub use cli::main;
