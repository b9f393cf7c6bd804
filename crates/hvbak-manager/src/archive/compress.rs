//! Compressed streams as engine-backup makes them: gzip, bzip2, xz or nothing, told apart by
//! their first bytes because the archive records it for some members only.
//!
//! A stream may be followed by zeros (tar pads what it writes to a pipe) and by further
//! streams of its kind; anything else behind it is an error. Memory is bounded: an xz
//! stream that wants more than its largest preset (`-9`) is refused.

use std::io::{self, BufRead, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use serde::Serialize;

/// KiB of memory for one xz stream: `xz -9` needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 96 << 10;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Gzip,
    Bzip2,
    Xz,
}

impl Compression {
    /// The word in `config` and in options; empty for none.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }
}

/// Looks at the first bytes. The reader must hand out six at once when it has them.
pub fn sniff(reader: &mut impl BufRead) -> io::Result<Compression> {
    let start = reader.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Compression::Gzip
    } else if start.starts_with(b"BZh") {
        Compression::Bzip2
    } else if start.starts_with(b"\xfd7zXZ\0") {
        Compression::Xz
    } else {
        Compression::None
    })
}

enum Stream<R: BufRead> {
    Plain(R),
    Gzip(GzDecoder<R>),
    Bzip2(BzDecoder<R>),
    Xz(Box<XzReader<R>>),
}

impl<R: BufRead> Stream<R> {
    fn new(kind: Compression, inner: R) -> Self {
        match kind {
            Compression::None => Self::Plain(inner),
            Compression::Gzip => Self::Gzip(GzDecoder::new(inner)),
            Compression::Bzip2 => Self::Bzip2(BzDecoder::new(inner)),
            Compression::Xz => {
                Self::Xz(Box::new(XzReader::new_mem_limit(inner, false, XZ_MEMORY_KIB)))
            }
        }
    }

    fn into_inner(self) -> R {
        match self {
            Self::Plain(inner) => inner,
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Bzip2(decoder) => decoder.into_inner(),
            Self::Xz(decoder) => decoder.into_inner(),
        }
    }
}

/// What a compressed stream holds.
pub struct Decoder<R: BufRead> {
    kind: Compression,
    stream: Option<Stream<R>>,
}

impl<R: BufRead> Decoder<R> {
    /// Sniffs and begins.
    pub fn open(mut inner: R) -> io::Result<Self> {
        let kind = sniff(&mut inner)?;
        Ok(Self { kind, stream: Some(Stream::new(kind, inner)) })
    }

    /// How it is compressed.
    pub fn kind(&self) -> Compression {
        self.kind
    }

    /// After one stream: the next, or the end.
    fn next_stream(&mut self) -> io::Result<()> {
        let Some(stream) = self.stream.take() else { return Ok(()) };
        if self.kind == Compression::None {
            return Ok(());
        }
        let mut inner = stream.into_inner();
        loop {
            let buffer = inner.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let zeros = buffer.iter().take_while(|b| **b == 0).count();
            let more = zeros < buffer.len();
            inner.consume(zeros);
            if more {
                break;
            }
        }
        if sniff(&mut inner)? != self.kind {
            return Err(damaged("bytes that belong to nothing follow the compressed stream"));
        }
        self.stream = Some(Stream::new(self.kind, inner));
        Ok(())
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let read = match &mut self.stream {
                None => return Ok(0),
                Some(Stream::Plain(inner)) => inner.read(buffer)?,
                Some(Stream::Gzip(decoder)) => decoder.read(buffer)?,
                Some(Stream::Bzip2(decoder)) => decoder.read(buffer)?,
                Some(Stream::Xz(decoder)) => decoder.read(buffer)?,
            };
            if read > 0 {
                return Ok(read);
            }
            self.next_stream()?;
        }
    }
}

fn damaged(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut out = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn bzip2(data: &[u8]) -> Vec<u8> {
        let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::open(bytes)?.read_to_end(&mut out).map(|_| out)
    }

    #[test]
    fn padding_and_further_streams_belong_to_it_and_nothing_else() {
        for pack in [gzip, bzip2, xz] {
            let one = pack(b"hello");
            assert_eq!(read(&one).unwrap(), b"hello");
            let two = [one.clone(), pack(b" world"), vec![0; 1000]].concat();
            assert_eq!(read(&two).unwrap(), b"hello world");
            assert!(read(&[one.clone(), b"x".to_vec()].concat()).is_err());
            for cut in 6..one.len() {
                assert!(read(&one[..cut]).is_err(), "cut at {cut} of {}", one.len());
            }
        }
    }
}
