use super::sim::{Habit, MS, Member, World, spinner};

const ALL: u32 = u32::MAX;

/// Asserts that each member's share of one processor is what `wanted` says in percent, within a tenth.
fn assert_shares(world: &World, ticks: u64, wanted: &[u64]) {
    for (index, percent) in wanted.iter().enumerate() {
        let (used, want) = (world.used(index), ticks * percent / 100);
        assert!(used.abs_diff(want) * 10 <= want, "{index}: {used} instead of {want}");
    }
}

fn settle(cpus: usize, members: &[Member], ms: u64) -> (World, u64) {
    let mut world = World::new(cpus, members);
    world.run(100 * MS);
    world.reset_counts();
    world.run((100 + ms) * MS);
    assert_eq!(world.idle_while_ready, 0, "a processor idles while something waits for it");
    (world, ms * MS)
}

#[test]
fn three_spinners_share_two_processors_evenly() {
    let (world, ticks) = settle(2, &[spinner(0, 100, ALL), spinner(1, 100, ALL), spinner(2, 100, ALL)], 500);
    assert_shares(&world, ticks, &[67, 67, 67]);
}

#[test]
fn weights_decide_what_spinners_get() {
    let members = [spinner(0, 100, ALL), spinner(1, 200, ALL), spinner(2, 500, ALL)];
    let (world, ticks) = settle(1, &members, 1000);
    assert_shares(&world, ticks, &[12, 25, 63]);
}

#[test]
fn a_guest_with_many_processors_gets_no_more_than_one_with_a_single_one() {
    let mut members = vec![spinner(0, 100, ALL)];
    members.extend([spinner(1, 100, ALL); 4]);
    let (world, ticks) = settle(1, &members, 2000);
    assert_shares(&world, ticks, &[50, 12, 12, 12, 12]);
}

#[test]
fn a_weight_that_one_processor_cannot_satisfy_takes_one_and_no_more() {
    let members = [spinner(0, 1000, ALL), spinner(1, 100, ALL), spinner(2, 100, ALL)];
    let (world, ticks) = settle(2, &members, 500);
    assert_shares(&world, ticks, &[100, 50, 50]);
}

#[test]
fn affinity_holds_and_what_it_leaves_is_shared() {
    let members =
        [spinner(0, 100, 0b01), spinner(1, 100, 0b01), spinner(2, 100, 0b10), spinner(3, 100, 0b11)];
    let (world, ticks) = settle(2, &members, 1000);
    assert_shares(&world, ticks, &[50, 50, 50, 50]);
}

#[test]
fn a_spinning_guest_on_all_processors_leaves_another_its_share_and_its_ticks() {
    let mut members = vec![Member {
        guest: 0,
        weight: 100,
        affinity: ALL,
        habit: Habit::Naps { work: MS / 10, sleep: 4 * MS - MS / 10 },
    }];
    members.extend([spinner(1, 100, ALL); 4]);
    let (world, ticks) = settle(2, &members, 1000);
    let due = ticks / (4 * MS);
    assert!(world.turns(0) * 10 >= due * 9, "{} ticks of {due}", world.turns(0));
    assert!(world.worst_wait(0) <= MS, "waited {} for a processor", world.worst_wait(0));
    assert!(world.late_deadline <= MS / 10, "woken {} late", world.late_deadline);
}

#[test]
fn four_spinners_on_two_processors_stay_where_they_are() {
    let (world, _) = settle(2, &[0, 1, 2, 3].map(|guest| spinner(guest, 100, ALL)), 1000);
    for index in 0..4 {
        assert!(world.moves(index) * 10 <= world.turns(index), "{index} moved {} times", world.moves(index));
    }
}

#[test]
fn sixty_four_entities_on_one_processor_all_get_turns_of_half_a_millisecond() {
    let members: Vec<_> = (0..64).map(|index| spinner(index / 2, 100, ALL)).collect();
    let (world, ticks) = settle(1, &members, 640);
    for index in 0..64 {
        assert!(world.used(index).abs_diff(ticks / 64) <= MS, "{index}: {}", world.used(index));
        assert!(world.worst_wait(index) <= 40 * MS, "{index} waited {}", world.worst_wait(index));
    }
}

#[test]
fn one_who_serves_requests_from_outside_hears_of_each_in_time() {
    let serves = Habit::Serves { work: MS / 4, every: 7 * MS };
    let mut members = vec![Member { guest: 0, weight: 100, affinity: ALL, habit: serves }];
    members.extend([spinner(1, 1000, ALL); 8]);
    let (world, ticks) = settle(2, &members, 1000);
    assert!(world.turns(0).abs_diff(ticks / (7 * MS)) <= 1, "{} turns", world.turns(0));
    assert!(world.worst_wait(0) <= MS, "waited {}", world.worst_wait(0));
}
