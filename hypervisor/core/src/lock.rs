//! Locks of the core: who waits for one does meanwhile what other processors want of it.
//!
//! Otherwise a processor that waits, deaf as it is with GIF clear, could neither be parked on the way out of the one
//! that holds the lock, nor acknowledge that it has dropped its translations.

use dolmen_machine::cpus;
use spin::RelaxStrategy;

/// How processors wait.
pub(crate) struct Attentive;

impl RelaxStrategy for Attentive {
    fn relax() {
        cpus::relax();
    }
}

/// A lock.
pub(crate) type Mutex<T> = spin::mutex::Mutex<T, Attentive>;
/// A lock that is held.
pub(crate) type MutexGuard<'a, T> = spin::mutex::MutexGuard<'a, T, Attentive>;
