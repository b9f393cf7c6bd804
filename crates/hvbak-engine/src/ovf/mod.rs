//! The OVF of a VM: read it, and edit it for a restore.
//!
//! Everything is matched by local name, because writers differ in prefixes, quotes and
//! section elements (`<Section xsi:type="ovf:DiskSection_Type">` or `<DiskSection>`).
//! Invariant: an edit touches byte ranges of the original text and nothing between them,
//! so elements that nobody here knows reach the engine as they left it. Sizes in an OVF
//! are rounded to GiB: they are never used as sizes, the engine's disks are.

mod edit;
mod read;

pub use edit::{Edit, Edited, for_restore};
pub use read::{Ovf, OvfDisk, OvfNic, OvfSnapshot, read};

use roxmltree::{Document, Node, ParsingOptions};

/// Why a text cannot be used as an OVF.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OvfError {
    /// Not XML.
    #[error("the OVF is not readable as XML: {0}")]
    Xml(String),
    /// XML of something else.
    #[error("the document is no OVF of a VM: no {0}")]
    Missing(&'static str),
    /// The edited text does not parse any more; a fault of the edit, never sent.
    #[error("the edited OVF is not readable any more: {0}")]
    Broken(String),
}

/// Parses with a cap on nodes: an OVF of hundreds of devices has some ten thousand.
fn parse(text: &str) -> Result<Document<'_>, OvfError> {
    let options = ParsingOptions { nodes_limit: 4_000_000, ..ParsingOptions::default() };
    Document::parse_with_options(text.trim_start_matches('\u{feff}'), options)
        .map_err(|e| OvfError::Xml(e.to_string()))
}

/// An attribute by local name, whatever its prefix.
fn attr<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|a| a.name() == name).map(|a| a.value())
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.is_element() && c.tag_name().name() == name)
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |c| c.is_element() && c.tag_name().name() == name)
}

/// The text inside an element, all pieces (CDATA may split it); `None` when blank.
fn text(node: Node<'_, '_>) -> Option<String> {
    let all: String = node.children().filter_map(|c| c.text().filter(|_| c.is_text())).collect();
    (!all.trim().is_empty()).then(|| all.trim().to_owned())
}

fn child_text(node: Node<'_, '_>, name: &str) -> Option<String> {
    text(child(node, name)?)
}

/// Whether an element is a section of that kind, by its `xsi:type` or by its own name.
fn is_section(node: Node<'_, '_>, kind: &str) -> bool {
    let by_type = node.tag_name().name() == "Section"
        && attr(node, "type").is_some_and(|t| {
            let local = t.rsplit(':').next().unwrap_or(t);
            local.strip_suffix("_Type").unwrap_or(local) == kind
        });
    by_type || node.tag_name().name() == kind
}

fn sections<'a, 'i>(
    parent: Node<'a, 'i>,
    kind: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    parent.children().filter(move |c| c.is_element() && is_section(*c, kind))
}

/// `Content`, or the standard's `VirtualSystem`.
fn content<'a, 'i>(root: Node<'a, 'i>) -> Option<Node<'a, 'i>> {
    child(root, "Content").or_else(|| child(root, "VirtualSystem"))
}

#[cfg(test)]
mod tests;
