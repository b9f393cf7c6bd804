//! Bytes to frames and back: sans-IO [`Decoder`] and [`Encoder`] for the coordinator,
//! blocking helpers for the worker.

use std::io::{self, Read, Write};

use crate::{
    Answer, Choice, Failed, Frame, Hello, Kind, MAGIC, Reply, Request, Sealed, WireError,
    frame::{PREFIX, Prefix},
};

/// Memory that is taken on the word of a length; the rest follows when bytes arrive.
const EAGER: usize = 64 * 1024;

/// What a decoder found.
#[derive(Debug)]
pub enum Event {
    /// The frame that came.
    Frame(Frame),
    /// More bytes are needed.
    NeedMore,
}

/// Cuts a byte stream into frames. Push what arrives, then call [`Decoder::next`] until
/// it needs more. After an error the stream is dead: each further call fails too.
///
/// Memory: at most one frame under construction ([`crate::MAX_FRAME`]) plus what the
/// caller pushed and did not yet take out.
#[derive(Debug)]
pub struct Decoder {
    /// Bytes of the magic that are still expected.
    magic: usize,
    /// Pushed bytes that are not consumed; `taken` of them are.
    inbox: Vec<u8>,
    taken: usize,
    /// Frame under construction: its prefix and what arrived of it.
    current: Option<(Prefix, Vec<u8>)>,
    spare: Vec<Vec<u8>>,
    dead: bool,
}

impl Decoder {
    /// For the coordinator: expects the worker's magic first.
    pub fn with_magic() -> Self {
        Self { magic: MAGIC.len(), ..Self::without_magic() }
    }

    /// For the other direction, which has no magic.
    pub fn without_magic() -> Self {
        Self {
            magic: 0,
            inbox: Vec::new(),
            taken: 0,
            current: None,
            spare: Vec::new(),
            dead: false,
        }
    }

    /// Gives a buffer back ([`Frame::into_buffer`]); large frames then cost no new pages.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < 4 {
            self.spare.push(buffer);
        }
    }

    /// Takes what the transport delivered. Bytes of a frame whose prefix is known go
    /// straight into the frame's own buffer; only the rest is kept aside.
    pub fn push(&mut self, mut bytes: &[u8]) {
        if self.dead {
            return;
        }
        if self.taken == self.inbox.len() {
            self.inbox.clear();
            self.taken = 0;
            if let Some((prefix, frame)) = &mut self.current {
                let take = bytes.len().min(prefix.total - frame.len());
                frame.extend_from_slice(&bytes[..take]);
                bytes = &bytes[take..];
            }
        } else if self.taken > 64 * 1024 {
            self.inbox.drain(..self.taken);
            self.taken = 0;
        }
        self.inbox.extend_from_slice(bytes);
    }

    /// The next frame, or [`Event::NeedMore`].
    ///
    /// # Errors
    /// Any violation; the decoder is dead afterwards.
    #[expect(clippy::should_implement_trait, reason = "it is no iterator: NeedMore is not an end")]
    pub fn next(&mut self) -> Result<Event, WireError> {
        if self.dead {
            return Err(WireError::Truncated { within: "a stream that failed before" });
        }
        let event = self.advance();
        self.dead = event.is_err();
        event
    }

    fn advance(&mut self) -> Result<Event, WireError> {
        if self.magic > 0 {
            let pending = &self.inbox[self.taken..];
            let have = pending.len().min(MAGIC.len());
            if pending[..have] != MAGIC[..have] {
                return Err(not_magic(pending));
            }
            if have < MAGIC.len() {
                return Ok(Event::NeedMore);
            }
            self.taken += MAGIC.len();
            self.magic = 0;
        }
        if self.current.is_none() {
            let Some(raw) = self.inbox[self.taken..].first_chunk::<PREFIX>() else {
                return Ok(Event::NeedMore);
            };
            let prefix = Prefix::parse(*raw)?;
            let mut frame = self.spare.pop().unwrap_or_default();
            frame.clear();
            // A length alone must not cost 4 MiB for each of many idle connections.
            frame.reserve(prefix.total.min(EAGER));
            self.current = Some((prefix, frame));
        }
        let Some((prefix, frame)) = &mut self.current else { return Ok(Event::NeedMore) };
        let pending = &self.inbox[self.taken..];
        let take = pending.len().min(prefix.total - frame.len());
        frame.extend_from_slice(&pending[..take]);
        self.taken += take;
        if frame.len() < prefix.total {
            if frame.len() >= EAGER / 2 {
                frame.reserve_exact(prefix.total - frame.len());
            }
            return Ok(Event::NeedMore);
        }
        let Some((prefix, frame)) = self.current.take() else { return Ok(Event::NeedMore) };
        Frame::from_whole(&prefix, frame).map(Event::Frame)
    }

    /// Tells that the transport ended.
    ///
    /// # Errors
    /// [`WireError::Truncated`] unless the stream stands between two frames; what was
    /// never a worker is named by its first bytes.
    pub fn finish(&self) -> Result<(), WireError> {
        let pending = &self.inbox[self.taken..];
        if self.magic > 0 {
            return Err(if pending.is_empty() {
                WireError::Truncated { within: "the magic" }
            } else {
                not_magic(pending)
            });
        }
        if self.current.is_some() || !pending.is_empty() {
            return Err(WireError::Truncated { within: "a frame" });
        }
        Ok(())
    }
}

