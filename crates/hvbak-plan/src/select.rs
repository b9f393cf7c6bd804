//! Which VMs a command or a policy means, and why.
//!
//! Invariant: a name or id that means nothing, or two things, is told; it never selects
//! silently less or something else.

use std::collections::BTreeSet;

use globset::{Glob, GlobMatcher};
use hvbak_types::{Inventory, Vm, VmId};
use regex::Regex;

/// What the user asked for; the parts add up, the exclusions subtract.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Exact names.
    pub names: Vec<String>,
    /// VM ids.
    pub ids: Vec<String>,
    /// Shell patterns on names.
    pub globs: Vec<String>,
    /// Regular expressions that a whole name must meet.
    pub regexes: Vec<String>,
    /// Tag names.
    pub tags: Vec<String>,
    /// Cluster names.
    pub clusters: Vec<String>,
    /// Data center names.
    pub data_centers: Vec<String>,
    /// Names of templates that VMs were made from.
    pub templates: Vec<String>,
    /// Every VM.
    pub all: bool,
    /// Names, ids or shell patterns to leave out.
    pub exclude: Vec<String>,
    /// Names of tags whose VMs are left out.
    pub exclude_tags: Vec<String>,
}

impl Selection {
    /// Whether any part of it speaks of VMs.
    pub fn names_vms(&self) -> bool {
        self.all
            || [&self.names, &self.ids, &self.globs, &self.regexes, &self.tags].iter().any(has)
            || [&self.clusters, &self.data_centers, &self.templates].iter().any(has)
    }
}

/// What a selection means at a site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picked {
    /// In order of name then id, each once, with what of the selection names it.
    pub vms: Vec<(VmId, Vec<String>)>,
    /// VMs that an exclusion has taken away, and which.
    pub excluded: Vec<(VmId, String)>,
    /// Names that mean nothing here, or two things.
    pub missing: Vec<SelectError>,
}

/// Why a selection cannot be met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    #[error("nothing is selected")]
    Nothing,
    #[error("there is no {what} `{text}`")]
    Unknown { what: &'static str, text: String },
    #[error("{} VMs are named `{name}`: {}", ids.len(), ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    Ambiguous { name: String, ids: Vec<VmId> },
    #[error("`{text}` is not a valid pattern: {why}")]
    Pattern { text: String, why: String },
    #[error("`{text}` is not a VM id")]
    BadId { text: String },
    #[error("the Blank template has no disks: there is nothing to store")]
    Blank,
    #[error("no VM matches")]
    Empty,
}

impl SelectError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Nothing => "name VMs with `--vm`, `--id`, `--match`, `--regex`, `--tag`, `--cluster`, `--datacenter`, `--template`, `--all`, or templates themselves with `--save-template`".into(),
            Self::Unknown { what, .. } => format!("see what exists with `hvbak list {what}s`"),
            Self::Ambiguous { .. } => "choose one with `--id`".into(),
            Self::Pattern { .. } => "patterns are shell globs such as `web*` or `db[12]`, regular expressions such as `db[0-9]+`".into(),
            Self::BadId { .. } => "an id looks like 1b2c3d4e-…; see `hvbak list vms`".into(),
            Self::Blank => "leave it out".into(),
            Self::Empty => "see what exists with `hvbak list vms`".into(),
        })
    }
}

pub(crate) fn bad_pattern(text: &str, why: impl ToString) -> SelectError {
    // A regular expression's errors point at a place in several lines.
    let why = why.to_string().lines().last().unwrap_or_default().trim().to_owned();
    SelectError::Pattern { text: text.to_owned(), why }
}

pub(crate) fn glob(text: &str) -> Result<GlobMatcher, SelectError> {
    Ok(Glob::new(text).map_err(|e| bad_pattern(text, e.kind()))?.compile_matcher())
}

/// An expression that a whole name must meet: `db` does not mean `db1`.
fn whole(text: &str) -> Result<Regex, SelectError> {
    Regex::new(&format!("^(?:{text})$")).map_err(|e| bad_pattern(text, e))
}

/// The selected VMs, in order of name then id, each once.
///
/// # Errors
/// See [`SelectError`]; also for a name that means nothing.
pub fn select_vms(inventory: &Inventory, want: &Selection) -> Result<Vec<VmId>, SelectError> {
    let picked = pick_vms(inventory, want)?;
    if let Some(error) = picked.missing.into_iter().next() {
        return Err(error);
    }
    if picked.vms.is_empty() {
        return Err(SelectError::Empty);
    }
    Ok(picked.vms.into_iter().map(|(vm, _)| vm).collect())
}

