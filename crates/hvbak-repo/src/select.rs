//! Which point a person means: `VM`, `VM@latest`, `VM@20261121T021454Z`, `VM@2026-11-21`.
//!
//! `config:` before it means points that hold a configuration alone; names of VMs have no colon.
//! The VM is an id or a name as of its newest point. A day is the UTC day of the point's
//! name and means the newest point of it.

use hvbak_types::{PointId, VmId};

use crate::{
    catalogue::Point,
    error::{Error, Result},
    repository::Repository,
};

/// Before selectors of configurations.
pub(crate) const CONFIG: &str = "config:";

#[derive(Debug, PartialEq, Eq)]
enum When {
    Latest,
    Exactly(PointId),
    /// `20261121`
    Day(String),
}

/// A VM's newest point of some time.
#[derive(Debug)]
pub struct NewestOf {
    pub vm: VmId,
    /// In its newest point that can be read, else its id.
    pub name: String,
    pub point: Result<Option<Point>>,
}

impl Repository {
    /// Finds the point that `selector` names.
    ///
    /// # Errors
    /// [`Error::NoVm`], [`Error::AmbiguousVm`], [`Error::NoPoint`], [`Error::Selector`].
    pub fn find(&self, selector: &str) -> Result<Point> {
        if let Some(rest) = selector.strip_prefix(CONFIG) {
            return self.configurations().find_here(rest);
        }
        self.find_here(selector)
    }

    fn find_here(&self, selector: &str) -> Result<Point> {
        let (vm_text, when) = split(selector)?;
        let vm = self.find_vm(vm_text)?;
        let fits = |id: &PointId| match &when {
            When::Latest => true,
            When::Exactly(point) => id == point,
            When::Day(day) => id.as_str().starts_with(day.as_str()),
        };
        // A damaged newest point is an error: an older one would be a silent replacement.
        match self.point_ids(vm)?.iter().rfind(|id| fits(id)) {
            Some(id) => self.point(vm, id),
            None => Err(Error::NoPoint {
                vm: vm_text.to_owned(),
                when: match when {
                    When::Latest => "at all".into(),
                    When::Exactly(point) => point.to_string(),
                    When::Day(day) => format!("of {}-{}-{}", &day[..4], &day[4..6], &day[6..]),
                },
            }),
        }
    }

    /// Each VM's newest point up to the end of a day (in UTC), or of all; `None` of a VM that has
    /// none. One that cannot be read is the VM's own error: an older one would be a silent
    /// replacement, and nobody else is kept by it.
    ///
    /// # Errors
    /// That the repository cannot be read.
    pub fn newest_points(&self, until: Option<jiff::civil::Date>) -> Result<Vec<NewestOf>> {
        // Names of points begin with their day.
        let last = until.map(|day| day.strftime("%Y%m%dT~").to_string());
        let fits = |id: &PointId| last.as_ref().is_none_or(|last| id.as_str() < last.as_str());
        let mut newest = Vec::new();
        for vm in self.vm_ids()? {
            let ids = self.point_ids(vm)?;
            let found = ids.iter().rfind(|id| fits(id)).map(|id| self.point(vm, id));
            let name = self.newest_name(vm)?.unwrap_or_else(|| vm.to_string());
            newest.push(NewestOf { vm, name, point: found.transpose() });
        }
        Ok(newest)
    }

    /// Finds a VM by id, or by its name in its newest point.
    pub fn find_vm(&self, text: &str) -> Result<VmId> {
        let absent = || Error::NoVm { text: text.to_owned() };
        if let Ok(id) = text.parse::<VmId>() {
            return if self.layout.vm(id).is_dir() { Ok(id) } else { Err(absent()) };
        }
        let mut ids = Vec::new();
        for id in self.vm_ids()? {
            if self.newest_name(id)?.is_some_and(|name| name == text) {
                ids.push(id);
            }
        }
        match ids.as_slice() {
            [] => Err(absent()),
            [id] => Ok(*id),
            _ => Err(Error::AmbiguousVm { name: text.to_owned(), ids }),
        }
    }
}

impl Repository {
    /// The VM's name in its newest readable point; reads no more manifests than it must.
    fn newest_name(&self, vm: VmId) -> Result<Option<String>> {
        let points = self.point_ids(vm)?;
        let found = points.iter().rev().find_map(|id| self.point(vm, id).ok());
        Ok(found.map(|point| point.manifest.vm.name))
    }
}

fn split(selector: &str) -> Result<(&str, When)> {
    let unreadable = || Error::Selector { text: selector.chars().take(200).collect() };
    let (vm, when) = match selector.rsplit_once('@') {
        None => (selector, When::Latest),
        Some((vm, when)) => match parse_when(when) {
            Some(when) => (vm, when),
            // `@` is allowed in names; something that looks like a time is a typing error.
            None if when.starts_with(|c: char| c.is_ascii_digit()) || when.is_empty() => {
                return Err(unreadable());
            }
            None => (selector, When::Latest),
        },
    };
    if vm.is_empty() { Err(unreadable()) } else { Ok((vm, when)) }
}

fn parse_when(text: &str) -> Option<When> {
    if text == "latest" {
        return Some(When::Latest);
    }
    if let Ok(point) = text.parse() {
        return Some(When::Exactly(point));
    }
    let day: jiff::civil::Date = text.parse().ok()?;
    (text.len() == 10).then(|| When::Day(day.strftime("%Y%m%d").to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let id = |s: &str| s.parse::<PointId>().unwrap();
        let check = |text: &str, expected: Option<(&str, When)>| {
            assert_eq!(split(text).ok(), expected, "{text}");
        };
        check("web", Some(("web", When::Latest)));
        check("web@latest", Some(("web", When::Latest)));
        check("a@b", Some(("a@b", When::Latest)));
        check("a@b@latest", Some(("a@b", When::Latest)));
        check("web@2026-11-21", Some(("web", When::Day("20261121".into()))));
        check("web@20261121T021454Z", Some(("web", When::Exactly(id("20261121T021454Z")))));
        check("web@20261121T021454Z-2", Some(("web", When::Exactly(id("20261121T021454Z-2")))));
        for bad in ["", "@latest", "web@", "web@2026-13-45", "web@20261121"] {
            check(bad, None);
        }
    }
}
