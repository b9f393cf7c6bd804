//! The room against what real engine-backup programs wrote: archives and transcripts in
//! `tests/fixtures/engine-backup`, and hostile variants of them.
#![allow(clippy::unwrap_used)]

mod archives;
mod fresh;
mod hostile;
mod restore;
mod sequence;
mod support;
mod transcripts;
mod vm_status;
