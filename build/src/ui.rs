//! What the user sees: headings, facts, and progress of anything that takes longer than a blink.
//!
//! On a terminal a running step is a spinner; elsewhere each step is one plain line, so that logs stay readable.
//! What several steps say that run at once is kept together, each step's lines in one piece.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Steps longer than this say how long they took.
const WORTH_SAYING: Duration = Duration::from_secs(2);

/// Whether standard output is for data alone.
static DATA_ONLY: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Where this thread's lines go instead of the terminal.
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Lines of one of several steps that run at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    lines: Arc<Mutex<Vec<String>>>,
}

impl Kept {
    /// Where this thread's lines are kept, if they are.
    pub(crate) fn of_this_thread() -> Option<Self> {
        KEPT.with_borrow(Clone::clone)
    }

    /// Keeps what this thread says from now on.
    pub(crate) fn listen(kept: Option<Self>) {
        KEPT.set(kept);
    }

    /// All lines so far.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn push(&self, line: &str) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
    }
}

/// Leaves standard output to data, for programs that read it: everything said goes to standard error.
pub(crate) fn data_only() {
    DATA_ONLY.store(true, Ordering::Relaxed);
}

/// Says one line.
pub(crate) fn line(text: &str) {
    if let Some(kept) = Kept::of_this_thread() {
        kept.push(text);
    } else if DATA_ONLY.load(Ordering::Relaxed) {
        eprintln!("{text}");
    } else {
        println!("{text}");
    }
}

/// Whether the user watches a terminal.
pub(crate) fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// A headline between parts of the output.
pub(crate) fn heading(text: &str) {
    if on_terminal() {
        line(&format!("\n\x1b[1m{text}\x1b[0m"));
    } else {
        line(&format!("\n== {text}"));
    }
}

/// A fact that holds, as checked.
pub(crate) fn good(text: &str) {
    mark("\x1b[32m✔\x1b[0m", "ok  ", text);
}

/// A fact that should not be.
pub(crate) fn bad(text: &str) {
    mark("\x1b[31m✘\x1b[0m", "FAIL", text);
}

/// A remark.
pub(crate) fn note(text: &str) {
    mark(" ", "    ", text);
}

/// A detail below a remark.
pub(crate) fn fact(text: &str) {
    if on_terminal() {
        line(&format!("      \x1b[2m{text}\x1b[0m"));
    } else {
        line(&format!("       {text}"));
    }
}

fn mark(colour: &str, plain: &str, text: &str) {
    let sign = if on_terminal() { colour } else { plain };
    line(&format!("{sign} {text}"));
}

/// A step under way.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins a step and shows it.
    pub(crate) fn start(what: &str) -> Self {
        let alone = Kept::of_this_thread().is_none();
        let bar = (alone && on_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}")
            {
                bar.set_style(style);
            }
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if alone && bar.is_none() {
            line(&format!("     {what} …"));
        }
        Self { what: what.to_owned(), start: Instant::now(), bar }
    }

    /// Shows what the step does right now (terminal only).
    pub(crate) fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.trim().to_owned());
        }
    }

    /// Prints lines while the step goes on.
    pub(crate) fn beside(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Ends the step: it is done.
    pub(crate) fn done(mut self) {
        let shown = self.close();
        let took = self.start.elapsed();
        if took >= WORTH_SAYING {
            good(&format!("{} ({:.0} s)", self.what, took.as_secs_f32()));
        } else if shown {
            good(&self.what);
        }
    }

    fn close(&mut self) -> bool {
        match self.bar.take() {
            Some(bar) => {
                bar.finish_and_clear();
                true
            }
            None => false,
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_says_is_kept_in_one_piece_with_what_its_helpers_say() {
        let kept = Kept::default();
        Kept::listen(Some(kept.clone()));
        note("first");
        let heir = Kept::of_this_thread();
        let helper = std::thread::spawn(move || {
            Kept::listen(heir);
            fact("second");
        });
        helper.join().unwrap();
        Kept::listen(None);
        let lines: Vec<String> = kept.take().iter().map(|line| line.trim().to_owned()).collect();
        assert_eq!(lines, ["first", "second"]);
    }
}
