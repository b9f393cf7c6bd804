//! LVM as text: the `--config` that makes a host's LVM see storage domains, and what its
//! reports say of one (hypervisor.md §4, §11; vdsm `storage/lvm.py`).
//!
//! Hosts hide the LUNs of their domains from plain LVM commands by a filter or a devices
//! file. Every command therefore brings its own selection, an exact list of devices, and
//! nothing on the host is edited. Invariant: only names of plain characters get into it.

use std::collections::BTreeMap;

use hvbak_types::{DomainId, VolumeId};
use serde::Deserialize;

use crate::{LvTags, decode_vg_value, parse_lv_tags};

/// Line of LVM; the two want different settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LvmLine {
    /// 2.02 (Enterprise Linux 7).
    V202,
    /// 2.03 (Enterprise Linux 8 and later).
    V203,
}

/// Reads the output of `lvm version`.
pub fn lvm_line(text: &str) -> Option<LvmLine> {
    let version = text.lines().find_map(|l| l.trim().strip_prefix("LVM version:"))?.trim();
    match version.split('.').collect::<Vec<_>>()[..] {
        ["2", "02", ..] => Some(LvmLine::V202),
        ["2", _, ..] => Some(LvmLine::V203),
        _ => None,
    }
}

/// The value of `--config` that lets LVM see `devices` (paths below `/dev`) and no others.
/// Devices with other characters than multipath names have are left out.
///
/// `locking_type=4` on 2.02: a report that meets half-written metadata would repair it
/// there and break the group (bz1553133). 2.03 repairs nothing in reports.
pub fn lvm_config(line: LvmLine, devices: &[String]) -> String {
    let mut accept = String::new();
    for device in devices.iter().filter(|d| is_plain(d)) {
        // `+` and `.` mean more than themselves in a filter.
        let exact = device.replace('+', "[+]").replace('.', "[.]");
        accept.push_str(&format!("\"a|^{exact}$|\","));
    }
    let (of_devices, of_global) = match line {
        LvmLine::V202 => ("", "use_lvmetad=0 locking_type=4"),
        LvmLine::V203 => ("use_devicesfile=0 hints=\"none\" scan_lvs=0", "use_lvmpolld=0"),
    };
    format!(
        "devices {{ preferred_names=[\"^/dev/mapper/\"] ignore_suspended_devices=1 \
         write_cache_state=0 disable_after_error_count=3 obtain_device_list_from_udev=0 \
         {of_devices} filter=[{accept}\"r|.*|\"] }} \
         global {{ prioritise_write_locks=1 wait_for_locks=1 {of_global} }} \
         activation {{ monitoring=0 }} backup {{ backup=0 archive=0 }}"
    )
}

fn is_plain(device: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/_-.:=+@".contains(c);
    device.starts_with("/dev/") && device.chars().all(plain)
}

/// Columns of the report that [`VolumeGroup::parse`] reads.
pub const LVS_COLUMNS: &str = "vg_uuid,vg_seqno,vg_tags,vg_missing_pv_count,lv_name,lv_uuid,\
                               lv_size,lv_tags,lv_device_open,seg_pe_ranges";

/// A storage domain as LVM reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeGroup {
    /// Name: the domain's id.
    pub domain: DomainId,
    /// LVM's id, dashes included.
    pub uuid: String,
    /// Counts the writes of the group's metadata.
    pub seqno: u64,
    /// Version of the domain (`MDT_VERSION`); `None` when no tag tells.
    pub version: Option<u32>,
    /// Devices that cannot be found.
    pub missing_devices: u64,
    /// By name; special ones (`metadata`, `ids`, …) included.
    pub lvs: BTreeMap<String, Lv>,
}

/// One logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lv {
    /// LVM's id, dashes included; another one when the volume was removed and made anew.
    pub uuid: String,
    /// Bytes.
    pub size: u64,
    /// What vdsm noted.
    pub tags: LvTags,
    /// Open on this host.
    pub open: bool,
    /// Extents on the devices, `DEVICE:FIRST-LAST`, in order, separated by spaces.
    pub extents: String,
}

