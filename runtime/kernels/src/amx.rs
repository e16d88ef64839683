//! Tiles of AMX (Intel Sapphire Rapids and later): up to 16 rows of 64 bytes by up to 16 lines of a panel, 16 columns of sums.
//!
//! A tile of the left side is rows of bytes or of bf16 as they lie, some distance apart; a tile of the right side is a piece of
//! a panel of [`crate::qgemm`] or [`crate::bf16`], whose lines of four bytes (or two bf16) for each of 16 columns are just what the
//! instructions want. Eight tiles are registers: two by two of sums, two of rows, two of weights.
//!
//! The intrinsics are not stable; the instructions are few. Tiles are shaped by [`configure`], and given back by [`release`]
//! so that nobody saves their 8 KiB at a switch of threads.
//! Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::mem::{MaybeUninit, offset_of};
use std::ops::Range;
use std::sync::OnceLock;

use crate::tile::{Table, Tile};

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a row of a tile.
pub(crate) const BYTES: usize = 64;
/// Lines of a tile of weights: each is four bytes, or two bf16, of every column of a panel.
pub(crate) const LINES: usize = BYTES / 4;
/// Columns of a tile of weights, and of sums.
const COLUMNS: usize = 16;
/// Bytes of a tile.
pub(crate) const TILE: usize = ROWS * BYTES;

/// What tiles can hold here.
#[derive(Clone, Copy)]
struct Kinds {
    bytes: bool,
    pairs: bool,
}

/// Whether this CPU multiplies tiles of bytes, and this process may.
pub(crate) fn bytes() -> bool {
    kinds().bytes
}

/// Whether this CPU multiplies tiles of bf16, and this process may.
pub(crate) fn pairs() -> bool {
    kinds().pairs
}

/// Asked once: `cpuid` costs microseconds in a virtual machine, and leave to use tiles holds for all threads of the process.
fn kinds() -> Kinds {
    static KINDS: OnceLock<Kinds> = OnceLock::new();
    *KINDS.get_or_init(|| {
        // Leaf 7 exists where there is AVX-512.
        let has = if crate::isa::Isa::Avx512.available() { __cpuid_count(7, 0).edx } else { 0 };
        let tiles = has & 1 << 24 != 0 && permitted();
        Kinds { bytes: tiles && has & 1 << 25 != 0, pairs: tiles && has & 1 << 22 != 0 }
    })
}

/// Asks Linux for the state component of tile data (`Documentation/arch/x86/xstate.rst`): it is refused where the system does not
/// save it, or a thread has too small a stack for signals.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let answer: isize;
    // SAFETY: the system call reads no memory of ours, and changes the registers named.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL as isize => answer, in("rdi") ARCH_REQ_XCOMP_PERM,
             in("rsi") XFEATURE_XTILEDATA, out("rcx") _, out("r11") _, options(nostack));
    }
    answer == 0
}

/// Elsewhere nobody was asked yet how it is done.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The distance of the rows of a tile whose only segment is `len` elements long; rows that do not lie evenly have none. One row
/// has `any`.
pub(crate) fn stride<T>(t: &Tile, table: &Table<T>, len: usize, any: Option<usize>) -> Option<usize> {
    if t.segments != 1 || t.len != len {
        return None;
    }
    // SAFETY: a tile of this table has as many pointers as rows.
    let rows = unsafe { std::slice::from_raw_parts(table.of(t).0, t.rows) };
    let [first, second, ..] = *rows else { return any.or(Some(0)) };
    let stride = (second as usize).checked_sub(first as usize)?;
    let even = rows.windows(2).all(|w| (w[1] as usize).wrapping_sub(w[0] as usize) == stride);
    (even && any.is_none_or(|any| any == stride)).then_some(stride)
}

/// The shapes of eight tiles: what `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// Shapes the tiles for products of `rows` rows (the second may be 0) of `bytes` bytes, and forgets what was in them.
///
/// # Safety
/// The CPU has tiles; there are at most 16 rows of at most 64 bytes, a multiple of 4.
unsafe fn configure(rows: [usize; 2], bytes: usize) {
    let mut s = Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
    let mut shape = |tile: usize, rows: usize, bytes: usize| {
        (s.rows[tile], s.bytes[tile]) = (rows.max(1) as u8, bytes as u16);
    };
    for i in 0..2 {
        shape(2 * i, rows[i], BYTES);
        shape(2 * i + 1, rows[i], BYTES);
        shape(4 + i, rows[i], bytes);
        shape(6 + i, bytes / 4, BYTES);
    }
    // SAFETY: the instruction reads 64 bytes; the caller has seen that it exists.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const s, options(nostack, readonly),
             out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
             out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
}

