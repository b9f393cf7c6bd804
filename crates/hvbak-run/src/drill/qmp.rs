//! QEMU's monitor, as much of it as a drill needs.
//!
//! QEMU has run a foreign system: what it answers is bounded in size and time.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

const ANSWER: Duration = Duration::from_secs(10);
const LINE_MAX: u64 = 1 << 20;
/// Events that may come before an answer.
const EVENTS_MAX: usize = 1000;

/// A connection to the monitor.
pub struct Monitor {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Monitor {
    /// Connects and is greeted; `None` where nobody listens or speaks.
    pub async fn connect(socket: &Path) -> Option<Self> {
        let (reader, writer) = UnixStream::connect(socket).await.ok()?.into_split();
        let mut monitor = Self { reader: BufReader::new(reader), writer };
        let greeting = tokio::time::timeout(ANSWER, monitor.line()).await.ok()??;
        greeting.get("QMP")?;
        monitor.call("qmp_capabilities", json!({})).await?;
        Some(monitor)
    }

    /// Gives an order; `None` when it is refused or not answered.
    pub async fn call(&mut self, order: &str, arguments: Value) -> Option<Value> {
        let line = json!({ "execute": order, "arguments": arguments });
        let talk = async {
            self.writer.write_all(format!("{line}\n").as_bytes()).await.ok()?;
            for _ in 0..EVENTS_MAX {
                let answer = self.line().await?;
                if let Some(value) = answer.get("return") {
                    return Some(value.clone());
                }
                if answer.get("error").is_some() {
                    return None;
                }
            }
            None
        };
        tokio::time::timeout(ANSWER, talk).await.ok()?
    }

    async fn line(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        (&mut self.reader).take(LINE_MAX).read_until(b'\n', &mut line).await.ok()?;
        serde_json::from_slice(&line).ok()
    }
}
