use super::*;
use proptest::prelude::*;

const KHZ: u32 = 1_000_000;
/// Time-stamp counts of so many counts of the timer, and a little more.
fn after(counts: u64) -> Tsc {
    counts * 1_000_000_000 / 1_193_182 + 1
}

fn timer() -> Timer {
    Timer::new(KHZ)
}

/// Programs a channel with a count of two bytes.
fn load(timer: &mut Timer, channel: u16, mode: u8, count: u16, now: Tsc) {
    timer.write(COMMAND, (channel as u8) << 6 | 0x30 | mode << 1, now);
    for byte in count.to_le_bytes() {
        timer.write(COUNTERS + channel, byte, now);
    }
}

fn count(timer: &mut Timer, channel: u16, now: Tsc) -> u16 {
    timer.write(COMMAND, (channel as u8) << 6, now);
    u16::from_le_bytes([timer.read(COUNTERS + channel, now), timer.read(COUNTERS + channel, now)])
}

fn output(timer: &mut Timer, now: Tsc) -> bool {
    timer.read(SYSTEM_CONTROL_B, now) & OUTPUT != 0
}

#[test]
fn software_that_measures_the_processor_by_the_third_channel_gets_it_right() {
    let mut timer = timer();
    timer.write(SYSTEM_CONTROL_B, GATE, 0);
    load(&mut timer, 2, 0, 59_659, 1000); // 50 ms
    assert!(!output(&mut timer, 1000));
    assert!(!output(&mut timer, 1000 + 49_900_000));
    assert!(output(&mut timer, 1000 + 50_001_000));
}

#[test]
fn each_mode_has_its_count_and_output() {
    for (mode, at, want, high) in [
        (0, 0, 1000, false),
        (0, 400, 600, false),
        (0, 1000, 0, true),
        (0, 1001, 0xffff, true),
        (2, 400, 600, true),
        (2, 999, 1, false),
        (2, 1400, 600, true),
        (3, 100, 800, true),
        (3, 499, 2, true),
        (3, 600, 800, false),
        (3, 1100, 800, true),
        (4, 400, 600, true),
        (4, 1000, 0, false),
        (4, 1001, 0xffff, true),
        (7, 600, 800, false),
    ] {
        let mut timer = timer();
        timer.write(SYSTEM_CONTROL_B, GATE, 0);
        load(&mut timer, 2, mode, 1000, 0);
        let now = if at == 0 { 0 } else { after(at) };
        assert_eq!((count(&mut timer, 2, now), output(&mut timer, now)), (want, high), "mode {mode} at {at}");
    }
}

#[test]
fn a_closed_gate_holds_the_count_and_an_open_one_lets_it_go_on_or_starts_it_anew() {
    for (mode, want) in [(0, 500), (2, 700), (1, 700)] {
        let mut timer = timer();
        timer.write(SYSTEM_CONTROL_B, GATE, 0);
        load(&mut timer, 2, mode, 1000, 0);
        timer.write(SYSTEM_CONTROL_B, 0, after(200));
        timer.write(SYSTEM_CONTROL_B, GATE, after(5000));
        assert_eq!(count(&mut timer, 2, after(5000) + after(300)), want, "mode {mode}");
    }
}

#[test]
fn a_latched_count_stays_until_both_bytes_are_read() {
    let mut timer = timer();
    load(&mut timer, 0, 2, 0x1234, 0);
    timer.write(COMMAND, 0, after(0x34));
    timer.write(COMMAND, 0, after(0x200));
    assert_eq!([timer.read(COUNTERS, after(0x300)), timer.read(COUNTERS, after(0x900))], [0x00, 0x12]);
    assert_eq!(count(&mut timer, 0, after(0x200)), 0x1034, "then the count goes on");
}

#[test]
fn a_read_back_tells_status_first_and_then_the_count() {
    let mut timer = timer();
    load(&mut timer, 0, 2, 0x1000, 0);
    timer.write(COMMAND, 0xc2, after(1)); // status and count of the first channel
    let bytes = [(); 3].map(|()| timer.read(COUNTERS, after(50)));
    assert_eq!(bytes, [0xb4, 0xff, 0x0f]);
    timer.write(COMMAND, 0x34, 0);
    timer.write(COMMAND, 0xe2, 0);
    assert_eq!(timer.read(COUNTERS, 0), 0xf4, "no count is loaded yet");
}