/// Ends the use of tiles on this thread.
///
/// # Safety
/// The CPU has tiles.
unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilerelease", options(nostack, nomem),
             out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
             out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
}

/// How rows and panels are cut into tiles along `K`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Bytes from panel to panel.
    pitch: usize,
    /// Lines of a panel.
    steps: usize,
    /// Lines of a tile of weights; a tile of rows has four bytes for each.
    lines: usize,
    /// Such tiles.
    count: usize,
    /// Bytes from row to row.
    a_stride: usize,
    /// Bytes from a tile of rows to the next along `K`.
    a_step: usize,
}

impl Cut {
    /// Equal parts of all lines, not many more than necessary: of rows that lie `a_stride` bytes apart.
    pub(crate) fn even(steps: usize, a_stride: usize) -> Option<Cut> {
        let least = steps.div_ceil(LINES);
        let count = (least.max(1)..=least.max(1) + least / 3).find(|n| steps.is_multiple_of(*n))?;
        let lines = steps / count;
        Some(Cut { pitch: steps * BYTES, steps, lines, count, a_stride, a_step: 4 * lines })
    }

    /// Tiles of rows `a_step` bytes apart along `K` that are filled up with zeros. A last tile of weights is filled up here.
    pub(crate) fn filled(steps: usize, a_stride: usize, a_step: usize) -> Cut {
        let (lines, count) = if steps < LINES { (steps, 1) } else { (LINES, steps / LINES) };
        Cut { pitch: steps * BYTES, steps, lines, count, a_stride, a_step }
    }

    /// The same in panels of `lines` lines, of which it takes some.
    pub(crate) fn of_panels(self, lines: usize) -> Cut {
        Cut { pitch: lines * BYTES, ..self }
    }

    /// Lines left over.
    fn rest(&self) -> usize {
        self.steps - self.lines * self.count
    }
}

/// Elements from row to row of sums.
pub(crate) const SUMS: usize = 64;
/// Bytes of panels that are taken together, so that they stay in the first-level cache while all rows pass by.
const PANELS: usize = 24 * 1024;

/// Memory of a walk: two buffers of sums, side by side, and the last tiles of weights of two panels, filled up with zeros.
#[repr(align(64))]
pub(crate) struct Memory {
    sums: [[u32; SUMS]; 2 * ROWS],
    tails: [[u8; TILE]; 2],
}

/// Sums that are not finished yet.
struct Ready<'a> {
    /// One tile of rows, or two.
    tiles: &'a [Tile],
    /// Rows of sums of each that belong to no row of it.
    over: [usize; 2],
    /// The first panel.
    panel: usize,
    /// How many panels.
    wide: usize,
    sums: *const u32,
}

