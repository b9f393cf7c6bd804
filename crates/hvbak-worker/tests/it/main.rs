//! The real binary over pipes, against chains made by qemu-img and qemu-io in a tree laid
//! out as vdsm lays it out.

// Helpers outside of test functions panic as tests do.
#![allow(clippy::unwrap_used)]

mod block;
mod history;
mod history_corpus;
mod history_disk;
mod history_steps;
mod history_store;
mod hostile;
mod locate;
mod read;
mod support;
mod write;
