//! Runs other programs: bounded in time, their output kept for the case that they fail.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::ui::Progress;

/// Lines of a failed program's output that are shown.
const TAIL: usize = 60;
/// Longest any one program may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(25 * 60);

/// Runs `command` with a progress line; shows the end of its output only if it fails.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    let progress = Progress::start(what);
    let outcome = supervise(command, LIMIT, |line| progress.detail(line))?;
    outcome.demand_success(what, command)?;
    progress.done();
    Ok(())
}

/// Runs `command` in silence and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let done =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", name(command)))?;
    if !done.status.success() {
        bail!(
            "{} ended with {}:\n{}",
            shown(command),
            done.status,
            String::from_utf8_lossy(&done.stderr).trim_end()
        );
    }
    String::from_utf8(done.stdout)
        .with_context(|| format!("{} wrote something else than text", name(command)))
}

/// Asks a program that judges something: what it wrote to standard output if it accepts, by exit status 0, and to standard
/// error if it refuses, by 1. That it did not judge is an error.
pub(crate) fn judge(command: &mut Command) -> Result<core::result::Result<Vec<u8>, String>> {
    let done =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", name(command)))?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    match done.status.code() {
        Some(0) => Ok(Ok(done.stdout)),
        Some(1) => Ok(Err(said)),
        _ => bail!("{} ended with {}:\n{}", shown(command), done.status, said.trim_end()),
    }
}

/// How a program ended, and the end of what it said.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Exit status; none if it was stopped for taking too long.
    pub(crate) status: Option<ExitStatus>,
    /// Last lines of standard output and error.
    pub(crate) tail: VecDeque<String>,
}

impl Outcome {
    /// Whether the program ended by itself with status 0.
    pub(crate) fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    fn demand_success(&self, what: &str, command: &Command) -> Result<()> {
        if self.success() {
            return Ok(());
        }
        for line in &self.tail {
            eprintln!("    {line}");
        }
        match self.status {
            Some(status) => bail!("{what}: {} ended with {status}", shown(command)),
            None => {
                bail!("{what}: {} took longer than {} s and was stopped", shown(command), LIMIT.as_secs())
            }
        }
    }
}

/// Runs `command` for at most `limit`, gives each line of its output to `see`.
pub(crate) fn supervise(
    command: &mut Command,
    limit: Duration,
    mut see: impl FnMut(&str),
) -> Result<Outcome> {
    let deadline = Instant::now().checked_add(limit).context("the time limit is too far away")?;
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(
            || format!("cannot start {}; is it installed? `cargo xtask setup` does it", name(command)),
        )?;
    let lines = follow(&mut child);
    let mut tail = VecDeque::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                see(&line);
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                child.kill().context("cannot stop a program")?;
                child.wait().context("cannot wait for a program")?;
                return Ok(Outcome { status: None, tail });
            }
        }
    }
    let status = child.wait().context("cannot wait for a program")?;
    Ok(Outcome { status: Some(status), tail })
}

fn follow(child: &mut Child) -> Receiver<String> {
    let (sender, receiver) = channel();
    if let Some(pipe) = child.stdout.take() {
        pump(pipe, sender.clone());
    }
    if let Some(pipe) = child.stderr.take() {
        pump(pipe, sender);
    }
    receiver
}

fn pump(pipe: impl Read + Send + 'static, sender: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { break };
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
}

/// The program's name, for messages.
pub(crate) fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// The whole command line, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = format!("`{}", name(command));
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text.push('`');
    text
}

/// Whether a program of this name is in the search path.
pub(crate) fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_judge_does_not_refuse() {
        let judge = |script: &str| judge(Command::new("sh").args(["-c", script]));
        assert_eq!(judge("echo good").unwrap(), Ok(b"good\n".to_vec()));
        assert_eq!(judge("echo bad >&2; exit 1").unwrap(), Err("bad\n".to_owned()));
        assert!(judge("exit 2").is_err() && judge("kill -9 $$").is_err());
        assert!(super::judge(&mut Command::new("/no/such/program")).is_err());
    }
}
