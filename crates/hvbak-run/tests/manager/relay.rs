//! A way to the manager that can be lost: TCP through a port of its own.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Open,
    /// They vanish, as behind a cable that was pulled: nobody hears of it.
    Silent,
    /// Connections are ended, and new ones too.
    Cut,
}

/// Ends with the runtime of its test.
pub struct Relay {
    pub port: u16,
    way: watch::Sender<Way>,
}

impl Relay {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap().port();
        let (way, watched) = watch::channel(Way::Open);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(client, port, watched.clone()));
            }
        });
        Self { port: here, way }
    }

    pub async fn set(&self, way: Way) {
        self.way.send(way).unwrap();
        // What was on its way is through.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn carry(client: TcpStream, port: u16, way: watch::Receiver<Way>) {
    let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let ((up, client), (down, server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = one_way(up, server, way.clone()) => {}
        () = one_way(down, client, way) => {}
    }
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let now = *way.borrow_and_update();
        let read = tokio::select! {
            _ = way.changed() => continue,
            read = from.read(&mut buffer), if now == Way::Open => read,
            () = std::future::pending(), if now == Way::Silent => continue,
            () = std::future::ready(()), if now == Way::Cut => return,
        };
        let Ok(1..) = read else { return };
        if to.write_all(&buffer[..read.unwrap()]).await.is_err() {
            return;
        }
    }
}