/// What a selection means, where names that mean nothing are told beside the rest.
///
/// # Errors
/// A selection of nothing at all, or a pattern that is none.
pub fn pick_vms(inventory: &Inventory, want: &Selection) -> Result<Picked, SelectError> {
    let mut picker = Picker { inventory, missing: Vec::new(), found: Vec::new() };
    picker.by_vm(want)?;
    picker.by_place(want);
    if !want.names_vms() {
        return Err(SelectError::Nothing);
    }
    let Picker { mut missing, found, .. } = picker;
    let leaves_out = exclusions(inventory, want, &mut missing)?;
    let mut picked = Picked { missing, ..Picked::default() };
    let mut vms: Vec<&Vm> = inventory.vms.iter().collect();
    vms.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    for vm in vms {
        let mut why: Vec<_> =
            found.iter().filter(|(of, _)| of.id == vm.id).map(|(_, why)| why.clone()).collect();
        why.dedup();
        if why.is_empty() {
            continue;
        }
        match leaves_out.iter().find(|(_, meets)| meets(vm)) {
            Some((text, _)) => picked.excluded.push((vm.id, text.clone())),
            None => picked.vms.push((vm.id, why)),
        }
    }
    Ok(picked)
}

fn has(part: &&Vec<String>) -> bool {
    !part.is_empty()
}

type Meets = Box<dyn Fn(&Vm) -> bool>;

/// What takes VMs away, with its words.
fn exclusions(
    inventory: &Inventory,
    want: &Selection,
    missing: &mut Vec<SelectError>,
) -> Result<Vec<(String, Meets)>, SelectError> {
    let mut all: Vec<(String, Meets)> = Vec::new();
    for text in &want.exclude {
        let meets: Meets = if let Ok(id) = text.parse::<VmId>() {
            Box::new(move |vm| vm.id == id)
        } else {
            let matcher = glob(text)?;
            Box::new(move |vm| matcher.is_match(&vm.name))
        };
        all.push((format!("`{text}` is excluded"), meets));
    }
    for tag in &want.exclude_tags {
        let Some(names) = tag_and_below(inventory, tag) else {
            missing.push(SelectError::Unknown { what: "tag", text: tag.clone() });
            continue;
        };
        let meets: Meets = Box::new(move |vm| vm.tags.iter().any(|t| names.contains(t)));
        all.push((format!("tag `{tag}` is excluded"), meets));
    }
    Ok(all)
}

/// A tag's name and those of all tags below it, as the engine's own search takes a tag; `None`
/// when it is not there. Names are the engine's: no two tags share one.
pub(crate) fn tag_and_below(inventory: &Inventory, name: &str) -> Option<BTreeSet<String>> {
    let root = inventory.tags.iter().find(|tag| tag.name == name)?;
    let mut names = BTreeSet::from([root.name.clone()]);
    let mut todo = vec![root.id];
    while let Some(parent) = todo.pop() {
        for tag in inventory.tags.iter().filter(|tag| tag.parent == Some(parent)) {
            // A ring that somebody made ends where it began.
            if names.insert(tag.name.clone()) {
                todo.push(tag.id);
            }
        }
    }
    Some(names)
}

struct Picker<'a> {
    inventory: &'a Inventory,
    missing: Vec<SelectError>,
    found: Vec<(&'a Vm, String)>,
}

impl<'a> Picker<'a> {
    fn add(&mut self, why: &str, meets: impl Fn(&Vm) -> bool) {
        let found = self.inventory.vms.iter().filter(|vm| meets(vm));
        self.found.extend(found.map(|vm| (vm, why.to_owned())));
    }

    fn unknown(&mut self, what: &'static str, text: &str) {
        self.missing.push(SelectError::Unknown { what, text: text.to_owned() });
    }

