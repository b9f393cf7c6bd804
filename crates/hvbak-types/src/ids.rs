//! Identifiers. The engine's are UUIDs; a point's is its UTC time.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {what}")]
pub struct IdError {
    /// Which kind of id was expected.
    pub what: &'static str,
    /// The offending text, cut to 80 characters.
    pub text: String,
}

impl IdError {
    fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(80).collect() }
    }
}

macro_rules! uuid_id {
    ($($(#[$doc:meta])* $name:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID.
            pub const fn new(uuid: Uuid) -> Self { Self(uuid) }
            /// A fresh random (version 4) id.
            pub fn random() -> Self { Self(Uuid::new_v4()) }
            /// The UUID inside.
            pub const fn uuid(self) -> Uuid { self.0 }
            /// The all-zero id (the engine's Blank template, vdsm's "no parent").
            pub const fn nil() -> Self { Self(Uuid::nil()) }
            /// Whether this is the all-zero id.
            pub const fn is_nil(self) -> bool { self.0.is_nil() }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.hyphenated().fmt(f) }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { self.0.hyphenated().fmt(f) }
        }

        impl FromStr for $name {
            type Err = IdError;
            /// Accepts the hyphenated form alone, in either case.
            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.len() != 36 { return Err(IdError::new($what, text)); }
                Uuid::try_parse(text).map(Self).map_err(|_| IdError::new($what, text))
            }
        }
    )*};
}

uuid_id! {
    /// A virtual machine.
    VmId = "VM id";
    /// A disk; vdsm calls it the image (IMG), the engine the image group.
    DiskId = "disk id";
    /// A volume: one file or LV of a disk's chain; REST calls it `image_id`.
    VolumeId = "volume id";
    /// A snapshot of a VM, as the engine names it.
    SnapshotId = "snapshot id";
    /// A storage domain.
    DomainId = "storage domain id";
    /// A hypervisor.
    HostId = "host id";
    /// A cluster of hypervisors.
    ClusterId = "cluster id";
    /// A data center; equals vdsm's storage pool id.
    DataCenterId = "data center id";
    /// A template; the nil id is Blank.
    TemplateId = "template id";
    /// A virtual network card.
    NicId = "NIC id";
    /// A tag.
    TagId = "tag id";
    /// A logical network.
    NetworkId = "network id";
    /// A vNIC profile.
    VnicProfileId = "vNIC profile id";
    /// A pool of MAC addresses.
    MacPoolId = "MAC pool id";
    /// One run of hvbak.
    JobId = "job id";
    /// A repository, made once at `init`.
    RepositoryId = "repository id";
}

/// The name of a stored restore point: UTC time `20261121T021454Z`, with `-2`, `-3`, …
/// appended when two points of one VM fall into one second.
///
/// Sorting the text sorts by time (suffixes up to `-9` included).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PointId(String);

impl PointId {
    /// The point id of a moment.
    pub fn at(time: jiff::Timestamp) -> Self {
        Self(time.strftime("%Y%m%dT%H%M%SZ").to_string())
    }

    /// The same moment with a suffix; `n` from 2.
    pub fn with_suffix(&self, n: u32) -> Self {
        Self(format!("{}-{n}", &self.0[..16]))
    }

    /// The text, safe as a file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The moment that the id names.
    pub fn time(&self) -> Option<jiff::Timestamp> {
        let t = &self.0;
        format!(
            "{}-{}-{}T{}:{}:{}Z",
            &t[..4],
            &t[4..6],
            &t[6..8],
            &t[9..11],
            &t[11..13],
            &t[13..15]
        )
        .parse()
        .ok()
    }
}

impl FromStr for PointId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let b = text.as_bytes();
        let digits = |r: std::ops::Range<usize>| b[r].iter().all(u8::is_ascii_digit);
        let well_formed = b.len() >= 16
            && digits(0..8)
            && b[8] == b'T'
            && digits(9..15)
            && b[15] == b'Z'
            && (b.len() == 16
                || (b.len() > 17 && b.len() <= 20 && b[16] == b'-' && digits(17..b.len())));
        if well_formed { Ok(Self(text.to_owned())) } else { Err(IdError::new("point id", text)) }
    }
}

impl TryFrom<String> for PointId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<PointId> for String {
    fn from(id: PointId) -> String {
        id.0
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_hyphenated_form_is_an_id() {
        assert!("3B097026-0000-4000-8000-000000000001".parse::<DiskId>().is_ok());
        for bad in [
            "",
            "x",
            "../../etc/passwd",
            "3b09702600004000800000000000000100000",
            "{3b097026-0000-4000-8000-000000000001}",
        ] {
            assert!(bad.parse::<DiskId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn point_ids_are_times() {
        let id: PointId = "20261121T021454Z".parse().unwrap();
        assert_eq!(id.time().unwrap().to_string(), "2026-11-21T02:14:54Z");
        assert_eq!(PointId::at(id.time().unwrap()), id);
        assert_eq!(id.with_suffix(2).as_str(), "20261121T021454Z-2");
        assert!("20261121T021454Z-2".parse::<PointId>().unwrap() > id);
        for bad in ["20261121T021454", "20261121T021454Z-", "20261121T021454Z/..", "2026-11-21"] {
            assert!(bad.parse::<PointId>().is_err(), "{bad}");
        }
    }
}
