//! DESCRIPTION of a volume: JSON of the engine, perhaps cut after 210 bytes, or old free
//! text. Only for people; nothing is decided on it.

/// Alias and description of a disk, as far as they can be read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskDescription {
    /// `DiskAlias`.
    pub alias: Option<String>,
    /// `DiskDescription`; the whole text when it is no JSON.
    pub description: Option<String>,
}

impl DiskDescription {
    /// Reads what is there; a cut JSON text yields what stands before the cut.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        if !text.starts_with('{') {
            let description = (!text.is_empty()).then(|| text.to_owned());
            return Self { alias: None, description };
        }
        Self { alias: find(text, "DiskAlias"), description: find(text, "DiskDescription") }
    }
}

/// The string value of a key in a flat JSON object that may end anywhere.
fn find(text: &str, key: &str) -> Option<String> {
    let mut rest = &text[1..];
    loop {
        let (name, behind) = string(rest.trim_start_matches([' ', ',']))?;
        let value = behind.trim_start().strip_prefix(':')?.trim_start();
        let (value, behind) = string(value)?;
        if name == key {
            return Some(value);
        }
        rest = behind;
    }
}

/// A JSON string and what follows it; a missing end quote ends at the cut.
fn string(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('"')?;
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((out, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, 't')) => out.push('\t'),
                Some((_, 'r')) => out.push('\r'),
                Some((from, 'u')) => {
                    let code = text.get(from + 1..from + 5)?;
                    // A half of a surrogate pair becomes U+FFFD: it is for people only.
                    let code = u32::from_str_radix(code, 16).ok()?;
                    out.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    chars.nth(3);
                }
                Some((_, other)) => out.push(other),
                None => break,
            },
            other => out.push(other),
        }
    }
    Some((out, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_read() {
        for (text, alias, description) in [
            (r#"{"DiskAlias":"web_Disk1","DiskDescription":""}"#, Some("web_Disk1"), Some("")),
            (r#"{ "DiskDescription":"x", "DiskAlias":"a\"b\\"}"#, Some("a\"b\\"), Some("x")),
            (r#"{"DiskAlias":"caf\u00e9","DiskDescription":"cut he"#, Some("café"), Some("cut he")),
            (r#"{"DiskAlias":"long na"#, Some("long na"), None),
            (r#"{"Expected":5}"#, None, None),
            ("old free text", None, Some("old free text")),
            ("", None, None),
            ("{", None, None),
            (r#"{"DiskAlias":"\u12"#, None, None),
        ] {
            let d = DiskDescription::parse(text);
            assert_eq!(d.alias.as_deref(), alias, "{text}");
            assert_eq!(d.description.as_deref(), description, "{text}");
        }
    }
}
