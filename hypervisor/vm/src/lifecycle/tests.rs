//! The promises of the life cycle, by example and against a model that watches what the driver does.

use proptest::prelude::*;
use sha2::{Digest, Sha384};

use super::*;
use crate::manifest::Answer;

const MS: u64 = 1_000_000;
const MEMORY: u64 = 2 * WIPE_BYTES;
/// Parts of an image.
const FILLS: u32 = 3;

const RULES: Rules = Rules {
    on_reboot: Answer::Restart,
    on_crash: Answer::Restart,
    on_power_off: Answer::Stop,
    restart_limit: 2,
};

/// A host that does the work and watches what it means.
struct Rig {
    life: Lifecycle,
    checker: Checker,
    files: Vec<Vec<u8>>,
    now: u64,
    /// Bytes of memory, by pieces, that may hold something of a run.
    dirty: [bool; 2],
    /// Measured files whose digest was compared since the guest last ran.
    compared: Vec<usize>,
    /// Parts of the image that are in memory, and those that a driver believes are left.
    filled: u32,
    fills_left: u32,
    vcpus_run: bool,
    runs: u32,
    /// Pieces of work that answer `Again` before `Done`.
    stubborn: u32,
}

impl Rig {
    fn new(rules: Rules) -> Self {
        let files = vec![vec![1; 40_000], vec![2; 100], vec![3; 16_384]];
        let list: Vec<Component> = files
            .iter()
            .enumerate()
            .map(|(index, file)| Component {
                length: file.len() as u64,
                digest: (index != 1).then(|| Sha384::digest(file).into()),
            })
            .collect();
        let life = Lifecycle::new(rules, Components::new(&list).unwrap(), MEMORY);
        Self {
            life,
            checker: Checker::default(),
            files,
            now: 0,
            dirty: [false; 2],
            compared: Vec::new(),
            filled: 0,
            fills_left: FILLS,
            vcpus_run: false,
            runs: 0,
            stubborn: 0,
        }
    }

    /// Does one piece of work, with `meanwhile` between taking it and saying how it went.
    fn step_with(&mut self, meanwhile: impl FnOnce(&mut Self)) -> bool {
        let Some(work) = self.life.take(self.now) else { return false };
        assert!(self.life.take(self.now).is_none(), "two drivers have work");
        meanwhile(self);
        self.now += MS / 10;
        let is_fill = matches!(work, Work::Fill { .. });
        let outcome = if let Some(rest) = self.stubborn.checked_sub(1).filter(|_| !is_fill) {
            self.stubborn = rest;
            Outcome::Again
        } else {
            self.perform(&work)
        };
        self.life.done(outcome, self.now);
        true
    }

    fn step(&mut self) -> bool {
        self.step_with(|_| {})
    }

    fn perform(&mut self, work: &Work) -> Outcome {
        match *work {
            Work::Halt => self.vcpus_run = false,
            Work::Wipe { offset, bytes } => {
                assert!(!self.vcpus_run, "memory is wiped under a running guest");
                assert_eq!(bytes, WIPE_BYTES);
                self.dirty[usize::try_from(offset / WIPE_BYTES).unwrap()] = false;
                self.filled = 0;
            }
            Work::Check { component, offset, bytes } => {
                assert!(bytes <= CHECK_BYTES);
                if (component, offset) == (0, 0) {
                    self.compared.clear();
                }
                let (from, to) = (usize::try_from(offset).unwrap(), usize::try_from(offset + bytes).unwrap());
                self.checker.update(component, offset, &self.files[component][from..to]);
                let Some(result) = self.checker.finish(self.life.components()) else { return Outcome::Done };
                self.compared.push(component);
                return Outcome::Compared(result);
            }
            Work::Fill { begins } => {
                assert_eq!(self.compared, [0, 2], "memory is filled with what was not compared");
                if begins {
                    assert_eq!(self.dirty, [false; 2], "it begins in memory that was not wiped");
                    self.fills_left = FILLS;
                }
                self.fills_left = self.fills_left.saturating_sub(1);
                self.filled += 1;
                self.dirty = [true; 2];
                if self.fills_left > 0 {
                    return Outcome::Again;
                }
                self.fills_left = FILLS;
            }
            Work::Run => {
                assert_eq!(self.filled, FILLS, "it runs with a part of its image");
                assert_eq!(core::mem::take(&mut self.compared), [0, 2], "what runs was not compared");
                self.vcpus_run = true;
                self.runs += 1;
            }
        }
        Outcome::Done
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            if !self.step() {
                return;
            }
        }
        panic!("it never comes to rest: {:?}", self.life);
    }

    fn ask(&mut self, request: Request) -> Result<(), Status> {
        self.life.request(request, self.now)
    }

    fn end(&mut self, reason: StopReason) -> Verdict {
        self.life.ended(reason, LastState { rip: 0x1234, cr3: 0x5000, detail: 0 }, self.now)
    }

    fn running() -> Self {
        let mut rig = Self::new(RULES);
        rig.ask(Request::Start).unwrap();
        rig.settle();
        assert_eq!(rig.life.state(), GuestState::RUNNING);
        rig
    }
}

