//! Runs tests side by side, as many as there are processors for; each one's output is kept in one piece.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::test::Tally;
use crate::ui::{self, Kept, Progress};

/// Most processors of this computer that are used at once: each machine also wants its memory.
const MOST: usize = 4;

/// Tests that took this many seconds say so.
const WORTH_SAYING: u64 = 10;

/// One test.
pub(crate) struct Job<'a> {
    /// What it shows.
    name: String,
    /// Processors of this computer that it keeps busy.
    processors: usize,
    run: Box<dyn FnOnce() -> Tally + Send + 'a>,
}

impl<'a> Job<'a> {
    /// A test whose machine keeps this many processors busy.
    pub(crate) fn new(
        name: impl Into<String>,
        processors: usize,
        run: impl FnOnce() -> Tally + Send + 'a,
    ) -> Self {
        Self { name: name.into(), processors, run: Box::new(run) }
    }
}

/// Runs all jobs, begun in order, each as soon as there are processors for it.
pub(crate) fn run(what: &str, jobs: Vec<Job<'_>>) -> Tally {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST);
    let board = Board::new(what, jobs.len());
    let (queue, free) = (Mutex::new(VecDeque::from(jobs)), Free::new(workers));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((job, taken)) = next(&queue, &free, workers) {
                    perform(&board, job);
                    free.give(taken);
                }
            });
        }
    });
    lock(&board.state).tally
}

/// The next job with its processors: one worker waits for those at a time, so that a wide job gets its turn.
fn next<'a>(queue: &Mutex<VecDeque<Job<'a>>>, free: &Free, all: usize) -> Option<(Job<'a>, usize)> {
    let mut queue = lock(queue);
    let job = queue.pop_front()?;
    let wanted = job.processors.clamp(1, all);
    free.take(wanted);
    Some((job, wanted))
}

fn perform(board: &Board, job: Job<'_>) {
    board.begin(&job.name);
    let (name, start, kept) = (job.name, Instant::now(), Kept::default());
    Kept::listen(Some(kept.clone()));
    let tally = (job.run)();
    Kept::listen(None);
    board.end(&name, start.elapsed().as_secs(), &kept.take(), tally);
}

/// Processors that nobody uses.
struct Free {
    count: Mutex<usize>,
    news: Condvar,
}

impl Free {
    const fn new(count: usize) -> Self {
        Self { count: Mutex::new(count), news: Condvar::new() }
    }

    fn take(&self, wanted: usize) {
        let count = lock(&self.count);
        let enough = self.news.wait_while(count, |count| *count < wanted);
        let mut count = enough.unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_sub(wanted);
    }

    fn give(&self, back: usize) {
        let mut count = lock(&self.count);
        *count = count.saturating_add(back);
        self.news.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the user sees of the jobs.
struct Board {
    progress: Progress,
    all: usize,
    state: Mutex<State>,
}

/// Jobs under way and done.
#[derive(Default)]
struct State {
    running: Vec<String>,
    done: usize,
    tally: Tally,
}

impl Board {
    fn new(what: &str, all: usize) -> Self {
        Self { progress: Progress::start(what), all, state: Mutex::default() }
    }

    fn begin(&self, name: &str) {
        let mut state = lock(&self.state);
        state.running.push(name.to_owned());
        self.show(&state);
    }

    fn end(&self, name: &str, seconds: u64, lines: &[String], tally: Tally) {
        let mut state = lock(&self.state);
        state.running.retain(|running| running != name);
        state.done = state.done.saturating_add(1);
        state.tally = state.tally.plus(tally);
        self.progress.beside(|| {
            for line in lines {
                ui::line(line);
            }
            if seconds >= WORTH_SAYING {
                ui::fact(&format!("took {seconds} s"));
            }
        });
        self.show(&state);
    }

    fn show(&self, state: &State) {
        self.progress.detail(&format!("{} of {}; now: {}", state.done, self.all, state.running.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_job_runs_once_and_is_counted() {
        let runs = AtomicUsize::new(0);
        let jobs = (0..9).map(|number| {
            let runs = &runs;
            Job::new(format!("job {number}"), number, move || {
                runs.fetch_add(1, Ordering::Relaxed);
                Tally::one(number != 4)
            })
        });
        assert_eq!(run("nine jobs", jobs.collect()), Tally::of(8, 1));
        assert_eq!(runs.load(Ordering::Relaxed), 9);
    }

    #[test]
    fn a_job_that_wants_every_processor_has_nobody_beside_it() {
        let busy = AtomicUsize::new(0);
        let jobs = (0..12).map(|number| {
            let (busy, is_wide) = (&busy, number % 2 == 0);
            Job::new(format!("job {number}"), if is_wide { usize::MAX } else { 1 }, move || {
                let others = busy.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                busy.fetch_sub(1, Ordering::SeqCst);
                Tally::one(!is_wide || others == 0)
            })
        });
        assert_eq!(run("twelve jobs", jobs.collect()).failed, 0);
    }
}
