//! What the boards with a Cortex-M core share: a tick that wakes the core each millisecond, and what a panic or a fault does.

use crate::retained;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use cortex_m::peripheral::{SCB, SYST, syst::SystClkSource};
use cortex_m_rt::{ExceptionFrame, exception};

/// By a name of its own, so that a test can read it in a board's memory.
#[unsafe(no_mangle)]
static HONE_TICKS: AtomicU32 = AtomicU32::new(0);

#[exception]
fn SysTick() {
    // The only writer.
    HONE_TICKS.store(HONE_TICKS.load(Relaxed).wrapping_add(1), Relaxed);
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    cortex_m::interrupt::disable();
    retained::note_panic(info);
    SCB::sys_reset()
}

/// A stray pointer, a stack that ran out, an instruction that is none: without this the core would spin for ever.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    retained::note_fault(frame.pc());
    SCB::sys_reset()
}

/// Whatever else nothing handles.
#[exception]
unsafe fn DefaultHandler(number: i16) {
    retained::note_fault(number as u32);
    SCB::sys_reset()
}

/// Begins to tick each millisecond, at a core's frequency of `hertz`.
pub fn tick(mut timer: SYST, hertz: u32) {
    timer.set_clock_source(SystClkSource::Core);
    timer.set_reload(hertz / 1000 - 1);
    timer.clear_current();
    timer.enable_counter();
    timer.enable_interrupt();
}

/// Ticks since then. Those due while flash was written are missing: a board that writes flash has a
/// [`Clock`](crate::clock::Clock).
pub fn ticks() -> u32 {
    HONE_TICKS.load(Relaxed)
}

/// Sleeps until the next interrupt.
pub fn sleep() {
    cortex_m::asm::wfi();
}

/// Restarts the board.
pub fn restart() -> ! {
    SCB::sys_reset()
}
