//! What micro-guests show on the processors of both makers: one table for both.
//!
//! The tests hear exactly this, and `docs/micro-guest.md` shows it. A result that differs between the makers stands
//! here as a difference, with its reason, or the tests fail.

/// The micro-guest's own tests, in the order in which it runs them. Each says `ok`, whoever made the processor.
pub(super) const LOOKS_AROUND: &[&str] = &[
    "cpuid_shows_the_hypervisor",
    "cpuid_with_prefixes_is_stepped_over_whole",
    "cpuid_clears_the_upper_halves",
    "leaves_beyond_the_last_are_zero_or_the_last",
    "wbinvd_passes",
    "rdpmc_is_refused",
    "monitor_and_mwait_are_absent",
    "xsetbv_takes_what_cpuid_shows_and_no_more",
    "single_step_of_the_guest_works",
    "breakpoints_and_software_interrupts_are_delivered",
    "switched_msrs_belong_to_the_guest",
    "pat_is_the_guests_and_checked",
    "efer_hides_svm_and_refuses_it",
    "unknown_msrs_fault_on_read_and_write",
    "mtrrs_and_the_oldest_performance_counters_stand_still",
    "the_tsc_register_reads_the_counter",
    "reserved_cr3_bits_fault_and_the_guest_lives",
    "reserved_cr4_bits_fault_and_the_guest_lives",
    "impossible_cr0_values_fault",
    "cr0_and_cr4_changes_take_effect",
    "upper_debug_register_bits_do_not_end_the_guest",
    "cr8_is_the_task_priority",
    "cpuid_hides_svm_and_skinit",
    "svm_instructions_are_absent",
    "cpuid_hides_vmx_and_smx",
    "vmx_and_smx_instructions_are_absent",
    "the_other_makers_hypercall_is_absent",
    "processor_trace_is_absent",
    "registers_that_no_apic_has_are_absent",
    "the_tpm_cannot_be_reached",
    "the_iommu_cannot_be_reached",
    "holes_read_as_ones_and_drop_writes",
    "code_in_a_hole_is_no_instruction",
    "the_manufacturers_other_pages_are_empty",
    "a_port_nobody_claims_reads_ones",
    "a_register_keeps_what_is_written",
    "wide_accesses_reach_narrow_registers",
    "a_string_is_read_from_a_port",
    "a_string_is_read_downwards",
    "a_string_is_written_to_a_port",
    "a_string_of_length_zero_does_nothing",
    "a_string_that_meets_a_missing_page_faults_where_it_stands",
    "a_string_crosses_pages",
    "an_interrupt_to_oneself_arrives",
    "a_masked_interrupt_waits",
    "priorities_hold_interrupts_back",
    "halt_wakes_up_by_the_timer",
    "no_wakeup_is_lost_between_sti_and_hlt",
    "sti_covers_one_instruction",
    "the_timer_interrupts_a_loop",
    "an_nmi_arrives_once",
    "an_nmi_waits_for_the_end_of_another",
    "a_hypercall_answers",
    "an_unknown_hypercall_answers_as_kvm_does",
    "a_hypercall_from_user_mode_is_refused",
    "svm_instructions_are_no_way_out_of_user_mode",
    "user_mode_cannot_reach_ports_or_halt",
    "cpuid_answers_user_mode",
];

/// Its tests of several processors (`smp` on the command line).
pub(super) const PROCESSORS: &[&str] = &[
    "others_start_by_init_and_start_up",
    "each_has_its_own_number",
    "an_interrupt_reaches_whom_it_is_sent_to",
    "all_others_are_reached_at_once",
    "an_nmi_reaches_another",
    "a_timer_belongs_to_its_processor",
    "a_processor_can_be_stopped_and_started_again",
    "a_second_start_up_changes_nothing",
    "init_and_start_up_twice_are_one_start",
];

/// The test of one of two guests on a processor (`keep=SEED`).
pub(super) const NEIGHBOURS: &[&str] = &["registers_stay_this_guests"];

/// A way to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What the hypervisor's log says of it, whoever made the processor.
    pub(super) said: &'static str,
}

/// Ways to end, by `ends=NAME`.
pub(super) const ENDINGS: [Ending; 5] = [
    Ending { name: "triple-fault", said: "stop: the guest stopped: micro: triple-fault" },
    Ending { name: "halt", said: "stop: the guest stopped: micro: halted-for-ever" },
    Ending { name: "tables", said: "stop: the guest stopped: micro: tables-outside-ram" },
    Ending { name: "reset", said: "stop: the guest resets the machine" },
    Ending { name: "exotic", said: "stop: the guest stopped: micro: unknown-instruction" },
];

/// Kinds of noise that a guest outlives, whoever made the processor: `noise=all` is all of them.
pub(super) const LASTING: &[&str] = &[
    "msr",
    "port",
    "string",
    "control",
    "code-user",
    "descriptor",
    "entry",
    "device",
    "table",
    "storm",
    "apic",
    "call",
    "step",
    "gate",
    "mode",
    "switch",
    "map",
    "virtual",
    "start",
    "race",
    "remap",
];

