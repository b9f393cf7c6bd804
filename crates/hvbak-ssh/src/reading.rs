//! The tasks that serve a running command over an SSH channel.
//!
//! A channel nobody reads freezes its connection, so a task of its own always reads, keeps
//! a bounded queue for the consumer and throws output away once the consumer has dropped
//! it. Invariant: the stage is set before the queue ends, or a cut stream would look
//! finished.

use std::sync::{Arc, Mutex, PoisonError, atomic::Ordering};

use bytes::Bytes;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig, client::Msg};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    connect::Inner,
    error::{Error, Result},
    output::{ExitStatus, Output, neutralise},
    process::{
        Alive, LINGER, Process, ProcessExit, ProcessStdin, ProcessStdout, Shared, Stage, ended,
    },
    transport::{BoxFuture, Outlet},
};

/// Messages (each up to 32 KiB) between the reading task and the consumer.
const QUEUE: usize = 32;

/// The writing end in russh.
struct RusshOutlet(Arc<ChannelWriteHalf<Msg>>);

impl Outlet for RusshOutlet {
    fn send(&mut self, data: Bytes) -> BoxFuture<'_, Result<(), ()>> {
        Box::pin(async { self.0.data_bytes(data).await.map_err(drop) })
    }

    fn eof(&mut self) -> BoxFuture<'_, Result<(), ()>> {
        Box::pin(async { self.0.eof().await.map_err(drop) })
    }
}

/// Opens a channel, starts `command` and the tasks that serve it.
pub(crate) async fn start(inner: &Arc<Inner>, command: &str, stream: bool) -> Result<Process> {
    let limit = inner.options.connect_timeout;
    let opening = async {
        let channel = inner.open_channel().await?;
        let (mut read, write) = channel.split();
        write.exec(true, command).await.map_err(|_| inner.lost())?;
        loop {
            match read.wait().await {
                Some(ChannelMsg::Success) => return Ok((read, write)),
                Some(ChannelMsg::WindowAdjusted { .. }) => {}
                None => return Err(inner.lost()),
                _ => return Err(Error::ExecRefused { host: inner.host.clone() }),
            }
        }
    };
    let (read, write) = match tokio::time::timeout(limit, opening).await {
        Ok(opened) => opened?,
        Err(_) => {
            return Err(Error::ConnectTimeout {
                host: inner.host.clone(),
                phase: "starting a command",
                seconds: limit.as_secs(),
            });
        }
    };
    let write = Arc::new(write);
    let shared = Arc::new(Shared { host: inner.host.clone(), stderr: Mutex::default() });
    let (stage_tx, stage) = watch::channel(Stage::Running);
    let (queue_tx, queue) = mpsc::channel(QUEUE);
    let (alive_tx, orphaned) = oneshot::channel();
    let (finished_tx, finished) = oneshot::channel();
    let alive = Arc::new(Alive(alive_tx));

    tokio::spawn(end_input(write.clone(), finished, stage.clone()));
    let (closed_tx, closed) = oneshot::channel();
    tokio::spawn(hang_up(write.clone(), orphaned, stage.clone(), closed_tx));
    let reading = Reading { inner: inner.clone(), read, shared: shared.clone(), closed, stream };
    tokio::spawn(reading.run(stage_tx, queue_tx));

    Ok(Process {
        stdin: ProcessStdin {
            outlet: Box::new(RusshOutlet(write)),
            stage: stage.clone(),
            shared: shared.clone(),
            finished: Some(finished_tx),
            _alive: alive.clone(),
        },
        stdout: ProcessStdout {
            queue,
            stage: stage.clone(),
            shared: shared.clone(),
            _alive: alive.clone(),
        },
        exit: ProcessExit { stage, shared, _alive: alive },
    })
}

/// Sends end-of-file when standard input was dropped without `finish`.
async fn end_input(
    write: Arc<ChannelWriteHalf<Msg>>,
    finished: oneshot::Receiver<()>,
    mut stage: watch::Receiver<Stage>,
) {
    tokio::select! {
        by_hand = finished => {
            if by_hand.is_err() {
                tokio::select! {
                    () = ended(&mut stage) => {}
                    _ = write.eof() => {}
                }
            }
        }
        () = ended(&mut stage) => {}
    }
}

