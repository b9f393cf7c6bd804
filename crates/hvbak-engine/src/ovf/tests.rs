//! Edits on a small document with everything in it that an edit must meet.

use super::*;

const SMALL: &str = r#"<?xml version='1.0'?><o:Envelope xmlns:o='http://schemas.dmtf.org/ovf/envelope/1/' xmlns:xsi='http://www.w3.org/2001/XMLSchema-instance'>
<References><File o:href='a/b' o:id='b'/></References>
<DiskSection><Disk o:diskId='b' o:fileRef='a/b' o:boot='True'/></DiskSection>
<Content><Name/><TemplateId></TemplateId><TemplateName>t &amp; u</TemplateName><MigrationSupport>2</MigrationSupport><DedicatedVmForVds>h1</DedicatedVmForVds><DedicatedVmForVds>h2</DedicatedVmForVds><LeaseDomainId>x</LeaseDomainId><DeleteProtected>True</DeleteProtected>
<Unknown><![CDATA[<kept & kept>]]></Unknown>
<VirtualHardwareSection><Item><ResourceType>17</ResourceType><InstanceId>b</InstanceId></Item><Item><ResourceType>0</ResourceType><Type>hostdev</Type></Item></VirtualHardwareSection>
<SnapshotsSection><Snapshot o:id='q'/></SnapshotsSection></Content></o:Envelope>"#;

#[test]
fn what_names_the_old_place_goes_and_the_rest_stays_byte_for_byte() {
    let edit = Edit { name: Some("new <&> name".into()), ..Edit::default() };
    let edited = for_restore(SMALL, &edit).unwrap();
    for gone in
        ["File ", "<Disk ", "hostdev", "Dedicated", "Lease", "Snapshot o", "<ResourceType>17"]
    {
        assert!(!edited.ovf.contains(gone), "{gone}: {}", edited.ovf);
    }
    for kept in [
        "<Unknown><![CDATA[<kept & kept>]]></Unknown>",
        "<Name>new &lt;&amp;&gt; name</Name>",
        "<TemplateId>00000000-0000-0000-0000-000000000000</TemplateId>",
        "<TemplateName>Blank</TemplateName>",
        "<MigrationSupport>0</MigrationSupport>",
        "<DeleteProtected>false</DeleteProtected>",
    ] {
        assert!(edited.ovf.contains(kept), "{kept}: {}", edited.ovf);
    }
    let again = for_restore(&edited.ovf, &edit).unwrap();
    assert_eq!(again.ovf, edited.ovf);
    assert!(again.changes.is_empty(), "{:?}", again.changes);
}

#[test]
fn what_is_no_ovf_is_refused() {
    assert!(matches!(read("<vm/>"), Err(OvfError::Missing("Envelope"))));
    assert!(matches!(read("<Envelope/>"), Err(OvfError::Missing("Content"))));
    assert!(matches!(read("<Envelope"), Err(OvfError::Xml(_))));
    assert!(matches!(for_restore("", &Edit::default()), Err(OvfError::Xml(_))));
    assert!(matches!(
        read(
            "<!DOCTYPE a [<!ENTITY x 'y'>]><Envelope><Content><Name>&x;</Name></Content></Envelope>"
        ),
        Err(OvfError::Xml(_))
    ));
}