/// Kinds of noise that may end in the guest's stop, and seeds: each is a guest of its own.
pub(crate) const DEADLY: &[(&str, u32)] = &[
    ("code", 1),
    ("code", 2),
    ("access", 1),
    ("walk", 1),
    ("tasks", 1),
    ("tasks", 2),
    ("attributes", 1),
    ("stack", 1),
];

/// Ways to a guest's end, by the seed of the noise that ends it.
pub(crate) const DOOMS: u32 = 21;

/// Something that a guest can tell the makers' processors by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Difference {
    /// What the guest does.
    what: &'static str,
    /// What comes of it on AMD's processors, and on Intel's.
    results: [&'static str; 2],
    /// Why it is not the same.
    why: &'static str,
    /// The test that shows both.
    shown: &'static str,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, results: [amd, intel], why, shown } = self;
        write!(f, "{what}: {amd} on AMD, {intel} on Intel, because {why} ({shown})")
    }
}

/// What a guest that switches hardware tasks ends with on Intel's processors.
pub(super) const TASK_SWITCH: &str = "stop: the guest stopped: micro: task-switch";

/// All that is known.
pub(super) const DIFFERENCES: [Difference; 3] = [
    Difference {
        what: "VMMCALL; VMCALL",
        results: ["a hypercall; #UD", "#UD; a hypercall"],
        why: "each maker has its own instruction; CPUID's vendor tells which",
        shown: "a_hypercall_answers, the_other_makers_hypercall_is_absent",
    },
    Difference {
        what: "a switch of hardware tasks",
        results: ["done by the processor", "the guest stops: `task-switch`"],
        why: "under VMX software would have to do it; 64-bit mode has none, and no kernel that runs here uses one",
        shown: "noise `switch`",
    },
    Difference {
        what: "CPUID leaf 8000001D; leaf 4",
        results: ["the caches; zero", "zero; the caches"],
        why: "kernels look where their processor's maker put it",
        shown: "unit tests of `vm::cpuid`",
    },
];

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::place;

    /// The names in a list of the micro-guest's, which begins with these words.
    fn names(file: &str, list: &str) -> Vec<String> {
        let path = place::root().join(format!("tests/guest/src/{file}.rs"));
        let text = std::fs::read_to_string(path).unwrap();
        let list = text.split_once(list).unwrap().1.split_once("];").unwrap().0;
        list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    }

    /// The names in the lists that these files of the micro-guest call `TESTS`.
    fn listed(files: &[&str]) -> Vec<String> {
        files.iter().flat_map(|file| names(file, "TESTS: &[Test] = &[")).collect()
    }

    #[test]
    fn the_table_has_all_tests_of_the_micro_guest() {
        let own = ["instruction", "register", "hidden", "device", "interrupt", "user"];
        assert_eq!(listed(&own), LOOKS_AROUND);
        assert_eq!(listed(&["smp"]), PROCESSORS);
    }

    #[test]
    fn the_table_has_all_noise_of_the_micro_guest() {
        assert_eq!(names("noise", "LASTING: &[Kind] = &["), LASTING);
        let mut deadly: Vec<&str> = DEADLY.iter().map(|(name, _)| *name).collect();
        deadly.dedup();
        deadly.push("doom");
        assert_eq!(names("noise", "DEADLY: &[Kind] = &["), deadly);
        assert_eq!(names("noise/doom", "WAYS: &[Way] = &[").len(), DOOMS as usize);
    }

    fn rows() -> String {
        let mut text = "| test | AMD | Intel |\n|---|---|---|\n".to_owned();
        for name in LOOKS_AROUND.iter().chain(PROCESSORS).chain(NEIGHBOURS) {
            writeln!(text, "| `{name}` | ok | ok |").unwrap();
        }
        for Ending { name, said } in ENDINGS {
            writeln!(text, "| `ends={name}` | `{said}` | the same |").unwrap();
        }
        for name in LASTING {
            let intel = if *name == "switch" { "stopped: see below" } else { "the same" };
            writeln!(text, "| `noise={name}` | lasts | {intel} |").unwrap();
        }
        for (name, seed) in DEADLY {
            writeln!(text, "| `noise={name} seed={seed}` | lasts, or is stopped by name | the same |")
                .unwrap();
        }
        writeln!(text, "| `noise=doom`, {DOOMS} seeds | stopped by name | the same |").unwrap();
        text
    }

    fn differences() -> String {
        let mut text = "| what | AMD | Intel | why | shown by |\n|---|---|---|---|---|\n".to_owned();
        for Difference { what, results: [amd, intel], why, shown } in DIFFERENCES {
            writeln!(text, "| {what} | {amd} | {intel} | {why} | {shown} |").unwrap();
        }
        text
    }

    #[test]
    fn the_document_shows_the_table() {
        let path = place::root().join("docs/micro-guest.md");
        let old = std::fs::read_to_string(&path).unwrap();
        let mut new = old.clone();
        for (name, table) in [("results", rows()), ("differences", differences())] {
            let mark = format!("<!-- generated: {name} -->\n");
            let start = new.find(&mark).unwrap() + mark.len();
            let end = start + new[start..].find("<!-- end -->").unwrap();
            new.replace_range(start..end, &table);
        }
        if std::env::var_os("DOLMEN_BLESS").is_some() {
            std::fs::write(path, &new).unwrap();
        } else {
            assert_eq!(new, old, "run it again with DOLMEN_BLESS=1");
        }
    }
}