#[test]
fn a_guest_on_demand_is_compared_filled_and_runs() {
    let rig = Rig::running();
    assert!(rig.vcpus_run);
    assert_eq!((rig.runs, rig.life.starts()), (1, (1, 0)));
}

#[test]
fn stop_wipes_and_stays_stopped() {
    let mut rig = Rig::running();
    rig.ask(Request::Stop).unwrap();
    assert_eq!(rig.life.state(), GuestState::STOPPING);
    rig.settle();
    assert_eq!((rig.life.state(), rig.life.cause()), (GuestState::STOPPED, StopCause::REQUESTED));
    assert_eq!(rig.dirty, [false; 2]);
    rig.now += 100_000 * MS;
    assert!(!rig.step());
    assert_eq!(rig.ask(Request::Stop), Err(Status::WRONG_STATE));
}

#[test]
fn reset_compares_the_files_again() {
    let mut rig = Rig::running();
    rig.ask(Request::Reset).unwrap();
    rig.settle();
    assert_eq!((rig.life.state(), rig.runs), (GuestState::RUNNING, 2));
    assert_eq!(rig.life.starts(), (2, 0));
}

#[test]
fn a_changed_file_is_never_run_again() {
    let mut rig = Rig::running();
    rig.files[2][77] ^= 1;
    rig.ask(Request::Reset).unwrap();
    rig.settle();
    assert_eq!((rig.life.state(), rig.life.cause()), (GuestState::REFUSED, StopCause::CHANGED_FILE));
    rig.files[2][77] ^= 1;
    for request in [Request::Start, Request::Stop, Request::Reset] {
        assert_eq!(rig.ask(request), Err(Status::CHANGED_FILE));
    }
    assert!(!rig.step());
    assert_eq!((rig.runs, rig.dirty), (1, [false; 2]));
}

#[test]
fn an_unmeasured_file_may_change() {
    let mut rig = Rig::running();
    rig.files[1][7] ^= 1;
    rig.ask(Request::Reset).unwrap();
    rig.settle();
    assert_eq!(rig.life.state(), GuestState::RUNNING);
}

#[test]
fn the_last_state_of_a_crash_is_kept() {
    let mut rig = Rig::running();
    rig.now += 5 * MS;
    let gpa = dolmen_memory::Gpa::new(0xdead_0000);
    assert_eq!(rig.end(StopReason::TablesOutsideRam(gpa)), Verdict::GoOn);
    // Another processor of it crashes before it was stopped.
    assert_eq!(rig.end(StopReason::TripleFault), Verdict::GoOn);
    assert_eq!(rig.life.cause(), StopCause::TABLES_OUTSIDE_RAM);
    assert_eq!(rig.life.last(), LastState { rip: 0x1234, cr3: 0x5000, detail: 0xdead_0000 });
    assert_eq!(rig.life.run_time(rig.now + MS), 5 * MS);
}

#[test]
fn crashes_are_followed_by_growing_pauses_up_to_the_limit() {
    let mut rig = Rig::running();
    for pause in [100, 200] {
        assert_eq!(rig.end(StopReason::TripleFault), Verdict::GoOn);
        rig.settle();
        assert_eq!(rig.life.state(), GuestState::RESTARTING);
        rig.now = rig.life.next_event().unwrap() - 1;
        assert!(!rig.step());
        rig.now += 1;
        rig.settle();
        assert_eq!(rig.life.state(), GuestState::RUNNING, "after {pause} ms");
    }
    assert_eq!(rig.end(StopReason::TripleFault), Verdict::GoOn);
    rig.settle();
    assert_eq!((rig.life.state(), rig.life.starts()), (GuestState::STOPPED, (3, 2)));
}

