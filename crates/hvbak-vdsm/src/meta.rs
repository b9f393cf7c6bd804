//! Volume metadata: 512 bytes of `KEY=value` lines, in `<VOL>.meta` or a slot of the LV
//! `metadata` (hypervisor.md §5.2; vdsm `volumemetadata.py`).
//!
//! Unknown keys are ignored, a missing `EOF` line is an error (a torn or cleared slot).
//! Format, role and legality must be there: reading or writing is decided on them.

use hvbak_types::{DiskId, DomainId, VolumeId};

/// Bytes of a volume's metadata.
pub const META_SIZE: usize = 512;

/// FORMAT: never probe what this says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeFormat {
    /// RAW.
    Raw,
    /// COW: qcow2.
    Cow,
}

/// TYPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allocation {
    /// SPARSE.
    Sparse,
    /// PREALLOCATED.
    Preallocated,
}

impl Allocation {
    /// vdsm's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sparse => "SPARSE",
            Self::Preallocated => "PREALLOCATED",
        }
    }
}

/// VOLTYPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VolumeRole {
    /// Top of a chain, may be written by a VM.
    Leaf,
    /// Below another one.
    Internal,
    /// Base of a template.
    Shared,
}

impl VolumeRole {
    /// vdsm's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leaf => "LEAF",
            Self::Internal => "INTERNAL",
            Self::Shared => "SHARED",
        }
    }
}

/// LEGALITY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Legality {
    /// LEGAL.
    Legal,
    /// ILLEGAL: a merge is running or has failed.
    Illegal,
    /// FAKE: placeholder of a template on a backup domain.
    Fake,
}

impl Legality {
    /// vdsm's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Legal => "LEGAL",
            Self::Illegal => "ILLEGAL",
            Self::Fake => "FAKE",
        }
    }
}

/// What the metadata of a volume says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMeta {
    /// Virtual size in bytes: CAP (V5) or SIZE × 512 (V4 and older).
    pub capacity: u64,
    /// FORMAT.
    pub format: VolumeFormat,
    /// TYPE.
    pub allocation: Allocation,
    /// VOLTYPE.
    pub role: VolumeRole,
    /// LEGALITY.
    pub legality: Legality,
    /// PUUID; `None` at the bottom.
    pub parent: Option<VolumeId>,
    /// IMAGE: the owner; another disk's for a template base that is linked in.
    pub image: DiskId,
    /// DOMAIN.
    pub domain: DomainId,
    /// GEN.
    pub generation: Option<u32>,
    /// SEQ (4.5, V5).
    pub sequence: Option<u32>,
    /// DISKTYPE as it stands there (`DATA`, `2`, `OVFS`, …).
    pub disk_type: Option<String>,
    /// DESCRIPTION as it stands there; see [`crate::DiskDescription`].
    pub description: String,
    /// CTIME, seconds since the epoch.
    pub ctime: Option<u64>,
}

/// Metadata that cannot be read as such.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// Not UTF-8, or larger than any metadata of vdsm.
    #[error("volume metadata is not text")]
    NotText,
    /// No `EOF` line: the slot was cleared, or the write was torn.
    #[error("volume metadata has no EOF line")]
    NoEof,
    /// A needed key is not there.
    #[error("volume metadata has no {key}")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key with an unreadable value.
    #[error("volume metadata says {key}={value}, which is no valid value")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value, at most 60 characters, control characters replaced.
        value: String,
    },
}