/// Closes the channel when nobody holds any part of the process, and says so.
async fn hang_up(
    write: Arc<ChannelWriteHalf<Msg>>,
    orphaned: oneshot::Receiver<()>,
    mut stage: watch::Receiver<Stage>,
    by_us: oneshot::Sender<()>,
) {
    let closed = async {
        let last = |s: &Stage| matches!(s, Stage::Closed(_) | Stage::Lost(_));
        let _ = stage.wait_for(last).await;
    };
    let abandoned = tokio::select! {
        _ = orphaned => true,
        () = closed => false,
    };
    if abandoned {
        let _ = write.close().await;
        let _ = by_us.send(());
    }
}

/// The task that always reads a channel.
struct Reading {
    /// Keeps the connection while the channel lives.
    inner: Arc<Inner>,
    read: ChannelReadHalf,
    shared: Arc<Shared>,
    /// We closed the channel; the library then never tells that the host closed it too.
    closed: oneshot::Receiver<()>,
    stream: bool,
}

impl Reading {
    async fn run(mut self, stage: watch::Sender<Stage>, queue: mpsc::Sender<Bytes>) {
        let mut queue = Some(queue);
        let last = self.read_to_end(&stage, &mut queue).await;
        if self.stream {
            self.inner.streaming.store(false, Ordering::Release);
        }
        // The stage first: a consumer that sees the queue end must find out why.
        stage.send_replace(last);
        drop(queue);
    }

    async fn read_to_end(
        &mut self,
        stage: &watch::Sender<Stage>,
        queue: &mut Option<mpsc::Sender<Bytes>>,
    ) -> Stage {
        let mut status = None;
        let exited = |how: ExitStatus| {
            stage.send_replace(Stage::Exited(how.clone()));
            Some(how)
        };
        loop {
            let message = tokio::select! {
                message = self.read.wait() => message,
                Ok(()) = &mut self.closed => return Stage::Closed(status),
            };
            match message {
                Some(ChannelMsg::Data { data }) => {
                    if let Some(consumer) = queue
                        && consumer.send(data).await.is_err()
                    {
                        *queue = None;
                    }
                }
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => {
                    tracing::trace!(host = %self.shared.host, text = %neutralise(&data), "stderr");
                    self.shared.stderr.lock().unwrap_or_else(PoisonError::into_inner).push(&data);
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    status = exited(ExitStatus::Code(exit_status));
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    status = exited(ExitStatus::Signal(signal_text(&signal_name)));
                }
                // The consumer sees the end now; the status may come later.
                Some(ChannelMsg::Eof) => *queue = None,
                Some(ChannelMsg::Close) => return Stage::Closed(status),
                Some(_) => {}
                // The status is all that matters when the connection ends right after it.
                None => {
                    return match status {
                        Some(status) if queue.is_none() => Stage::Closed(Some(status)),
                        _ => Stage::Lost(self.inner.notes.cause()),
                    };
                }
            }
        }
    }
}

fn signal_text(signal: &Sig) -> String {
    let text = match signal {
        Sig::Custom(name) => neutralise(name.as_bytes()),
        known => format!("{known:?}"),
    };
    text.chars().take(16).collect()
}

/// Runs a command to its end with capped output.
pub(crate) async fn run(inner: &Arc<Inner>, command: &str, input: Bytes) -> Result<Output> {
    let (mut stdin, mut stdout, exit) = start(inner, command, false).await?.split();
    let feed = async {
        let sent = if input.is_empty() { Ok(()) } else { stdin.write_all(input).await };
        // A command may end without reading everything: its status tells.
        match sent {
            Err(Error::CommandGone { .. }) => Ok(()),
            Err(lost) => Err(lost),
            Ok(()) => stdin.finish().await,
        }
    };
    let cap = inner.options.max_output;
    let mut stage = exit.stage.clone();
    let drain = async {
        let mut kept = Vec::new();
        let mut truncated = false;
        loop {
            // A process left in the background may hold the output open for ever.
            let next = tokio::select! {
                next = stdout.recv() => next?,
                () = lingered(&mut stage) => None,
            };
            let Some(data) = next else { break };
            let room = cap - kept.len();
            truncated |= data.len() > room;
            kept.extend_from_slice(&data[..data.len().min(room)]);
        }
        Ok::<_, Error>((kept, truncated))
    };
    let ((), (stdout, truncated)) = tokio::try_join!(feed, drain)?;
    let shared = exit.shared.clone();
    let status = exit.wait().await?;
    Ok(Output { host: inner.host.clone(), status, stdout, truncated, stderr: shared.stderr() })
}

/// Resolves [`LINGER`] after the command has ended.
async fn lingered(stage: &mut watch::Receiver<Stage>) {
    ended(stage).await;
    tokio::time::sleep(LINGER).await;
}
