//! All pages as one HTML file that needs nothing else: no network, no fonts, no images.

use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd};

use crate::{
    Facts, Page,
    text::{OLD_AFTER_DAYS, day},
};

const STYLE: &str = include_str!("style.css");

/// The pages with a table of contents; a banner appears when the facts are old.
pub fn html(facts: &Facts, pages: &[Page]) -> String {
    let mut contents = String::new();
    let mut body = String::new();
    for page in pages {
        let (slug, title) = (page.slug, page.title);
        contents += &format!("<li><a href=\"#{slug}\">{title}</a></li>\n");
        body += &format!("<section id=\"{slug}\">\n{}</section>\n", render(&page.markdown));
    }
    let read = facts.read.as_millisecond();
    let limit = OLD_AFTER_DAYS * 86_400_000;
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>Runbook of {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <p id=\"old\" role=\"alert\" hidden=\"hidden\">These facts are OLD: read on {}. Compare everything \
         before you act.</p>\n<nav>\n<ol>\n{contents}</ol>\n</nav>\n<main>\n{body}</main>\n\
         <script>\nconst read = {read}, limit = {limit};\n\
         document.getElementById(\"old\").hidden = !(Date.now() - read > limit);\n</script>\n\
         </body>\n</html>\n",
        escape(&facts.engine.fqdn),
        day(facts.read),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Markdown to HTML. HTML inside of it, which could only come from a name, stays text;
/// links between pages become links within the file.
fn render(markdown: &str) -> String {
    let options = Options::ENABLE_TABLES | Options::ENABLE_TASKLISTS;
    let events = Parser::new_ext(markdown, options).flat_map(|event| match event {
        Event::Html(text) | Event::InlineHtml(text) => vec![Event::Text(text)],
        Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
            let dest_url = match dest_url.strip_suffix(".md") {
                Some(page) => CowStr::from(format!("#{page}")),
                None => dest_url,
            };
            vec![Event::Start(Tag::Link { link_type, dest_url, title, id })]
        }
        // Ticked by hand, on paper or on the screen.
        Event::TaskListMarker(_) => vec![Event::InlineHtml("<input type=\"checkbox\"/> ".into())],
        Event::Start(Tag::Table(columns)) => {
            vec![Event::Html("<div class=\"wide\">".into()), Event::Start(Tag::Table(columns))]
        }
        Event::End(TagEnd::Table) => {
            vec![Event::End(TagEnd::Table), Event::Html("</div>\n".into())]
        }
        other => vec![other],
    });
    let mut out = String::new();
    pulldown_cmark::html::push_html(&mut out, events);
    out
}
