//! What `pg_restore` and `psql` complain of, and which of it loses no data.
//!
//! Only words. Invariant: what is not known to be harmless is bad.

/// What a restore has complained of.
pub struct Complaints {
    /// Errors that lose data.
    pub bad: Vec<String>,
    /// How many others there were.
    pub harmless: usize,
}

/// Reads them from what `pg_restore` or `psql` said.
pub fn complaints(stderr: &str) -> Complaints {
    const SIGNS: [&str; 6] = [
        "pg_restore: error:",
        "pg_restore: [",
        "psql: error:",
        "ERROR:  ",
        "FATAL:  ",
        "a worker process died",
    ];
    // Of older versions: which entry the next line is about.
    const CONTEXT: [&str; 2] = ["Error while PROCESSING TOC", "Error from TOC entry"];
    let mut complaints = Complaints { bad: Vec::new(), harmless: 0 };
    for line in stderr.lines().filter(|line| SIGNS.iter().any(|sign| line.contains(sign))) {
        if line.split_once("ERROR:  ").is_some_and(|(_, text)| is_harmless(text.trim())) {
            complaints.harmless += 1;
        } else if !CONTEXT.iter().any(|words| line.contains(words)) {
            complaints.bad.push(line.chars().take(300).collect());
        }
    }
    complaints
}

/// Whether an error loses no data: objects that every new database has, extensions that are
/// not installed here (their functions are no data), owners and rights.
fn is_harmless(error: &str) -> bool {
    const WHOLE: [&str; 14] = [
        "language \"plpgsql\" already exists",
        "must be owner of language plpgsql",
        "permission denied for language c",
        "extension \"plpgsql\" already exists",
        "extension \"uuid-ossp\" already exists",
        "must be owner of extension plpgsql",
        "must be owner of extension uuid-ossp",
        "schema \"public\" already exists",
        "must be owner of schema public",
        "must be member of role \"postgres\"",
        "must be able to SET ROLE \"postgres\"",
        "permission denied to change default privileges",
        "extension \"uuid-ossp\" does not exist",
        "extension \"uuid-ossp\" is not available",
    ];
    const ENDS: [(&str, &str); 10] = [
        ("could not open extension control file \"", "\": No such file or directory"),
        ("permission denied to create extension \"", "\""),
        ("extension \"", "\" is not available"),
        ("extension \"", "\" does not exist"),
        ("role \"", "\" does not exist"),
        ("function \"uuid_", "\" already exists with same argument types"),
        ("function public.uuid_", " does not exist"),
        ("function uuid_", " does not exist"),
        ("must be owner of function uuid_", ""),
        ("must be owner of function public.uuid_", ""),
    ];
    let between = |(begin, end): &(&str, &str)| {
        let middle = error.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
        let name = |text: &str| !text.contains('"');
        middle.is_some_and(name)
    };
    WHOLE.contains(&error) || ENDS.iter().any(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_read() {
        let said = "pg_restore: error: could not execute query: ERROR:  schema \"public\" already exists\n\
             pg_restore: warning: errors ignored on restore: 1\n\
             pg_restore: error: could not uncompress data: (null)\n\
             psql:x.sql:8: ERROR:  extension \"uuid-ossp\" is not available\n\
             NOTICE: nothing\n";
        let found = complaints(said);
        assert_eq!(found.bad, ["pg_restore: error: could not uncompress data: (null)"]);
        assert_eq!(found.harmless, 2);
    }

    #[test]
    fn only_errors_of_exactly_that_form_are_harmless() {
        for text in [
            "must be owner of extension uuid-ossp",
            "could not open extension control file \"/usr/x.control\": No such file or directory",
            "function public.uuid_nil() does not exist",
            "must be owner of function public.uuid_nil",
            "role \"engine\" does not exist",
        ] {
            assert!(is_harmless(text), "{text}");
        }
        for text in [
            "relation \"vm_static\" already exists",
            "schema \"dwh\" already exists",
            "invalid input: \"schema \"public\" already exists\"",
            "duplicate key value: extension \"x\" is not available",
            "must be owner of function insert_uuid_vm",
            "must be superuser or a member of the pg_execute_server_program role to COPY",
        ] {
            assert!(!is_harmless(text), "{text}");
        }
    }
}
