//! Putting values into POSIX shell command lines.
//!
//! The one rule: a value from outside reaches a shell as a quoted positional parameter
//! of a constant script, never by formatting it into the script.

/// One shell word that means exactly `text`.
pub fn sh_quote(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@,+%".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A command line that runs the constant `body` with `/bin/sh` (whatever the login shell
/// is) and `args` as `$1`, `$2`, …; `$0` is `hvbak`. Standard input stays free for data.
pub fn script(body: &str, args: &[&str]) -> String {
    let mut line = format!("exec /bin/sh -c {} hvbak", sh_quote(body));
    for arg in args {
        line.push(' ');
        line.push_str(&sh_quote(arg));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        for word in ["", "plain", "a b", "it's", "$(id)", "`x`", "a\nb", "\\", "'\"'", "-n", "ünï"]
        {
            let line = format!("printf %s {}", sh_quote(word));
            let out = std::process::Command::new("/bin/sh").arg("-c").arg(line).output().unwrap();
            assert_eq!(String::from_utf8(out.stdout).unwrap(), word);
        }
        let out = std::process::Command::new("/bin/sh")
            .arg("-c")
            .arg(script("printf '%s|' \"$0\" \"$@\"", &["a'b", "", "$c"]))
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap(), "hvbak|a'b||$c|");
    }
}