fn not_magic(bytes: &[u8]) -> WireError {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(480)]);
    let seen = text.chars().take(120).map(|c| if c.is_control() { '·' } else { c }).collect();
    WireError::Magic { seen }
}

/// Values to bytes. Stateless; a namespace with one function per message.
#[derive(Debug, Clone, Copy, Default)]
pub struct Encoder;

impl Encoder {
    /// The worker's first frame (the magic goes before it).
    ///
    /// # Errors
    /// A header beyond its cap; the same for all functions here.
    pub fn hello(hello: &Hello) -> Result<Sealed, WireError> {
        Sealed::json(Kind::Hello, hello)
    }

    /// The coordinator's answer to it.
    ///
    /// # Errors
    /// A header beyond its cap.
    pub fn choice(choice: &Choice) -> Result<Sealed, WireError> {
        Sealed::json(Kind::Choice, choice)
    }

    /// A request.
    ///
    /// # Errors
    /// A header beyond its cap.
    pub fn request(request: &Request) -> Result<Sealed, WireError> {
        Sealed::json(Kind::Request, request)
    }

    /// An answer.
    ///
    /// # Errors
    /// A header beyond its cap.
    pub fn answer(reply: &Reply) -> Result<Sealed, WireError> {
        Sealed::json(Kind::Answer, reply)
    }

    /// A failure.
    ///
    /// # Errors
    /// A header beyond its cap.
    pub fn failed(failed: &Failed) -> Result<Sealed, WireError> {
        Sealed::json(Kind::Failed, failed)
    }
}

impl Frame {
    /// Reads a hello. # Errors: another kind or a malformed header; the same below.
    pub fn hello(&self) -> Result<Hello, WireError> {
        self.json(Kind::Hello, "hello")
    }

    /// Reads the choice of a version.
    pub fn choice(&self) -> Result<Choice, WireError> {
        self.json(Kind::Choice, "the choice of a version")
    }

    /// Reads a request.
    pub fn request(&self) -> Result<Request, WireError> {
        self.json(Kind::Request, "a request")
    }

    /// Reads an answer: `Ok(Err(failed))` when the worker says that the request failed.
    pub fn reply(&self) -> Result<Result<(u32, Answer), Failed>, WireError> {
        if self.kind() == Kind::Failed {
            return self.json(Kind::Failed, "a failure").map(Err);
        }
        self.json::<Reply>(Kind::Answer, "an answer").map(|r| Ok((r.request, r.answer)))
    }
}

/// Writes the worker's magic.
///
/// # Errors
/// The write failed.
pub fn write_magic(out: &mut impl Write) -> Result<(), WireError> {
    out.write_all(&MAGIC).map_err(|source| WireError::Io { action: "write", source })
}

/// Reads the worker's magic.
///
/// # Errors
/// The read failed, or other bytes came.
pub fn read_magic(input: &mut impl Read) -> Result<(), WireError> {
    let mut raw = [0; MAGIC.len()];
    read_exact(input, &mut raw, "the magic")?;
    if raw == MAGIC { Ok(()) } else { Err(not_magic(&raw)) }
}

/// Writes one frame.
///
/// # Errors
/// The write failed.
pub fn write_frame(out: &mut impl Write, frame: &Sealed) -> Result<(), WireError> {
    out.write_all(frame.as_bytes()).map_err(|source| WireError::Io { action: "write", source })
}

/// Reads one frame into `buffer` (its capacity is reused); `None` at an end of file
/// between two frames.
///
/// # Errors
/// The read failed, the stream ended inside a frame, or the frame is wrong.
pub fn read_frame(input: &mut impl Read, buffer: Vec<u8>) -> Result<Option<Frame>, WireError> {
    let mut raw = [0; PREFIX];
    let first = loop {
        match input.read(&mut raw) {
            Ok(n) => break n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(WireError::Io { action: "read", source }),
        }
    };
    if first == 0 {
        return Ok(None);
    }
    read_exact(input, &mut raw[first..], "a frame")?;
    let prefix = Prefix::parse(raw)?;
    let mut frame = buffer;
    frame.clear();
    frame.extend_from_slice(&raw);
    // In two steps: a length alone must not cost 4 MiB, and growing by doubling would
    // take twice the memory of each frame that waits.
    for upto in [prefix.total.min(EAGER), prefix.total] {
        let rest = upto - frame.len();
        frame.reserve_exact(rest);
        match input.take(rest as u64).read_to_end(&mut frame) {
            Ok(n) if n == rest => {}
            Ok(_) => return Err(WireError::Truncated { within: "a frame" }),
            Err(source) => return Err(WireError::Io { action: "read", source }),
        }
    }
    Frame::from_whole(&prefix, frame).map(Some)
}

fn read_exact(
    input: &mut impl Read,
    buf: &mut [u8],
    within: &'static str,
) -> Result<(), WireError> {
    input.read_exact(buf).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => WireError::Truncated { within },
        _ => WireError::Io { action: "read", source },
    })
}
