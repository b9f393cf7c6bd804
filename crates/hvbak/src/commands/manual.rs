//! `hvbak manual DIR` (hidden; for packagers): the manual pages, one for each command and one of
//! the errors.
//!
//! Pages come from the definition that parses what is typed, so they cannot say anything else.
//! Invariant: the same program writes the same bytes, everywhere and at any time; the date is
//! `$SOURCE_DATE_EPOCH`'s, or none.

use std::{fs, io::Write, path::Path};

use clap::{Command, CommandFactory};
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use super::{Outcome, errors_page};
use crate::{
    cli::Cli,
    exit::{CliError, DONE},
};

/// Writes `hvbak.1`, `hvbak-backup.1`, … and `hvbak-errors.7` into a directory, which is made.
pub fn run(dir: &Path) -> Outcome {
    let fail =
        |cause| CliError::Io { text: format!("cannot write pages to {}", dir.display()), cause };
    fs::create_dir_all(dir).map_err(fail)?;
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    fs::write(dir.join("hvbak-errors.7"), errors_page::page(&date())).map_err(fail)?;
    let mut count = 1;
    walk(&root, &mut |command| {
        count += 1;
        let path = dir.join(format!("{}.1", name(command)));
        fs::write(path, page(command, &date())?)
    })
    .map_err(fail)?;
    Ok((DONE, serde_json::json!({ "pages": count })))
}

fn walk(
    command: &Command,
    act: &mut impl FnMut(&Command) -> std::io::Result<()>,
) -> std::io::Result<()> {
    act(command)?;
    command.get_subcommands().filter(|c| !c.is_hide_set()).try_for_each(|c| walk(c, act))
}

fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// Day of `$SOURCE_DATE_EPOCH`, which rpmbuild sets to the changelog's.
fn date() -> String {
    let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|v| v.parse().ok());
    let day = epoch.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    day.map_or_else(String::new, |day| day.strftime("%Y-%m-%d").to_string())
}

fn page(command: &Command, date: &str) -> std::io::Result<Vec<u8>> {
    let version = format!("hvbak {}", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).date(date).source(version).manual("hvbak");
    let mut out = Vec::new();
    let mut title = Vec::new();
    man.render_title(&mut title)?;
    // The generator leaves an empty date out, so that the version would take its place.
    out.extend(String::from_utf8_lossy(&title).replace(" 1  ", " 1 \"\" ").into_bytes());
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    let mut options = Vec::new();
    man.render_options_section(&mut options)?;
    out.extend(one_break(options));
    if command.get_subcommands().any(|c| !c.is_hide_set()) {
        man.render_subcommands_section(&mut out)?;
    }
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    for (heading, lines) in sections(&help) {
        verbatim(&mut out, &heading, &lines)?;
    }
    let see = match name(command) {
        "hvbak" => {
            "hvbak-errors(7), /usr/share/doc/hvbak/README.md, /usr/share/doc/hvbak/hvbak.example.toml"
        }
        _ => "hvbak(1), hvbak-errors(7)",
    };
    verbatim(&mut out, "SEE ALSO", &[see])?;
    Ok(out)
}

/// The generator sets an empty line between two breaks, of which checkers complain.
fn one_break(roff: Vec<u8>) -> Vec<u8> {
    String::from_utf8_lossy(&roff).replace("\n.br\n\n.br\n", "\n.sp\n").into_bytes()
}

/// What stands below the options in `--help`, cut at lines that are a heading.
fn sections(help: &str) -> Vec<(String, Vec<&str>)> {
    let mut sections: Vec<(String, Vec<&str>)> = Vec::new();
    for line in help.lines() {
        let heading = match line.trim_end() {
            "Example:" | "Examples:" => Some("EXAMPLES"),
            "Exit codes:" => Some("EXIT STATUS"),
            _ => None,
        };
        match heading {
            Some(heading) => sections.push((heading.into(), Vec::new())),
            None => match sections.last_mut() {
                // Examples are indented; what is not is of another kind.
                Some((kind, lines))
                    if kind == "NOTES" || line.is_empty() || line.starts_with(' ') =>
                {
                    lines.push(line);
                }
                _ => sections.push(("NOTES".into(), vec![line])),
            },
        }
    }
    for (_, lines) in &mut sections {
        while lines.last().is_some_and(|l| l.is_empty()) {
            lines.pop();
        }
    }
    sections.retain(|(_, lines)| !lines.is_empty());
    sections
}

/// A section whose lines stay as they are.
fn verbatim(out: &mut Vec<u8>, heading: &str, lines: &[&str]) -> std::io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", [heading]).control("nf", []);
    out.write_all(roff.to_roff().as_bytes())?;
    for line in lines {
        let mut roff = Roff::default();
        // An empty line is a request in the eyes of a checker.
        if line.is_empty() {
            roff.control("sp", [])
        } else {
            roff.text([roman(*line)])
        };
        out.write_all(roff.to_roff().as_bytes())?;
    }
    let mut roff = Roff::default();
    roff.control("fi", []);
    out.write_all(roff.to_roff().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(help: &str, expected: &[(&str, &[&str])]) {
        let found = sections(help);
        let found: Vec<_> = found.iter().map(|(h, l)| (h.as_str(), l.as_slice())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn help_is_cut_into_sections() {
        check("", &[]);
        check("Examples:\n  a\n\n  b", &[("EXAMPLES", &["  a", "", "  b"])]);
        check("Exit codes:\n  0 done", &[("EXIT STATUS", &["  0 done"])]);
        check(
            "Words,\nand more.\n\nExample:\n  a\n\nRules:\n  [x]",
            &[
                ("NOTES", &["Words,", "and more."]),
                ("EXAMPLES", &["  a"]),
                ("NOTES", &["Rules:", "  [x]"]),
            ],
        );
    }

    #[test]
    fn a_page_has_every_option_and_no_line_that_is_a_request_by_accident() {
        let mut root = Cli::command();
        root.build();
        let mut seen = 0;
        walk(&root, &mut |command| {
            let undated = String::from_utf8(page(command, "")?).unwrap();
            assert!(undated.lines().any(|l| l.starts_with(".TH") && l.contains(" 1 \"\" \"hvbak")));
            let page = String::from_utf8(page(command, "2026-11-21")?).unwrap();
            for option in command.get_arguments().filter_map(|a| a.get_long()) {
                let shown = format!("\\-\\-{}", option.replace('-', "\\-"));
                assert!(page.contains(&shown), "{}: {option}", name(command));
            }
            for line in page.lines().filter(|l| l.starts_with('.')) {
                let word = line.split(' ').next().unwrap();
                let known = [
                    ".TH", ".SH", ".TP", ".RS", ".RE", ".br", ".nf", ".fi", ".sp", ".ie", ".el",
                    ".PP", ".IP",
                ];
                assert!(known.contains(&word), "{}: {line}", name(command));
            }
            seen += 1;
            Ok(())
        })
        .unwrap();
        assert!(seen > 20, "{seen}");
    }
}
