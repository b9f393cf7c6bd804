//! Which disks of selected VMs are left out.

use globset::{Glob, GlobSet, GlobSetBuilder};
use hvbak_types::{DiskId, Vm};

use crate::select::{SelectError, bad_pattern};

/// By id, by a shell pattern on the alias, or by a tag of the VM: the engine has no tags for
/// disks.
#[derive(Debug, Clone, Default)]
pub struct DiskRules {
    /// Ids, and aliases that may look like patterns.
    exact: Vec<String>,
    aliases: GlobSet,
    /// A VM with the tag PREFIX + ALIAS is stored without that disk.
    tag_prefix: Option<String>,
}

impl DiskRules {
    /// Reads what was typed: ids and patterns.
    ///
    /// # Errors
    /// A text that is no pattern.
    pub fn new(texts: &[String], tag_prefix: Option<String>) -> Result<Self, SelectError> {
        let mut aliases = GlobSetBuilder::new();
        for text in texts {
            aliases.add(Glob::new(text).map_err(|e| bad_pattern(text, e.kind()))?);
        }
        let aliases = aliases.build().map_err(|e| bad_pattern("", e.kind()))?;
        Ok(Self {
            exact: texts.to_vec(),
            aliases,
            tag_prefix: tag_prefix.filter(|prefix| !prefix.is_empty()),
        })
    }

    /// Whether a disk is left out.
    pub fn exclude(&self, vm: &Vm, alias: &str, id: DiskId) -> bool {
        let tagged = |prefix: &String| {
            vm.tags.iter().any(|tag| tag.strip_prefix(prefix.as_str()) == Some(alias))
        };
        self.exact.iter().any(|text| text == alias || text.parse() == Ok(id))
            || self.aliases.is_match(alias)
            || self.tag_prefix.as_ref().is_some_and(tagged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::tests::vm;

    #[test]
    fn ids_patterns_and_tags_leave_disks_out() {
        let id = DiskId::random();
        let rules = [id.to_string(), "*_swap".into(), "exact".into()];
        let rules = DiskRules::new(&rules, Some("no-".into())).unwrap();
        let mut web = vm("web1");
        let out = |web: &Vm, alias: &str| rules.exclude(web, alias, DiskId::random());
        assert!(rules.exclude(&web, "any", id));
        assert!(out(&web, "web1_swap") && out(&web, "exact") && !out(&web, "exact2"));
        assert!(!out(&web, "web1_data"));
        web.tags = vec!["no-web1_data".into()];
        assert!(out(&web, "web1_data") && !out(&web, "web1"));
        assert!(!DiskRules::default().exclude(&web, "web1_data", id));
        assert!(DiskRules::new(&["a[".into()], None).is_err());
    }
}
