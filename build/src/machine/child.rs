//! Child processes that do not outlive us.

use std::process::{Child, Command};

use crate::process;

/// A command whose process the kernel kills when we die, however we die.
pub(crate) fn bound_to_us(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if !process::installed("setpriv") {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program.as_ref());
    command
}

/// Kills a child and collects it; a child that has ended already is fine.
pub(crate) fn end(child: &mut Child) {
    if child.kill().is_ok() {
        drop(child.wait());
    }
}
