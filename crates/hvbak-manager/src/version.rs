//! Versions of engine-backup: order, what each of them can do, whose archives it accepts.
//!
//! The order is Python's `LooseVersion`, which the program itself uses: numbers as numbers,
//! words after the number they follow (`4.5.7_master` is newer than `4.5.7`).

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest version text that is taken seriously.
const LONGEST: usize = 64;

/// A version as engine-backup writes it: `4.5.7`, `4.4.10.7`, `4.4.8.4_master`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

/// Text that is no version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no version of engine-backup")]
pub struct VersionError {
    text: String,
}

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let short: String = text.chars().take(LONGEST).filter(|c| !c.is_control()).collect();
        let bad = || VersionError { text: short.clone() };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '~' | '+');
        // What follows a dash is the package's release and no part of the version.
        let text = text.split('-').next().unwrap_or_default();
        if text.is_empty() || text.len() > LONGEST || !text.chars().all(plain) {
            return Err(bad());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let digits = first.is_ascii_digit();
            let end =
                rest.find(|c: char| c == '.' || c.is_ascii_digit() != digits).unwrap_or(rest.len());
            let (part, more) = rest.split_at(end);
            if digits {
                parts.push(Part::Number(part.parse().map_err(|_| bad())?));
            } else if !part.is_empty() {
                parts.push(Part::Word(part.to_owned()));
            }
            rest = more.strip_prefix('.').unwrap_or(more);
        }
        if !matches!(parts[..], [Part::Number(_), Part::Number(_), ..]) {
            return Err(bad());
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

impl Version {
    /// The first two numbers: `(4, 5)`.
    pub fn series(&self) -> (u64, u64) {
        match self.parts[..] {
            [Part::Number(x), Part::Number(y), ..] => (x, y),
            // The parser lets nothing else through.
            _ => (0, 0),
        }
    }

    /// Whether this is at least `4.5.1`, given as `&[4, 5, 1]`.
    pub fn at_least(&self, numbers: &[u64]) -> bool {
        let wanted: Vec<_> = numbers.iter().map(|n| Part::Number(*n)).collect();
        self.parts.as_slice() >= wanted.as_slice()
    }

    /// Whether an engine-backup of this version restores an archive made by `made_by`
    /// (engine-backup.md §8). `Err` says why not.
    pub fn accepts(&self, made_by: &Self) -> Result<(), String> {
        let (mine, other) = (self.series(), made_by.series());
        let old_43 = other == (4, 3) && !made_by.at_least(&[4, 3, 10]);
        let no = |why: &str| Err(format!("{self} does not take archives of {made_by}: {why}"));
        match mine {
            (4, 0..=3) if mine == other => {
                // md5sum is read by all; a hash file named sha256sum is known since 4.3.
                Ok(())
            }
            (4, 0..=3) => no("it takes its own X.Y only"),
            (4, 4) | (4, 5) if other == (4, 3) => {
                if old_43 && self.at_least(&[4, 4, 3, 4]) {
                    return no("4.3 archives must be of 4.3.10 or newer");
                }
                Ok(())
            }
            (4, 4) if other == (4, 4) && !self.at_least(&[4, 4, 7]) => Ok(()),
            (4, 5) if other == (4, 4) => Ok(()),
            (4, 4) | (4, 5) if mine == other => {
                if made_by.parts > self.parts {
                    return no("the archive is newer");
                }
                Ok(())
            }
            (4, 4) | (4, 5) => no("too far apart; upgrade in place through the versions between"),
            _ => no("this version is not known to hvbak"),
        }
    }

    /// For people: which managers restore an archive made by this version.
    pub fn restored_by(&self) -> String {
        match self.series() {
            (4, 3) if self.at_least(&[4, 3, 10]) => "4.3, 4.4 or 4.5".into(),
            (4, 3) => "4.3, or 4.4 before 4.4.3.4".into(),
            (4, 4) => format!("4.4 from {self} on, or 4.5"),
            (4, 5) => format!("4.5 from {self} on"),
            (x, y) => format!("{x}.{y} only"),
        }
    }

    /// `--file`, `--log` and `--mode` have defaults and the header lines are printed.
    pub fn prints_header(&self) -> bool {
        self.at_least(&[4, 3])
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts.cmp(&other.parts).then_with(|| self.text.cmp(&other.text))
    }
}

impl Serialize for Version {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn order_is_the_programs_own() {
        let sorted = ["4.2.8.9", "4.3.3.2", "4.3.11.4", "4.4.10.7", "4.5.7", "4.5.7_master"];
        for pair in sorted.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{pair:?}");
        }
        assert_eq!(v("4.4.10.7-1.0.2.el8"), v("4.4.10.7"));
        for bad in ["", "4", "x.y", "4.5 ; id", "4.5.7\n", "$(id)", "4.99999999999999999999"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_policy_is_the_one_that_was_recorded() {
        for (installed, made_by, accepted) in [
            ("4.2.8.9", "4.2.8.9", true),
            ("4.2.8.9", "4.1.11.2", false),
            ("4.3.11.4", "4.2.8.9", false),
            ("4.4.10.7", "4.3.11.4", true),
            ("4.4.10.7", "4.4.2.6", true),
            ("4.4.2.6", "4.4.10.7", true),
            ("4.5.7", "4.2.8.9", false),
            ("4.5.7", "4.3.11.4", true),
            ("4.5.7", "4.3.9", false),
            ("4.5.7", "4.4.10.7", true),
            ("4.5.7", "4.5.8", false),
            ("4.5.7", "4.5.7_master", false),
            ("4.5.8", "4.5.7", true),
        ] {
            let answer = v(installed).accepts(&v(made_by));
            assert_eq!(answer.is_ok(), accepted, "{installed} of {made_by}: {answer:?}");
        }
    }
}
