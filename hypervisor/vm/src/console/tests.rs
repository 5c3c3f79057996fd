//! The shared port: who is heard, what a guest cannot do to it, and where keys go.

use proptest::prelude::*;

use super::*;

fn name(text: &str) -> [u8; 32] {
    let mut name = [0; 32];
    name[..text.len()].copy_from_slice(text.as_bytes());
    name
}

fn lines() -> Vec<Line> {
    vec![
        Line::new(name("alpha"), true),
        Line::new(name("own-port"), false),
        Line::new(name("beta"), true),
        Line::new(name("alpine"), true),
    ]
}

fn say(line: &Line, text: &str) {
    text.bytes().for_each(|byte| assert!(line.output.push(byte), "no room"));
}

/// All that the port sends at `now`.
fn heard(port: &mut Multiplexer<'_>, now: u64) -> String {
    let bytes: Vec<u8> = core::iter::from_fn(|| port.pull(now)).collect();
    String::from_utf8(bytes).unwrap()
}

/// A port whose first notice was heard and whose keys go nowhere.
fn port(lines: &[Line]) -> Multiplexer<'_> {
    let mut port = Multiplexer::new(lines);
    type_keys(&mut port, b"\x1e.");
    assert_eq!(heard(&mut port, 0), "console: keys go nowhere; Ctrl-^ ? for help\r\n");
    port
}

fn type_keys(port: &mut Multiplexer<'_>, keys: &[u8]) -> Vec<usize> {
    keys.iter()
        .filter_map(|key| match port.press(*key) {
            Pressed::Nothing => None,
            Pressed::For(guest) => Some(guest),
        })
        .collect()
}

fn typed(line: &Line) -> Vec<u8> {
    core::iter::from_fn(|| line.input.pop()).collect()
}

#[test]
fn each_line_says_whose_it_is() {
    let lines = lines();
    let mut port = port(&lines);
    say(&lines[0], "one\ntwo\n");
    say(&lines[2], "three\r\n");
    say(&lines[1], "not here\n");
    assert_eq!(heard(&mut port, 0), "[alpha] one\r\n[beta] three\r\n[alpha] two\r\n");
    assert!(!port.is_busy());
}

#[test]
fn an_unfinished_line_is_shown_after_a_moment_and_not_mixed_with_others() {
    let lines = lines();
    let mut port = port(&lines);
    say(&lines[0], "login: ");
    assert_eq!(heard(&mut port, 0), "");
    assert_eq!(heard(&mut port, HOLD_MS - 1), "");
    assert_eq!(heard(&mut port, HOLD_MS), "[alpha] login: ");
    say(&lines[2], "news\n");
    assert_eq!(heard(&mut port, HOLD_MS + 1), "");
    say(&lines[0], "root\n");
    assert_eq!(heard(&mut port, HOLD_MS + 2), "root\r\n[beta] news\r\n");
}

#[test]
fn a_line_that_stays_open_does_not_hold_up_the_others() {
    let lines = lines();
    let mut port = port(&lines);
    say(&lines[0], "open");
    heard(&mut port, 0);
    assert_eq!(heard(&mut port, 200), "[alpha] open");
    say(&lines[2], "news\n");
    assert_eq!(heard(&mut port, 201), "");
    assert_eq!(heard(&mut port, 350), "\r\n[beta] news\r\n");
    say(&lines[0], " end\n");
    assert_eq!(heard(&mut port, 351), "[alpha]  end\r\n");
}

#[test]
fn the_log_is_never_held_up_and_has_lines_of_its_own() {
    let lines = lines();
    let mut port = port(&lines);
    say(&lines[0], "open");
    heard(&mut port, 0);
    assert_eq!(heard(&mut port, 200), "[alpha] open");
    say(&lines[0], "!");
    let mut out = Vec::new();
    port.log("stop: really\n", |byte| out.push(byte));
    port.log("in two ", |byte| out.push(byte));
    assert_eq!(port.pull(10_000), None, "a guest writes on a line of the log");
    port.log("parts\n", |byte| out.push(byte));
    assert_eq!(String::from_utf8(out).unwrap(), "\r\nstop: really\r\nin two parts\r\n");
    assert_eq!(heard(&mut port, 10_001), "");
    assert_eq!(heard(&mut port, 10_001 + HOLD_MS), "[alpha] !");
}

#[test]
fn a_long_line_goes_on_in_the_next_and_nobody_waits_for_its_end() {
    let lines = lines();
    let mut port = port(&lines);
    say(&lines[0], &"x".repeat(MAX_COLUMNS + 1));
    say(&lines[0], "\n");
    say(&lines[2], "y\n");
    let text = heard(&mut port, 0);
    let shown: Vec<usize> = text.lines().map(str::len).collect();
    assert_eq!(shown, [8 + MAX_COLUMNS, 8, 9], "{text}");
}