    fn by_vm(&mut self, want: &Selection) -> Result<(), SelectError> {
        if want.all {
            self.add("all", |_| true);
        }
        for name in &want.names {
            let found: Vec<_> = self.inventory.vms.iter().filter(|vm| &vm.name == name).collect();
            match found.as_slice() {
                [] => self.unknown("vm", name),
                [one] => self.found.push((one, format!("name `{name}`"))),
                many => {
                    let ids = many.iter().map(|vm| vm.id).collect();
                    self.missing.push(SelectError::Ambiguous { name: name.clone(), ids });
                }
            }
        }
        for text in &want.ids {
            let id = text.parse::<VmId>();
            match id.map(|id| self.inventory.vms.iter().find(|vm| vm.id == id)) {
                Err(_) => self.missing.push(SelectError::BadId { text: text.clone() }),
                Ok(None) => self.unknown("vm", text),
                Ok(Some(vm)) => self.found.push((vm, format!("id {text}"))),
            }
        }
        for text in &want.globs {
            let matcher = glob(text)?;
            self.add(&format!("pattern `{text}`"), |vm| matcher.is_match(&vm.name));
        }
        for text in &want.regexes {
            let regex = whole(text)?;
            self.add(&format!("expression `{text}`"), |vm| regex.is_match(&vm.name));
        }
        Ok(())
    }

