//! Threads that wait for the next piece of an inference: they spin for a moment after each job, then park.
//!
//! Steps of a plan last microseconds; waking a parked thread takes about fifty. So workers stay awake between the steps
//! of one run and sleep between runs. The caller works too and never waits for a worker that has not started: what is
//! left over it does itself. A session owns its pool; there is no global one.
use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Turns of the waiting loop before a worker parks: about a tenth of a millisecond.
const SPINS: u32 = 4000;

/// Set in `Shared::state` while workers may join the job; the lower bits count those inside.
const OPEN: u32 = 1 << 31;

/// On a line of its own, so that threads waiting for one word do not slow down those writing another.
#[repr(align(128))]
struct Alone<T>(T);

type Task<'a> = dyn Fn(usize) + Sync + 'a;

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    count: usize,
}

struct Shared {
    /// Counts jobs; workers wait for it to change.
    epoch: Alone<AtomicU32>,
    state: Alone<AtomicU32>,
    next: Alone<AtomicUsize>,
    parked: AtomicUsize,
    stop: AtomicBool,
    job: UnsafeCell<Job>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is written only by the holder of `Pool::busy` while `state` is 0, and read only by threads that are
// counted in `state`; everything else is atomic or behind a mutex.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is used only while the call that made it waits.
unsafe impl Send for Shared {}

/// A set of threads for one session.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Taken while a job runs: a job started from inside another runs on its own thread alone.
    busy: AtomicBool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

fn nothing(_: usize) {}

impl Pool {
    /// A pool of that many threads, the caller among them: `1` starts none. Fewer are started when the system refuses.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            epoch: Alone(AtomicU32::new(0)),
            state: Alone(AtomicU32::new(0)),
            next: Alone(AtomicUsize::new(0)),
            parked: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(Job { task: &nothing, count: 0 }),
            panic: Mutex::new(None),
        });
        let start = |i: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("hone-worker-{i}")).spawn(move || work(&shared)).ok()
        };
        let workers = (1..threads.max(1)).map_while(start).collect();
        Pool { shared, workers, busy: AtomicBool::new(false) }
    }

    /// Threads that work, the caller among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(0)`, …, `task(count - 1)`, each once, on whatever threads are free, and returns when all are done.
    ///
    /// # Panics
    /// With the panic of a task, after all tasks that had started are done.
    pub fn run(&self, count: usize, task: &Task<'_>) {
        let alone = self.workers.is_empty() || count < 2;
        if alone || self.busy.swap(true, Ordering::Acquire) {
            return (0..count).for_each(task);
        }
        let s = &*self.shared;
        // SAFETY: only the lifetime is changed. Workers reach the pointer only while they are counted in `state`, and this
        // function returns, or unwinds, only when none is.
        let task_ptr = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(task) };
        // SAFETY: `busy` is held and `state` is 0, so no other thread looks at the cell.
        unsafe { *s.job.get() = Job { task: task_ptr, count } };
        s.next.0.store(0, Ordering::Relaxed);
        s.state.0.store(OPEN, Ordering::Release);
        // Paired with the worker's: either it sees the new epoch, or it is seen parked here.
        s.epoch.0.fetch_add(1, Ordering::SeqCst);
        if s.parked.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|w| w.thread().unpark());
        }
        let own = catch_unwind(AssertUnwindSafe(|| claim(s, count, task)));
        s.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0u32;
        while s.state.0.load(Ordering::Acquire) != 0 {
            turns += 1;
            if turns < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let theirs = s.panic.lock().map_or(None, |mut p| p.take());
        self.busy.store(false, Ordering::Release);
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Cuts `out` into pieces of `piece` elements (the last may be shorter) and calls `f(i, piece)` for each.
    ///
    /// # Panics
    /// When `piece` is 0, or with the panic of a call.
    pub fn pieces<T: Send>(&self, out: &mut [T], piece: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        assert!(piece > 0, "a piece has at least one element");
        let len = out.len();
        let base = Disjoint(out.as_mut_ptr());
        self.run(len.div_ceil(piece), &|i| {
            let from = i * piece;
            // SAFETY: piece i is inside `out`, no other call has the same i, and `out` is borrowed until `run` returns.
            let part = unsafe { std::slice::from_raw_parts_mut(base.at(from), piece.min(len - from)) };
            f(i, part);
        });
    }

    /// How many elements make a piece when `len` elements are to be shared out evenly, in multiples of `unit`, and a
    /// piece should have at least `least`.
    pub fn share(&self, len: usize, unit: usize, least: usize) -> usize {
        let even = len.div_ceil(self.threads()).max(least).max(1);
        even.next_multiple_of(unit.max(1))
    }
}

