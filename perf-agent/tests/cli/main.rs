//! The binary as its users meet it: by command line, signals, files and sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod agent;
mod hostile;
mod lifecycle;
mod server;
mod usage;
