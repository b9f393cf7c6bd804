//! Files of a run taken home: the archive looked through while it arrives, and encrypted
//! before a byte of it reaches the disk where that is wished; log and output without what
//! looks like a secret.
//!
//! Invariants: what counts is what the manager's own sum says, of the bytes as they are
//! there; an attempt that was cut is forgotten with all that was seen of it.

use std::{
    io::{self, Read},
    sync::mpsc,
    time::Duration,
};

use bytes::Bytes;
use hvbak_manager::{
    archive::{self, Report},
    remote,
    scrub::Scrubber,
};
use hvbak_repo::{ManagerStaging, ManagerWriter, PlainSum, Recipients};
use hvbak_types::Digest;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use super::run::{ATTEMPTS, Run};
use crate::{
    error::{self, Result, RunError},
    job::blocking,
};

/// Bytes of log and output that are kept of a run.
const TEXT_MAX: u64 = 64 << 20;
/// Pieces that wait to be looked at.
const WAITING: usize = 16;
const STORING: &str = "store what the manager sends";

/// What is fetched, and what is done with it on the way.
#[derive(Clone, Copy)]
enum Sort<'a> {
    /// A log or an output, up to [`TEXT_MAX`], under this name.
    Text(&'static str),
    Archive(&'a Recipients),
}

/// A file that has arrived.
struct Arrived {
    /// As it came.
    plain: PlainSum,
    /// Of an archive.
    report: Option<Report>,
}

impl Run<'_> {
    /// The archive and what is in it; `None`: there is none.
    pub async fn fetch_archive(
        &mut self,
        staging: &mut Option<ManagerStaging>,
        recipients: &Recipients,
    ) -> Result<Option<(PlainSum, Report)>> {
        let arrived = self.fetch(staging, "engine.backup", Sort::Archive(recipients)).await?;
        Ok(arrived.map(|a| (a.plain, a.report.unwrap_or_default())))
    }

    /// Log and output, as far as there are any.
    pub async fn fetch_texts(
        &mut self,
        staging: &mut Option<ManagerStaging>,
    ) -> Result<(String, String, Vec<String>)> {
        for (from, to) in [
            ("engine-backup.log", "engine-backup.log"),
            ("stdout", "stdout.txt"),
            ("stderr", "stderr.txt"),
            ("command", "command.txt"),
        ] {
            self.fetch(staging, from, Sort::Text(to)).await?;
        }
        let read = |name: &str| {
            let path = staging.as_ref().map(|s| s.path_of(name));
            let bytes = path.and_then(|p| std::fs::read(p).ok()).unwrap_or_default();
            hvbak_ssh::neutralise(&bytes)
        };
        let command = read("command.txt").lines().map(ToOwned::to_owned).collect();
        Ok((read("stdout.txt"), read("stderr.txt"), command))
    }

    /// Fetches a file into the staging area and compares its sum. `None`: there is none.
    async fn fetch(
        &mut self,
        staging: &mut Option<ManagerStaging>,
        from: &str,
        sort: Sort<'_>,
    ) -> Result<Option<Arrived>> {
        let base = self.base.clone();
        let point = self.point.clone();
        let args = [base.as_str(), point.as_str(), from];
        let mut attempt = 0;
        loop {
            attempt += 1;
            let sum = self.link.script(remote::SUM, &args, "sum up a file").await?;
            if !sum.status.success() {
                return Ok(None);
            }
            let sum: String = sum.text().chars().take_while(char::is_ascii_hexdigit).collect();
            let Some(stage) = staging.take() else { return Ok(None) };
            let (stage, result) = self.transfer(stage, &args, sort).await?;
            *staging = Some(stage);
            let capped = |size| matches!(sort, Sort::Text(_)) && size == TEXT_MAX;
            match result {
                Ok(a) if a.plain.sha256.to_string() == sum || capped(a.plain.size) => {
                    return Ok(Some(a));
                }
                Ok(_) if attempt >= ATTEMPTS => {
                    return Err(RunError::ManagerTransfer {
                        manager: self.link.name.clone(),
                        file: from.to_owned(),
                    });
                }
                Err(cause) if attempt >= ATTEMPTS || !cause.retryable() => {
                    return Err(error::ssh(&self.link.name, "fetch a file")(cause));
                }
                _ => tokio::time::sleep(Duration::from_secs(u64::from(attempt))).await,
            }
        }
    }

    /// One attempt; the outer error is of the repository, the inner one of the way.
    async fn transfer(
        &mut self,
        stage: ManagerStaging,
        args: &[&str],
        sort: Sort<'_>,
    ) -> Result<(ManagerStaging, std::result::Result<Arrived, hvbak_ssh::Error>)> {
        let (stage, mut reception) = Reception::begin(stage, sort).await?;
        let (connection, process) = match self.link.stream(remote::SEND, args).await {
            Ok(parts) => parts,
            Err(cause) => return Ok((stage, Err(cause))),
        };
        let (stdin, mut stdout, exit) = process.split();
        drop(stdin);
        let mut left = if matches!(sort, Sort::Text(_)) { TEXT_MAX } else { u64::MAX };
        let sent = loop {
            let data = tokio::select! {
                data = stdout.recv() => data,
                () = self.context.cancel.cancelled() => return Err(RunError::Cancelled),
            };
            match data {
                Ok(Some(data)) => {
                    let part = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
                    left -= part as u64;
                    reception = blocking(STORING, move || {
                        reception.take(data.slice(..part))?;
                        Ok(reception)
                    })
                    .await?;
                    if left == 0 {
                        break Ok(());
                    }
                }
                Ok(None) => break exit.wait().await.map(drop),
                Err(cause) => break Err(cause),
            }
        };
        drop(stdout);
        connection.close().await;
        if let Err(cause) = sent {
            return Ok((stage, Err(cause)));
        }
        let (stage, plain, look) = blocking(STORING, move || {
            let mut stage = stage;
            let (plain, look) = reception.end(&mut stage)?;
            Ok((stage, plain, look))
        })
        .await?;
        let report = match look {
            Some(look) => Some(look.end().await?),
            None => None,
        };
        Ok((stage, Ok(Arrived { plain, report })))
    }
}

