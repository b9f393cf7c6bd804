//! The page of errors against the texts in the sources: neither may have what the other lacks.
//!
//! Reads string literals, not Rust: what a macro makes of other macros is not seen. Texts are
//! compared without the names in them, so that words of a page may stand for placeholders.
//! Invariant: what cannot be read is a violation, never passed over.

use std::{collections::BTreeSet, fs};

/// The page, which is also the manual page hvbak-errors(7).
const PAGE: &str = "crates/hvbak/ERRORS.md";

/// What stands for every name, number and text that differs.
const DIFFERS: char = '*';

/// Whether errors in this file can reach a user. The simulator's own cannot.
fn is_shown(path: &str) -> bool {
    let test = path.ends_with("_tests.rs") || path.ends_with("/tests.rs");
    let ours = path.starts_with("crates/") && path.contains("/src/") && path.ends_with(".rs");
    ours && !test && !path.starts_with("crates/hvbak-sim/")
}

/// What is missing on the page, stale or without a remedy. `paths` are those of the sources.
pub fn check<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<String> {
    let sources = paths.filter(|path| is_shown(path));
    let sources = sources.filter_map(|path| Some((path, fs::read_to_string(path).ok()?)));
    compare(&fs::read_to_string(PAGE).unwrap_or_default(), sources)
}

fn compare<'a>(page: &str, sources: impl Iterator<Item = (&'a str, String)>) -> Vec<String> {
    let mut problems = Vec::new();
    let entries = entries(page, &mut problems);
    let known: BTreeSet<String> = entries.iter().map(|(_, text)| bare(text)).collect();
    let mut said = BTreeSet::new();
    for (path, text) in sources {
        let (literals, unread) = literals(&text);
        problems.extend(unread.iter().map(|l| format!("{path}:{l}: no literal in `#[error(…)]`")));
        for Literal { line, text, is_error } in literals {
            let form = bare(&without_placeholders(&text));
            // Nothing but its cause, which is an error of its own.
            let has_words = form.contains(|c: char| c.is_ascii_lowercase());
            if is_error && has_words && !known.contains(&form) {
                problems.push(format!("{path}:{line}: error is not explained in {PAGE}: {text}"));
            }
            said.insert(form);
        }
    }
    let stale = entries.iter().filter(|(_, text)| !said.contains(&bare(text)));
    problems.extend(stale.map(|(line, text)| format!("{PAGE}:{line}: nothing says: {text}")));
    problems
}

/// Lines of the page that are an item of one code span. The last of several that stand together
/// must be followed by what they mean.
fn entries<'a>(page: &'a str, problems: &mut Vec<String>) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        let Some(text) = line.strip_prefix("- ").and_then(code_span) else { continue };
        found.push((at + 1, text));
        let is_told = |next: &str| next.starts_with("  ") || next.starts_with("- `");
        if !lines.peek().is_some_and(|(_, next)| is_told(next)) {
            problems.push(format!("{PAGE}:{}: does not say what to do: {text}", at + 1));
        }
    }
    found
}

/// The text of a line that is one code span, by one backtick or two.
fn code_span(text: &str) -> Option<&str> {
    if let Some(inner) = text.strip_prefix("``") {
        // Spaces keep backticks of the text apart from those around it.
        return Some(inner.strip_suffix("``")?.trim());
    }
    text.strip_prefix('`')?.strip_suffix('`').filter(|inner| !inner.contains('`'))
}

struct Literal {
    line: usize,
    text: String,
    is_error: bool,
}

/// String literals before the tests of a file, and lines of `#[error(…)]` that have none.
fn literals(source: &str) -> (Vec<Literal>, Vec<usize>) {
    let tests = ["#[cfg(test)]\nmod ", "#[cfg(test)]\n#[path"].map(|t| source.find(t));
    let source = &source[..tests.into_iter().flatten().min().unwrap_or(source.len())];
    let line = |at: usize| source[..at].matches('\n').count() + 1;
    let (mut found, mut unread) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(rest) = source.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with('\'') {
            at += quote(rest);
        } else if let Some((text, length)) = string(rest, &source[..at]) {
            let is_error = source[..at].trim_end().ends_with("#[error(");
            found.push(Literal { line: line(at), text, is_error });
            at += length;
        } else {
            if let Some(inner) = rest.strip_prefix("#[error(") {
                let inner = inner.trim_start();
                if !inner.starts_with(['"', 'r']) && !inner.starts_with("transparent)") {
                    unread.push(line(at));
                }
            }
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    (found, unread)
}

/// Length of a character literal; of the quote alone where it begins a lifetime.
fn quote(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => {
            chars.next();
            chars.find(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 1)
        }
        Some(_) => chars.next().filter(|(_, c)| *c == '\'').map_or(1, |(at, _)| at + 1),
        None => 1,
    }
}

