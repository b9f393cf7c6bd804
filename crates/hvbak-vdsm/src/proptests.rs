//! Nothing a host may store makes this room panic.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn hostile_text_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = VolumeMeta::parse(&bytes).is_ok();
        let text = String::from_utf8_lossy(&bytes);
        let _ = DiskDescription::parse(&text);
        let _ = DiskDescription::parse(&format!("{{\"{text}"));
        let _ = (backing_name(&text).is_ok(), skip_reason(&text), parse_lv_tags(&text));
        let _ = (normalise_spec(&text), mount_shape(&text), decode_vg_value(&text));
        let _ = mount_directory(&Mount::Gluster { spec: &text });
    }
}
