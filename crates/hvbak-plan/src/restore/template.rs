//! What is different about a restore that makes a template.

use hvbak_types::{DataCenterId, Inventory};

use super::{RestoreDisk, RestoreError, RestoreOptions};

/// Whether the name is free among the data center's templates, where it must be one's own.
pub(super) fn check_name(
    inventory: &Inventory,
    name: &str,
    data_center: DataCenterId,
) -> Result<(), RestoreError> {
    let center = |template: &hvbak_types::Template| {
        let cluster = inventory.clusters.iter().find(|c| Some(c.id) == template.cluster);
        cluster.and_then(|c| c.data_center)
    };
    // One of no cluster (Blank) is in every data center.
    let in_the_way = |t: &&hvbak_types::Template| {
        t.name == name && center(t).is_none_or(|center| center == data_center)
    };
    match inventory.templates.iter().find(in_the_way) {
        None => Ok(()),
        Some(_) => Err(RestoreError::TemplateTaken { name: name.to_owned() }),
    }
}

/// What the user should know before.
pub(super) fn warnings(disks: &[RestoreDisk], options: &RestoreOptions) -> Vec<String> {
    let mut out = Vec::new();
    if !disks.is_empty() {
        out.push(
            "the engine copies the disks: until the VM in between is deleted they take their room twice"
                .to_owned(),
        );
    }
    if options.power_on {
        out.push("a template is not started".to_owned());
    }
    out
}
