//! The configuration files that name the Data Warehouse's database: their new text, and
//! what changes in them for people.
//!
//! engine-setup writes each value as `NAME="value"` on a line of its own
//! (ovirt_engine_setup/engine_common/database.py, getDBConfig). The files are read by a
//! shell, by Python and by Java, which do not agree on escapes, so values that would need
//! one are refused.

use hvbak_types::Secret;

use super::Target;

/// Why a file cannot be changed, or a value not stand in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    #[error("the {what} of the new database cannot be used: {why}")]
    Value { what: &'static str, why: &'static str },
    #[error("{path} sets no {name}: it is not as engine-setup writes it")]
    Lacks { path: String, name: &'static str },
    #[error("{path} is not text")]
    NotText { path: String },
}

/// What is set, in the order of engine-setup.
const NAMES: [&str; 8] = [
    "DWH_DB_HOST",
    "DWH_DB_PORT",
    "DWH_DB_USER",
    "DWH_DB_PASSWORD",
    "DWH_DB_DATABASE",
    "DWH_DB_SECURED",
    "DWH_DB_SECURED_VALIDATION",
    "DWH_DB_URL",
];

/// Whether the new place can stand in the files and be given to PostgreSQL's programs.
///
/// # Errors
/// [`EditError::Value`]; the password is not in its text.
pub fn check_target(target: &Target, password: &Secret) -> Result<(), EditError> {
    let word = |what, value: &str, more: &str| {
        let no = |why| Err(EditError::Value { what, why });
        if value.is_empty() || value.len() > 255 {
            return no("it is empty or too long");
        }
        if value.starts_with('-') {
            return no("it begins with a dash");
        }
        if !value.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c)) {
            return no("it holds characters that shell, Python and Java read differently");
        }
        Ok(())
    };
    word("host", &target.host, ".-:_")?;
    word("user", &target.user, "._-")?;
    word("name", &target.database, "._-")?;
    // No quotes, backslash, dollar or backtick, no colon (engine-setup escapes it), no space.
    let password = password.expose().trim_start_matches('-');
    word("password", password, "._-+=@%,/!^#~*()[]{}<>?;|&")
}

/// The text of a file with the new place in it.
///
/// # Errors
/// [`EditError::Lacks`] when the file does not name a database as engine-setup does.
pub fn point_at(
    path: &str,
    text: &str,
    target: &Target,
    password: &Secret,
) -> Result<String, EditError> {
    let value = |name: &str| match name {
        "DWH_DB_HOST" => target.host.clone(),
        "DWH_DB_PORT" => target.port.to_string(),
        "DWH_DB_USER" => target.user.clone(),
        "DWH_DB_PASSWORD" => password.expose().to_owned(),
        "DWH_DB_DATABASE" => target.database.clone(),
        "DWH_DB_SECURED" => python(target.secured).to_owned(),
        "DWH_DB_SECURED_VALIDATION" => python(target.validated).to_owned(),
        _ => url(target),
    };
    let mut seen = [false; NAMES.len()];
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let name = line.split_once('=').map(|(name, _)| name);
        match NAMES.iter().position(|known| Some(*known) == name) {
            Some(at) => {
                seen[at] = true;
                let end = if line.ends_with('\n') { "\n" } else { "" };
                out.push_str(&format!("{}=\"{}\"{end}", NAMES[at], value(NAMES[at])));
            }
            None => out.push_str(line),
        }
    }
    match seen.iter().position(|seen| !seen) {
        Some(at) => Err(EditError::Lacks { path: path.to_owned(), name: NAMES[at] }),
        None => Ok(out),
    }
}

/// As engine-setup spells it.
fn python(yes: bool) -> &'static str {
    if yes { "True" } else { "False" }
}

/// As engine-setup writes it (getJdbcUrl).
fn url(target: &Target) -> String {
    let host =
        if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let mut options = Vec::new();
    if target.secured {
        options.push("ssl=true");
    }
    if !target.validated {
        options.push("sslfactory=org.postgresql.ssl.NonValidatingFactory");
    }
    format!("jdbc:postgresql://{host}:{}/{}?{}", target.port, target.database, options.join("&"))
}

