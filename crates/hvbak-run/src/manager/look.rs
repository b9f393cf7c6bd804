//! A stream that is stored is looked through at the same time, on a thread of its own.
//!
//! Invariant: no more than [`WAITING`] pieces wait; who stores waits for who looks.

use std::{
    io::{self, Read},
    sync::mpsc,
};

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::error::{Result, RunError};

/// Pieces that wait to be looked at.
const WAITING: usize = 16;

/// A file looked through on a thread of its own while it passes.
pub struct Look<T> {
    pieces: mpsc::SyncSender<Bytes>,
    report: JoinHandle<io::Result<T>>,
}

impl<T: Send + 'static> Look<T> {
    /// Begins; what `read` is given ends when [`Self::end`] is called.
    pub fn begin(read: impl FnOnce(Pieces) -> io::Result<T> + Send + 'static) -> Self {
        let (pieces, waiting) = mpsc::sync_channel(WAITING);
        let source = Pieces { waiting, piece: Bytes::new() };
        Self { pieces, report: tokio::task::spawn_blocking(move || read(source)) }
    }

    /// Waits when the look is behind. One that has seen enough takes no more.
    pub fn take(&self, bytes: Bytes) {
        let _ = self.pieces.send(bytes);
    }

    /// What was seen.
    pub async fn end(self, doing: &str) -> Result<T> {
        drop(self.pieces);
        let report = self.report.await.map_err(|e| RunError::Task { text: e.to_string() })?;
        report.map_err(|cause| RunError::Local { doing: doing.into(), cause })
    }
}

/// What has passed, as a stream.
pub struct Pieces {
    waiting: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.waiting.recv() {
                Ok(piece) => self.piece = piece,
                // The end; of an attempt that was cut nobody asks the report.
                Err(mpsc::RecvError) => return Ok(0),
            }
        }
        let part = self.piece.split_to(self.piece.len().min(buffer.len()));
        buffer[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}
