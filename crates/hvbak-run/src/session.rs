//! A conversation with one worker over one SSH connection.
//!
//! One connection per session: a stream that is not read freezes everything else on its
//! connection. Invariants: requests are answered one after the other; a read is complete
//! only when the worker's totals and digest equal ours; dropping a session closes the
//! worker's stdin, on which it stops and leaves.

use bytes::Bytes;
use hvbak_ssh::{Connection, ProcessExit, ProcessStdin, ProcessStdout, Target};
use hvbak_wire::{
    Answer, Decoder, Encoder, End, Event, Failed, Frame, Kind, Op, ReadOptions, Request, Sealed,
    Tally, WireError, choose,
};

use crate::error::{self, Result, RunError};

/// A read that was begun.
pub struct Reading {
    id: u32,
    tally: Tally,
}

/// What a read brings.
pub enum Read {
    Clusters(Frame),
    End(End),
}

/// A running worker.
pub struct Session {
    host: String,
    stdin: ProcessStdin,
    stdout: ProcessStdout,
    exit: ProcessExit,
    decoder: Decoder,
    next_id: u32,
    /// What the worker named as its abilities.
    pub features: Vec<String>,
    /// Whether it works on block domains; a worker keeps to one kind. Not known at first.
    pub block: Option<bool>,
    connection: Connection,
    /// Bytes received and sent, frames included.
    pub received: u64,
    pub sent: u64,
}

impl Session {
    /// Starts `command` and agrees on a protocol version. `waiting` is a login made earlier; one
    /// that has died meanwhile is replaced.
    pub async fn start(
        target: &Target,
        waiting: Option<Connection>,
        command: &str,
    ) -> Result<Self> {
        if let Some(connection) = waiting
            && let Ok(session) = Self::over(connection, &target.name, command).await
        {
            return Ok(session);
        }
        let connect = Connection::connect(target).await;
        let connection = connect.map_err(error::ssh(&target.name, "open a session"))?;
        Self::over(connection, &target.name, command).await
    }

    async fn over(connection: Connection, host: &str, command: &str) -> Result<Self> {
        let host = host.to_owned();
        let process =
            connection.spawn(command).await.map_err(error::ssh(&host, "start the worker"))?;
        let (stdin, stdout, exit) = process.split();
        let mut session = Self {
            host,
            stdin,
            stdout,
            exit,
            decoder: Decoder::with_magic(),
            next_id: 1,
            features: Vec::new(),
            block: None,
            connection,
            received: 0,
            sent: 0,
        };
        let frame = session.frame().await?;
        let hello = frame.hello().map_err(|e| session.wire(&e))?;
        session.features = hello.features.clone();
        let choice = choose(&hello).map_err(|e| session.wire(&e))?;
        let sealed = Encoder::choice(&choice).map_err(|e| session.wire(&e))?;
        session.send(sealed).await?;
        if let Some(why) = choice.refuse {
            return Err(RunError::Protocol { host: session.host, text: why });
        }
        Ok(session)
    }

    fn wire(&self, error: &WireError) -> RunError {
        RunError::Protocol { host: self.host.clone(), text: crate::chain(error) }
    }

    /// The next frame.
    pub async fn frame(&mut self) -> Result<Frame> {
        loop {
            match self.decoder.next().map_err(|e| self.wire(&e))? {
                Event::Frame(frame) => return Ok(frame),
                Event::NeedMore => {}
            }
            match self.stdout.recv().await {
                Ok(Some(bytes)) => {
                    self.received += bytes.len() as u64;
                    self.decoder.push(&bytes);
                }
                Ok(None) => return Err(self.gone()),
                Err(cause) => {
                    return Err(error::ssh(&self.host, "hear the worker")(cause));
                }
            }
        }
    }

    fn gone(&self) -> RunError {
        let said = self.exit.stderr_tail();
        let text = match (self.decoder.finish(), said.trim()) {
            (Err(e), "") => crate::chain(&e),
            (_, "") => "without a word".to_owned(),
            (_, said) => said.lines().last().unwrap_or(said).to_owned(),
        };
        RunError::WorkerGone { host: self.host.clone(), text }
    }

    async fn send(&mut self, sealed: Sealed) -> Result<()> {
        let (buffer, start) = sealed.into_parts();
        let bytes = Bytes::from(buffer).slice(start..);
        self.sent += bytes.len() as u64;
        match self.stdin.write_all(bytes).await {
            Ok(()) => Ok(()),
            Err(hvbak_ssh::Error::CommandGone { .. }) => Err(self.gone()),
            Err(cause) => Err(error::ssh(&self.host, "talk to the worker")(cause)),
        }
    }