/// The sums of some panels of 16 columns, which begin at `b`, and all tiles of rows, at most 16 each. `row` is where the first row of a tile
/// lies; `finish` gets a tile, a panel, how many panels from there on (one or two), and the sums, `i32` of `u8` by `i8`, or `f32` of
/// bf16 where `PAIRS`, rows [`SUMS`] apart.
///
/// # Safety
/// Everything lies where the cut says, and the CPU has the instructions.
#[inline(always)]
pub(crate) unsafe fn walk<const PAIRS: bool>(
    cut: &Cut,
    tiles: &[Tile],
    row: impl Fn(usize) -> *const u8,
    b: *const u8,
    panels: Range<usize>,
    memory: &mut MaybeUninit<Memory>,
    mut finish: impl FnMut(&Tile, usize, usize, *const u32),
) {
    let at = memory.as_mut_ptr();
    let panel = |p: usize| b.wrapping_add(p * cut.pitch);
    let rest = cut.rest();
    // As many panels as stay in the first-level cache while all rows pass by, and the next ones come; two where there are tails.
    let together = match (cut.steps * BYTES).max(1) {
        _ if rest > 0 => 2,
        bytes if panels.len() * bytes <= PANELS => panels.len().next_multiple_of(2),
        bytes => (PANELS / 2 / bytes / 2 * 2).max(2),
    };
    // To shape tiles takes longer than to multiply them. A tile with fewer rows than the tallest begins as many rows earlier, where
    // there are such; their sums are passed over.
    let tall = tiles.iter().map(|t| t.rows).max().unwrap_or(0);
    let place = |i: usize| {
        let (at, more) = (row(i), tall - tiles[i].rows);
        let from = at.wrapping_sub(more * cut.a_stride);
        if (row(0)..=at).contains(&from) { (from, tall, more) } else { (at, tiles[i].rows, 0) }
    };
    // SAFETY: the caller's promise; sums are read after they are written, and the tail's memory is written first.
    unsafe {
        let (sums, tails) = ((&raw mut (*at).sums).cast::<u32>(), (&raw mut (*at).tails).cast::<u8>());
        if cut.lines == 0 {
            // Nothing to sum, and no tile is that small.
            sums.write_bytes(0, 2 * ROWS * SUMS);
            for t in tiles {
                panels.clone().for_each(|p| finish(t, p, 1, sums));
            }
            return;
        }
        tails.write_bytes(0, 2 * TILE);
        let mut shaped = [0; 2];
        // Sums are finished while the next are computed.
        let mut waiting = None;
        let mut done = |ready: Ready<'_>| {
            for (j, t) in ready.tiles.iter().enumerate() {
                finish(t, ready.panel, ready.wide, ready.sums.add((j * ROWS + ready.over[j]) * SUMS));
            }
        };
        let mut turn = 0;
        for first in panels.clone().step_by(together) {
            let now = first..panels.end.min(first + together);
            let next = now.end..panels.end.min(now.end + together);
            if rest > 0 {
                for (i, p) in now.clone().enumerate() {
                    let last = panel(p).wrapping_add(cut.lines * cut.count * BYTES);
                    tails.add(i * TILE).copy_from_nonoverlapping(last, rest * BYTES);
                }
            }
            let mut asked = 0;
            for (i, pair) in tiles.chunks(2).enumerate() {
                let null = std::ptr::null();
                let (a0, rows0, over0) = place(2 * i);
                let (a1, rows1, over1) = if pair.len() > 1 { place(2 * i + 1) } else { (null, tall, 0) };
                if shaped != [rows0, rows1] {
                    shaped = [rows0, rows1];
                    configure(shaped, 4 * cut.lines);
                }
                for p in now.clone().step_by(2) {
                    let wide = 2.min(now.end - p);
                    let out = sums.add(turn % 2 * 2 * COLUMNS);
                    turn += 1;
                    // The next weights come while these are used: with the very first rows the next panels of these, then those
                    // taken together after these.
                    let ahead = if first == panels.start && i == 0 {
                        panel(p + 2)
                    } else {
                        asked += cut.count * 64 * AHEAD;
                        panel(next.start).wrapping_add(asked - cut.count * 64 * AHEAD)
                    };
                    sum::<PAIRS>(&Product {
                        a_step: cut.a_step,
                        b_step: cut.lines * BYTES,
                        tail: if rest > 0 { tails } else { null },
                        out: out.cast(),
                        out_stride: size_of::<u32>() * SUMS,
                        a: [a0, a1],
                        a_stride: cut.a_stride,
                        b: [panel(p), if wide > 1 { panel(p + 1) } else { null }],
                        count: cut.count,
                        ahead: if ahead < panel(next.end) { ahead } else { a0 },
                    });
                    let ready = Ready { tiles: pair, over: [over0, over1], panel: p, wide, sums: out };
                    if let Some(earlier) = waiting.replace(ready) {
                        done(earlier);
                    }
                }
            }
        }
        waiting.into_iter().for_each(done);
        release();
    }
}

/// One or two tiles of rows by one or two panels.
#[repr(C)]
struct Product {
    /// Bytes from a tile of rows to the next along `K`.
    a_step: usize,
    /// Bytes from a tile of weights to the next.
    b_step: usize,
    /// The last tiles of weights of both panels, [`TILE`] bytes apart, when they lie elsewhere; else null.
    tail: *const u8,
    /// Sums of the first tile and the first panel; the second panel's are 64 bytes on, the second tile's 16 rows.
    out: *mut u8,
    /// Bytes from row to row of sums.
    out_stride: usize,
    /// The first rows of both tiles; the second null where there is one.
    a: [*const u8; 2],
    /// Bytes from row to row.
    a_stride: usize,
    /// Both panels; the second null where there is one.
    b: [*const u8; 2],
    /// Tiles along `K`, without the tail; at least one.
    count: usize,
    /// Weights that are wanted next: for each tile along `K`, [`AHEAD`] lines of the cache are asked for.
    ahead: *const u8,
}

/// Lines of the cache asked for beside each tile along `K`: half as many as the weights it takes.
const AHEAD: usize = 16;

