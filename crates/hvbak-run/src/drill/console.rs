//! What a booting guest's words mean: its serial console and the text on its screen.
//!
//! Pure, over foreign bytes: memory is bounded, and nothing is believed but the few words
//! that boot loaders, kernels and logins print for every system. What is not recognised is
//! not guessed at.

/// The longest line that is kept.
const LINE_MAX: usize = 4096;

/// How far a guest came, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing that is known.
    Unknown,
    /// The firmware looked for something to boot and found nothing.
    NothingToBoot,
    Kernel,
    Panic,
    Login,
}

/// Where words were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Serial,
    Screen,
}

impl Place {
    pub fn words(self) -> &'static str {
        match self {
            Self::Serial => "on the serial console",
            Self::Screen => "on the screen",
        }
    }
}

/// Reads along.
#[derive(Debug)]
pub struct Console {
    stage: Stage,
    place: Place,
    line: Vec<u8>,
    escape: Escape,
}

/// Within a terminal's control sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    Sequence,
}

impl Default for Console {
    fn default() -> Self {
        Self { stage: Stage::Unknown, place: Place::Serial, line: Vec::new(), escape: Escape::None }
    }
}

impl Console {
    /// The furthest that was recognised, and where.
    pub fn seen(&self) -> (Stage, Place) {
        (self.stage, self.place)
    }

    /// Takes what came over the serial line.
    pub fn serial(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match (self.escape, *byte) {
                (Escape::None, 0x1b) => self.escape = Escape::Begun,
                (Escape::Begun, b'[') => self.escape = Escape::Sequence,
                (Escape::Begun, _) => self.escape = Escape::None,
                (Escape::Sequence, 0x40..=0x7e) => self.escape = Escape::None,
                (Escape::Sequence, _) => {}
                (Escape::None, b'\n' | b'\r') => self.end_of_line(),
                (Escape::None, byte) if self.line.len() < LINE_MAX => self.line.push(byte),
                (Escape::None, _) => {}
            }
        }
    }

    /// Nothing has come for a moment: a line without an end may be a prompt. While it is
    /// still being printed, `login: no` begins like one.
    pub fn rest(&mut self) {
        self.note(recognise(&self.line), Place::Serial);
    }

    /// Takes the memory of a text screen of 80 columns: a character, its colour, and so on.
    /// What a graphics mode has there is no text and recognised as nothing.
    pub fn screen(&mut self, memory: &[u8]) {
        for row in memory.chunks(160) {
            let text: Vec<u8> = row.iter().step_by(2).copied().collect();
            self.note(recognise(&text), Place::Screen);
        }
    }

    fn end_of_line(&mut self) {
        self.note(recognise(&self.line), Place::Serial);
        self.line.clear();
    }

    fn note(&mut self, stage: Stage, place: Place) {
        if stage > self.stage {
            (self.stage, self.place) = (stage, place);
        }
    }
}

/// What one line says.
fn recognise(line: &[u8]) -> Stage {
    let text = String::from_utf8_lossy(line).to_ascii_lowercase();
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if text.ends_with("login:") && !text.ends_with("last login:") {
        return Stage::Login;
    }
    if has(&["kernel panic - not syncing", "end kernel panic", "panic: going nowhere"]) {
        return Stage::Panic;
    }
    let kernel = [
        "linux version ",
        "booting the kernel",
        "systemd[1]:",
        "the freebsd project",
        "the openbsd project",
        "the netbsd foundation",
        // Windows' own serial console.
        "computer is booting, sac started",
    ];
    if has(&kernel) {
        return Stage::Kernel;
    }
    // UEFI without a boot loader ends in its own shell.
    let nothing = ["no bootable device", "boot failed: could not read", "uefi interactive shell"];
    if has(&nothing) || text == "operating system not found" {
        return Stage::NothingToBoot;
    }
    Stage::Unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(text: &str) -> Stage {
        // One byte at a time, as a slow line brings it.
        let mut console = Console::default();
        text.bytes().for_each(|byte| console.serial(&[byte]));
        console.rest();
        console.seen().0
    }

    #[test]
    fn words_are_recognised_and_the_furthest_counts() {
        for (text, stage) in [
            ("", Stage::Unknown),
            ("GRUB loading.\r\nWelcome to GRUB!", Stage::Unknown),
            ("[    0.000000] Linux version 6.1.0 (gcc)\r\n", Stage::Kernel),
            ("\x1b[0;1;39msystemd[1]: Started.\n", Stage::Kernel),
            ("Linux version 6\nKernel panic - not syncing: VFS\n", Stage::Panic),
            ("Linux version 6\r\n\r\nweb1 login: ", Stage::Login),
            ("\x1b[2J\x1b[1mweb1 login:\x1b[0m ", Stage::Login),
            ("Last login: Mon\nLast login:", Stage::Unknown),
            ("please login: no\n", Stage::Unknown),
            ("Booting from Hard Disk...\nNo bootable device.\n", Stage::NothingToBoot),
            ("\x1b[01;01HUEFI Interactive Shell v2.2\r\nEDK II\r\n", Stage::NothingToBoot),
        ] {
            assert_eq!(serial(text), stage, "{text:?}");
        }
    }

    #[test]
    fn the_screen_is_read_and_noise_is_nothing() {
        let mut memory = Vec::new();
        for c in format!("{:80}{:80}", "Debian 12", "db1 login:").bytes() {
            memory.extend([c, 7]);
        }
        let mut console = Console::default();
        console.screen(&memory);
        assert_eq!(console.seen(), (Stage::Login, Place::Screen));
        let mut console = Console::default();
        console.screen(&(0..4000).map(|n| (n * 7 % 251) as u8).collect::<Vec<_>>());
        for _ in 0..10 {
            console.serial(&vec![b'x'; 1 << 16]);
        }
        assert_eq!(console.seen().0, Stage::Unknown);
        assert!(console.line.len() <= LINE_MAX);
    }
}
