//! `dolmen start`, `stop` and `reset`: asking, and waiting until it is done.

use core::fmt;
use std::thread;
use std::time::{Duration, Instant};

use dolmen_abi::{GuestInfo, GuestState, Status, StopCause};
use dolmen_guest::{Client, Error, GuestList, Transport};
use serde_json::json;

use crate::args::Target;
use crate::failure::Failure;
use crate::output::Product;

/// Pause between two looks at the list.
const PAUSE: Duration = Duration::from_millis(50);

/// What is asked of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Start,
    Stop,
    Reset,
}

/// All guests at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// Which of them runs this command.
    pub(crate) caller: usize,
    /// When.
    pub(crate) uptime_ns: u64,
    /// In manifest order.
    pub(crate) guests: Vec<GuestInfo>,
}

/// Asks for the list.
pub(crate) fn snapshot<T>(client: &mut Client<T>) -> Result<Snapshot, Failure>
where
    T: Transport<Error: fmt::Display>,
{
    let mut buffer = vec![0; GuestList::BYTES];
    let list = client.guests(&mut buffer).map_err(not_listed)?;
    let caller = usize::try_from(list.head.caller).unwrap_or(usize::MAX);
    Ok(Snapshot { caller, uptime_ns: list.head.uptime_ns, guests: list.guests().collect() })
}

/// Why there is no list: each command about other guests asks for it first, and learns here that it may not.
fn not_listed<E: fmt::Display>(error: Error<E>) -> Failure {
    if matches!(error, Error::Refused(Status::NOT_PERMITTED)) {
        return Failure::plain(
            &"this guest may not see or manage other guests (NOT_PERMITTED). Hint: add \"manage\" to `hypercalls` \
              in its part of the manifest",
        );
    }
    error.into()
}

/// Asks for it and waits until it is done.
pub(crate) fn carry_out<T>(
    client: &mut Client<T>,
    request: Request,
    target: &Target,
) -> Result<Product, Failure>
where
    T: Transport<Error: fmt::Display>,
{
    let name = target.name.as_str();
    let before = find(client, name)?;
    match request {
        Request::Start => client.start_guest(name)?,
        Request::Stop => client.stop_guest(name)?,
        Request::Reset => client.reset_guest(name)?,
    }
    let limit = Duration::from_secs(u64::from(target.timeout));
    let asked = Instant::now();
    loop {
        let now = find(client, name)?;
        match progress(request, &before, &now) {
            Progress::Done => return Ok(told(request, &now)),
            Progress::Failed(why) => return Err(Failure::plain(&format!("{name} {why}"))),
            Progress::Pending if asked.elapsed() >= limit => {
                let (state, seconds) = (now.state(), target.timeout);
                let text = format!(
                    "{name} is still {state} after {seconds} seconds; `dolmen ps` tells how it goes on"
                );
                return Err(Failure::plain(&text));
            }
            Progress::Pending => thread::sleep(PAUSE),
        }
    }
}

fn find<T>(client: &mut Client<T>, name: &str) -> Result<GuestInfo, Failure>
where
    T: Transport<Error: fmt::Display>,
{
    let all = snapshot(client)?;
    all.guests.into_iter().find(|guest| guest.name() == name).ok_or_else(|| {
        Failure::plain(&format!("no guest is called {}; `dolmen ps` lists them", name.escape_default()))
    })
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    Pending,
    Done,
    Failed(String),
}

fn progress(request: Request, before: &GuestInfo, now: &GuestInfo) -> Progress {
    let (state, cause) = (now.state(), now.cause());
    let has_started = now.starts != before.starts;
    match (request, state) {
        (_, GuestState::REFUSED) => Progress::Failed(
            "is refused: its files are no longer what was measured; launch the machine anew".to_owned(),
        ),
        (Request::Stop, GuestState::STOPPED | GuestState::OFF) => Progress::Done,
        (Request::Stop, GuestState::RUNNING) if has_started => {
            Progress::Failed("was started again by somebody else".to_owned())
        }
        (Request::Start | Request::Reset, GuestState::RUNNING) if has_started => Progress::Done,
        (Request::Start | Request::Reset, GuestState::STOPPED)
            if has_started || cause == StopCause::NOT_LOADABLE =>
        {
            Progress::Failed(format!("stopped again: {cause}"))
        }
        _ => Progress::Pending,
    }
}

fn told(request: Request, now: &GuestInfo) -> Product {
    let what = if request == Request::Stop { "is stopped, its memory wiped" } else { "runs" };
    let (name, state) = (now.name(), now.state());
    let text = format!("{name} {what}\n");
    Product::report("guest", text, json!({ "name": name, "state": state.to_string(), "starts": now.starts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(state: GuestState, starts: u32) -> GuestInfo {
        GuestInfo { state: state.0, starts, ..GuestInfo::default() }
    }

    #[test]
    fn a_reset_is_done_when_the_guest_was_started_since() {
        let before = guest(GuestState::RUNNING, 4);
        for (state, starts, want) in [
            (GuestState::RUNNING, 4, Progress::Pending),
            (GuestState::STOPPING, 4, Progress::Pending),
            (GuestState::LOADING, 4, Progress::Pending),
            (GuestState::RUNNING, 5, Progress::Done),
            (GuestState::STOPPED, 5, Progress::Failed("stopped again: none".to_owned())),
        ] {
            assert_eq!(progress(Request::Reset, &before, &guest(state, starts)), want, "{state}");
        }
    }

    #[test]
    fn a_guest_without_the_right_is_told_what_to_write_where() {
        let refusal = not_listed(Error::<String>::Refused(Status::NOT_PERMITTED)).to_string();
        assert!(refusal.contains("\"manage\"") && refusal.contains("`hypercalls`"), "{refusal}");
        let other = not_listed(Error::<String>::Refused(Status::NO_SUCH_CALL)).to_string();
        assert!(other.contains("older than this command"), "{other}");
    }

    #[test]
    fn a_start_waits_while_the_guest_is_still_stopped() {
        let before = guest(GuestState::STOPPED, 1);
        assert_eq!(progress(Request::Start, &before, &before), Progress::Pending);
        let broken = GuestInfo { cause: StopCause::NOT_LOADABLE.0, ..before };
        assert!(matches!(progress(Request::Start, &before, &broken), Progress::Failed(_)));
    }

    #[test]
    fn a_refused_guest_is_a_failure_whatever_was_asked_for() {
        let before = guest(GuestState::RUNNING, 1);
        for request in [Request::Start, Request::Stop, Request::Reset] {
            let now = guest(GuestState::REFUSED, 1);
            let Progress::Failed(why) = progress(request, &before, &now) else { panic!("{request:?}") };
            assert!(why.contains("no longer what was measured"), "{why}");
        }
    }
}