#[test]
fn a_full_ring_is_emptied_without_a_line_end() {
    let lines = lines();
    let mut port = port(&lines);
    while lines[0].output.push(b'.') {}
    assert_eq!(lines[0].output.room(), 0);
    assert!(heard(&mut port, 0).starts_with("[alpha] ...."));
    assert!(lines[0].output.room() >= LOW_ROOM);
    heard(&mut port, HOLD_MS);
    assert_eq!(lines[0].output.room(), OUTPUT_BYTES);
}

#[test]
fn what_a_guest_sends_is_cleaned() {
    for (sent, want) in [
        ("plain text ~\n", "[alpha] plain text ~\r\n"),
        ("\nstop: forged\n", "[alpha] \r\n[alpha] stop: forged\r\n"),
        ("x\rstop: forged\n", "[alpha] x\r[alpha] stop: forged\r\n"),
        ("\r\r\n", "[alpha] \r\n"),
        ("\r\rstop:\n", "[alpha] \r[alpha] stop:\r\n"),
        ("ab\x08\x08\x08\x08c\n", "[alpha] ab\x08\x08c\r\n"),
        ("\x1b[2J\x1b[Hstop:\n", "[alpha] stop:\r\n"),
        ("\x1b[1;1Hstop:\n", "[alpha] stop:\r\n"),
        ("\x1b[31mred\x1b[0m\n", "[alpha] red\r\n"),
        ("a\x1b[K\x1b[J\x1b[0K\x1b[2K\x1b[1J\n", "[alpha] a\x1b[K\x1b[K\x1b[K\r\n"),
        ("\x1bMup\x1bc\x1b7\n", "[alpha] up\r\n"),
        ("\x1b]0;title\x07after\n", "[alpha] after\r\n"),
        ("\x1bPq\x1b\\after\n", "[alpha] after\r\n"),
        ("\x1b]unended\nnext\n", "[alpha] \r\n[alpha] next\r\n"),
        ("\x1b\x1b[Ax\n", "[alpha] x\r\n"),
        ("\x0b\x0c\x0e\x7f\x07\0\n", "[alpha] ^K^L^N^?\r\n"),
        ("tab\t\x08\x08|\n", "[alpha] tab\t|\r\n"),
        ("gr\u{fc}n \u{2500}\u{1f600}\n", "[alpha] gr\u{fc}n \u{2500}\u{1f600}\r\n"),
        ("e\u{301}\u{301}\x08\x08\x08|\n", "[alpha] e\u{301}\u{301}|\r\n"),
        ("\u{9b}2J\u{85}\u{202e}pots\u{2028}\n", "[alpha] ?2J??pots?\r\n"),
    ] {
        let lines = lines();
        let mut port = port(&lines);
        say(&lines[0], sent);
        assert_eq!(heard(&mut port, 0), want, "{sent:?}");
    }
}

#[test]
fn bytes_that_are_no_text_are_marked() {
    let lines = lines();
    let mut port = port(&lines);
    for byte in [0x9b, 0xff, 0xc2, b'a', 0xe2, 0x94, b'b', 0xed, 0xa0, 0x80, 0xc0, 0x80, b'\n'] {
        assert!(lines[0].output.push(byte));
    }
    assert_eq!(heard(&mut port, 0), "[alpha] ??ab???\r\n");
}

#[test]
fn keys_go_to_one_guest_at_a_time() {
    let lines = lines();
    let mut port = Multiplexer::new(&lines);
    assert_eq!(heard(&mut port, 0), "console: keys go to alpha; Ctrl-^ ? for help\r\n");
    assert_eq!(type_keys(&mut port, b"ls\r"), [0, 0, 0]);
    assert_eq!(type_keys(&mut port, b"\x1e2hi"), [2, 2]);
    assert_eq!(heard(&mut port, 0), "console: keys go to beta; Ctrl-^ ? for help\r\n");
    assert_eq!(type_keys(&mut port, b"\x1ealpi\rx\x1e\x1e"), [3, 3]);
    assert_eq!(heard(&mut port, 0), "console: keys go to alpine; Ctrl-^ ? for help\r\n");
    assert_eq!(type_keys(&mut port, b"\x1ebex\x7fta\ry"), [2]);
    assert_eq!(
        (typed(&lines[0]), typed(&lines[2]), typed(&lines[3])),
        (b"ls\r".to_vec(), b"hiy".to_vec(), b"x\x1e".to_vec())
    );
}

#[test]
fn unknown_commands_change_nothing_and_reach_nobody() {
    for keys in
        [&b"\x1e1"[..], b"\x1e9", b"\x1ealp\r", b"\x1egamma\r", b"\x1ebe\x1b", b"\x1e!", b"\x1ebet\x1e"]
    {
        let lines = lines();
        let mut port = Multiplexer::new(&lines);
        heard(&mut port, 0);
        assert_eq!(type_keys(&mut port, keys), [], "{keys:?}");
        assert_eq!(
            heard(&mut port, 0),
            "console: no such guest or command; Ctrl-^ ? for help\r\n",
            "{keys:?}"
        );
        assert_eq!(port.attached(), Some(0));
    }
}

