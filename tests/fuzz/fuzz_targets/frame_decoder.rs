//! Any bytes as a stream of frames, in pieces of any size: errors are fine; a panic, a hang
//! or a large allocation is not. The blocking reader must agree with the decoder.
#![no_main]

use hvbak_wire::{Decoder, Event, Frame, Tally, read_frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (step, mend, bytes) = input;
    let mut stream = bytes.to_vec();
    if mend {
        mend_checksums(&mut stream);
    }
    let mut decoder = Decoder::without_magic();
    let mut frames = 0;
    'all: for piece in stream.chunks(usize::from(step).max(1)) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Event::Frame(frame)) => {
                    look(&frame);
                    frames += 1;
                    decoder.recycle(frame.into_buffer());
                }
                Ok(Event::NeedMore) => break,
                Err(_) => break 'all,
            }
        }
    }
    let (mut rest, mut again) = (&stream[..], 0);
    while let Ok(Some(_)) = read_frame(&mut rest, Vec::new()) {
        again += 1;
    }
    assert_eq!(frames, again);
    let mut greeted = Decoder::with_magic();
    greeted.push(&stream);
    let _ = (greeted.next().is_ok(), greeted.finish().is_ok());
});

fn look(frame: &Frame) {
    let _ = (frame.hello().is_ok(), frame.choice().is_ok());
    let _ = (frame.request().is_ok(), frame.reply().is_ok());
    if let Ok(clusters) = frame.clusters() {
        let mut tally = Tally::of_range(0, u64::MAX);
        let _ = tally.add(&clusters);
        let payload: usize = clusters
            .iter()
            .map(|c| match c.body {
                hvbak_wire::Body::Plain(data) | hvbak_wire::Body::Zstd(data) => data.len(),
                _ => 0,
            })
            .sum();
        assert_eq!(payload, frame.bulk().len());
    }
}

/// Puts right checksums where lengths allow it, so that the fuzzer gets behind them.
fn mend_checksums(stream: &mut [u8]) {
    let mut at = 0;
    while let Some(raw) = stream.get(at..at + 4) {
        let length = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]) as usize;
        let Some(end) = at.checked_add(4 + length).filter(|end| *end <= stream.len()) else { return };
        if length < 8 {
            return;
        }
        let sum = crc32fast::hash(&stream[at..end - 4]);
        stream[end - 4..end].copy_from_slice(&sum.to_le_bytes());
        at = end;
    }
}
