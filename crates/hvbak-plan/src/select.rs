//! Which VMs a command means.
//!
//! Invariant: a name or id that means nothing, or two things, is an error before
//! anything is done; it never selects silently less or something else.

use globset::{Glob, GlobMatcher};
use hvbak_types::{Inventory, Vm, VmId};

/// What the user asked for; the parts add up, the exclusions subtract.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Exact names.
    pub names: Vec<String>,
    /// VM ids.
    pub ids: Vec<String>,
    /// Shell patterns on names.
    pub globs: Vec<String>,
    /// Tag names.
    pub tags: Vec<String>,
    /// Cluster names.
    pub clusters: Vec<String>,
    /// Data center names.
    pub data_centers: Vec<String>,
    /// Every VM.
    pub all: bool,
    /// Names, ids or shell patterns to leave out.
    pub exclude: Vec<String>,
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
    #[error("no VM matches")]
    Empty,
}

impl SelectError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Nothing => "name VMs with `--vm`, `--id`, `--match`, `--tag`, `--cluster`, `--datacenter` or `--all`".into(),
            Self::Unknown { what, .. } => format!("see what exists with `hvbak list {what}s`").replace(' ', " "),
            Self::Ambiguous { .. } => "choose one with `--id`".into(),
            Self::Pattern { .. } => "patterns are shell globs such as `web*` or `db[12]`".into(),
            Self::BadId { .. } => "an id looks like 1b2c3d4e-…; see `hvbak list vms`".into(),
            Self::Empty => "see what exists with `hvbak list vms`".into(),
        })
    }
}

fn glob(text: &str) -> Result<GlobMatcher, SelectError> {
    Glob::new(text)
        .map(|g| g.compile_matcher())
        .map_err(|e| SelectError::Pattern { text: text.to_owned(), why: e.kind().to_string() })
}

/// The selected VMs, in order of name then id, each once.
///
/// # Errors
/// See [`SelectError`].
pub fn select_vms(inventory: &Inventory, want: &Selection) -> Result<Vec<VmId>, SelectError> {
    let any = want.all
        || [&want.names, &want.ids, &want.globs, &want.tags, &want.clusters, &want.data_centers]
            .iter()
            .any(|part| !part.is_empty());
    if !any {
        return Err(SelectError::Nothing);
    }
    let unknown = |what, text: &str| SelectError::Unknown { what, text: text.to_owned() };
    let mut picked: Vec<&Vm> = Vec::new();
    if want.all {
        picked.extend(&inventory.vms);
    }
    for name in &want.names {
        let found: Vec<_> = inventory.vms.iter().filter(|vm| &vm.name == name).collect();
        match found.as_slice() {
            [] => return Err(unknown("vm", name)),
            [one] => picked.push(one),
            many => {
                let ids = many.iter().map(|vm| vm.id).collect();
                return Err(SelectError::Ambiguous { name: name.clone(), ids });
            }
        }
    }
    for text in &want.ids {
        let id: VmId = text.parse().map_err(|_| SelectError::BadId { text: text.clone() })?;
        picked
            .push(inventory.vms.iter().find(|vm| vm.id == id).ok_or_else(|| unknown("vm", text))?);
    }
    for text in &want.globs {
        let matcher = glob(text)?;
        picked.extend(inventory.vms.iter().filter(|vm| matcher.is_match(&vm.name)));
    }
    for tag in &want.tags {
        if !inventory.tags.iter().any(|t| &t.name == tag) {
            return Err(unknown("tag", tag));
        }
        picked.extend(inventory.vms.iter().filter(|vm| vm.tags.contains(tag)));
    }
    for name in &want.clusters {
        let cluster = inventory.clusters.iter().find(|c| &c.name == name);
        let id = cluster.ok_or_else(|| unknown("cluster", name))?.id;
        picked.extend(inventory.vms.iter().filter(|vm| vm.cluster == Some(id)));
    }
    for name in &want.data_centers {
        let center = inventory.data_centers.iter().find(|d| &d.name == name);
        let id = center.ok_or_else(|| unknown("datacenter", name))?.id;
        let clusters: Vec<_> =
            inventory.clusters.iter().filter(|c| c.data_center == Some(id)).map(|c| c.id).collect();
        picked.extend(
            inventory.vms.iter().filter(|vm| vm.cluster.is_some_and(|c| clusters.contains(&c))),
        );
    }
    for text in &want.exclude {
        if let Ok(id) = text.parse::<VmId>() {
            picked.retain(|vm| vm.id != id);
        } else {
            let matcher = glob(text)?;
            picked.retain(|vm| !matcher.is_match(&vm.name));
        }
    }
    picked.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    picked.dedup_by_key(|vm| vm.id);
    if picked.is_empty() {
        return Err(SelectError::Empty);
    }
    Ok(picked.into_iter().map(|vm| vm.id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tests::{inventory, vm};

    fn check(want: Selection, expected: Result<&[&str], SelectError>) {
        let mut inv = inventory();
        inv.vms = vec![vm("web1"), vm("web2"), vm("db1"), vm("twin"), vm("twin")];
        inv.vms[2].tags = vec!["gold".into()];
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
        check(Selection { ids: t("nope"), ..s() }, Err(SelectError::BadId { text: "nope".into() }));
        check(
            Selection { names: t("twin"), ..s() },
            Err(SelectError::Ambiguous { name: "twin".into(), ids: vec![] }),
        );
    }
}