#[test]
fn help_lists_the_guests() {
    let lines = lines();
    let mut port = Multiplexer::new(&lines);
    heard(&mut port, 0);
    type_keys(&mut port, b"\x1e?");
    let text = heard(&mut port, 0);
    assert!(text.starts_with("console: Ctrl-^ NUMBER or NAME Enter"), "{text}");
    assert!(text.ends_with("console: 0 alpha <- keys\r\nconsole: 2 beta\r\nconsole: 3 alpine\r\n"), "{text}");
}

#[test]
fn a_guest_that_reads_no_keys_can_be_left() {
    let lines = lines();
    let mut port = Multiplexer::new(&lines);
    heard(&mut port, 0);
    while lines[0].input.push(b'x') {}
    assert!(!port.wants_key(5000));
    assert!(!port.wants_key(5000 + PATIENCE_MS - 1));
    assert!(port.wants_key(5000 + PATIENCE_MS));
    assert_eq!(type_keys(&mut port, b"lost too"), []);
    assert_eq!(heard(&mut port, 0), "console: alpha does not read its keys; some are lost\r\n");
    assert_eq!(type_keys(&mut port, b"\x1e2z"), [2]);
    assert!(port.wants_key(7000));
}

#[test]
fn the_attached_guests_prompt_is_shown_at_once() {
    let lines = lines();
    let mut port = Multiplexer::new(&lines);
    heard(&mut port, 0);
    say(&lines[0], "# ");
    assert_eq!(heard(&mut port, 0), "[alpha] # ");
}

#[test]
fn a_ring_gives_back_what_it_took_in_order_and_no_more_than_fits() {
    let ring: Ring<8> = Ring::new();
    for round in 0..20u8 {
        let took = (0..10).filter(|n| ring.push(round.wrapping_add(*n))).count();
        assert_eq!((took, ring.held(), ring.room()), (8, 8, 0));
        assert!(ring.contains(round.wrapping_add(7)) && !ring.contains(round.wrapping_add(8)));
        let back: Vec<u8> = core::iter::from_fn(|| ring.pop()).collect();
        assert_eq!(back, (0..8).map(|n| round.wrapping_add(n)).collect::<Vec<_>>());
    }
    assert!(ring.push(1));
    ring.wipe();
    assert!(ring.is_empty() && !ring.contains(1));
}

#[derive(Clone, Debug)]
enum Act {
    Say(usize, Vec<u8>),
    Log(String),
    Press(u8),
    Pull(usize),
    Wait(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let nasty = prop_oneof![
        6 => any::<u8>(),
        2 => Just(b'\r'), 2 => Just(b'\n'), 2 => Just(0x1b), 2 => Just(b'['), 1 => Just(0x08), 3 => Just(b's'),
    ];
    prop_oneof![
        5 => (0usize..4, proptest::collection::vec(nasty, 0..40)).prop_map(|(guest, text)| Act::Say(guest, text)),
        1 => "[a-z]{1,6}: [a-z]{1,8}\n".prop_map(Act::Log),
        1 => any::<u8>().prop_map(Act::Press),
        5 => (0usize..400).prop_map(Act::Pull),
        2 => (0u64..300).prop_map(Act::Wait),
    ]
}

/// What a guest may put on the port between its prefix and the line's end.
fn is_clean(text: &str) -> bool {
    text.replace("\x1b[K", "").chars().all(|c| !c.is_control() || matches!(c, '\x08' | '\t'))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 300 }))]

    #[test]
    fn nothing_that_guests_send_looks_like_the_hypervisors(script in proptest::collection::vec(act(), 0..40)) {
        let lines = lines();
        let mut port = port(&lines);
        let (mut now, mut out, mut logged) = (0, Vec::new(), 0);
        for act in script {
            match act {
                Act::Say(guest, text) => {
                    let _fitted = text.iter().filter(|byte| lines[guest].output.push(**byte)).count();
                }
                Act::Log(text) => {
                    logged += 1;
                    port.log(&text, |byte| out.push(byte));
                }
                Act::Press(key) => drop(port.press(key)),
                Act::Pull(most) => out.extend((0..most).map_while(|_| port.pull(now))),
                Act::Wait(ms) => now += ms,
            }
        }
        // Cut in the middle of a letter only where the port was not pulled to the end.
        let text = String::from_utf8_lossy(&out).into_owned();
        let mut logs = 0;
        for line in text.split("\r\n").filter(|line| !line.is_empty()) {
            for part in line.split('\r').filter(|part| !part.is_empty()) {
                let prefixed = ["[alpha] ", "[beta] ", "[alpine] "].iter().find_map(|own| part.strip_prefix(own));
                match prefixed {
                    Some(rest) => prop_assert!(is_clean(rest), "{part:?}"),
                    // A prefix that was cut at the end of what was pulled.
                    None if part.starts_with('[') => prop_assert!(text.ends_with(part), "{part:?}"),
                    None if part.starts_with("console: ") || "console: ".starts_with(part) => {}
                    None => logs += 1,
                }
            }
        }
        prop_assert_eq!(logs, logged, "{}", text);
    }
}
