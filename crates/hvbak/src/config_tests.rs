//! The configuration, and that `packaging/hvbak.example.toml` tells all of it.

use serde::de::{DeserializeOwned, Deserializer, Visitor, value::Error as ProbeError};

use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hvbak.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path)
}

const SMALLEST: &str = "[engine]\nurl = \"https://e/ovirt-engine/api\"\nca_file = \"ca.pem\"\nusername = \"admin@internal\"\npassword_file = \"engine.password\"\n[repository]\npath = \"/var/lib/hvbak\"\n";

#[test]
fn the_smallest_config_is_enough_and_paths_are_relative_to_it() {
    let config = load(SMALLEST).unwrap();
    assert_eq!(config.repository.path, Path::new("/var/lib/hvbak"));
    assert!(config.engine.ca_file.unwrap().is_absolute());
    assert!(config.ssh.key_file.is_absolute());
    assert_eq!((config.ssh.user.as_str(), config.transfer.streams), ("root", 2));
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = load(&format!("{SMALLEST}pth = 1\n")).unwrap_err();
    assert!(error.hint().unwrap().contains("hvbak.example.toml"));
    let error = error.to_string();
    assert!(error.contains("pth") && error.contains('8'), "{error}");
}

#[test]
fn a_password_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pw");
    std::fs::write(&path, "secret\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(read_secret("password file", &path), Err(ConfigError::SecretOpen { .. })));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(read_secret("password file", &path).unwrap().expose(), "secret");
}

#[test]
fn a_secret_can_be_a_credential_of_systemd() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pw"), "x").unwrap();
    let place = |text: &str, passed| locate("password file", Path::new(text), passed);
    assert_eq!(place("/etc/pw", None).unwrap(), Path::new("/etc/pw"));
    assert_eq!(place("credential:pw", Some(dir.path())).unwrap(), dir.path().join("pw"));
    std::fs::create_dir(dir.path().join("in")).unwrap();
    let hostile = ["credential:../pw", "credential:in/../pw", "credential:", "credential:.."];
    for text in hostile.iter().chain(&["credential:other"]) {
        let error = place(text, Some(dir.path())).unwrap_err();
        assert!(matches!(error, ConfigError::NoCredential { .. }), "{text}");
    }
    assert!(
        place("credential:pw", None).unwrap_err().hint().unwrap().contains("LoadCredential=pw:")
    );
    // Told when the secret is used, not before: `hvbak points` needs none.
    let config = load(&SMALLEST.replace("engine.password\"", "credential:engine\"")).unwrap();
    assert!(config.engine.password_file.unwrap() == Path::new("credential:engine"));
    let key = format!("{SMALLEST}[ssh]\nkey_file = \"credential:key\"\n");
    assert!(matches!(load(&key).unwrap_err(), ConfigError::KeyCredential { .. }));
}

const EXAMPLE: &str = include_str!("../../../packaging/hvbak.example.toml");

/// Answers nothing but which fields a struct asks for.
struct Probe<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = ProbeError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ProbeError> {
        *self.0 = fields;
        Err(serde::de::Error::custom("asked"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeError> {
        Err(serde::de::Error::custom("not a struct"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
        ignored_any
    }
}

fn keys<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &[&str] = &[];
    T::deserialize(Probe(&mut fields)).err().unwrap();
    assert!(!fields.is_empty());
    fields
}

fn keys_of(section: &str) -> &'static [&'static str] {
    match section {
        "engine" => keys::<EngineSection>(),
        "repository" => keys::<RepositorySection>(),
        "ssh" => keys::<SshSection>(),
        "worker" => keys::<WorkerSection>(),
        "transfer" => keys::<TransferSection>(),
        "limits" => keys::<LimitsSection>(),
        "backup" => keys::<BackupSection>(),
        "manager" => keys::<ManagerSection>(),
        "retention" => keys::<RetentionSection>(),
        "runbook" => keys::<RunbookSection>(),
        "drill" => keys::<DrillSection>(),
        "report" => keys::<ReportSection>(),
        "hosts" => keys::<HostSection>(),
        "policy" => keys::<crate::policy::PolicySection>(),
        "guests" => keys::<GuestSection>(),
        "notify" => keys::<crate::notify::NotifySection>(),
        other => panic!("say here which struct section {other} is"),
    }
}

/// A key of the example: its line and the words above it.
struct Shown<'a> {
    section: &'a str,
    key: &'a str,
    line: usize,
    commented: bool,
    words: String,
}

fn shown() -> Vec<Shown<'static>> {
    let (mut all, mut section, mut words) = (Vec::new(), "", String::new());
    for (line, text) in EXAMPLE.lines().enumerate() {
        let bare = text.strip_prefix('#').unwrap_or(text);
        if bare.starts_with('[') {
            section = bare.trim_matches(['[', ']']).split('.').next().unwrap();
            words.clear();
        } else if let Some((key, _)) = bare.split_once(" = ").filter(|_| !bare.starts_with(' ')) {
            let (commented, words) = (text != bare, std::mem::take(&mut words));
            all.push(Shown { section, key, line, commented, words });
        } else {
            words.push_str(bare);
        }
    }
    all
}

/// The example with all sections, and of the keys those that are wanted.
fn uncommented(wanted: impl Fn(&Shown<'_>) -> bool) -> String {
    let mut lines: Vec<_> = EXAMPLE
        .lines()
        .map(|text| if text.starts_with("#[") { &text[1..] } else { text })
        .collect();
    for shown in shown() {
        if shown.commented && wanted(&shown) {
            lines[shown.line] = &lines[shown.line][1..];
        }
    }
    lines.join("\n")
}

#[test]
fn the_example_tells_every_key_and_is_a_configuration() {
    let all = shown();
    for section in keys::<Config>() {
        let mut told: Vec<_> = all.iter().filter(|s| s.section == *section).collect();
        told.iter().for_each(|s| assert!(s.words.len() > 3, "{section}.{} has no words", s.key));
        told.sort_by_key(|s| s.key);
        let mut wanted = keys_of(section).to_vec();
        wanted.sort_unstable();
        assert_eq!(told.iter().map(|s| s.key).collect::<Vec<_>>(), wanted, "[{section}]");
    }
    toml::from_str::<Config>(EXAMPLE).unwrap();
    toml::from_str::<Config>(&uncommented(|_| true)).unwrap();
}

#[test]
fn the_example_shows_the_defaults() {
    let parse = |text: &str| format!("{:?}", toml::from_str::<Config>(text).unwrap());
    let required = |s: &Shown<'_>| s.words.contains("Required");
    let plain = parse(&uncommented(required));
    for one in shown().iter().filter(|s| s.commented && !required(s)) {
        let changes = parse(&uncommented(|s| required(s) || s.line == one.line)) != plain;
        assert_eq!(changes, one.words.contains("Unset"), "{}.{}", one.section, one.key);
    }
}
