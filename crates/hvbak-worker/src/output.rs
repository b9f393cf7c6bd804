//! Frames to stdout, without the standard library's line buffering: it would look for
//! newlines in every megabyte.

use std::{fs::File, io, os::fd::AsFd};

use nix::fcntl::{FcntlArg, fcntl};

use hvbak_wire::{Answer, Encoder, Failed, Hello, Reply, Sealed, write_frame, write_magic};

use crate::error::{Error, Result};

/// Bytes that may wait for sshd: the most that an unprivileged user may ask for.
const PIPE: nix::libc::c_int = 1 << 20;

/// The only writer of stdout.
pub struct Output {
    pipe: File,
}

impl Output {
    /// Takes stdout over.
    ///
    /// # Errors
    /// stdout is closed.
    pub fn stdout() -> io::Result<Self> {
        let pipe = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        // With the usual 64 KiB, writer and sshd wake each other for every cluster. No pipe,
        // or no more than that allowed: slower, not wrong.
        let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
        Ok(Self { pipe })
    }

    /// Magic and hello.
    ///
    /// # Errors
    /// The coordinator is gone.
    pub fn greet(&mut self, hello: &Hello) -> Result<()> {
        write_magic(&mut self.pipe).map_err(|_| Error::Gone)?;
        self.frame(&Encoder::hello(hello)?)
    }

    /// An answer.
    ///
    /// # Errors
    /// The coordinator is gone, or the answer is too large.
    pub fn answer(&mut self, request: u32, answer: Answer) -> Result<()> {
        self.frame(&Encoder::answer(&Reply { request, answer })?)
    }

    /// A failure.
    ///
    /// # Errors
    /// The coordinator is gone.
    pub fn failed(&mut self, failed: &Failed) -> Result<()> {
        self.frame(&Encoder::failed(failed)?)
    }

    /// Any frame.
    ///
    /// # Errors
    /// The coordinator is gone.
    pub fn frame(&mut self, frame: &Sealed) -> Result<()> {
        write_frame(&mut self.pipe, frame).map_err(|_| Error::Gone)
    }
}