#[test]
fn a_long_run_forgives_earlier_crashes() {
    let mut rig = Rig::running();
    for _ in 0..10 {
        rig.now += 60_001 * MS;
        assert_eq!(rig.end(StopReason::TripleFault), Verdict::GoOn);
        rig.settle();
        rig.now += 100 * MS;
        rig.settle();
        assert_eq!(rig.life.state(), GuestState::RUNNING);
    }
}

#[test]
fn the_pause_grows_but_not_for_ever() {
    let rules = Rules { restart_limit: u32::MAX, ..RULES };
    let pauses: Vec<_> = (0..12).map(|crashes| rules.judge(StopCause::TRIPLE_FAULT, 0, crashes).1).collect();
    let want = [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000, 10_000, 10_000];
    assert_eq!(pauses, want.map(|pause| Next::Restart { delay: pause * MS }));
}

#[test]
fn each_ending_has_the_manifests_answer() {
    let rules =
        |answer| Rules { on_reboot: answer, on_crash: answer, on_power_off: answer, restart_limit: 1 };
    for reason in [StopReason::Reset, StopReason::PowerOff, StopReason::TripleFault] {
        for (answer, verdict, rest) in [
            (Answer::Restart, Verdict::GoOn, GuestState::RUNNING),
            (Answer::Stop, Verdict::GoOn, GuestState::STOPPED),
            (Answer::HaltMachine, Verdict::HaltMachine, GuestState::STOPPED),
            (Answer::ResetMachine, Verdict::ResetMachine, GuestState::STOPPED),
        ] {
            let mut rig = Rig::new(rules(answer));
            rig.ask(Request::Start).unwrap();
            rig.settle();
            assert_eq!(rig.end(reason), verdict, "{reason:?} {answer:?}");
            rig.settle();
            rig.now += 100 * MS;
            rig.settle();
            assert_eq!(rig.life.state(), rest, "{reason:?} {answer:?}");
        }
    }
}

#[test]
fn after_a_machine_check_nothing_goes_on_whatever_the_manifest_says() {
    let mut rig = Rig::running();
    assert_eq!(rig.end(StopReason::MachineCheck), Verdict::HaltMachine);
}

#[test]
fn a_machine_check_counts_even_while_the_guest_is_being_stopped() {
    for is_asked in [true, false] {
        let mut rig = Rig::running();
        if is_asked {
            rig.ask(Request::Stop).unwrap();
        } else {
            assert_eq!(rig.end(StopReason::PowerOff), Verdict::GoOn);
        }
        assert_eq!(rig.end(StopReason::TripleFault), Verdict::GoOn, "somebody else was first");
        assert_eq!(rig.end(StopReason::MachineCheck), Verdict::HaltMachine);
        assert_eq!(rig.life.cause(), StopCause::MACHINE_CHECK);
    }
}

#[test]
fn a_stop_during_loading_ends_in_clean_memory_whenever_it_comes() {
    for steps in 0..8 {
        let mut rig = Rig::new(RULES);
        rig.ask(Request::Start).unwrap();
        for _ in 0..steps {
            rig.step();
        }
        rig.step_with(|rig| rig.ask(Request::Stop).unwrap());
        rig.settle();
        assert_eq!((rig.life.state(), rig.dirty), (GuestState::STOPPED, [false; 2]), "after {steps} steps");
        assert_eq!(rig.life.cause(), StopCause::REQUESTED);
        rig.ask(Request::Start).unwrap();
        rig.settle();
        assert_eq!(rig.life.state(), GuestState::RUNNING, "after {steps} steps");
    }
}

#[test]
fn a_stop_that_is_taken_back_in_time_does_not_happen() {
    let mut rig = Rig::new(RULES);
    rig.ask(Request::Start).unwrap();
    rig.step_with(|rig| {
        rig.ask(Request::Stop).unwrap();
        rig.ask(Request::Start).unwrap();
        assert_eq!(rig.ask(Request::Start), Err(Status::WRONG_STATE));
    });
    rig.settle();
    assert_eq!(rig.life.state(), GuestState::RUNNING);
}