/// Sums: the lines of `$step` for each tile along `K`, then those of `$store`.
macro_rules! walk {
    ($p:ident; $($step:expr),*; $($store:literal),*) => {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            $($step,)*
            "prefetcht0 [{ahead}]", "prefetcht0 [{ahead} + 64]", "prefetcht0 [{ahead} + 128]", "prefetcht0 [{ahead} + 192]",
            "prefetcht0 [{ahead} + 256]", "prefetcht0 [{ahead} + 320]", "prefetcht0 [{ahead} + 384]", "prefetcht0 [{ahead} + 448]",
            "prefetcht0 [{ahead} + 512]", "prefetcht0 [{ahead} + 576]", "prefetcht0 [{ahead} + 640]", "prefetcht0 [{ahead} + 704]",
            "prefetcht0 [{ahead} + 768]", "prefetcht0 [{ahead} + 832]", "prefetcht0 [{ahead} + 896]", "prefetcht0 [{ahead} + 960]",
            "add {ahead}, {further}",
            "add {a0}, [{p} + {a_step}]", "add {a1}, [{p} + {a_step}]",
            "add {b0}, [{p} + {b_step}]", "add {b1}, [{p} + {b_step}]",
            "dec {n}",
            "jnz 2b",
            "test {tail}, {tail}",
            "jz 3f",
            "mov {b0}, {tail}", "lea {b1}, [{tail} + {tile}]",
            "xor {tail:e}, {tail:e}", "mov {n:e}, 1",
            "jmp 2b",
            "3:",
            "mov {a0}, [{p} + {out}]", "mov {line}, [{p} + {out_stride}]",
            "mov {a1}, {line}", "shl {a1}, 4", "add {a1}, {a0}",
            $($store,)*
            p = in(reg) $p as *const Product,
            a0 = inout(reg) $p.a[0] => _, a1 = inout(reg) $p.a[1] => _, stride = in(reg) $p.a_stride,
            b0 = inout(reg) $p.b[0] => _, b1 = inout(reg) $p.b[1] => _, line = inout(reg) BYTES => _,
            n = inout(reg) $p.count => _, ahead = inout(reg) $p.ahead => _, tail = inout(reg) $p.tail => _,
            a_step = const offset_of!(Product, a_step), b_step = const offset_of!(Product, b_step),
            out = const offset_of!(Product, out), out_stride = const offset_of!(Product, out_stride), tile = const TILE, further = const 64 * AHEAD,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// The walk of one instruction, for two tiles or one of rows, by two panels or one.
macro_rules! walks {
    ($dot:literal, $p:ident) => {
        match (!$p.a[1].is_null(), !$p.b[1].is_null()) {
            (true, true) => walk!($p;
                "tileloadd tmm6, [{b0} + {line}]", "tileloadd tmm4, [{a0} + {stride}]", concat!($dot, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{b1} + {line}]", concat!($dot, " tmm1, tmm4, tmm7"),
                "tileloadd tmm5, [{a1} + {stride}]", concat!($dot, " tmm2, tmm5, tmm6"), concat!($dot, " tmm3, tmm5, tmm7");
                "tilestored [{a0} + {line}], tmm0", "tilestored [{a0} + {line} + 64], tmm1",
                "tilestored [{a1} + {line}], tmm2", "tilestored [{a1} + {line} + 64], tmm3"),
            (false, true) => walk!($p;
                "tileloadd tmm6, [{b0} + {line}]", "tileloadd tmm4, [{a0} + {stride}]", concat!($dot, " tmm0, tmm4, tmm6"),
                "tileloadd tmm7, [{b1} + {line}]", concat!($dot, " tmm1, tmm4, tmm7");
                "tilestored [{a0} + {line}], tmm0", "tilestored [{a0} + {line} + 64], tmm1"),
            (true, false) => walk!($p;
                "tileloadd tmm6, [{b0} + {line}]", "tileloadd tmm4, [{a0} + {stride}]", concat!($dot, " tmm0, tmm4, tmm6"),
                "tileloadd tmm5, [{a1} + {stride}]", concat!($dot, " tmm2, tmm5, tmm6");
                "tilestored [{a0} + {line}], tmm0", "tilestored [{a1} + {line}], tmm2"),
            (false, false) => walk!($p;
                "tileloadd tmm6, [{b0} + {line}]", "tileloadd tmm4, [{a0} + {stride}]", concat!($dot, " tmm0, tmm4, tmm6");
                "tilestored [{a0} + {line}], tmm0"),
        }
    };
}

/// The sums: `i32` of `u8` by `i8`, or `f32` of bf16 where `PAIRS`.
///
/// # Safety
/// Tiles are configured for the rows, everything lies where the product says, and the CPU has the instruction.
#[inline]
unsafe fn sum<const PAIRS: bool>(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { if PAIRS { walks!("tdpbf16ps", p) } else { walks!("tdpbusd", p) } }
}
