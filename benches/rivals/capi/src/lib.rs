//! Softmax attention behind a C interface, so that a program in another language can time the kernel and not a process.
//!
//! A handle holds the shape, the plan and the workspace. Everything that a caller can get wrong gives a null handle or -1.
#![warn(missing_docs)]

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use half::bf16;
use rayon::{ThreadPool, ThreadPoolBuilder};
use regard::{Align, Attention, Execution, Plan, Problem, Setup, View, ViewMut};
use regard_tuner::measure::FmaProbe;

/// What [`regard_new`] makes.
pub struct Handle {
    shape: Shape,
    plan: Plan,
    workspace: Vec<f32>,
    pool: Option<ThreadPool>,
}

/// The sizes of a problem, in elements.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Shape {
    /// Batch entries.
    pub batch: usize,
    /// Heads of q.
    pub heads: usize,
    /// Heads of k and v, which share out those of q.
    pub kv_heads: usize,
    /// Rows of q.
    pub queries: usize,
    /// Rows of k and v.
    pub keys: usize,
    /// Columns of all.
    pub head_dim: usize,
    /// 0 for none, 1 for a causal mask from the top left, 2 for one from the bottom right.
    pub causal: u32,
    /// 0 for f32, 1 for bf16: q, k, v and out.
    pub dtype: u32,
}

/// Elements of a tensor of so many heads and rows; none if there are too many for an address.
fn elements(shape: &Shape, heads: usize, rows: usize) -> Option<usize> {
    let product =
        [heads, rows, shape.head_dim].iter().try_fold(shape.batch, |product, size| product.checked_mul(*size));
    product.filter(|length| *length <= isize::MAX as usize / size_of::<f32>())
}

/// The problem of three tensors, `[batch, heads, rows, columns]`, contiguous.
fn problem<'a, T>(shape: &Shape, [q, k, v]: [&'a [T]; 3]) -> Option<Problem<'a>>
where
    View<'a, T>: Into<regard::Tensor<'a>>,
{
    let Shape { batch, heads, kv_heads, queries, keys, head_dim, .. } = *shape;
    let softmax = Attention::softmax();
    let options = match shape.causal {
        0 => softmax,
        1 => softmax.causal(Align::TopLeft),
        2 => softmax.causal(Align::BottomRight),
        _ => return None,
    };
    let kv = [batch, kv_heads, keys, head_dim];
    let q = View::bhsd(q, [batch, heads, queries, head_dim]).ok()?;
    Problem::new(&options, q, View::bhsd(k, kv).ok()?, View::bhsd(v, kv).ok()?).ok()
}

impl Handle {
    fn new(shape: Shape, threads: usize) -> Option<Self> {
        let Shape { heads, kv_heads, queries, keys, dtype, .. } = shape;
        let of = |heads, rows| elements(&shape, heads, rows);
        let (q, kv) = (of(heads, queries)?, of(kv_heads, keys)?);
        let setup = Setup::global().ok()?;
        // The plan depends on sizes and types, not on numbers.
        let plan = match dtype {
            0 => Plan::new(&problem(&shape, [&vec![0.0_f32; q], &vec![0.0; kv], &vec![0.0; kv]])?, setup),
            1 => Plan::new(
                &problem(&shape, [&vec![bf16::ZERO; q], &vec![bf16::ZERO; kv], &vec![bf16::ZERO; kv]])?,
                setup,
            ),
            _ => return None,
        };
        let pool = match threads {
            0 => return None,
            1 => None,
            threads => Some(ThreadPoolBuilder::new().num_threads(threads).build().ok()?),
        };
        let workspace = vec![0.0; plan.workspace_len(threads)];
        Some(Self { shape, plan, workspace, pool })
    }

    /// Computes into `out`.
    fn run<'a, T>(&mut self, inputs: [&'a [T]; 3], out: &mut [T]) -> Option<()>
    where
        View<'a, T>: Into<regard::Tensor<'a>>,
        for<'o> ViewMut<'o, T>: Into<regard::TensorMut<'o>>,
    {
        let problem = problem(&self.shape, inputs)?;
        let out = ViewMut::bhsd(out, problem.shape().out()).ok()?;
        let execution = self.pool.as_ref().map_or(Execution::Serial, Execution::Pool);
        self.plan.run(&problem, out, None, &mut self.workspace, execution).ok()
    }
}

