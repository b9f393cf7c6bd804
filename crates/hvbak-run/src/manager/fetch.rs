//! Files of a run taken home: the archive looked through while it arrives, and encrypted
//! before a byte of it reaches the disk where that is wished; log and output judged as they
//! are, and kept without what looks like a secret.
//!
//! Invariants: what counts is what the manager's own sum says, of the bytes as they are
//! there; no text reaches the disk as it came; an attempt that was cut is forgotten with all that was seen of it.

use std::{io::BufReader, time::Duration};

use bytes::Bytes;
use hvbak_manager::{
    archive::{self, Report},
    remote,
    restore::LogScan,
    scrub::Scrubber,
};
use hvbak_repo::{ManagerStaging, ManagerWriter, PlainSum, Recipients};
use hvbak_types::Digest;
use sha2::{Digest as _, Sha256};

use super::{
    link::{READ_WHOLE, unless_cancelled},
    look::Look,
    run::{ATTEMPTS, Run},
};
use crate::{
    error::{self, Result, RunError},
    job::blocking,
};

/// Bytes of log and output that are kept of a run.
const TEXT_MAX: u64 = 64 << 20;
/// The program's own log, there and here.
const LOG: &str = "engine-backup.log";
const STORING: &str = "store what the manager sends";

/// What is fetched, and what is done with it on the way.
#[derive(Clone, Copy)]
enum Sort<'a> {
    /// A log or an output, up to [`TEXT_MAX`], under this name.
    Text(Text),
    Archive(&'a Recipients),
}

/// A text by the name it is kept under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Log,
    /// Short enough to be held, for whoever judges it.
    Short(&'static str),
}

impl Text {
    fn name(self) -> &'static str {
        match self {
            Self::Log => LOG,
            Self::Short(name) => name,
        }
    }
}

/// What a run printed, as it did: for judges. Whatever of it is told must be scrubbed.
#[derive(Debug, Default)]
pub struct Texts {
    pub stdout: String,
    pub stderr: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Of its log; `None`: it has left none.
    pub log: Option<LogScan>,
}

/// What was seen of a file while it passed.
enum Seen {
    Archive(Box<Report>),
    Log(LogScan),
    Text(Vec<u8>),
}

/// A file that has arrived.
struct Arrived {
    /// As it came.
    plain: PlainSum,
    seen: Seen,
}

impl Run<'_> {
    /// The archive and what is in it; `None`: there is none.
    pub async fn fetch_archive(
        &mut self,
        staging: &mut Option<ManagerStaging>,
        recipients: &Recipients,
    ) -> Result<Option<(PlainSum, Report)>> {
        let arrived = self.fetch(staging, "engine.backup", Sort::Archive(recipients)).await?;
        Ok(arrived.map(|a| match a.seen {
            Seen::Archive(report) => (a.plain, *report),
            Seen::Log(_) | Seen::Text(_) => (a.plain, Report::default()),
        }))
    }

    /// Log and output, as far as there are any.
    pub async fn fetch_texts(&mut self, staging: &mut Option<ManagerStaging>) -> Result<Texts> {
        let mut texts = Texts::default();
        for (from, text) in [
            (LOG, Text::Log),
            ("stdout", Text::Short("stdout.txt")),
            ("stderr", Text::Short("stderr.txt")),
            ("command", Text::Short("command.txt")),
        ] {
            let arrived = self.fetch(staging, from, Sort::Text(text)).await?;
            match arrived.map(|a| a.seen) {
                Some(Seen::Log(scan)) => texts.log = Some(scan),
                Some(Seen::Text(bytes)) => {
                    let said = hvbak_ssh::neutralise(&bytes);
                    match from {
                        "stdout" => texts.stdout = said,
                        "stderr" => texts.stderr = said,
                        _ => texts.command = said.lines().map(ToOwned::to_owned).collect(),
                    }
                }
                Some(Seen::Archive(_)) | None => {}
            }
        }
        Ok(texts)
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
            let (none, doing) = (Bytes::new(), "sum up a file");
            let sum = self.link.feed_within(remote::SUM, &args, &none, READ_WHOLE, doing).await?;
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
                _ => {
                    let pause = Duration::from_secs(u64::from(attempt));
                    unless_cancelled(&self.context.cancel, tokio::time::sleep(pause)).await?;
                }
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
        let (connection, process) = match self.link.stream(remote::SEND, args).await? {
            Ok(parts) => parts,
            Err(cause) => return Ok((stage, Err(cause))),
        };
        let cancel = &self.context.cancel;
        let (stdin, mut stdout, exit) = process.split();
        drop(stdin);
        let mut left = if matches!(sort, Sort::Text(_)) { TEXT_MAX } else { u64::MAX };
        let sent = loop {
            match unless_cancelled(cancel, stdout.recv()).await? {
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
                Ok(None) => break unless_cancelled(cancel, exit.wait()).await?.map(drop),
                Err(cause) => break Err(cause),
            }
        };
        drop(stdout);
        connection.close().await;
        if let Err(cause) = sent {
            return Ok((stage, Err(cause)));
        }
        let (stage, plain, eyes) = blocking(STORING, move || {
            let mut stage = stage;
            let (plain, eyes) = reception.end(&mut stage)?;
            Ok((stage, plain, eyes))
        })
        .await?;
        let seen = match eyes {
            Eyes::Archive(look) => {
                Seen::Archive(Box::new(look.end("look through the archive").await?))
            }
            Eyes::Log(look) => Seen::Log(look.end("look through the log").await?),
            Eyes::Text(bytes) => Seen::Text(bytes),
        };
        Ok((stage, Ok(Arrived { plain, seen })))
    }
}

