//! Disaster-recovery pages, filled with the facts of a site.
//!
//! Facts in, text out: Markdown, one page per disaster, and one self-contained HTML file of
//! all of them. Nothing is asked or read here, and nothing is made up: what the facts do not
//! hold is said to be unknown. Names come from other people: in tables and in text they are
//! escaped, in commands they are quoted.

mod facts;
mod html;
mod pages;
mod text;

pub use facts::{
    DiskFacts, DomainFacts, DrillEnd, DrillFacts, EngineFacts, Facts, HostFacts, MacPoolFacts,
    ManagerDrillFacts, ManagerPointFacts, NetworkFacts, PointFacts, SkippedFacts, VerifyFacts,
    VmFacts,
};
pub use html::html;

/// A page for one disaster.
#[derive(Debug, Clone)]
pub struct Page {
    /// File name without an ending.
    pub slug: &'static str,
    pub title: &'static str,
    pub markdown: String,
}

/// All pages, the overview first.
pub fn pages(facts: &Facts) -> Vec<Page> {
    pages::ALL
        .iter()
        .map(|(slug, title, write)| {
            let head = format!("# {title}\n\n{}", text::read_on(facts));
            Page { slug, title, markdown: format!("{head}\n{}", write(facts)) }
        })
        .collect()
}