impl VolumeMeta {
    /// Reads the bytes of a `.meta` file or slot; NUL padding is cut off.
    ///
    /// # Errors
    /// [`MetaError`]; unknown keys are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetaError> {
        // vdsm writes 512 bytes at most; O_DIRECT readers may hand over a 4 KiB block.
        let bytes = bytes.get(..4096).unwrap_or(bytes);
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        let text = std::str::from_utf8(&bytes[..end]).map_err(|_| MetaError::NotText)?;
        let Some(text) = before_eof(text) else { return Err(MetaError::NoEof) };
        let fields = Fields { text };
        let capacity = match fields.find("CAP") {
            Some(cap) => number("CAP", cap)?,
            None => number::<u64>("SIZE", fields.get("SIZE")?)?
                .checked_mul(512)
                .ok_or_else(|| value_error("SIZE", fields.find("SIZE").unwrap_or("")))?,
        };
        // No disk of an engine reaches 2^60 bytes; keeps all later sums inside u64.
        if capacity >= 1 << 60 {
            return Err(value_error("CAP", &capacity.to_string()));
        }
        let parent: VolumeId = id("PUUID", fields.get("PUUID")?)?;
        Ok(Self {
            capacity,
            format: match fields.get("FORMAT")? {
                "RAW" => VolumeFormat::Raw,
                "COW" => VolumeFormat::Cow,
                other => return Err(value_error("FORMAT", other)),
            },
            allocation: match fields.get("TYPE")? {
                "SPARSE" => Allocation::Sparse,
                "PREALLOCATED" => Allocation::Preallocated,
                other => return Err(value_error("TYPE", other)),
            },
            role: match fields.get("VOLTYPE")? {
                "LEAF" => VolumeRole::Leaf,
                "INTERNAL" => VolumeRole::Internal,
                "SHARED" => VolumeRole::Shared,
                other => return Err(value_error("VOLTYPE", other)),
            },
            legality: match fields.get("LEGALITY")? {
                "LEGAL" => Legality::Legal,
                "ILLEGAL" => Legality::Illegal,
                "FAKE" => Legality::Fake,
                other => return Err(value_error("LEGALITY", other)),
            },
            parent: (!parent.is_nil()).then_some(parent),
            image: id("IMAGE", fields.get("IMAGE")?)?,
            domain: id("DOMAIN", fields.get("DOMAIN")?)?,
            generation: fields.find("GEN").map(|v| number("GEN", v)).transpose()?,
            sequence: fields.find("SEQ").map(|v| number("SEQ", v)).transpose()?,
            disk_type: fields.find("DISKTYPE").map(str::to_owned),
            description: fields.find("DESCRIPTION").unwrap_or("").to_owned(),
            ctime: fields.find("CTIME").map(|v| number("CTIME", v)).transpose()?,
        })
    }

    /// Whether the volume belongs to a VM's disk and not to the engine's or a snapshot's
    /// own housekeeping (OVF store, memory, hosted engine, ISO, scratch).
    pub fn holds_vm_data(&self) -> bool {
        matches!(self.disk_type.as_deref(), None | Some("DATA" | "2" | "1"))
    }
}

/// The lines in front of the line `EOF`.
fn before_eof(text: &str) -> Option<&str> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if line.trim_end() == "EOF" {
            return Some(&text[..at]);
        }
        at += line.len();
    }
    None
}

struct Fields<'a> {
    text: &'a str,
}

impl<'a> Fields<'a> {
    fn find(&self, key: &str) -> Option<&'a str> {
        self.text
            .lines()
            .find_map(|line| line.split_once('=').filter(|(k, _)| *k == key))
            .map(|(_, value)| value.trim())
    }

    fn get(&self, key: &'static str) -> Result<&'a str, MetaError> {
        self.find(key).ok_or(MetaError::Missing { key })
    }
}

fn value_error(key: &'static str, value: &str) -> MetaError {
    let value = value.chars().take(60).map(|c| if c.is_control() { '·' } else { c }).collect();
    MetaError::Value { key, value }
}

fn number<T: std::str::FromStr>(key: &'static str, value: &str) -> Result<T, MetaError> {
    value.parse().map_err(|_| value_error(key, value))
}