    fn by_place(&mut self, want: &Selection) {
        let inventory = self.inventory;
        for tag in &want.tags {
            if let Some(names) = tag_and_below(inventory, tag) {
                self.add(&format!("tag `{tag}`"), |vm| vm.tags.iter().any(|t| names.contains(t)));
            } else {
                self.unknown("tag", tag);
            }
        }
        for name in &want.clusters {
            match inventory.clusters.iter().find(|c| &c.name == name) {
                None => self.unknown("cluster", name),
                Some(found) => {
                    self.add(&format!("cluster `{name}`"), |vm| vm.cluster == Some(found.id));
                }
            }
        }
        for name in &want.data_centers {
            match inventory.data_centers.iter().find(|d| &d.name == name) {
                None => self.unknown("datacenter", name),
                Some(center) => {
                    let own = |c: &&hvbak_types::Cluster| c.data_center == Some(center.id);
                    let own: Vec<_> = inventory.clusters.iter().filter(own).map(|c| c.id).collect();
                    let within = |vm: &Vm| vm.cluster.is_some_and(|c| own.contains(&c));
                    self.add(&format!("data center `{name}`"), within);
                }
            }
        }
        for name in &want.templates {
            // Versions of a template share its name.
            let same = inventory.templates.iter().filter(|t| &t.name == name);
            let ids: Vec<_> = same.map(|t| t.id).collect();
            if ids.is_empty() {
                self.unknown("template", name);
            }
            let made = |vm: &Vm| {
                [vm.template, vm.original_template].iter().flatten().any(|id| ids.contains(id))
            };
            self.add(&format!("template `{name}`"), made);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tests::{inventory, vm};

    #[test]
    fn a_tag_means_those_below_it_too() {
        let id = hvbak_types::TagId::random;
        let (gold, web, deep) = (id(), id(), id());
        let tag = |id, name: &str, parent| hvbak_types::Tag {
            id,
            name: name.into(),
            description: None,
            parent,
        };
        let mut inv = inventory();
        inv.vms = vec![vm("a"), vm("b"), vm("c"), vm("d")];
        inv.vms[0].tags = vec!["gold".into()];
        inv.vms[1].tags = vec!["deep".into()];
        inv.vms[2].tags = vec!["other".into()];
        inv.tags = vec![
            // A ring, which no engine should have.
            tag(gold, "gold", Some(deep)),
            tag(web, "web", Some(gold)),
            tag(deep, "deep", Some(web)),
            tag(id(), "other", None),
        ];
        let names = |want: &Selection| -> Vec<String> {
            let ids = select_vms(&inv, want).unwrap();
            inv.vms.iter().filter(|vm| ids.contains(&vm.id)).map(|vm| vm.name.clone()).collect()
        };
        let tags = |name: &str| Selection { tags: vec![name.into()], ..Selection::default() };
        assert_eq!(names(&tags("web")), ["a", "b"]);
        assert_eq!(names(&tags("other")), ["c"]);
        let left =
            Selection { all: true, exclude_tags: vec!["gold".into()], ..Selection::default() };
        assert_eq!(names(&left), ["c", "d"]);
    }

    fn check(want: Selection, expected: Result<&[&str], SelectError>) {
        let mut inv = inventory();
        inv.vms = vec![vm("web1"), vm("web2"), vm("db1"), vm("twin"), vm("twin")];
        inv.vms[2].tags = vec!["gold".into()];
        let template = hvbak_types::TemplateId::random();
        inv.vms[1].original_template = Some(template);
        inv.templates = vec![hvbak_types::Template {
            id: template,
            name: "rhel9".into(),
            description: None,
            status: None,
            cluster: None,
            version_number: None,
            version_name: None,
            base_template: None,
        }];
        inv.tags = vec![hvbak_types::Tag {
            id: hvbak_types::TagId::random(),
            name: "gold".into(),
            description: None,
            parent: None,
        }];
        let got = select_vms(&inv, &want).map(|ids| {
            ids.iter()
                .map(|id| inv.vms.iter().find(|v| v.id == *id).unwrap().name.clone())
                .collect::<Vec<_>>()
        });
        match (got, expected) {
            (Ok(names), Ok(expected)) => assert_eq!(names, expected),
            (Err(SelectError::Ambiguous { ids, .. }), Err(SelectError::Ambiguous { .. })) => {
                assert_eq!(ids.len(), 2);
            }
            (got, expected) => assert_eq!(
                got,
                expected.map(|e| e.iter().map(ToString::to_string).collect::<Vec<_>>())
            ),
        }
    }

    #[test]
    fn parts_add_up_and_exclusions_subtract() {
        let s = Selection::default;
        let t = |text: &str| vec![text.to_owned()];
        check(s(), Err(SelectError::Nothing));
        check(Selection { names: t("web1"), ..s() }, Ok(&["web1"]));
        check(Selection { names: vec!["web1".into(), "web1".into()], ..s() }, Ok(&["web1"]));
        check(Selection { globs: t("web*"), tags: t("gold"), ..s() }, Ok(&["db1", "web1", "web2"]));
        check(
            Selection { all: true, exclude: vec!["t*".into(), "db1".into()], ..s() },
            Ok(&["web1", "web2"]),
        );
        check(
            Selection { clusters: t("Default"), exclude: t("t*"), ..s() },
            Ok(&["db1", "web1", "web2"]),
        );
        check(
            Selection { data_centers: t("Default"), exclude: t("t*"), ..s() },
            Ok(&["db1", "web1", "web2"]),
        );
        let nope = |what| Err(SelectError::Unknown { what, text: "nope".into() });
        check(Selection { names: t("nope"), ..s() }, nope("vm"));
        check(Selection { tags: t("nope"), ..s() }, nope("tag"));
        check(Selection { clusters: t("nope"), ..s() }, nope("cluster"));
        check(Selection { globs: t("nope*"), ..s() }, Err(SelectError::Empty));
        check(Selection { templates: t("nope"), ..s() }, nope("template"));
        check(Selection { regexes: t("w.b[0-9]"), ..s() }, Ok(&["web1", "web2"]));
        check(Selection { regexes: t("web"), ..s() }, Err(SelectError::Empty));
        check(Selection { templates: t("rhel9"), ..s() }, Ok(&["web2"]));
        check(
            Selection { globs: t("[dw]*"), exclude_tags: t("gold"), ..s() },
            Ok(&["web1", "web2"]),
        );
        check(Selection { all: true, exclude_tags: t("nope"), ..s() }, nope("tag"));
        check(Selection { ids: t("nope"), ..s() }, Err(SelectError::BadId { text: "nope".into() }));
        check(
            Selection { names: t("twin"), ..s() },
            Err(SelectError::Ambiguous { name: "twin".into(), ids: vec![] }),
        );
    }

    #[test]
    fn what_is_picked_says_why_and_what_is_missing_hides_nothing() {
        let mut inv = inventory();
        inv.vms = vec![vm("web1"), vm("web2"), vm("old")];
        let want = Selection {
            names: vec!["web1".into(), "gone".into()],
            globs: vec!["*".into()],
            exclude: vec!["old".into()],
            ..Selection::default()
        };
        let picked = pick_vms(&inv, &want).unwrap();
        let why = |n: usize| picked.vms[n].1.join(" and ");
        assert_eq!((why(0), why(1)), ("name `web1` and pattern `*`".into(), "pattern `*`".into()));
        assert_eq!(picked.excluded, [(inv.vms[2].id, "`old` is excluded".into())]);
        assert_eq!(picked.missing, [SelectError::Unknown { what: "vm", text: "gone".into() }]);
        let bad = Selection { regexes: vec!["db[".into()], ..Selection::default() };
        let error = pick_vms(&inv, &bad).unwrap_err();
        assert!(error.to_string().contains("`db[` is not a valid pattern"), "{error}");
        assert!(!error.to_string().contains('\n'));
    }
}
