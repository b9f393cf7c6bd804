//! What speaks against a fresh host, before a self-hosted engine is deployed to it.
//!
//! Sources: requirements of ovirt-hosted-engine-setup and of the RHV 4.4 guide (10 GiB in
//! /var/tmp for the local VM). Looking changes nothing; what cannot be known stops nothing.

use serde::Serialize;

use super::remote::on_host;
use crate::{
    remote::Fields,
    restore::{Finding, Weight},
};

/// Where the deployment keeps the disk of the local VM.
const LOCAL_VM: u64 = 10 << 30;
/// Beside the archive in root's home.
const SPARE: u64 = 64 << 20;

/// Looks at the host. `$1` the engine's name.
pub const FRESH: &str = on_host!(
    r#"echo "uid=$(id -u)"
echo "name=$( (hostname -f || uname -n) 2>/dev/null | head -n 1)"
command -v hosted-engine >/dev/null 2>&1 && echo tool=hosted-engine
command -v tmux >/dev/null 2>&1 && echo tool=tmux
for name in ovirt-hosted-engine-setup ovirt-engine-appliance rhvm-appliance; do
  version=$(rpm -q --queryformat '%{VERSION}' "$name" 2>/dev/null) && echo "package=$name:$version"
done
hosted-engine --check-deployed >/dev/null 2>&1 </dev/null && echo deployed=yes
[ -s "$R/etc/ovirt-hosted-engine/hosted-engine.conf" ] && echo deployed=yes
pgrep -f 'hosted[-_]engine[^ ]* --deploy' >/dev/null 2>&1 && echo deploying=yes
for lock in "$R"/tmp/ansible.*_he_setup_lock; do [ -e "$lock" ] && echo "lock=${lock#"$R"}"; done
free() { df -Pk "$R$1" 2>/dev/null | awk 'NR == 2 { print $4 }'; }
echo "home_kib=$(free /root)"
echo "local_kib=$(free /var/tmp)"
own=$(hostname -I 2>/dev/null)
getent ahosts "$1" 2>/dev/null | awk '{ print $1 }' | sort -u | head -n 8 | while IFS= read -r address; do
  echo "address=$address"
  getent hosts "$address" 2>/dev/null | tr ' \t' '\n\n' | sed -n '2,$ { /./ s/^/reverse=/p }'
  case " $own " in *" $address "*) echo "own=$address";; esac
done
exit 0
"#
);

/// What [`FRESH`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FreshFacts {
    pub is_root: bool,
    pub name: String,
    pub has_program: bool,
    pub has_tmux: bool,
    /// Name and version of the packages that matter.
    pub packages: Vec<(String, String)>,
    pub deployed: bool,
    pub deploying: bool,
    pub locks: Vec<String>,
    /// Bytes free for the archive, and for the local VM.
    pub home: Option<u64>,
    pub local: Option<u64>,
    /// Of the engine's name, and the names of these.
    pub addresses: Vec<String>,
    pub reverse: Vec<String>,
    /// The engine's name leads to this very host.
    pub own: bool,
}

impl FreshFacts {
    /// Reads the answer.
    pub fn parse(text: &str) -> Self {
        let fields = Fields::new(text);
        let short = |value: &str| value.chars().take(200).collect::<String>();
        let all = |key| fields.all(key).map(short).collect::<Vec<_>>();
        let bytes = |key| {
            let kib = fields.first(key).and_then(|value| value.trim().parse::<u64>().ok());
            kib.map(|kib| kib.saturating_mul(1024))
        };
        let tools = all("tool");
        let packages = all("package");
        Self {
            is_root: fields.first("uid") == Some("0"),
            name: short(fields.first("name").unwrap_or_default()),
            has_program: tools.iter().any(|tool| tool == "hosted-engine"),
            has_tmux: tools.iter().any(|tool| tool == "tmux"),
            packages: packages
                .iter()
                .filter_map(|one| one.split_once(':'))
                .map(|(name, version)| (name.to_owned(), version.to_owned()))
                .collect(),
            deployed: fields.first("deployed").is_some(),
            deploying: fields.first("deploying").is_some(),
            locks: all("lock"),
            home: bytes("home_kib"),
            local: bytes("local_kib"),
            addresses: all("address"),
            reverse: all("reverse"),
            own: fields.first("own").is_some(),
        }
    }