impl Pool {
    /// [`Pool::pieces`] for calls that need memory of their own: `scratch` holds `each` elements for as many threads as are to work,
    /// and a call gets those of its thread.
    ///
    /// # Panics
    /// As [`Pool::pieces`], and when `scratch` is shorter than `each`.
    pub fn pieces_with<T: Send, S: Send>(
        &self,
        out: &mut [T],
        piece: usize,
        (scratch, each): (&mut [S], usize),
        f: impl Fn(usize, &mut [T], &mut [S]) + Sync,
    ) {
        assert!(piece > 0, "a piece has at least one element");
        assert!(scratch.len() >= each, "there is no memory for one thread");
        let (len, count) = (out.len(), out.len().div_ceil(piece));
        let room = scratch.len().checked_div(each).unwrap_or(usize::MAX);
        let lanes = count.min(self.threads()).min(room);
        let (out, own) = (Disjoint(out.as_mut_ptr()), Disjoint(scratch.as_mut_ptr()));
        let next = AtomicUsize::new(0);
        self.run(lanes, &|lane| {
            // SAFETY: there are `lanes` times `each` elements, and no other call has the same lane.
            let own = unsafe { std::slice::from_raw_parts_mut(own.at(lane * each), each) };
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return;
                }
                let from = i * piece;
                // SAFETY: piece i is inside `out`, no other turn has the same i, and `out` is borrowed until `run` returns.
                let part = unsafe { std::slice::from_raw_parts_mut(out.at(from), piece.min(len - from)) };
                f(i, part, own);
            }
        });
    }
}

/// A pointer that several threads may have; what they do with it is each caller's obligation.
struct Disjoint<T>(*mut T);

impl<T> Disjoint<T> {
    /// # Safety
    /// `offset` is inside the allocation.
    unsafe fn at(&self, offset: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

// SAFETY: see `Pool::pieces`: threads use disjoint parts.
unsafe impl<T: Send> Sync for Disjoint<T> {}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for w in self.workers.drain(..) {
            w.thread().unpark();
            // A worker catches the panics of tasks; there is nothing to learn from how it ended.
            let _ = w.join();
        }
    }
}

/// Takes tasks until there are none left.
fn claim(s: &Shared, count: usize, task: &Task<'_>) {
    loop {
        let i = s.next.0.fetch_add(1, Ordering::Relaxed);
        if i >= count {
            return;
        }
        task(i);
    }
}

fn work(s: &Shared) {
    let mut seen = 0;
    loop {
        let mut turns = 0;
        while s.epoch.0.load(Ordering::Acquire) == seen {
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
                continue;
            }
            s.parked.fetch_add(1, Ordering::SeqCst);
            while s.epoch.0.load(Ordering::SeqCst) == seen {
                std::thread::park();
            }
            s.parked.fetch_sub(1, Ordering::SeqCst);
        }
        seen = s.epoch.0.load(Ordering::Acquire);
        if s.stop.load(Ordering::Relaxed) {
            return;
        }
        let join = |v: u32| (v & OPEN != 0).then_some(v + 1);
        if s.state.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, join).is_err() {
            continue;
        }
        // SAFETY: counted in `state`: the job stays as it is until this thread leaves.
        let job = unsafe { *s.job.get() };
        // SAFETY: the call that made the pointer waits until this thread has left.
        let task = unsafe { &*job.task };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| claim(s, job.count, task)))
            && let Ok(mut first) = s.panic.lock()
        {
            first.get_or_insert(panic);
        }
        s.state.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads_and_jobs() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for count in [0, 1, 2, 7, 100] {
                for _ in 0..200 {
                    let ran: Vec<AtomicU32> = (0..count).map(|_| AtomicU32::new(0)).collect();
                    pool.run(count, &|i| {
                        ran[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(ran.iter().all(|r| r.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn workers_that_have_gone_to_sleep_are_woken_and_pieces_cover_the_slice() {
        let pool = Pool::new(2);
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(3));
            let mut v = vec![0usize; 1001];
            pool.pieces(&mut v, 10, |i, part| part.iter_mut().enumerate().for_each(|(j, x)| *x = i * 10 + j));
            assert!(v.iter().enumerate().all(|(i, &x)| x == i));
        }
    }

    #[test]
    fn no_two_threads_have_the_same_memory_of_their_own() {
        for (threads, room) in [(1, 1), (3, 3), (3, 2), (2, 5)] {
            let pool = Pool::new(threads);
            let (mut out, mut own) = (vec![0usize; 103], vec![0usize; room * 4]);
            pool.pieces_with(&mut out, 10, (&mut own, 4), |i, part, own| {
                // What another thread writes meanwhile shows in the sum.
                own.fill(i);
                std::thread::yield_now();
                part.fill(own.iter().sum::<usize>() + 1);
            });
            assert!(out.iter().enumerate().all(|(at, v)| *v == at / 10 * 4 + 1), "{threads} threads, room for {room}");
        }
    }

    #[test]
    fn a_job_inside_a_job_and_a_panic_in_a_task_leave_the_pool_usable() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(5, &|i| {
                sum.fetch_add(i, Ordering::Relaxed);
            })
        });
        assert_eq!(sum.load(Ordering::Relaxed), 40);
        let failed = catch_unwind(AssertUnwindSafe(|| pool.run(50, &|i| assert!(i != 7, "task seven"))));
        assert!(failed.is_err());
        pool.run(8, &|_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 48);
    }
}
