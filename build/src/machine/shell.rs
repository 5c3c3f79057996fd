//! Talks to the guest's shell over its serial port: commands, and files as framed base64.
//!
//! A frame is what `dolmen --frame` writes and `dolmen receive` reads: a line with name, length and CRC-32,
//! lines of base64, and an end. Whatever the serial line loses or mixes in is noticed.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::stream::Stream;

/// Bytes of base64 in a line.
const LINE: usize = 76;
/// The prompt that the guest's script sets.
const PROMPT: &str = "guest# ";
/// Longest time for one command.
const LIMIT: Duration = Duration::from_secs(60);

/// The guest's shell, ready for a command.
#[derive(Debug)]
pub(crate) struct Shell {
    port: Stream,
    commands: u32,
}

/// What a command said, and how it ended.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Its lines, standard error included.
    pub(crate) lines: Vec<String>,
    /// Exit status.
    pub(crate) status: i32,
}

impl Answer {
    /// The lines as one text.
    pub(crate) fn text(&self) -> String {
        self.lines.join("\n")
    }
}

impl Shell {
    /// Waits for the guest's shell and makes it quiet.
    pub(crate) fn wait(mut port: Stream, limit: Duration) -> Result<Self> {
        port.wait_for("guest: ready", limit)?;
        port.wait_for_prompt(PROMPT, LIMIT)?;
        // An interactive shell edits lines and echoes them; one that reads the port as its script does not.
        port.send(b"stty -echo; dmesg -n 1; exec sh /dev/console\n")?;
        let mut shell = Self { port, commands: 0 };
        shell.expect("true")?;
        Ok(shell)
    }

    /// Runs a command line.
    pub(crate) fn run(&mut self, command: &str) -> Result<Answer> {
        self.start(command)?;
        self.finish(command)
    }

    /// Runs a command line and demands that it ends with status 0.
    pub(crate) fn expect(&mut self, command: &str) -> Result<String> {
        let answer = self.run(command)?;
        if answer.status != 0 {
            bail!("in the guest, `{command}` ended with {}: {}", answer.status, answer.text());
        }
        Ok(answer.text())
    }

    /// Runs a command line that goes on until it gets these keys: they are sent when it has said `said`.
    pub(crate) fn press(&mut self, command: &str, said: &str, keys: &[u8]) -> Result<Answer> {
        self.start(command)?;
        let mut before = Vec::new();
        self.port.find(&format!("`{command}` to say {said}"), LIMIT, |line| {
            before.push(line.to_owned());
            line.contains(said).then_some(())
        })?;
        self.port.send(keys)?;
        let Answer { lines, status } = self.finish(command)?;
        Ok(Answer { lines: [before, lines].concat(), status })
    }

    /// Sends `content` into the guest's file `path`.
    pub(crate) fn send(&mut self, path: &str, content: &[u8]) -> Result<()> {
        let command = format!("dolmen receive {path}");
        self.start(&command)?;
        // What arrives before it waits would be taken for a command line.
        self.port.wait_for("dolmen: waiting for a frame", LIMIT)?;
        self.port.send(frame("file", content).as_bytes())?;
        let answer = self.finish(&command)?;
        if answer.status != 0 {
            bail!("in the guest, `{command}` ended with {}: {}", answer.status, answer.text());
        }
        Ok(())
    }

    /// Runs a command line that writes one frame, and returns what the frame holds.
    pub(crate) fn receive(&mut self, command: &str) -> Result<Vec<u8>> {
        let answer = self.run(command)?;
        if answer.status != 0 {
            bail!("in the guest, `{command}` ended with {}: {}", answer.status, answer.text());
        }
        unframe(&answer.lines).with_context(|| format!("`{command}` in the guest"))
    }

    /// Types a command line after which the guest is gone; its port is left.
    pub(crate) fn leave(mut self, command: &str) -> Result<Stream> {
        self.port.send(format!("{command}\n").as_bytes())?;
        Ok(self.port)
    }

    fn start(&mut self, command: &str) -> Result<()> {
        self.commands = self.commands.saturating_add(1);
        let number = self.commands;
        // The marks are put together by the shell, so that an echo of this very line is no mark.
        let line = format!("echo @@\"\"begin {number}; {command}; echo @@\"\"end {number} $?\n");
        self.port.send(line.as_bytes())?;
        self.port.find(&format!("`{command}` to start"), LIMIT, |line| {
            line.contains(&format!("@@begin {number}")).then_some(())
        })
    }

    fn finish(&mut self, command: &str) -> Result<Answer> {
        let number = self.commands;
        let end = format!("@@end {number} ");
        let mut lines = Vec::new();
        let status = self.port.find(&format!("`{command}` to end"), LIMIT, |line| {
            let Some((before, status)) = line.split_once(&end) else {
                lines.push(line.to_owned());
                return None;
            };
            if !before.is_empty() {
                lines.push(before.to_owned());
            }
            Some(status.trim().parse::<i32>())
        })?;
        let status = status.map_err(|error| anyhow!("the guest's shell is confused: {error}"))?;
        Ok(Answer { lines, status })
    }
}

/// A frame, ready to be sent.
fn frame(name: &str, content: &[u8]) -> String {
    let mut text =
        format!("=== dolmen begin {name} {} {:08x} ===\n", content.len(), crc32fast::hash(content));
    let encoded = STANDARD.encode(content);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, later) = rest.split_at_checked(LINE).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = later;
    }
    text.push_str(&format!("=== dolmen end {name} ===\n"));
    text
}

/// The content of the one frame among `lines`.
fn unframe(lines: &[String]) -> Result<Vec<u8>> {
    let mut lines = lines.iter();
    let head =
        lines.by_ref().find_map(|line| line.strip_prefix("=== dolmen begin ")).context("no frame came")?;
    let fields: Vec<&str> = head.split(' ').collect();
    let [name, length, checksum, "==="] = fields.as_slice() else { bail!("the frame begins with `{head}`") };
    let end = format!("=== dolmen end {name} ===");
    let mut encoded = String::new();
    loop {
        let line = lines.next().context("the frame has no end")?;
        if *line == end {
            break;
        }
        encoded.push_str(line);
    }
    let content = STANDARD.decode(&encoded).context("the frame is not base64")?;
    if content.len().to_string() != *length || format!("{:08x}", crc32fast::hash(&content)) != *checksum {
        bail!("the frame arrived damaged");
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_framed_comes_out_again() {
        let content: Vec<u8> = (0..=255).cycle().take(1000).collect();
        assert_eq!(unframe(&lines(&frame("blob", &content))).unwrap(), content);
    }

    #[test]
    fn a_frame_with_one_letter_changed_is_refused() {
        let damaged = frame("blob", b"some secret content").replacen("c29t", "c29u", 1);
        assert!(unframe(&lines(&damaged)).is_err());
    }

    #[test]
    fn a_frame_without_an_end_is_refused() {
        let whole = frame("blob", b"content");
        let cut = whole.lines().take(2).map(str::to_owned).collect::<Vec<_>>();
        assert!(unframe(&cut).is_err());
    }
}