/// The lines that change, `-` before and `+` after, without passwords.
pub fn diff(path: &str, before: &str, after: &str) -> String {
    let mut text = format!("--- {path}\n+++ {path}\n");
    let (mut old, mut new) = (before.lines(), after.lines());
    // Lines are replaced one by one: both texts have as many, but for files that come or go.
    loop {
        match (old.next(), new.next()) {
            (None, None) => return text,
            (Some(a), Some(b)) if a == b => {}
            (a, b) => {
                let side = |sign: &str, line: Option<&str>| {
                    line.map_or_else(String::new, |line| format!("{sign}{}\n", masked(line)))
                };
                text.push_str(&side("-", a));
                text.push_str(&side("+", b));
            }
        }
    }
}

/// A line without its password.
fn masked(line: &str) -> String {
    match line.split_once('=') {
        Some((name, _)) if name.to_ascii_uppercase().contains("PASS") => {
            format!("{name}=\"********\"")
        }
        _ => line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DWHD: &str = "ENGINE_DB_HOST=\"localhost\"\nENGINE_DB_PASSWORD=\"engine pw\"\nDWH_DB_HOST=\"localhost\"\nDWH_DB_PORT=\"5432\"\nDWH_DB_USER=\"ovirt_engine_history\"\nDWH_DB_PASSWORD=\"old pw\"\nDWH_DB_DATABASE=\"ovirt_engine_history\"\nDWH_DB_SECURED=\"False\"\nDWH_DB_SECURED_VALIDATION=\"False\"\nDWH_DB_DRIVER=\"org.postgresql.Driver\"\nDWH_DB_URL=\"jdbc:postgresql://localhost:5432/ovirt_engine_history?sslfactory=org.postgresql.ssl.NonValidatingFactory\"\n# mine\nMORE=1";

    fn target() -> Target {
        Target {
            host: "db.example.test".into(),
            port: 5433,
            user: "dwh".into(),
            database: "history".into(),
            secured: true,
            validated: false,
        }
    }

    #[test]
    fn only_the_values_that_move_change() {
        let new = point_at("x", DWHD, &target(), &Secret::new("n-w+pw")).unwrap();
        let expected = DWHD
            .replace("DWH_DB_HOST=\"localhost\"", "DWH_DB_HOST=\"db.example.test\"")
            .replace("\"5432\"", "\"5433\"")
            .replace("DWH_DB_USER=\"ovirt_engine_history\"", "DWH_DB_USER=\"dwh\"")
            .replace("old pw", "n-w+pw")
            .replace("DATABASE=\"ovirt_engine_history\"", "DATABASE=\"history\"")
            .replace("SECURED=\"False\"", "SECURED=\"True\"")
            .replace(
                "//localhost:5432/ovirt_engine_history?",
                "//db.example.test:5433/history?ssl=true&",
            );
        assert_eq!(new, expected);
        let shown = diff("x", DWHD, &new);
        assert!(shown.contains("-DWH_DB_PORT=\"5432\"\n+DWH_DB_PORT=\"5433\"\n"), "{shown}");
        assert!(shown.contains("-DWH_DB_PASSWORD=\"********\""), "{shown}");
        assert!(!shown.contains("old pw") && !shown.contains("n-w+pw"), "{shown}");
        assert!(!shown.contains("ENGINE_DB") && !shown.contains("MORE"), "{shown}");
        let v6 = Target { host: "2001:db8::1".into(), validated: true, ..target() };
        assert_eq!(url(&v6), "jdbc:postgresql://[2001:db8::1]:5433/history?ssl=true");
    }

    #[test]
    fn a_file_that_names_no_database_is_not_changed() {
        for name in NAMES {
            let without: String = DWHD
                .split_inclusive('\n')
                .filter(|l| !l.starts_with(&format!("{name}=")))
                .collect();
            let error = point_at("x", &without, &target(), &Secret::new("pw")).unwrap_err();
            assert_eq!(error, EditError::Lacks { path: "x".into(), name });
        }
    }

    #[test]
    fn values_that_are_read_differently_are_refused() {
        let good = Secret::new("Aa0._-+=@%");
        check_target(&target(), &good).unwrap();
        for bad in ["", "a b", "a\"b", "a\\b", "a$b", "a`b", "a:b", "a\nb", "a'b", "ü"] {
            let error = check_target(&target(), &Secret::new(bad)).unwrap_err();
            assert!(bad.is_empty() || !error.to_string().contains(bad), "{error}");
        }
        for (field, bad) in [(0, "a b"), (0, "-h"), (0, ""), (1, "x\";--"), (2, "a/b"), (2, "a$b")]
        {
            let mut target = target();
            *[&mut target.host, &mut target.user, &mut target.database][field] = bad.into();
            assert!(check_target(&target, &good).is_err(), "{bad}");
        }
    }
}
