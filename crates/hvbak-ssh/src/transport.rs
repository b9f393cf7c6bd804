//! The narrow border that a second SSH implementation would stand behind.
//!
//! Jobs, delivery and enrolment ask for nothing more than this; a transport that spawns
//! the system `ssh` (Kerberos, PKCS#11, odd `ssh_config`) has to provide just that.

use std::{future::Future, pin::Pin};

use bytes::Bytes;

use crate::{connect::Connection, error::Result, output::Output, process::Process, target::Target};

/// A boxed future, so that the traits can be used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes sessions.
pub trait Transport: Send + Sync {
    /// Connects and logs in; see [`Connection::connect`] for the errors.
    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>>>;
}

/// A logged-in session: short commands, or one stream.
pub trait Session: Send + Sync {
    /// The host's name for messages.
    fn host(&self) -> &str;
    /// See [`Connection::exec_with_stdin`].
    fn exec<'a>(&'a self, command: &'a str, stdin: Bytes) -> BoxFuture<'a, Result<Output>>;
    /// See [`Connection::spawn`].
    fn spawn<'a>(&'a self, command: &'a str) -> BoxFuture<'a, Result<Process>>;
    /// See [`Connection::close`].
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// Where a process's standard input goes.
pub trait Outlet: Send {
    /// Sends everything, waiting for room; `Err` when the way is gone.
    fn send(&mut self, data: Bytes) -> BoxFuture<'_, Result<(), ()>>;
    /// Sends end-of-file.
    fn eof(&mut self) -> BoxFuture<'_, Result<(), ()>>;
}

/// The transport inside this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Russh;

impl Transport for Russh {
    fn connect<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Box<dyn Session>>> {
        Box::pin(async move {
            let connection = Connection::connect(target).await?;
            Ok(Box::new(connection) as Box<dyn Session>)
        })
    }
}

impl Session for Connection {
    fn host(&self) -> &str {
        Connection::host(self)
    }

    fn exec<'a>(&'a self, command: &'a str, stdin: Bytes) -> BoxFuture<'a, Result<Output>> {
        Box::pin(self.exec_with_stdin(command, stdin))
    }

    fn spawn<'a>(&'a self, command: &'a str) -> BoxFuture<'a, Result<Process>> {
        Box::pin(Connection::spawn(self, command))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(Connection::close(*self))
    }
}
