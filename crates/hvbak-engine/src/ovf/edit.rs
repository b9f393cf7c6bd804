//! Editing an OVF for a restore: out with disks, snapshots and everything that names
//! things of the place it came from.
//!
//! Disks are stripped and attached afterwards: that works with every engine version and
//! when the original VM still has the disks. Snapshots are stripped because their volumes
//! do not exist; the template because a restored disk stands alone.

use std::ops::Range;

use hvbak_types::{TemplateId, VmId};
use roxmltree::Node;

use super::{OvfError, child, child_text, children, content, is_section, parse, sections};
use crate::xml::escape;

/// What to change besides the parts that always go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edit {
    /// New name; `None` keeps the old one.
    pub name: Option<String>,
    /// New VM id; `None` keeps the old one (irrelevant with `regenerate_ids`).
    pub vm_id: Option<VmId>,
    /// New description; `None` keeps the old one.
    pub description: Option<String>,
    /// Take the NICs out, to add them by API.
    pub strip_nics: bool,
    /// Take the CD out of the drive: it names a file of the old site.
    pub eject_cd: bool,
    /// Take the quota out: it names an id of the old site.
    pub strip_quota: bool,
    /// Keep delete protection. Without it a failed restore can be removed again; set it
    /// again at the end by `Engine::protect_vm`.
    pub keep_delete_protection: bool,
}

/// The edited text and what was done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edited {
    /// The new OVF.
    pub ovf: String,
    /// One line per kind of change, for the log.
    pub changes: Vec<String>,
}

/// Edits an OVF so that an engine makes a VM without disks from it. Idempotent.
///
/// # Errors
/// Not XML, no VM inside, or the result does not parse.
pub fn for_restore(source: &str, edit: &Edit) -> Result<Edited, OvfError> {
    let source = source.trim_start_matches('\u{feff}');
    let document = parse(source)?;
    let root = document.root_element();
    if root.tag_name().name() != "Envelope" {
        return Err(OvfError::Missing("Envelope"));
    }
    let content = content(root).ok_or(OvfError::Missing("Content"))?;
    let mut cut = Cut { source, pieces: Vec::new(), changes: Vec::new() };

    cut.remove(
        "file references",
        child(root, "References").into_iter().flat_map(|r| children(r, "File")),
    );
    cut.remove("disks", sections(root, "DiskSection").flat_map(|s| children(s, "Disk")));
    cut.remove("snapshots", content.children().filter(|c| is_section(*c, "SnapshotsSection")));
    let items: Vec<Node<'_, '_>> =
        sections(content, "VirtualHardwareSection").flat_map(|s| children(s, "Item")).collect();
    let of_type = |kind: &'static str| {
        items
            .iter()
            .copied()
            .filter(move |i| child_text(*i, "ResourceType").as_deref() == Some(kind))
    };
    cut.remove("disk items", of_type("17"));
    cut.remove(
        "host devices",
        items.iter().copied().filter(|i| child_text(*i, "Type").as_deref() == Some("hostdev")),
    );
    if edit.strip_nics {
        cut.remove("NICs", of_type("10"));
        cut.remove(
            "networks",
            sections(root, "NetworkSection").flat_map(|s| children(s, "Network")),
        );
    }
    if edit.eject_cd {
        for item in of_type("15") {
            if let Some(path) = child(item, "SpecParams").and_then(|p| child(p, "path")) {
                cut.replace("CD", path, "");
            }
        }
    }
    cut.remove("lease", children(content, "LeaseDomainId"));
    cut.remove("host pinning", children(content, "DedicatedVmForVds"));
    if edit.strip_quota {
        cut.remove("quota", children(content, "quota_id"));
    }
    for (name, value) in [
        ("TemplateId", TemplateId::nil().to_string()),
        ("TemplateName", "Blank".into()),
        ("OriginalTemplateId", TemplateId::nil().to_string()),
        ("OriginalTemplateName", "Blank".into()),
        ("UseLatestVersion", "false".into()),
    ] {
        for node in children_named(content, name) {
            cut.replace("template", node, &value);
        }
    }
    // 2 = pinned: without its host such a VM could not even be imported.
    for node in children(content, "MigrationSupport") {
        if super::text(node).as_deref() == Some("2") {
            cut.replace("host pinning", node, "0");
        }
    }
    if !edit.keep_delete_protection {
        for node in children(content, "DeleteProtected") {
            cut.replace("delete protection", node, "false");
        }
    }
    if let Some(name) = &edit.name {
        match child(content, "Name") {
            Some(node) => cut.replace("name", node, name),
            None => return Err(OvfError::Missing("Name")),
        }
    }
    if let Some(description) = &edit.description {
        match (child(content, "Description"), child(content, "Name")) {
            (Some(node), _) => cut.replace("description", node, description),
            (None, Some(name)) => {
                let end = name.range().end;
                let new = format!("<Description>{}</Description>", escape(description));
                cut.pieces.push((end..end, new));
                cut.note("description");
            }
            (None, None) => return Err(OvfError::Missing("Name")),
        }
    }
    if let Some(id) = edit.vm_id
        && let Some(section) = sections(content, "OperatingSystemSection").next()
        && let Some(attribute) = section.attributes().find(|a| a.name() == "id")
        && attribute.value() != id.to_string()
    {
        cut.pieces.push((attribute.range_value(), id.to_string()));
        cut.note("VM id");
    }

    let (ovf, changes) = cut.finish();
    parse(&ovf).map_err(|e| OvfError::Broken(e.to_string()))?;
    Ok(Edited { ovf, changes })
}