    /// Sends a request without waiting for its answer.
    pub async fn request(&mut self, op: Op) -> Result<u32> {
        let id = self.next_id;
        self.next_id += 1;
        let sealed = Encoder::request(&Request { id, op }).map_err(|e| self.wire(&e))?;
        self.send(sealed).await?;
        Ok(id)
    }

    /// Sends a request and waits for its answer. `doing` completes "cannot …".
    pub async fn ask(&mut self, op: Op, doing: &str) -> Result<Answer> {
        let id = self.request(op).await?;
        let frame = self.frame().await?;
        self.answer(&frame, id, doing)
    }

    /// Reads the answer to request `id` out of a frame.
    pub fn answer(&self, frame: &Frame, id: u32, doing: &str) -> Result<Answer> {
        match frame.reply().map_err(|e| self.wire(&e))? {
            Ok((request, answer)) if request == id => Ok(answer),
            Ok((request, _)) => Err(RunError::Protocol {
                host: self.host.clone(),
                text: format!("answer to request {request} where {id} was asked"),
            }),
            Err(failed) => Err(self.failed(failed, doing)),
        }
    }

    fn failed(&self, failed: Failed, doing: &str) -> RunError {
        RunError::Worker {
            host: self.host.clone(),
            doing: doing.to_owned(),
            code: failed.code,
            message: failed.message,
        }
    }

    /// An answer of the wrong kind.
    pub fn unexpected(&self, doing: &str) -> RunError {
        RunError::Protocol {
            host: self.host.clone(),
            text: format!("another answer than expected to `{doing}`"),
        }
    }

    /// Begins to read a range of the open chain; take the frames with [`Session::next`].
    pub async fn read(
        &mut self,
        offset: u64,
        length: u64,
        options: ReadOptions,
    ) -> Result<Reading> {
        let id = self.request(Op::Read { offset, length, options }).await?;
        Ok(Reading { id, tally: Tally::of_range(offset, length) })
    }

    /// The next frame of clusters, or the end, whose sums were compared with ours.
    pub async fn next(&mut self, reading: &mut Reading) -> Result<Read> {
        let doing = "read the disk";
        let frame = self.frame().await?;
        if frame.kind() != Kind::Clusters {
            let Answer::End(end) = self.answer(&frame, reading.id, doing)? else {
                return Err(self.unexpected(doing));
            };
            reading.tally.compare(&end.totals, &end.digest).map_err(|e| self.wire(&e))?;
            return Ok(Read::End(end));
        }
        let clusters = frame.clusters().map_err(|e| self.wire(&e))?;
        if clusters.stream() != reading.id {
            return Err(self.unexpected(doing));
        }
        reading.tally.add(&clusters).map_err(|e| self.wire(&e))?;
        Ok(Read::Clusters(frame))
    }

    /// Gives a frame's buffer back for re-use.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.decoder.recycle(buffer);
    }

    /// Sends a frame of clusters to a target, listening for its failure meanwhile.
    pub async fn put(&mut self, sealed: Sealed) -> Result<()> {
        let (buffer, start) = sealed.into_parts();
        let bytes = Bytes::from(buffer).slice(start..);
        self.sent += bytes.len() as u64;
        tokio::select! {
            // Losing the race leaves a write cut in two: only done when the session is over.
            written = self.stdin.write_all(bytes) => match written {
                Ok(()) => Ok(()),
                Err(hvbak_ssh::Error::CommandGone { .. }) => Err(self.gone()),
                Err(cause) => Err(error::ssh(&self.host, "talk to the worker")(cause)),
            },
            // Cancel-safe: recv takes a message or leaves it. While a target is being
            // filled the worker speaks only to say that it failed.
            heard = self.stdout.recv() => {
                match heard {
                    Ok(Some(bytes)) => self.decoder.push(&bytes),
                    Ok(None) => return Err(self.gone()),
                    Err(cause) => return Err(error::ssh(&self.host, "hear the worker")(cause)),
                }
                let frame = self.frame().await?;
                match frame.reply().map_err(|e| self.wire(&e))? {
                    Err(failed) => Err(self.failed(failed, "write the disk")),
                    Ok(_) => Err(self.unexpected("write the disk")),
                }
            }
        }
    }

    /// Ends the session in peace.
    pub async fn bye(mut self) -> Result<()> {
        let answer = self.ask(Op::Bye, "say goodbye").await?;
        if !matches!(answer, Answer::Farewell(_)) {
            return Err(self.unexpected("say goodbye"));
        }
        drop((self.stdin, self.stdout));
        let _ = self.exit.wait().await;
        self.connection.close().await;
        Ok(())
    }
}