/// The string literal that begins here, and its length in the source.
fn string(rest: &str, before: &str) -> Option<(String, usize)> {
    let word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    if let Some(raw) = rest.strip_prefix('r').filter(|_| !word || before.ends_with('b')) {
        let marks = raw.len() - raw.trim_start_matches('#').len();
        let inner = raw[marks..].strip_prefix('"')?;
        let length = inner.find(&format!("\"{}", "#".repeat(marks)))?;
        return Some((inner[..length].to_owned(), 1 + marks + 1 + length + 1 + marks));
    }
    let inner = rest.strip_prefix('"')?;
    let mut text = String::new();
    let mut chars = inner.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((text, at + 2)),
            '\\' => match chars.next()?.1 {
                'n' | 't' | 'r' => text.push(' '),
                // The text goes on in the next line, behind its indent.
                '\n' => while chars.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                other => text.push(other),
            },
            c => text.push(c),
        }
    }
    None
}

/// A format string whose placeholders are marks.
fn without_placeholders(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.next_if_eq(&c).is_some() => out.push(c),
            '{' => {
                chars.by_ref().find(|c| *c == '}');
                out.push(DIFFERS);
            }
            c => out.push(c),
        }
    }
    out
}

/// A text without what differs: words in capitals and `…` become one mark together with what is
/// beside them, white space becomes one space.
fn bare(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    let end = |word: &mut String, out: &mut String| {
        let first = word.starts_with(|c: char| c.is_ascii_uppercase());
        let name = first && !word.contains(|c: char| c.is_ascii_lowercase());
        out.push_str(if name { "*" } else { word });
        word.clear();
    };
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            word.push(c);
            continue;
        }
        end(&mut word, &mut out);
        out.push(if c == '…' { DIFFERS } else { c });
    }
    end(&mut word, &mut out);
    let mut form = String::new();
    for part in out.split_whitespace() {
        let apart = !(form.ends_with(DIFFERS) && part.starts_with(DIFFERS) || form.is_empty());
        form.extend(apart.then_some(' '));
        for c in part.chars() {
            if !(c == DIFFERS && form.ends_with(DIFFERS)) {
                form.push(c);
            }
        }
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Errors\n- `0` Done.\n- `host HOST is away…`\n- ``no VM `NAME` ``\n  \
                        Wake it.\n- `it is off`\n  Switch it on.\n";

    fn check(page: &str, source: &str, expected: &[&str]) {
        let found = compare(page, [("a.rs", source.to_owned())].into_iter());
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for part in expected {
            assert!(found.iter().any(|f| f.contains(part)), "{found:#?} / {part}");
        }
    }

    #[test]
    fn page_and_sources_must_have_the_same_texts() {
        let source = "//! \"x\n#[error(\"host {host} is away{}\", tail(x))]\n#[error(\n    \
                      \"no VM \\\n  `{n:?}`\"\n)]\n#[error(transparent)]\n#[error(\"{cause}\")]\n\
                      fn f() { ('\"', '\\'', r#\"a\"b\"#); Err(\"it is off\") }\n\
                      #[cfg(test)]\nmod tests { #[error(\"not shown\")] }";
        check(PAGE, source, &[]);
        let more = source.replacen("fn", "#[error(\"it is {{new}}\")]\nfn", 1);
        check(PAGE, &more, &["ERRORS.md: it is {{new}}"]);
        check(PAGE, &source.replace("is off", "is on"), &["nothing says: it is off"]);
        check(PAGE, &source.replace("away", "gone"), &["a.rs:2: error", "nothing says: host HOST"]);
        check(PAGE, &source.replace("(transparent)", "(fmt = f)"), &["a.rs:7: no literal"]);
        check(&PAGE.replace("  Switch it on.\n", ""), source, &["does not say what to do"]);
        check("", source, &["host {host}", "no VM"]);
    }

    #[test]
    fn what_differs_is_one_mark() {
        for (text, form) in [
            ("cannot ACTION PATH:  x", "cannot *: x"),
            ("no space for PATH…: N bytes", "no space for *: * bytes"),
            ("SSH key PATH (mode …)", "* key * (mode *)"),
            ("`A-B_2` of VMs", "`*` of VMs"),
        ] {
            assert_eq!(bare(text), form);
        }
    }
}
