//! One session: hello, then requests one after the other until Bye or end of file.
//!
//! A request that fails is answered by `Failed`; the session goes on. Only a broken stream
//! or a coordinator that is gone ends it.

use std::{
    io,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
};

use hvbak_wire::{Answer, End, FEATURES, Hello, Kind, Op, PROTOCOLS, Place, Request, build_id};

use crate::{
    block::BlockDomains,
    chain,
    error::{Error, Result},
    host::{self, Host},
    inbox::{Inbox, Incoming},
    layers::OpenChain,
    locate,
    output::Output,
    reader::{self, Job},
    target::{Target, Wanted},
    volume::Meter,
    writer::Filling,
};

/// Runs the session on stdin and stdout. Exit code 0 at Bye and end of file, 1 when the
/// stream broke.
pub fn run() -> ExitCode {
    let session = Inbox::start(io::stdin())
        .and_then(|inbox| Ok((inbox, Output::stdout()?)))
        .map(|(inbox, output)| Session::new(inbox, output));
    let outcome = session.map(|mut s| match s.run() {
        // Told by the reading thread amid other work.
        Err(Error::Gone) if s.meter.stop.has_left() => Ok(()),
        other => other,
    });
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("hvbak-worker: {}", error.to_failed(0).message);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("hvbak-worker: cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Session {
    inbox: Arc<Inbox>,
    output: Output,
    host: Host,
    meter: Arc<Meter>,
    // Dropped in this order: LVs are deactivated when nothing of them is open any more.
    open: Option<OpenChain>,
    filling: Option<Filling>,
    block: BlockDomains,
    /// A stream whose clusters are dropped, because its end was told.
    dead_stream: u32,
}

/// Whether the session goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Request,
    End,
}

impl Session {
    fn new(inbox: Arc<Inbox>, output: Output) -> Self {
        let meter = Arc::new(Meter { stop: inbox.stop(), ..Meter::default() });
        let host = Host::from_env();
        let block = BlockDomains::default();
        Self { inbox, output, host, meter, open: None, filling: None, block, dead_stream: 0 }
    }

    fn run(&mut self) -> Result<()> {
        self.output.greet(&Hello {
            protocols: PROTOCOLS.to_vec(),
            build: build_id().to_owned(),
            features: FEATURES.iter().map(|f| (*f).to_owned()).collect(),
            cores: u32::try_from(host::cores()).unwrap_or(u32::MAX),
            uid: nix::unistd::geteuid().as_raw(),
            host_root: self.host.root().to_string_lossy().into_owned(),
        })?;
        let choice = match self.inbox.next() {
            Incoming::Other(frame) => frame.choice().map_err(|source| Error::Stream { source })?,
            Incoming::Eof => return Ok(()),
            Incoming::Broken(source) => return Err(Error::Stream { source }),
            _ => return Err(Error::bad_request("the first frame must choose a version")),
        };
        match choice.version {
            Some(version) if PROTOCOLS.contains(&version) => {}
            Some(version) => {
                return Err(Error::bad_request(format!("version {version} was not offered")));
            }
            None => {
                eprintln!("hvbak-worker: refused: {}", choice.refuse.unwrap_or_default());
                return Ok(());
            }
        }
        loop {
            match self.inbox.next() {
                Incoming::Request(request) => {
                    if self.serve(request)? == Next::End {
                        return Ok(());
                    }
                }
                Incoming::Clusters(frame) => self.take_clusters(frame)?,
                Incoming::Unreadable(failed) => self.output.failed(&failed)?,
                Incoming::Eof => return Ok(()),
                Incoming::Broken(source) => return Err(Error::Stream { source }),
                Incoming::Other(frame) => return Err(out_of_place(frame.kind())),
            }
        }
    }

    /// Answers a request, or tells why it failed.
    fn serve(&mut self, request: Request) -> Result<Next> {
        let Request { id, op } = request;
        let end = matches!(op, Op::Bye);
        match self.answer(id, op) {
            Ok(answer) => self.output.answer(id, answer)?,
            Err(Error::Gone) => return Err(Error::Gone),
            Err(error) => self.output.failed(&error.to_failed(id))?,
        }
        Ok(if end { Next::End } else { Next::Request })
    }

