//! hvbak-errors(7): the page of errors, ERRORS.md, as a manual page.
//!
//! Knows the Markdown that stands there and no more: headings, paragraphs, items of one line or
//! several, code, strong and emphasised words. Invariant: the page is ASCII.

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

/// `cargo xtask tidy` holds it against the texts in the sources.
const PAGE: &str = include_str!("../../ERRORS.md");

/// The page in roff; `date` may be empty.
pub fn page(date: &str) -> String {
    let version = concat!("hvbak ", env!("CARGO_PKG_VERSION"));
    let mut roff = Roff::default();
    // An empty argument must be seen, or the next takes its place.
    let date = if date.is_empty() { "\"\"" } else { date };
    roff.control("TH", ["hvbak-errors", "7", date, version, "hvbak"]);
    roff.control("SH", ["NAME"]).text([roman("hvbak-errors - what errors mean, and what to do")]);
    roff.control("SH", ["DESCRIPTION"]);
    body(PAGE, &mut roff);
    roff.control("SH", ["SEE ALSO"]).text([roman("hvbak(1)")]);
    // What stands for quotation marks and accents in running text are signs to type here.
    let text = roff.render().replace('`', "\\(ga").replace('~', "\\(ti").replace('^', "\\(ha");
    text.replace('…', "...")
}

fn body(markdown: &str, roff: &mut Roff) {
    let mut lines = markdown.lines().peekable();
    // Several items in a row share what stands below the last.
    let mut shared = false;
    // A heading begins a paragraph.
    let mut begun = true;
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with("# ") {
            continue;
        }
        if let Some(heading) = line.strip_prefix("## ") {
            roff.control("SH", [heading.to_uppercase().as_str()]);
            begun = true;
            continue;
        }
        let item = line.strip_prefix("- ");
        // An item of nothing but code is what the lines below it are about.
        let term = item.map(inlines).filter(|parts| matches!(parts.as_slice(), [Inline::Bold(_)]));
        let mut text = vec![item.unwrap_or(line)];
        let goes_on = |next: &&str| match item {
            Some(_) => next.starts_with("  "),
            None => !next.is_empty(),
        };
        while let Some(next) = lines.next_if(goes_on) {
            text.push(next.trim());
        }
        if let Some(term) = term {
            begun = false;
            roff.control(if shared { "TQ" } else { "TP" }, []).text(term);
            shared = text.len() == 1;
            if !shared {
                roff.text(inlines(&text[1..].join(" ")));
            }
            continue;
        }
        shared = false;
        if item.is_some() {
            roff.control("IP", ["\\(bu", "2"]);
        } else if !begun {
            roff.control("PP", []);
        }
        begun = false;
        roff.text(inlines(&text.join(" ")));
    }
}

/// Code and strong words in bold, emphasised ones in italics.
fn inlines(text: &str) -> Vec<Inline> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['`', '*']) {
        let found = ["``", "`", "**", "*"].into_iter().find_map(|mark| {
            let inner = rest[at..].strip_prefix(mark)?;
            Some((mark, &inner[..inner.find(mark)?]))
        });
        let Some((mark, inner)) = found else { break };
        parts.extend((at > 0).then(|| roman(&rest[..at])));
        parts.push(match mark {
            // Spaces keep backticks of the text apart from those around it.
            "``" => bold(inner.trim()),
            "*" => italic(inner),
            _ => bold(inner),
        });
        rest = &rest[at + inner.len() + 2 * mark.len()..];
    }
    parts.extend((!rest.is_empty()).then(|| roman(rest)));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_roff() {
        let markdown = "# T\n\nOne `a-b`\n**two**.\n\nTwo\n\n## It is\n\n- `0` Done\n  now.\n- `x …`\n\
                        - ``y `Z` ``\n  .do *it*\n- `z`\n  then\n";
        let mut roff = Roff::default();
        body(markdown, &mut roff);
        let expected = "One \\fBa\\-b\\fR \\fBtwo\\fR.\n.PP\nTwo\n.SH \"IT IS\"\n.IP \\(bu 2\n\
                        \\fB0\\fR Done now.\n.TP\n\\fBx …\\fR\n.TQ\n\\fBy `Z`\\fR\n\
                        \\&.do \\fIit\\fR\n.TP\n\\fBz\\fR\nthen\n";
        assert_eq!(roff.to_roff(), expected);
    }

    #[test]
    fn the_page_is_ascii_and_has_every_entry() {
        let page = page("2026-11-21");
        assert!(page.is_ascii(), "{:?}", page.lines().find(|l| !l.is_ascii()));
        let plain = page.replace("\\fB", "").replace("\\fR", "").replace("\\-", "-");
        for text in ["host key of HOST does not match", "hvbak verify --all", "hvbak(1)"] {
            assert!(plain.contains(text), "{text}");
        }
        let terms = page.lines().filter(|l| *l == ".TP" || *l == ".TQ").count();
        let entries = PAGE.lines().filter(|l| l.starts_with("- `") && l.ends_with('`')).count();
        assert!(terms == entries && terms > 200, "{terms} of {entries}");
    }
}
