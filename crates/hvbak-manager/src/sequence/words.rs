//! Names from outside as words of a shell line and of a line of answers.

use super::{ANSWERS, REMOTE_ARCHIVE};

/// A word for a POSIX shell.
pub(super) fn quoted(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./-_".contains(c);
    if !text.is_empty() && text.chars().all(safe) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A name within a line of answers: it cannot end the line.
fn plain(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).collect()
}

/// The answer file: what is known, and what may be filled in. Passwords are asked for by the
/// deployment itself.
pub fn answers(fqdn: &str) -> String {
    format!(
        "[environment:default]\n\
         OVEHOSTED_NETWORK/fqdn=str:{}\n\
         # uncomment and fill in what it shall not ask; passwords do not belong here\n\
         #OVEHOSTED_NETWORK/bridgeIf=str:eth0\n\
         #OVEHOSTED_NETWORK/gateway=str:192.0.2.1\n\
         #OVEHOSTED_STORAGE/domainType=str:nfs\n\
         #OVEHOSTED_STORAGE/storageDomainConnection=str:nas.example.com:/new-empty-export\n\
         # exactly the old names:\n\
         #OVEHOSTED_STORAGE/storageDatacenterName=str:Default\n\
         #OVEHOSTED_ENGINE/clusterName=str:Default\n",
        plain(fqdn)
    )
}

/// The call that deploys.
pub(super) fn deployment() -> String {
    format!("hosted-engine --deploy --restore-from-file={REMOTE_ARCHIVE} --config-append={ANSWERS}")
}