/// A file on its way to the disk.
struct Reception {
    writer: ManagerWriter,
    hasher: Sha256,
    size: u64,
    eyes: Eyes,
    scrubber: Option<Scrubber>,
}

/// Who looks at it as it came.
enum Eyes {
    Archive(Look<Report>),
    Log(Look<LogScan>),
    Text(Vec<u8>),
}

impl Reception {
    async fn begin(stage: ManagerStaging, sort: Sort<'_>) -> Result<(ManagerStaging, Self)> {
        let recipients = match sort {
            Sort::Archive(recipients) => Some(recipients.clone()),
            Sort::Text(_) => None,
        };
        let name = if let Sort::Text(text) = sort { text.name() } else { "" };
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
        let eyes = match sort {
            Sort::Archive(_) => Eyes::Archive(Look::begin(|pieces| {
                archive::verify(pieces).map_err(|archive::ReadError(cause)| cause)
            })),
            Sort::Text(Text::Log) => {
                Eyes::Log(Look::begin(|pieces| LogScan::read(BufReader::new(pieces))))
            }
            Sort::Text(Text::Short(_)) => Eyes::Text(Vec::new()),
        };
        let scrubber = matches!(sort, Sort::Text(_)).then(Scrubber::default);
        let reception = Self { writer, hasher: Sha256::new(), size: 0, eyes, scrubber };
        Ok((stage, reception))
    }

    fn take(&mut self, bytes: Bytes) -> hvbak_repo::Result<()> {
        self.hasher.update(&bytes);
        self.size += bytes.len() as u64;
        match &mut self.scrubber {
            Some(scrubber) => self.writer.write(&scrubber.take(&bytes))?,
            None => self.writer.write(&bytes)?,
        }
        match &mut self.eyes {
            Eyes::Archive(look) => look.take(bytes),
            Eyes::Log(look) => look.take(bytes),
            Eyes::Text(held) => held.extend_from_slice(&bytes),
        }
        Ok(())
    }

    fn end(mut self, stage: &mut ManagerStaging) -> hvbak_repo::Result<(PlainSum, Eyes)> {
        if let Some(scrubber) = self.scrubber {
            self.writer.write(&scrubber.end())?;
        }
        stage.finish(self.writer)?;
        let sha256 = Digest(self.hasher.finalize().into());
        Ok((PlainSum { size: self.size, sha256 }, self.eyes))
    }
}
