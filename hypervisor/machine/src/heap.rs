//! The heap of the core: open while it boots, then closed for good.
//!
//! Nothing on the exit path allocates; that it cannot is enforced here and not hoped for.
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait")]
// UNSAFETY: the allocator below hands out a range that `open`'s caller gave to it alone.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::RefCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use linked_list_allocator::Heap;

use crate::cpus::{self, CpuId};
use crate::region::to_usize;

struct BootHeap {
    heap: RefCell<Heap>,
    is_open: AtomicBool,
}

// SAFETY: only the boot processor gets in while the heap is open, with GIF clear, so no handler can interrupt
// it; afterwards `is_open` keeps everybody out.
unsafe impl Sync for BootHeap {}

#[global_allocator]
static HEAP: BootHeap = BootHeap { heap: RefCell::new(Heap::empty()), is_open: AtomicBool::new(false) };

/// Opens the heap on `bytes` bytes at virtual address `start`.
///
/// # Safety
/// The range is mapped, writable, and used by nobody else for ever. Called once.
pub unsafe fn open(start: u64, bytes: u64) {
    let start = core::ptr::with_exposed_provenance_mut::<u8>(to_usize(start));
    // SAFETY: by the caller's promise.
    unsafe { HEAP.heap.borrow_mut().init(start, to_usize(bytes)) };
    HEAP.is_open.store(true, Ordering::Release);
}

/// Ends allocation: what is allocated stays, nothing more can be, and nothing is given back.
pub fn close() {
    HEAP.is_open.store(false, Ordering::Release);
}

impl BootHeap {
    fn lets_in(&self) -> bool {
        self.is_open.load(Ordering::Acquire) && cpus::this() == CpuId::FIRST
    }
}

// SAFETY: memory comes from `Heap`, which keeps the contract; a closed heap answers null, as it may.
unsafe impl GlobalAlloc for BootHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !self.lets_in() {
            return core::ptr::null_mut();
        }
        match self.heap.try_borrow_mut() {
            Ok(mut heap) => heap.allocate_first_fit(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr),
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if !self.lets_in() {
            return;
        }
        if let (Ok(mut heap), Some(at)) = (self.heap.try_borrow_mut(), NonNull::new(at)) {
            // SAFETY: the caller of `dealloc` promises that `at` came from `alloc` with this layout.
            unsafe { heap.deallocate(at, layout) };
        }
    }
}