#[test]
fn single_bytes_are_written_and_read_as_the_command_says() {
    let mut timer = timer();
    timer.write(COMMAND, 0x14, 0); // low byte, mode 2
    timer.write(COUNTERS, 0x40, 0);
    assert_eq!([timer.read(COUNTERS, after(0x10)), timer.read(COUNTERS, after(0x10))], [0x30, 0x30]);
    timer.write(COMMAND, 0x24, 0); // high byte
    timer.write(COUNTERS, 0x40, 0);
    assert_eq!(timer.read(COUNTERS, after(1)), 0x3f);
}

#[test]
fn the_refresh_bit_toggles_and_no_nmi_source_is_reported() {
    let mut timer = timer();
    let (first, second) = (timer.read(SYSTEM_CONTROL_B, 0), timer.read(SYSTEM_CONTROL_B, 0));
    assert_eq!((first ^ second, first & 0xc0), (REFRESH, 0));
    timer.write(SYSTEM_CONTROL_B, 0xff, 0);
    assert_eq!(timer.read(SYSTEM_CONTROL_B, 0) & 0xcf, GATE | SPEAKER);
}

#[test]
fn firmware_has_left_the_first_channel_counting() {
    let mut timer = timer();
    let (first, second) = (count(&mut timer, 0, after(10)), count(&mut timer, 0, after(20)));
    assert_eq!((first, second), (0xffec, 0xffd8));
}

#[test]
fn a_periodic_first_channel_ticks_once_for_each_period_or_for_all_that_were_missed() {
    let mut timer = timer();
    load(&mut timer, 0, 2, 11_932, 0); // 10 ms
    let first = timer.next_tick(0).unwrap();
    assert!((9_999_000..10_001_000).contains(&first), "{first}");
    assert!(!timer.tick(first - 1));
    assert!(timer.tick(first));
    assert!(!timer.tick(first), "told twice");
    let second = timer.next_tick(first).unwrap();
    assert!((19_999_000..20_002_000).contains(&second), "{second}");
    assert!(timer.tick(first * 7 + 10));
    assert!(!timer.tick(first * 7 + 20));
    assert!(timer.next_tick(first * 7 + 20).unwrap() > first * 7);
}

#[test]
fn a_first_channel_that_counts_once_ticks_once() {
    let mut timer = timer();
    load(&mut timer, 0, 0, 11_932, 0);
    let at = timer.next_tick(0).unwrap();
    assert!(timer.tick(at));
    assert_eq!((timer.next_tick(at), timer.tick(at * 20)), (None, false));
    timer.write(COMMAND, 0x30, at);
    assert_eq!(timer.next_tick(at), None, "nothing is loaded");
}

#[test]
fn no_period_is_so_short_that_the_guest_does_nothing_else() {
    let mut timer = timer();
    load(&mut timer, 0, 2, 1, 0);
    assert_eq!(timer.next_tick(0), Some(200_000));
    assert!(timer.tick(200_000));
    assert_eq!(timer.next_tick(200_000), Some(400_000));
}

proptest! {
    #[test]
    #[cfg_attr(miri, ignore = "takes too long in the interpreter")]
    fn no_access_and_no_time_is_too_much(
        khz in prop_oneof![Just(0), Just(u32::MAX), any::<u32>()],
        accesses in prop::collection::vec((0usize..5, prop::option::of(any::<u8>()), any::<u64>()), 0..60)
    ) {
        let mut timer = Timer::new(khz);
        for (port, written, now) in accesses {
            let port = [COUNTERS, COUNTERS + 1, LAST_COUNTER, COMMAND, SYSTEM_CONTROL_B][port];
            match written {
                Some(value) => timer.write(port, value, now),
                None => drop(timer.read(port, now)),
            }
            timer.tick(now);
            prop_assert!(timer.next_tick(now).is_none_or(|at| at >= now));
        }
    }
}