fn id<T: std::str::FromStr>(key: &'static str, value: &str) -> Result<T, MetaError> {
    number(key, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "DOMAIN=00000000-0000-4000-8000-00000000005d
VOLTYPE=LEAF
CTIME=1795000000
MTIME=0
FORMAT=COW
IMAGE=00000000-0000-4000-8000-000000000001
DISKTYPE=2
PUUID=00000000-0000-0000-0000-000000000000
LEGALITY=LEGAL
POOL_UUID=
TYPE=SPARSE
SIZE=2097152
DESCRIPTION={\"DiskAlias\":\"a=b\",\"DiskDescription\":\"\"}
GEN=0
EOF
";
    const V5: &str = "CAP=1073741824
CTIME=1795000000
DESCRIPTION=
DISKTYPE=DATA
DOMAIN=00000000-0000-4000-8000-00000000005d
FORMAT=RAW
GEN=12
IMAGE=00000000-0000-4000-8000-000000000001
LEGALITY=ILLEGAL
PUUID=00000000-0000-4000-8000-000000000009
SEQ=3
TYPE=PREALLOCATED
VOLTYPE=SHARED
FUTURE=whatever
EOF
";

    #[test]
    fn both_versions_are_read() {
        let m = VolumeMeta::parse(V4.as_bytes()).unwrap();
        assert_eq!((m.capacity, m.format, m.parent), (1 << 30, VolumeFormat::Cow, None));
        assert_eq!((m.role, m.allocation), (VolumeRole::Leaf, Allocation::Sparse));
        assert_eq!(m.description, "{\"DiskAlias\":\"a=b\",\"DiskDescription\":\"\"}");
        assert_eq!((m.generation, m.sequence, m.ctime), (Some(0), None, Some(1_795_000_000)));
        assert!(m.holds_vm_data());
        let mut slot = V5.as_bytes().to_vec();
        slot.resize(META_SIZE, 0);
        let m = VolumeMeta::parse(&slot).unwrap();
        assert_eq!((m.capacity, m.format), (1 << 30, VolumeFormat::Raw));
        assert_eq!((m.legality, m.role), (Legality::Illegal, VolumeRole::Shared));
        assert_eq!(m.parent.unwrap().to_string(), "00000000-0000-4000-8000-000000000009");
        assert_eq!((m.generation, m.sequence), (Some(12), Some(3)));
    }

    #[test]
    fn damaged_metadata_is_named() {
        let parse = |text: &str| VolumeMeta::parse(text.as_bytes());
        assert_eq!(parse(""), Err(MetaError::NoEof));
        assert_eq!(parse("EOF\n"), Err(MetaError::Missing { key: "SIZE" }));
        assert_eq!(parse(&V4[..V4.len() - 5]), Err(MetaError::NoEof));
        assert_eq!(parse(&"NONE=######\n".repeat(30)), Err(MetaError::NoEof));
        assert_eq!(VolumeMeta::parse(b"\xff\xfe"), Err(MetaError::NotText));
        assert_eq!(VolumeMeta::parse(&[0; 512]), Err(MetaError::NoEof));
        for (from, to, key) in [
            ("FORMAT=COW", "FORMAT=QCOW2", "FORMAT"),
            ("TYPE=SPARSE", "TYPE=", "TYPE"),
            ("VOLTYPE=LEAF", "VOLTYPE=leaf", "VOLTYPE"),
            ("LEGALITY=LEGAL", "LEGALITY=MAYBE", "LEGALITY"),
            ("SIZE=2097152", "SIZE=-1", "SIZE"),
            ("SIZE=2097152", "SIZE=18446744073709551615", "SIZE"),
            ("SIZE=2097152", "CAP=18446744073709551615", "CAP"),
            ("PUUID=00000000", "PUUID=../../../", "PUUID"),
            ("IMAGE=00000000", "IMAGE=x", "IMAGE"),
            ("GEN=0", "GEN=zero", "GEN"),
        ] {
            match parse(&V4.replace(from, to)) {
                Err(MetaError::Value { key: k, value }) => {
                    assert_eq!(k, key);
                    assert!(value.len() < 70);
                }
                other => panic!("{to}: {other:?}"),
            }
        }
        assert_eq!(parse(&V4.replace("IMAGE=", "IMAG=")), Err(MetaError::Missing { key: "IMAGE" }));
        assert_eq!(
            parse(&V4.replace("FORMAT=COW", "FORMAT=\u{1b}[2J")).unwrap_err().to_string(),
            "volume metadata says FORMAT=·[2J, which is no valid value"
        );
    }
}
