//! A password or passphrase that shows itself to nobody by accident.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// Text that Debug prints as `***` and that is wiped when dropped. There is no Display
/// and no Serialize on purpose: a secret never reaches a log, a JSON line or argv.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The text itself; keep the borrow short.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