    fn answer(&mut self, id: u32, op: Op) -> Result<Answer> {
        if self.meter.stop.is_set(id) {
            return Err(Error::Cancelled);
        }
        self.settle_for(&op)?;
        Ok(match op {
            Op::Tune(tune) => {
                host::apply_manners(&tune);
                self.meter.throttle.set(tune.rate);
                Answer::Done
            }
            Op::Locate { at } if BlockDomains::is_block(&self.host, &at) => {
                let domain = self.block.get(&self.host, at.domain)?;
                Answer::Located(locate::locate_block(domain, &at)?)
            }
            Op::Locate { at } => Answer::Located(locate::locate(&self.host, &at)?),
            Op::Chain { at } if BlockDomains::is_block(&self.host, &at) => {
                let domain = self.block.get(&self.host, at.domain)?;
                Answer::Chain(chain::walk_block(domain, &at, &self.meter)?)
            }
            Op::Chain { at } => Answer::Chain(chain::walk(&self.host, &at, &self.meter)?),
            Op::Open { layers, top } => {
                self.open = None;
                let (open, answer) =
                    OpenChain::open(&self.host, &mut self.block, &layers, top, &self.meter)?;
                self.open = Some(open);
                Answer::Opened(answer)
            }
            Op::Map { offset, length, pieces } => {
                Answer::Map(self.opened()?.map(offset, length, pieces)?)
            }
            Op::Read { offset, length, options } => {
                self.read(id, offset, length, &options).map(Answer::End)?
            }
            Op::Close => {
                self.open = None;
                self.block.release();
                Answer::Done
            }
            Op::Target { at, format, virtual_size, slice, reads, guards, check_digests } => {
                let wanted =
                    Wanted { at, format, virtual_size, slice, reads, guards, check_digests };
                self.start_target(id, &wanted)?
            }
            Op::Finish { target, clusters } => match self.filling.take() {
                Some(filling) if filling.id == target => {
                    self.dead_stream = target;
                    Answer::Written(filling.finish(clusters)?)
                }
                other => {
                    self.filling = other;
                    return Err(Error::bad_request("no such target is open"));
                }
            },
            // Handled where it was read.
            Op::Cancel { .. } => Answer::Done,
            Op::Bye => {
                self.open = None;
                self.filling = None;
                self.block.release();
                Answer::Farewell(host::stats())
            }
        })
    }

    /// Files are touched as user 36 and no other from then on; LVM needs root.
    fn settle_for(&mut self, op: &Op) -> Result<()> {
        let at = match op {
            Op::Locate { at } | Op::Chain { at } | Op::Target { at, .. } => Some(at),
            Op::Open { layers, .. } => layers.iter().find_map(|layer| match &layer.place {
                Place::Volume(at) => Some(at),
                Place::Path(_) => None,
            }),
            _ => return Ok(()),
        };
        match at {
            Some(at) if BlockDomains::is_block(&self.host, at) => Ok(()),
            None if self.block.in_use() => Ok(()),
            _ => {
                self.open = None;
                self.block.release();
                self.host.become_vdsm()
            }
        }
    }

    fn opened(&self) -> Result<&OpenChain> {
        self.open.as_ref().ok_or_else(|| Error::bad_request("no chain is open"))
    }

    fn read(
        &mut self,
        id: u32,
        offset: u64,
        length: u64,
        options: &hvbak_wire::ReadOptions,
    ) -> Result<End> {
        let open = self.open.as_mut().ok_or_else(|| Error::bad_request("no chain is open"))?;
        if options.compression.is_some_and(|level| !(1..=19).contains(&level)) {
            return Err(Error::bad_request("compression level must be 1 to 19"));
        }
        if options.uncached {
            open.reopen_uncached()?;
        }
        let range = open.clusters_of(offset, length)?;
        let before = self.meter.read_bytes.load(Ordering::Relaxed);
        let stop = self.inbox.stop();
        let (chain, top) = (open.chain(), open.top());
        let job = Job { request: id, chain, top, range, options, stop: &stop };
        let tally = reader::read(&job, &mut self.output)?;
        Ok(End {
            totals: tally.totals(),
            digest: tally.digest(),
            read_bytes: self.meter.read_bytes.load(Ordering::Relaxed) - before,
            stats: host::stats(),
        })
    }

    fn start_target(&mut self, id: u32, wanted: &Wanted) -> Result<Answer> {
        if self.filling.is_some() {
            return Err(Error::bad_request("another target is open"));
        }
        let (target, ready) = Target::open(&self.host, &mut self.block, wanted, &self.meter)?;
        let threads = host::cores().clamp(1, 4);
        self.filling = Some(Filling::start(id, target, threads, &self.inbox)?);
        Ok(Answer::Target(ready))
    }

    fn take_clusters(&mut self, frame: hvbak_wire::Frame) -> Result<()> {
        let stream = match frame.clusters() {
            Ok(clusters) => clusters.stream(),
            Err(source) => {
                let error = Error::BadFrame { source };
                return self.output.failed(&error.to_failed(0));
            }
        };
        let cancelled = self.meter.stop.is_set(stream);
        let outcome = match &mut self.filling {
            Some(filling) if filling.id == stream && !cancelled => filling.take(frame),
            Some(filling) if filling.id == stream => {
                self.filling = None;
                self.dead_stream = stream;
                Err(Error::Cancelled)
            }
            // Still on its way when the end of its target was told.
            _ if stream == self.dead_stream => Ok(()),
            _ => {
                self.dead_stream = stream;
                Err(Error::bad_request("clusters of a target that is not open"))
            }
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Error::Gone) => Err(Error::Gone),
            Err(error) => self.output.failed(&error.to_failed(stream)),
        }
    }
}

fn out_of_place(kind: Kind) -> Error {
    Error::bad_request(format!("a frame of kind {kind:?} out of place"))
}