/// A file on its way to the disk.
struct Reception {
    writer: ManagerWriter,
    hasher: Sha256,
    size: u64,
    look: Option<Look>,
    scrubber: Option<Scrubber>,
}

impl Reception {
    async fn begin(stage: ManagerStaging, sort: Sort<'_>) -> Result<(ManagerStaging, Self)> {
        let recipients = match sort {
            Sort::Archive(recipients) => Some(recipients.clone()),
            Sort::Text(_) => None,
        };
        let name = if let Sort::Text(name) = sort { name } else { "" };
        let (stage, writer) = blocking(STORING, move || {
            let mut stage = stage;
            let writer = match recipients {
                None => {
                    stage.discard(name)?;
                    stage.create(name)?
                }
                Some(recipients) => {
                    stage.discard_archive()?;
                    stage.create_archive(&recipients)?
                }
            };
            Ok((stage, writer))
        })
        .await?;
        let is_text = matches!(sort, Sort::Text(_));
        let reception = Self {
            writer,
            hasher: Sha256::new(),
            size: 0,
            look: (!is_text).then(Look::begin),
            scrubber: is_text.then(Scrubber::default),
        };
        Ok((stage, reception))
    }

    fn take(&mut self, bytes: Bytes) -> hvbak_repo::Result<()> {
        self.hasher.update(&bytes);
        self.size += bytes.len() as u64;
        match &mut self.scrubber {
            Some(scrubber) => self.writer.write(&scrubber.take(&bytes))?,
            None => self.writer.write(&bytes)?,
        }
        if let Some(look) = &self.look {
            look.take(bytes);
        }
        Ok(())
    }

    fn end(mut self, stage: &mut ManagerStaging) -> hvbak_repo::Result<(PlainSum, Option<Look>)> {
        if let Some(scrubber) = self.scrubber {
            self.writer.write(&scrubber.end())?;
        }
        stage.finish(self.writer)?;
        let sha256 = Digest(self.hasher.finalize().into());
        Ok((PlainSum { size: self.size, sha256 }, self.look))
    }
}

/// The archive looked through on a thread of its own while it passes.
struct Look {
    pieces: mpsc::SyncSender<Bytes>,
    report: JoinHandle<Result<Report, archive::ReadError>>,
}

impl Look {
    fn begin() -> Self {
        let (pieces, waiting) = mpsc::sync_channel(WAITING);
        let source = Pieces { waiting, piece: Bytes::new() };
        Self { pieces, report: tokio::task::spawn_blocking(move || archive::verify(source)) }
    }

    /// Waits when the look is behind. One that has seen enough takes no more.
    fn take(&self, bytes: Bytes) {
        let _ = self.pieces.send(bytes);
    }

    async fn end(self) -> Result<Report> {
        drop(self.pieces);
        let report = self.report.await.map_err(|e| RunError::Task { text: e.to_string() })?;
        report.map_err(|archive::ReadError(cause)| RunError::Local {
            doing: "look through the archive".into(),
            cause,
        })
    }
}

struct Pieces {
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
