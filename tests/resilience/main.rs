//! What happens when backends die, refuse, are full, or come and go, under load, with the real
//! program and with backends that are processes of their own and can be killed.
//!
//! A backend is this very test program, run again with [`child::ROLE`] in its environment.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]
#![allow(dead_code, unused_imports, reason = "the other suites use more of the shared support")]

#[path = "../support/mod.rs"]
mod support;

mod child;
mod load;

mod budget;
mod caps;
mod death;
mod queue;
mod rolling;
