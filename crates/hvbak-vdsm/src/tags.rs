//! LVM tags of block domains: `IU_<IMG> PU_<parent> MD_<slot>` on LVs, `MDT_…` on the VG.

use hvbak_types::{DiskId, VolumeId};

/// What an LV's tags say. `PU_` may be stale after a live merge (hypervisor.md §5.3):
/// believe the header and the metadata first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LvTags {
    /// Owner (`IU_`).
    pub image: Option<DiskId>,
    /// Parent (`PU_`); `None` for the nil id.
    pub parent: Option<VolumeId>,
    /// Metadata slot (`MD_`).
    pub slot: Option<u32>,
    /// `IU__remove_me_…`: being deleted.
    pub removed: bool,
    /// `OVIRT_VOL_INITIALIZING`: being made.
    pub initializing: bool,
}

impl LvTags {
    /// Whether the LV is a usable volume.
    pub fn is_volume(&self) -> bool {
        self.image.is_some() && self.slot.is_some() && !self.removed && !self.initializing
    }
}

/// Reads `lvs -o lv_tags` (comma-separated).
pub fn parse_lv_tags(text: &str) -> LvTags {
    let mut tags = LvTags::default();
    for tag in text.split(',').map(str::trim) {
        if let Some(image) = tag.strip_prefix("IU_") {
            if image.starts_with("_remove_me_") {
                tags.removed = true;
            } else {
                tags.image = image.parse().ok();
            }
        } else if let Some(parent) = tag.strip_prefix("PU_") {
            tags.parent = parent.parse().ok().filter(|p: &VolumeId| !p.is_nil());
        } else if let Some(slot) = tag.strip_prefix("MD_") {
            tags.slot = slot.parse().ok();
        } else if tag == "OVIRT_VOL_INITIALIZING" {
            tags.initializing = true;
        }
    }
    tags
}

/// Undoes vdsm's coding of values in VG tags: `&<decimal code point>&`.
/// What is not such a code stays as it is.
pub fn decode_vg_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let behind = &rest[at + 1..];
        let coded = behind.split_once('&').and_then(|(code, after)| {
            let code = code.parse().ok().and_then(char::from_u32)?;
            Some((code, after))
        });
        match coded {
            Some((c, after)) => {
                out.push(c);
                rest = after;
            }
            None => {
                out.push('&');
                rest = behind;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Codes a value as vdsm does (`lvmTagEncode`).
pub fn encode_vg_value(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:#".contains(c);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if plain(c) {
            out.push(c);
        } else {
            out.push_str(&format!("&{}&", c as u32));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const I: &str = "00000000-0000-4000-8000-000000000001";

    #[test]
    fn tags_are_read() {
        let nil = "00000000-0000-0000-0000-000000000000";
        let t = parse_lv_tags(&format!("IU_{I},MD_4,PU_{nil}"));
        assert!(t.is_volume());
        assert_eq!((t.parent, t.slot), (None, Some(4)));
        let t = parse_lv_tags(&format!("PU_{I},IU_{I},MD_7,OVIRT_VOL_INITIALIZING"));
        assert!(!t.is_volume() && t.parent.is_some());
        assert!(parse_lv_tags(&format!("IU__remove_me_ZERO_{I},MD_4,PU_{nil}")).removed);
        assert!(!parse_lv_tags("").is_volume());
        assert!(!parse_lv_tags("IU_x,MD_y").is_volume());
    }

    #[test]
    fn vg_values_survive_their_coding() {
        assert_eq!(decode_vg_value("my&32&domain"), "my domain");
        assert_eq!(encode_vg_value("my domain ü"), "my&32&domain&32&&252&");
        for text in ["", "plain-1.2/=!:#+_", "a & b && c", "ü€😀", "&32&"] {
            assert_eq!(decode_vg_value(&encode_vg_value(text)), text);
        }
        assert_eq!(decode_vg_value("a&b"), "a&b");
        assert_eq!(decode_vg_value("a&99999999999&b"), "a&99999999999&b");
    }
}