    /// What speaks against it. `archive`: bytes, where they are known already.
    pub fn findings(&self, fqdn: &str, archive: Option<u64>) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut add = |weight, check, text: String, remedy: &str| {
            found.push(Finding { weight, check, text, remedy: Some(remedy.to_owned()) });
        };
        let (stops, tells) = (Weight::Stops, Weight::Tells);
        if !self.is_root {
            let remedy = "log in as root, or give the user `sudo` without a password";
            add(stops, "not-root", "hvbak is not root there".into(), remedy);
        }
        if !self.has_program {
            let text = "hosted-engine is not installed".into();
            add(stops, "no-program", text, "dnf install ovirt-hosted-engine-setup");
        }
        if let Some((_, version)) = self.package("ovirt-hosted-engine-setup")
            && is_older(version, [2, 2, 28])
        {
            let text = format!("ovirt-hosted-engine-setup {version} cannot deploy from a backup");
            add(stops, "old-program", text, "2.2.28 or newer is needed: dnf update");
        }
        if self.deployed {
            let text = "a self-hosted engine is deployed to it already".into();
            add(
                stops,
                "deployed",
                text,
                "name a freshly installed host, or run ovirt-hosted-engine-cleanup there",
            );
        }
        if self.deploying || !self.locks.is_empty() {
            let text = if self.locks.is_empty() {
                "a deployment is at work".to_owned()
            } else {
                format!("a deployment has paused ({})", self.locks.join(", "))
            };
            add(stops, "deploying", text, "let it end, or run ovirt-hosted-engine-cleanup there");
        }
        if let Some(home) = self.home {
            let needed = archive.unwrap_or(0).saturating_add(SPARE);
            if home < needed {
                let text = format!(
                    "/root has {} MiB free and the archive needs {}",
                    home >> 20,
                    needed >> 20
                );
                add(stops, "no-space", text, "free space there");
            }
        }
        if self.local.is_some_and(|local| local < LOCAL_VM) {
            let local = self.local.unwrap_or(0) >> 30;
            let text = format!("/var/tmp has {local} GiB free; the local VM takes up to 10");
            add(stops, "no-space-for-vm", text, "free space there");
        }
        if self.addresses.is_empty() {
            let text = format!("the host cannot resolve {fqdn}");
            add(stops, "no-address", text, "put it into DNS, or into /etc/hosts there");
        } else if !self.reverse.iter().any(|name| name.eq_ignore_ascii_case(fqdn)) {
            let text = format!("{} does not lead back to {fqdn}", self.addresses.join(", "));
            add(tells, "no-reverse", text, "put the reverse name into DNS");
        }
        if self.own || self.name.eq_ignore_ascii_case(fqdn) {
            let text = format!("{fqdn} is this host's own name or address");
            add(stops, "own-name", text, "the engine's VM needs an address of its own");
        }
        if self.has_program && !self.has_tmux {
            let text = "tmux is not installed: a broken connection would end the deployment".into();
            add(tells, "no-tmux", text, "dnf install tmux");
        }
        let appliances = ["ovirt-engine-appliance", "rhvm-appliance"];
        if !appliances.iter().any(|name| self.package(name).is_some()) {
            let text = "no appliance is installed: the deployment downloads it".into();
            add(tells, "no-appliance", text, "dnf install ovirt-engine-appliance");
        }
        found
    }

    fn package(&self, name: &str) -> Option<&(String, String)> {
        self.packages.iter().find(|(known, _)| known == name)
    }
}

/// Versions that are not numbers are not judged.
fn is_older(version: &str, than: [u64; 3]) -> bool {
    let parts: Option<Vec<u64>> =
        version.split('.').take(3).map(|part| part.parse().ok()).collect();
    parts.is_some_and(|parts| parts.as_slice() < than.as_slice())
}
