//! Small pieces of Markdown.

use jiff::Timestamp;

use crate::Facts;

/// Days after which facts are called old.
pub const OLD_AFTER_DAYS: i64 = 7;

/// Somebody's words as plain text: nothing in them is Markdown or HTML.
pub fn words(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            c if c.is_control() => out.push(' '),
            '.' | ',' | ':' | '/' | '-' | ' ' | '@' | '(' | ')' | '%' => out.push(c),
            c if c.is_ascii_punctuation() => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// A word of a command, quoted for a POSIX shell.
pub fn quoted(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    // Fails on NUL only, which is a control character.
    shlex::try_quote(&plain).map_or_else(|_| String::from("''"), |quoted| quoted.into_owned())
}

/// A block of commands.
pub fn commands(lines: &[String]) -> String {
    format!("\n```sh\n{}\n```\n\n", lines.join("\n"))
}

/// A table; `none` is said when it has no rows.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>, none: &str) -> String {
    let mut out = String::new();
    for row in rows {
        out += &format!("| {} |\n", row.join(" | "));
    }
    if out.is_empty() {
        return format!("\n{none}\n\n");
    }
    let rule = vec!["---"; head.len()].join(" | ");
    format!("\n| {} |\n| {rule} |\n{out}\n", head.join(" | "))
}

/// Steps to tick off.
pub fn steps(steps: &[&str]) -> String {
    let lines: Vec<_> = steps.iter().map(|step| format!("- [ ] {step}\n")).collect();
    format!("\n{}\n", lines.concat())
}

pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// How long `content` bytes take at the measured speed.
pub fn expected(content: u64, speed: Option<u64>) -> String {
    let Some(speed) = speed.filter(|speed| *speed > 0) else { return "not measured".into() };
    match content / speed {
        0..60 => "under a minute".into(),
        seconds if seconds < 3600 => format!("about {} min", seconds.div_ceil(60)),
        seconds => format!("about {:.1} h", seconds as f64 / 3600.0),
    }
}

pub fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// Says how old the facts are, and when not to trust them.
pub fn read_on(facts: &Facts) -> String {
    format!(
        "> Facts read **{}** by hvbak {} on {}. If that is more than {OLD_AFTER_DAYS} days ago, \
         they are **old**: compare before you act, and write new pages with `hvbak runbook`.\n",
        day(facts.read),
        words(&facts.hvbak),
        words(&facts.backup_host),
    )
}
