//! A worker process and the other end of its pipes.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use hvbak_types::Digest;
use hvbak_wire::{
    Answer, Body, Choice, Cluster, ClustersBuilder, Encoder, End, Failed, Frame, Hello, Kind, Op,
    ReadOptions, Request, Sealed, Tally, read_frame, read_magic,
};

pub struct Worker {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    pub stdout: ChildStdout,
    pub hello: Hello,
    next: u32,
}

/// What a read sent.
#[derive(Default, Debug)]
pub struct ReadBack {
    pub data: BTreeMap<u64, Vec<u8>>,
    pub digests: BTreeMap<u64, Digest>,
    pub zeros: Vec<(u64, u32)>,
    pub payload: BTreeMap<u64, Vec<u8>>,
}

impl Worker {
    pub fn start(root: &Path) -> Self {
        Self::over(Command::new(env!("CARGO_BIN_EXE_hvbak-worker")).env("HVBAK_HOST_ROOT", root))
    }

    /// A worker that `command` starts.
    pub fn over(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        read_magic(&mut stdout).unwrap();
        let hello = read_frame(&mut stdout, Vec::new()).unwrap().unwrap().hello().unwrap();
        let stdin = child.stdin.take();
        let mut worker = Self { child, stdin, stdout, hello, next: 0 };
        let choice = hvbak_wire::choose(&worker.hello).unwrap();
        worker.send(&Encoder::choice(&choice).unwrap());
        worker
    }

    /// Greets with another answer than the right one.
    pub fn start_with(root: &Path, choice: &Choice) -> Self {
        let mut worker = Self::start_silent(root);
        worker.send(&Encoder::choice(choice).unwrap());
        worker
    }

    /// Says nothing after the hello.
    pub fn start_silent(root: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hvbak-worker"))
            .env("HVBAK_HOST_ROOT", root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        read_magic(&mut stdout).unwrap();
        let hello = read_frame(&mut stdout, Vec::new()).unwrap().unwrap().hello().unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin, stdout, hello, next: 0 }
    }

    pub fn send(&mut self, frame: &Sealed) {
        self.raw(frame.as_bytes());
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub fn request(&mut self, op: Op) -> u32 {
        self.next += 1;
        let request = Request { id: self.next, op };
        self.send(&Encoder::request(&request).unwrap());
        self.next
    }

    pub fn frame(&mut self) -> Frame {
        read_frame(&mut self.stdout, Vec::new()).unwrap().expect("the worker ended")
    }

    /// Asks and waits for the answer of that very request.
    pub fn ask(&mut self, op: Op) -> Result<Answer, Failed> {
        let id = self.request(op);
        match self.frame().reply().unwrap() {
            Ok((request, answer)) => {
                assert_eq!(request, id);
                Ok(answer)
            }
            Err(failed) => {
                assert_eq!(failed.request, id, "{failed}");
                Err(failed)
            }
        }
    }

    /// Reads a range; checks order, totals, digests and payloads.
    pub fn read(
        &mut self,
        offset: u64,
        length: u64,
        options: ReadOptions,
    ) -> Result<(ReadBack, End), Failed> {
        let id = self.request(Op::Read { offset, length, options });
        let mut tally = Tally::of_range(offset, length);
        let mut back = ReadBack::default();
        loop {
            let frame = self.frame();
            if frame.kind() != Kind::Clusters {
                return frame.reply().unwrap().map(|(request, answer)| {
                    assert_eq!(request, id);
                    let Answer::End(end) = answer else { panic!("{answer:?}") };
                    tally.compare(&end.totals, &end.digest).unwrap();
                    (back, end)
                });
            }
            let clusters = frame.clusters().unwrap();
            assert_eq!(clusters.stream(), id);
            tally.add(&clusters).unwrap();
            clusters.iter().for_each(|c| back.take(&c));
        }
    }

    /// Sends clusters of a target, several to a frame.
    pub fn write(&mut self, target: u32, clusters: &[(u64, Vec<u8>)], compress: bool) {
        for group in clusters.chunks(7) {
            let mut frame = ClustersBuilder::default();
            for (index, content) in group {
                let digest = Digest(*blake3::hash(content).as_bytes());
                let packed = zstd::bulk::compress(content, 1).unwrap();
                let body = if compress && packed.len() <= hvbak_wire::MAX_COMPRESSED {
                    Body::Zstd(&packed)
                } else {
                    Body::Plain(content)
                };
                frame.push(&Cluster { index: *index, digest, body }).unwrap();
            }
            self.send(&frame.seal(target).unwrap());
        }
    }

    /// Closes stdin and waits; panics when the process does not end in time.
    pub fn end(mut self) -> ExitStatus {
        drop(self.stdin.take());
        self.wait(Duration::from_secs(10))
    }

    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < limit, "the worker does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Everything that is still written to stdout.
    pub fn drain(&mut self) -> usize {
        let mut rest = Vec::new();
        self.stdout.read_to_end(&mut rest).unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ReadBack {
    fn take(&mut self, c: &Cluster<'_>) {
        let content = match c.body {
            Body::Plain(data) => data.to_vec(),
            Body::Zstd(data) => {
                self.payload.insert(c.index, data.to_vec());
                zstd::bulk::decompress(data, 65_536).unwrap()
            }
            Body::Zero { count } => {
                self.zeros.push((c.index, count));
                return;
            }
            Body::Digest => {
                self.digests.insert(c.index, c.digest);
                return;
            }
        };
        assert_eq!(content.len(), 65_536);
        assert_eq!(blake3::hash(&content).as_bytes(), &c.digest.0, "cluster {}", c.index);
        self.digests.insert(c.index, c.digest);
        self.data.insert(c.index, content);
    }

    /// Lays what came over `base` (the older content, zeros for a full read).
    pub fn over(&self, mut base: Vec<u8>, size: u64) -> Vec<u8> {
        let padded = usize::try_from(size.next_multiple_of(65_536)).unwrap();
        base.resize(padded, 0);
        for (first, count) in &self.zeros {
            let start = usize::try_from(first * 65_536).unwrap();
            base[start..start + *count as usize * 65_536].fill(0);
        }
        for (index, content) in &self.data {
            let start = usize::try_from(index * 65_536).unwrap();
            base[start..start + 65_536].copy_from_slice(content);
        }
        base.truncate(usize::try_from(size).unwrap());
        base
    }
}
