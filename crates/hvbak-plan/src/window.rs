//! Hours in which VMs may be begun.
//!
//! Pure: the time is a parameter. Invariant: a window belongs to the day that it begins on,
//! and means the clock on the wall: a night in which the clock is changed is shorter or longer.

use std::str::FromStr;

use jiff::{Span, Timestamp, Zoned, civil::Weekday, tz::TimeZone};

const DAY: i16 = 24 * 60;
const DAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// `22:00-06:00`, `Mon-Fri 22:00-06:00`, `Sat,Sun 00:00-24:00`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    days: [bool; 7],
    /// Minutes after midnight.
    from: i16,
    /// Minutes after the same midnight; after `from`.
    to: i16,
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is no window; write `22:00-06:00`, `Mon-Fri 22:00-06:00` or `Sat,Sun 00:00-24:00`"
)]
pub struct WindowError {
    text: String,
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let read = || {
            let (days, hours) = match text.trim().rsplit_once(' ') {
                Some((days, hours)) => (read_days(days)?, hours),
                None => ([true; 7], text.trim()),
            };
            let (from, to) = hours.split_once('-')?;
            let (from, to) = (minutes(from)?, minutes(to)?);
            if from == DAY || from == to {
                return None;
            }
            Some(Self { days, from, to: if to < from { to + DAY } else { to } })
        };
        read().ok_or_else(|| WindowError { text: text.to_owned() })
    }
}

fn read_days(text: &str) -> Option<[bool; 7]> {
    let number = |name: &str| {
        let name = name.trim().to_ascii_lowercase();
        DAYS.iter().position(|(short, _)| *short == name)
    };
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (number(first)?, number(last)?);
        *days.get_mut(day)? = true;
        while day != last {
            day = (day + 1) % 7;
            *days.get_mut(day)? = true;
        }
    }
    Some(days)
}

/// `HH:MM`, up to `24:00`.
fn minutes(text: &str) -> Option<i16> {
    let (hours, minutes) = text.trim().split_once(':')?;
    let number = |text: &str| {
        (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let (hours, minutes): (i16, i16) = (number(hours)?, number(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= DAY).then_some(hours * 60 + minutes)
}

impl Window {
    /// When it begins and ends, counted from `days` after the day of `now`.
    fn on(&self, now: &Zoned, days: i64) -> Option<(Timestamp, Timestamp)> {
        let date = now.date().checked_add(Span::new().days(days)).ok()?;
        let index = DAYS.iter().position(|(_, day)| *day == date.weekday())?;
        if !*self.days.get(index)? {
            return None;
        }
        let at = |minutes: i16| {
            let date = date.checked_add(Span::new().days(i64::from(minutes / DAY))).ok()?;
            let time = date.at((minutes % DAY / 60) as i8, (minutes % 60) as i8, 0, 0);
            Some(time.to_zoned(now.time_zone().clone()).ok()?.timestamp())
        };
        Some((at(self.from)?, at(self.to)?))
    }
}

/// When the windows close that are open at `now`; `None` when none is. Windows that follow
/// each other without a gap are one.
pub fn window_closes(windows: &[Window], now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let mut closes = None;
    let mut at = now;
    // A week of windows without a gap never closes; eight days are then told.
    while at.duration_since(now).as_hours() < 8 * 24 {
        let local = at.to_zoned(zone.clone());
        let spans = windows.iter().flat_map(|w| [w.on(&local, -1), w.on(&local, 0)]).flatten();
        let open = spans.filter(|(from, to)| *from <= at && at < *to).map(|(_, to)| to).max();
        let Some(end) = open else { break };
        (closes, at) = (Some(end), end);
    }
    closes
}

/// When one of the windows begins next; `None` without windows.
pub fn window_opens(windows: &[Window], now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let local = now.to_zoned(zone.clone());
    let spans = windows.iter().flat_map(|w| (0..=7).filter_map(|days| w.on(&local, days)));
    spans.map(|(from, _)| from).filter(|from| *from > now).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(texts: &[&str]) -> Vec<Window> {
        texts.iter().map(|t| t.parse().unwrap()).collect()
    }

    fn vienna() -> TimeZone {
        TimeZone::get("Europe/Vienna").unwrap()
    }

    fn time(text: &str) -> Timestamp {
        text.parse::<jiff::civil::DateTime>().unwrap().to_zoned(vienna()).unwrap().timestamp()
    }

    fn check(texts: &[&str], now: &str, closes: Option<&str>, opens: Option<&str>) {
        let (windows, now) = (windows(texts), time(now));
        assert_eq!(window_closes(&windows, now, &vienna()), closes.map(time), "{texts:?} closes");
        assert_eq!(window_opens(&windows, now, &vienna()), opens.map(time), "{texts:?} opens");
    }

    #[test]
    fn nights_belong_to_the_day_they_begin_on() {
        // 2026-11-20 is a Friday.
        let night = &["Mon-Fri 22:00-06:00"];
        check(night, "2026-11-20T23:00", Some("2026-11-21T06:00"), Some("2026-11-23T22:00"));
        check(night, "2026-11-21T05:59", Some("2026-11-21T06:00"), Some("2026-11-23T22:00"));
        check(night, "2026-11-21T06:00", None, Some("2026-11-23T22:00"));
        check(night, "2026-11-21T23:00", None, Some("2026-11-23T22:00"));
        check(night, "2026-11-20T21:59", None, Some("2026-11-20T22:00"));
        check(
            &["Fri 22:00-06:00"],
            "2026-11-20T22:30",
            Some("2026-11-21T06:00"),
            Some("2026-11-27T22:00"),
        );
    }

    #[test]
    fn windows_without_a_gap_are_one() {
        let both = &["Fri 22:00-24:00", "Sat,Sun 00:00-24:00"];
        check(both, "2026-11-20T23:00", Some("2026-11-23T00:00"), Some("2026-11-21T00:00"));
        let always = windows(&["00:00-24:00"]);
        let now = time("2026-11-20T23:00");
        assert!(
            window_closes(&always, now, &vienna()).unwrap()
                > now + jiff::SignedDuration::from_hours(24 * 7)
        );
        check(&[], "2026-11-20T23:00", None, None);
    }

    #[test]
    fn the_clock_on_the_wall_counts() {
        // The night to 2026-10-25 has an hour more.
        check(
            &["22:00-06:00"],
            "2026-10-24T22:00",
            Some("2026-10-25T06:00"),
            Some("2026-10-25T22:00"),
        );
        let length = time("2026-10-25T06:00").duration_since(time("2026-10-24T22:00"));
        assert_eq!(length.as_hours(), 9);
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "22:00",
            "22:00-22:00",
            "24:00-06:00",
            "22:00-24:01",
            "2:00-06:00",
            "22:60-23:00",
            "Mon 22:00",
            "Montag 22:00-23:00",
            "Mon- 22:00-23:00",
            "22:00-+6:00",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
        assert_eq!(windows(&["Sat-Mon 10:00-11:00"]), windows(&["sat,SUN,mon 10:00-11:00"]));
    }
}