fn children_named<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Vec<Node<'a, 'i>> {
    node.children().filter(|c| c.is_element() && c.tag_name().name() == name).collect()
}

/// Ranges of the source and what takes their place.
struct Cut<'s> {
    source: &'s str,
    pieces: Vec<(Range<usize>, String)>,
    changes: Vec<String>,
}

impl Cut<'_> {
    fn note(&mut self, what: &str) {
        if !self.changes.iter().any(|c| c == what) {
            self.changes.push(what.to_owned());
        }
    }

    fn remove<'a, 'i: 'a>(&mut self, what: &str, nodes: impl Iterator<Item = Node<'a, 'i>>) {
        for node in nodes {
            self.pieces.push((node.range(), String::new()));
            self.note(what);
        }
    }

    /// Replaces the content of an element, tags and attributes kept.
    fn replace(&mut self, what: &str, node: Node<'_, '_>, text: &str) {
        if super::text(node).unwrap_or_default() == text {
            return;
        }
        let inner = match (node.first_child(), node.last_child()) {
            (Some(first), Some(last)) => first.range().start..last.range().end,
            _ => {
                // `<Name/>` or `<Name></Name>`: written anew between its own tags.
                let range = node.range();
                let whole = &self.source[range.clone()];
                match whole.strip_suffix("/>") {
                    Some(open) => {
                        let name: String = whole[1..]
                            .chars()
                            .take_while(|c| !c.is_whitespace() && *c != '/' && *c != '>')
                            .collect();
                        let new = format!("{}>{}</{name}>", open.trim_end(), escape(text));
                        self.pieces.push((range, new));
                        self.note(what);
                        return;
                    }
                    None => {
                        let at = range.start + whole.rfind("</").unwrap_or(whole.len());
                        at..at
                    }
                }
            }
        };
        self.pieces.push((inner, escape(text)));
        self.note(what);
    }

    fn finish(mut self) -> (String, Vec<String>) {
        // Outer ranges first, so that what lies inside a removed one is passed over.
        self.pieces.sort_by_key(|(r, _)| (r.start, std::cmp::Reverse(r.end)));
        let mut out = String::with_capacity(self.source.len());
        let mut at = 0;
        for (range, new) in &self.pieces {
            if range.start < at {
                continue;
            }
            out.push_str(&self.source[at..range.start]);
            out.push_str(new);
            at = range.end;
        }
        out.push_str(&self.source[at..]);
        (out, self.changes)
    }
}