/// A report that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LvmError {
    /// No JSON as LVM writes it.
    #[error("LVM's report is no JSON that is known")]
    Json {
        /// The parser's view.
        #[source]
        source: serde_json::Error,
    },
    /// A field that is no number.
    #[error("LVM's report says {field} is {value}")]
    Number {
        /// The field.
        field: &'static str,
        /// Its value, at most 60 characters.
        value: String,
    },
    /// No group of that name.
    #[error("LVM reports no logical volumes of {domain}")]
    Empty {
        /// The group.
        domain: DomainId,
    },
}

#[derive(Deserialize)]
struct Document<R> {
    report: Vec<R>,
}

#[derive(Deserialize)]
struct LvReport {
    lv: Vec<LvRow>,
}

#[derive(Deserialize)]
struct LvRow {
    vg_uuid: String,
    vg_seqno: String,
    vg_tags: String,
    vg_missing_pv_count: String,
    lv_name: String,
    lv_uuid: String,
    lv_size: String,
    lv_tags: String,
    lv_device_open: String,
    seg_pe_ranges: String,
}

#[derive(Deserialize)]
struct PvReport {
    pv: Vec<PvRow>,
}

#[derive(Deserialize)]
struct PvRow {
    pv_name: String,
    vg_name: String,
}

impl VolumeGroup {
    /// Reads `lvs --reportformat json --units b --nosuffix -o LVS_COLUMNS`, which has a row
    /// per segment.
    ///
    /// # Errors
    /// [`LvmError`].
    pub fn parse(domain: DomainId, json: &str) -> Result<Self, LvmError> {
        let document: Document<LvReport> =
            serde_json::from_str(json).map_err(|source| LvmError::Json { source })?;
        let mut group: Option<Self> = None;
        for row in document.report.into_iter().flat_map(|r| r.lv) {
            let group = match &mut group {
                Some(group) => group,
                none => none.insert(Self {
                    domain,
                    seqno: number("vg_seqno", &row.vg_seqno)?,
                    version: domain_version(&row.vg_tags),
                    missing_devices: number("vg_missing_pv_count", &row.vg_missing_pv_count)?,
                    uuid: row.vg_uuid,
                    lvs: BTreeMap::new(),
                }),
            };
            let size = number("lv_size", &row.lv_size)?;
            let lv = group.lvs.entry(row.lv_name).or_insert_with(|| Lv {
                uuid: row.lv_uuid,
                size,
                tags: parse_lv_tags(&row.lv_tags),
                // `unknown` while it is not active here.
                open: row.lv_device_open == "open",
                extents: String::new(),
            });
            if !lv.extents.is_empty() {
                lv.extents.push(' ');
            }
            lv.extents.push_str(&row.seg_pe_ranges);
        }
        group.ok_or(LvmError::Empty { domain })
    }

    /// The volume's LV.
    pub fn volume(&self, volume: VolumeId) -> Option<&Lv> {
        self.lvs.get(&volume.to_string())
    }

    /// device-mapper's id of an active LV: it names the LV for sure, as a name does not.
    pub fn dm_uuid(&self, lv: &Lv) -> String {
        format!("LVM-{}{}", self.uuid, lv.uuid).replace('-', "").replacen("LVM", "LVM-", 1)
    }
}

/// Reads `pvs --reportformat json -o pv_name,vg_name`: the devices of a group.
///
/// # Errors
/// [`LvmError::Json`].
pub fn parse_pvs(domain: DomainId, json: &str) -> Result<Vec<String>, LvmError> {
    let document: Document<PvReport> =
        serde_json::from_str(json).map_err(|source| LvmError::Json { source })?;
    let rows = document.report.into_iter().flat_map(|r| r.pv);
    let own = rows.filter(|row| row.vg_name == domain.to_string());
    Ok(own.map(|row| row.pv_name).collect())
}

