//! The small members: `version`, `os_version`, `config` and the sums.
//!
//! verify and restore source `config` in a shell of root, so it may hold nothing but the
//! assignments that engine-backup writes: known names, plain words.

use std::collections::BTreeMap;

use crate::{scope::Scope, version::Version};

/// One line of `config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

/// Which tool wrote the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SumsKind {
    Sha256,
    Md5,
}

impl SumsKind {
    /// The member's name.
    pub fn member(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256sum",
            Self::Md5 => "md5sum",
        }
    }

    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Md5 => 32,
        }
    }
}

/// The list of sums, by member name without `./`.
#[derive(Debug)]
pub struct Sums {
    pub kind: SumsKind,
    pub sums: BTreeMap<String, String>,
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "it is not text".to_owned())
}

/// One line with a version.
pub fn version(bytes: &[u8]) -> Result<Version, String> {
    let text = text(bytes)?;
    text.strip_suffix('\n').unwrap_or(text).parse().map_err(|e| format!("{e}"))
}

/// One short word.
pub fn os_version(bytes: &[u8]) -> Result<String, String> {
    let text = text(bytes)?.trim_end_matches('\n');
    if text.len() > 64 || !text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
        return Err("it is not one plain word".into());
    }
    Ok(text.to_owned())
}

/// Assignments of plain words to the names that engine-backup uses.
pub fn config(bytes: &[u8]) -> Result<Vec<Setting>, String> {
    let mut settings: Vec<Setting> = Vec::new();
    for (number, line) in text(bytes)?.split('\n').enumerate() {
        let hostile = || {
            format!("line {} is no plain assignment; a root shell would run this file", number + 1)
        };
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(hostile)?;
        let word = |c: char| c.is_ascii_alphanumeric();
        let known = Scope::ALL.iter().filter_map(|s| s.config_prefix()).any(|prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|n| matches!(n, "DB_DUMP_COMPRESSOR" | "DB_DUMP_FORMAT"))
        });
        if !known || !value.chars().all(word) || value.len() > 32 {
            return Err(hostile());
        }
        if settings.iter().any(|s| s.name == name) {
            return Err(format!("{name} is assigned twice"));
        }
        settings.push(Setting { name: name.into(), value: value.into() });
    }
    Ok(settings)
}

/// Lines of `sha256sum` or `md5sum`.
pub fn sums(kind: SumsKind, bytes: &[u8]) -> Result<Sums, String> {
    let mut sums = BTreeMap::new();
    for (number, line) in text(bytes)?.lines().enumerate() {
        let wrong = || format!("line {} is no line of a list of sums", number + 1);
        let (sum, name) = line.split_once(' ').ok_or_else(wrong)?;
        let name = name.strip_prefix([' ', '*']).ok_or_else(wrong)?;
        let name = name.strip_prefix("./").unwrap_or(name);
        let digits = sum.len() == kind.digits() && sum.bytes().all(|b| b.is_ascii_hexdigit());
        if !digits || name.is_empty() {
            return Err(wrong());
        }
        if sums.insert(name.to_owned(), sum.to_ascii_lowercase()).is_some() {
            return Err(format!("`{}` is listed twice", super::nested::show(name.as_bytes())));
        }
    }
    Ok(Sums { kind, sums })
}
