//! Names of volumes on disk: what to skip, what a backing name may be, LV device names.

use std::str::FromStr;

use hvbak_types::{DiskId, DomainId, VolumeId};

/// What a qcow2 header's backing name points to. vdsm writes the bare name since 4.18,
/// `../<IMG>/<VOL>` before; nothing else can be a volume of the same domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackingName {
    /// Directory, when the name has one.
    pub image: Option<DiskId>,
    /// Volume.
    pub volume: VolumeId,
}

/// A backing name that is neither `<VOL>` nor `../<IMG>/<VOL>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("backing name `{name}` is not a volume of the same domain")]
pub struct BackingNameError {
    /// The name, at most 120 characters, control characters replaced.
    pub name: String,
}

/// Reads a backing name; absolute paths, other `..`, `json:` and protocol names are
/// refused, because a guest may have written the header.
///
/// # Errors
/// [`BackingNameError`].
pub fn backing_name(name: &str) -> Result<BackingName, BackingNameError> {
    let read = || {
        if let Some(rest) = name.strip_prefix("../") {
            let (image, volume) = rest.split_once('/')?;
            return Some(BackingName {
                image: Some(image.parse().ok()?),
                volume: volume.parse().ok()?,
            });
        }
        Some(BackingName { image: None, volume: VolumeId::from_str(name).ok()? })
    };
    read().ok_or_else(|| BackingNameError {
        name: name.chars().take(120).map(|c| if c.is_control() { '·' } else { c }).collect(),
    })
}

/// Why an entry of a domain's directories is not a volume or disk of ours; `None` for a
/// UUID.
pub fn skip_reason(name: &str) -> Option<&'static str> {
    if name.starts_with("_remove_me_") {
        Some("being deleted")
    } else if name.ends_with(".meta") || name.ends_with(".meta.new") {
        Some("metadata")
    } else if name.ends_with(".lease") {
        Some("lease")
    } else if name.ends_with("_MERGE") {
        Some("temporary of an old merge")
    } else if VolumeId::from_str(name).is_err() {
        Some("not a volume's name")
    } else {
        None
    }
}

/// Whether a name is a volume's metadata file.
pub fn is_meta_name(name: &str) -> bool {
    name.strip_suffix(".meta").is_some_and(|v| VolumeId::from_str(v).is_ok())
}

/// A disk's directory, relative to the domain's.
pub fn image_directory(image: DiskId) -> String {
    format!("images/{image}")
}

/// Device node of an active LV.
pub fn lv_path(domain: DomainId, volume: VolumeId) -> String {
    format!("/dev/{domain}/{volume}")
}

/// device-mapper's name of an LV: dashes doubled.
pub fn dm_name(domain: DomainId, volume: VolumeId) -> String {
    let double = |s: String| s.replace('-', "--");
    format!("{}-{}", double(domain.to_string()), double(volume.to_string()))
}

/// Offset of a volume's metadata in the LV `metadata`, from its tag `MD_<slot>`.
/// Slots 0–3 (V4 and older) and 0 (V5) are reserved: `None`.
pub fn meta_slot_offset(domain_version: u32, slot: u32) -> Option<u64> {
    match domain_version {
        0 => None,
        1..=4 => (slot >= 4).then(|| u64::from(slot) * 512),
        _ => (slot >= 1).then(|| (1 << 20) + u64::from(slot) * 8192),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: &str = "00000000-0000-4000-8000-000000000002";
    const I: &str = "00000000-0000-4000-8000-000000000001";

    #[test]
    fn only_volumes_of_the_domain_are_backing_names() {
        assert_eq!(
            backing_name(V).unwrap(),
            BackingName { image: None, volume: V.parse().unwrap() }
        );
        assert_eq!(
            backing_name(&format!("../{I}/{V}")).unwrap().image.unwrap().to_string(),
            I.to_owned()
        );
        for bad in [
            String::new(),
            format!("/etc/{V}"),
            format!("../../{I}/{V}"),
            format!("../{I}/../{I}/{V}"),
            format!("../x/{V}"),
            format!("./{V}"),
            format!("{I}/{V}"),
            format!("{V}/"),
            format!("{V}\0"),
            format!("{V}.meta"),
            format!("nbd://host/{V}"),
            format!("json:{{\"file\":\"{V}\"}}"),
            "base.qcow2".into(),
        ] {
            assert!(backing_name(&bad).is_err(), "{bad}");
        }
        assert_eq!(
            backing_name("a\u{1b}[2J").unwrap_err().to_string(),
            "backing name `a·[2J` is not a volume of the same domain"
        );
    }

    #[test]
    fn foreign_names_are_skipped() {
        assert_eq!(skip_reason(V), None);
        for name in [
            format!("_remove_me_{I}"),
            format!("_remove_me_ZERO_{I}"),
            format!("{V}.meta"),
            format!("{V}.meta.new"),
            format!("{V}.lease"),
            format!("{V}_MERGE"),
            "lost+found".into(),
        ] {
            assert!(skip_reason(&name).is_some(), "{name}");
        }
        assert!(is_meta_name(&format!("{V}.meta")));
        assert!(!is_meta_name(&format!("{V}.meta.new")) && !is_meta_name("x.meta"));
    }

    #[test]
    fn block_names() {
        let (sd, v) = (V.parse().unwrap(), V.parse().unwrap());
        assert_eq!(lv_path(sd, v), format!("/dev/{V}/{V}"));
        assert!(dm_name(sd, v).starts_with("00000000--0000--4000--8000--000000000002-0"));
        for (version, slot, expected) in [
            (4, 3, None),
            (4, 4, Some(2048)),
            (3, 100, Some(51_200)),
            (5, 0, None),
            (5, 1, Some(1_056_768)),
            (0, 9, None),
        ] {
            assert_eq!(meta_slot_offset(version, slot), expected, "{version} {slot}");
        }
    }
}
