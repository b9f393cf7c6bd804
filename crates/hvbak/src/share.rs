//! `--share [K/]N`: one of N parts of a long work, so that it spreads over days.
//!
//! Invariant: what is in which part depends on the thing and N alone, so that nothing is missed
//! because other things came or went; together the parts are all, and no two share a thing.

use std::str::FromStr;

use jiff::Timestamp;

/// Part `at` of `of`; today's without `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Counted from 1.
    at: Option<u32>,
    of: u32,
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u32>().ok().filter(|n| (1..=366).contains(n)).ok_or_else(|| {
                format!("`{text}` is no number from 1 to 366; write 7 (today's of 7) or 3/7")
            })
        };
        let share = match text.split_once('/') {
            None => Self { at: None, of: number(text)? },
            Some((at, of)) => Self { at: Some(number(at)?), of: number(of)? },
        };
        match share.at {
            Some(at) if at > share.of => Err(format!("there is no share {at} of {}", share.of)),
            _ => Ok(share),
        }
    }
}

impl Share {
    /// Whether a thing belongs to this share at this time.
    pub fn has(self, thing: &str, now: Timestamp) -> bool {
        let today = u64::try_from(now.as_second().div_euclid(86_400)).unwrap_or(0);
        let at = self.at.map_or(today, |at| u64::from(at) - 1);
        hash(thing) % u64::from(self.of) == at % u64::from(self.of)
    }
}

/// FNV-1a and a last stir: the standard library's hash may change with a release, this may not.
fn hash(text: &str) -> u64 {
    let fnv = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let stirred = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    stirred ^ (stirred >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> Share {
        text.parse().unwrap()
    }

    #[test]
    fn only_sensible_shares_are_taken() {
        assert_eq!(share("7"), Share { at: None, of: 7 });
        assert_eq!(share("3/7"), Share { at: Some(3), of: 7 });
        for bad in ["", "0", "8/7", "0/7", "/7", "3/", "1/2/3", "-1", "367", "a"] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
    }

    #[test]
    fn each_thing_is_in_exactly_one_share_and_shares_are_alike() {
        let now = Timestamp::UNIX_EPOCH;
        let mut counts = [0; 7];
        for n in 0..7000 {
            let thing = format!("vm-{}@20261121T{n:06}Z", n % 10);
            let mut found = 0;
            for (at, count) in counts.iter_mut().enumerate() {
                if share(&format!("{}/7", at + 1)).has(&thing, now) {
                    *count += 1;
                    found += 1;
                }
            }
            assert_eq!(found, 1, "{thing}");
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
        // A release must not move points to other days.
        assert_eq!(hash("web1@20261121T021454Z"), 0x0e6c_bd48_39c5_454c);
    }

    #[test]
    fn as_many_days_in_a_row_walk_through_all() {
        let first = Timestamp::from_second(1_795_219_200).unwrap();
        for n in 0..100 {
            let days = (0..7).filter(|day| {
                let day = first + jiff::SignedDuration::from_hours(24 * day);
                share("7").has(&format!("vm-{n}"), day)
            });
            assert_eq!(days.count(), 1, "vm-{n}");
        }
    }
}
