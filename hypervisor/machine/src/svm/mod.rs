//! AMD's virtualisation extension on this processor.
//!
//! How to call:
//! ```text
//! let svm = SvmCpu::enable(&mut region)?;                       // once per processor, GIF = 0
//! let tables = NestedTable::<Npt>::new(&mut region)?;           // dolmen_memory; map the guest's RAM
//! let vcpu = svm.vcpu(&mut region, tables.root(), tsc_offset)?; // a `vm::backend::Backend`
//! vcpu.start(&state);
//! vm::run::…(&mut vcpu, …);
//! ```
//! The hypervisor runs with GIF = 0 and IF = 0 all the time; [`Backend::run`] sets IF for the entry, so that
//! physical interrupts end the guest's turn, and comes back with both clear. The exit loop then lets the
//! interrupts in through `interrupt::Window`. Host code never uses x87 or SIMD registers: the
//! guest's stay loaded while its processor is the only one.
//!
//! [`Backend::run`]: dolmen_vm::backend::Backend::run

mod backend;
mod enable;
mod extended;
mod frame;
mod msr;
mod switch;
mod tables;
mod vcpu;

pub use enable::{SvmCpu, SvmError, ThisCpu};
pub use vcpu::Svm;