#[test]
fn an_image_that_cannot_be_loaded_leaves_nothing_behind() {
    let mut rig = Rig::new(RULES);
    rig.ask(Request::Start).unwrap();
    while !matches!(rig.life.state, State::Filling) {
        rig.step();
    }
    assert_eq!(rig.life.take(rig.now), Some(Work::Fill { begins: true }));
    rig.dirty = [true; 2];
    rig.life.done(Outcome::NotLoadable, rig.now);
    rig.settle();
    assert_eq!((rig.life.state(), rig.life.cause()), (GuestState::STOPPED, StopCause::NOT_LOADABLE));
    assert_eq!(rig.dirty, [false; 2]);
}

#[test]
fn the_proof_of_one_file_does_not_stand_for_another() {
    let mut rig = Rig::new(RULES);
    rig.ask(Request::Start).unwrap();
    let mut checker = Checker::default();
    checker.update(2, 0, &rig.files[2]);
    let proof = checker.finish(rig.life.components()).unwrap();
    assert!(proof.is_ok());
    assert_eq!(rig.life.take(0), Some(Work::Check { component: 0, offset: 0, bytes: CHECK_BYTES }));
    rig.life.done(Outcome::Compared(proof), 0);
    assert_eq!(rig.life.state(), GuestState::REFUSED);
}

#[test]
fn parts_out_of_order_prove_nothing() {
    let mut rig = Rig::new(RULES);
    let file = rig.files[0].clone();
    rig.checker.update(0, 0, &file[..100]);
    rig.checker.update(0, 200, &file[200..]);
    assert!(rig.checker.finish(rig.life.components()).is_none());
}

#[test]
fn everything_is_said_in_numbers_that_guests_know() {
    assert_eq!(crate::guest::ExitKind::ALL.len(), dolmen_abi::EXIT_KINDS.len());
}

/// What may happen to a guest.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Ask(Request),
    AskMeanwhile(Request),
    End(StopReason),
    Step,
    Stubborn(u32),
    Wait(u64),
    Flip(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    let request = prop_oneof![Just(Request::Start), Just(Request::Stop), Just(Request::Reset)];
    let reason = prop_oneof![
        Just(StopReason::Reset),
        Just(StopReason::PowerOff),
        Just(StopReason::TripleFault),
        Just(StopReason::HaltedForEver)
    ];
    prop_oneof![
        3 => request.clone().prop_map(Happening::Ask),
        3 => request.prop_map(Happening::AskMeanwhile),
        2 => reason.prop_map(Happening::End),
        12 => Just(Happening::Step),
        1 => (1u32..4).prop_map(Happening::Stubborn),
        2 => (0u64..200_000).prop_map(Happening::Wait),
        1 => (0usize..3).prop_map(Happening::Flip),
    ]
}

fn perform(rig: &mut Rig, what: Happening) {
    match what {
        Happening::Ask(request) => {
            let _answered = rig.ask(request);
        }
        Happening::AskMeanwhile(request) => {
            rig.step_with(|rig| {
                let _answered = rig.ask(request);
            });
        }
        Happening::End(reason) if rig.vcpus_run => {
            let _verdict = rig.end(reason);
        }
        Happening::End(_) => {}
        Happening::Step => {
            rig.step();
        }
        Happening::Stubborn(times) => rig.stubborn = times,
        Happening::Wait(ms) => rig.now += ms * MS,
        Happening::Flip(file) => rig.files[file][50] ^= 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 200 }))]

    /// The rig asserts at each piece that nothing runs uncompared or in memory that was not wiped.
    #[test]
    fn whatever_happens_it_comes_to_rest_and_rests_clean(
        script in proptest::collection::vec(happening(), 0..60),
    ) {
        let mut rig = Rig::new(RULES);
        for what in script {
            let runs = rig.runs;
            let was_dirty = rig.dirty != [false; 2] && !matches!(rig.life.state, State::Filling | State::Starting);
            perform(&mut rig, what);
            prop_assert!(rig.runs == runs || !was_dirty, "it runs in memory that was not wiped");
            let should_run = rig.life.state() == GuestState::RUNNING;
            prop_assert!(!should_run || rig.vcpus_run, "it counts as running and is not");
        }
        rig.settle();
        match rig.life.state() {
            GuestState::RUNNING => prop_assert!(rig.vcpus_run),
            GuestState::RESTARTING => prop_assert!(rig.life.next_event() > Some(rig.now)),
            state => {
                prop_assert!(rig.life.is_at_rest(), "{state}");
                prop_assert!(!rig.vcpus_run);
                prop_assert_eq!(rig.dirty, [false; 2]);
            }
        }
    }
}
