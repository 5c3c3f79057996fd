//! AMD's virtualisation extension on this processor.
//!
//! How to call:
//! ```text
//! let svm = SvmHost::new(&mut region)?;                         // once; see `extension`
//! let cpu = svm.enable(svm.frames(&mut region)?)?;              // once on each processor, GIF = 0
//! let tables = NestedTable::<Npt>::new(&mut region)?;           // dolmen_memory; map the guest's RAM
//! let vcpu = svm.vcpu(&mut region, tables.root(), tsc_offset)?; // a `vm::backend::Backend`
//! vcpu.start(&state);
//! cpu.load(&mut vcpu);                                          // on the processor that is to run it
//! vm::vcpu::Vcpu::run(…);
//! cpu.save(&mut vcpu);                                          // before it may run on another
//! ```
//! The hypervisor runs with GIF = 0 and IF = 0 all the time; [`Backend::run`] sets IF for the entry, so that
//! physical interrupts end the guest's stretch, and comes back with both clear. The exit loop then lets the
//! interrupts in through `interrupt::Window`. Host code never uses x87 or SIMD registers: see
//! `crate::extended`.
//!
//! [`Backend::run`]: dolmen_vm::backend::Backend::run

mod backend;
mod enable;
mod frame;
mod processor;
mod switch;
mod vcpu;

pub use enable::{CpuFrames, SvmError, SvmHost};
pub use processor::SvmCpu;
pub use vcpu::Svm;