fn domain_version(tags: &str) -> Option<u32> {
    let value = tags.split(',').find_map(|t| t.strip_prefix("MDT_VERSION="))?;
    decode_vg_value(value).parse().ok()
}

fn number(field: &'static str, value: &str) -> Result<u64, LvmError> {
    value.parse().map_err(|_| LvmError::Number { field, value: value.chars().take(60).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SD: &str = "75f8a1bb-4504-4314-91ca-d9365a30692b";

    #[test]
    fn versions_are_told_apart() {
        let line =
            |v: &str| lvm_line(&format!("  LVM version:     {v}\n  Library version: 1.02\n"));
        assert_eq!(line("2.02.187(2)-RHEL7 (2020-03-24)"), Some(LvmLine::V202));
        assert_eq!(line("2.03.16(2) (2022-05-18)"), Some(LvmLine::V203));
        assert_eq!(line("3"), None);
        assert_eq!(lvm_line(""), None);
    }

    #[test]
    fn only_plain_names_select_devices() {
        let devices = ["/dev/mapper/3600a0.b+1", "/dev/x|\"r", "/dev/mapper/a b", "sda"];
        let config = lvm_config(LvmLine::V203, &devices.map(str::to_owned));
        assert!(
            config.contains(r#"filter=["a|^/dev/mapper/3600a0[.]b[+]1$|","r|.*|"]"#),
            "{config}"
        );
        assert!(config.contains("use_devicesfile=0") && !config.contains("locking_type"));
        let old = lvm_config(LvmLine::V202, &[]);
        assert!(old.contains("filter=[\"r|.*|\"]") && old.contains("locking_type=4"));
        assert!(!old.contains("hints") && !old.contains("use_devicesfile"));
    }

    #[test]
    fn a_report_has_a_row_per_segment() {
        let row = |name: &str, size: &str, open: &str, ranges: &str| {
            format!(
                r#"{{"vg_uuid":"8WPH3m-ZGO0","vg_seqno":"12","vg_tags":"MDT_CLASS=Data,MDT_VERSION=5,RHAT_storage_domain","vg_missing_pv_count":"0","lv_name":"{name}","lv_uuid":"Ab-cd","lv_size":"{size}","lv_tags":"IU_{SD},MD_4","lv_device_open":"{open}","seg_pe_ranges":"{ranges}"}}"#
            )
        };
        let json = format!(
            r#"{{"report":[{{"lv":[{},{},{}]}}],"log":[]}}"#,
            row("metadata", "134217728", "", "/dev/mapper/a:0-0"),
            row(SD, "402653184", "open", "/dev/mapper/a:5-6"),
            row(SD, "402653184", "open", "/dev/mapper/b:1-1"),
        );
        let group = VolumeGroup::parse(SD.parse().unwrap(), &json).unwrap();
        assert_eq!((group.seqno, group.version, group.lvs.len()), (12, Some(5), 2));
        let lv = group.volume(SD.parse().unwrap()).unwrap();
        assert_eq!((lv.size, lv.open, lv.tags.slot), (402_653_184, true, Some(4)));
        assert_eq!(lv.extents, "/dev/mapper/a:5-6 /dev/mapper/b:1-1");
        assert_eq!(group.dm_uuid(lv), "LVM-8WPH3mZGO0Abcd");
        assert!(VolumeGroup::parse(SD.parse().unwrap(), r#"{"report":[{"lv":[]}]}"#).is_err());
        assert!(VolumeGroup::parse(SD.parse().unwrap(), "x").is_err());
    }

    #[test]
    fn devices_of_other_groups_are_left_out() {
        let json = format!(
            r#"{{"report":[{{"pv":[{{"pv_name":"/dev/mapper/a","vg_name":"{SD}"}},{{"pv_name":"/dev/mapper/b","vg_name":""}}]}}]}}"#
        );
        assert_eq!(parse_pvs(SD.parse().unwrap(), &json).unwrap(), ["/dev/mapper/a"]);
    }
}