/// Makes a handle for problems of a shape on so many threads; null if that cannot be.
///
/// # Safety
/// `shape` is null or points to a shape.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regard_new(shape: *const Shape, threads: usize) -> *mut Handle {
    // SAFETY: the caller says that it points to a shape unless it is null.
    let Some(shape) = (unsafe { shape.as_ref() }) else { return std::ptr::null_mut() };
    let handle = catch_unwind(|| Handle::new(*shape, threads)).ok().flatten();
    handle.map_or(std::ptr::null_mut(), |handle| Box::into_raw(Box::new(handle)))
}

/// Computes attention once: 0, or -1 if a pointer is null or the computation was refused.
///
/// # Safety
/// `handle` is from [`regard_new`], and no other thread uses it. `q`, `k`, `v` and `out` are null or point to contiguous
/// tensors of the handle's shape and element type, which nobody writes meanwhile; `out` is no part of the others.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regard_run(
    handle: *mut Handle,
    q: *const f32,
    k: *const f32,
    v: *const f32,
    out: *mut f32,
) -> c_int {
    // SAFETY: the caller says that it is from `regard_new`, and that nobody else uses it.
    let Some(handle) = (unsafe { handle.as_mut() }) else { return -1 };
    if q.is_null() || k.is_null() || v.is_null() || out.is_null() {
        return -1;
    }
    let Shape { heads, kv_heads, queries, keys, dtype, .. } = handle.shape;
    let of = |heads, rows| elements(&handle.shape, heads, rows);
    let (Some(q_len), Some(kv_len)) = (of(heads, queries), of(kv_heads, keys)) else { return -1 };
    let run = || match dtype {
        0 => {
            // SAFETY: the caller says that all four are contiguous tensors of this shape, in f32, that are not written
            // meanwhile, and that the output is no part of the inputs. Their lengths fit an address.
            let (inputs, out) =
                unsafe { (slices([q, k, v], [q_len, kv_len]), std::slice::from_raw_parts_mut(out, q_len)) };
            handle.run(inputs, out)
        }
        _ => {
            let inputs = [q, k, v].map(<*const f32>::cast::<bf16>);
            // SAFETY: the same, in bf16.
            let (inputs, out) =
                unsafe { (slices(inputs, [q_len, kv_len]), std::slice::from_raw_parts_mut(out.cast::<bf16>(), q_len)) };
            handle.run(inputs, out)
        }
    };
    let done = catch_unwind(AssertUnwindSafe(run)).ok().flatten();
    if done.is_some() { 0 } else { -1 }
}

/// q, k and v.
///
/// # Safety
/// The pointers are of tensors with so many elements, q and then k and v, that live for `'a` and are not written meanwhile.
unsafe fn slices<'a, T>([q, k, v]: [*const T; 3], [q_len, kv_len]: [usize; 2]) -> [&'a [T]; 3] {
    // SAFETY: as the caller says.
    unsafe {
        [
            std::slice::from_raw_parts(q, q_len),
            std::slice::from_raw_parts(k, kv_len),
            std::slice::from_raw_parts(v, kv_len),
        ]
    }
}

/// Frees a handle; null is nothing to free.
///
/// # Safety
/// `handle` is null or from [`regard_new`], and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn regard_free(handle: *mut Handle) {
    if !handle.is_null() {
        // SAFETY: it is from `Box::into_raw`, and the caller gives it up.
        drop(unsafe { Box::from_raw(handle) });
    }
}

/// The multiply-add peak of the calling thread's core now, in GFLOP/s; 0 if the level cannot be had. Takes 3 ms.
#[unsafe(no_mangle)]
pub extern "C" fn regard_canary() -> f64 {
    static PROBE: std::sync::OnceLock<Option<FmaProbe>> = std::sync::OnceLock::new();
    let new = || Setup::global().ok().map(|setup| FmaProbe::new(setup.level));
    catch_unwind(|| PROBE.get_or_init(new).as_ref().map_or(0.0, FmaProbe::sample)).unwrap_or(0.0)
}
