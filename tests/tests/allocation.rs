//! A planned serial run allocates nothing. A binary of its own, because the allocator is the whole process's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use regard::{Align, Dtype, Execution, Form, Plan, Problem, ViewMut};
use regard_kernels::table::kernels;
use regard_tests::{Case, Layout as Tensors, Random, Spec, Tensor, levels, setup_for, setup_of, weightings};

thread_local! {
    /// Allocations of this thread; the test harness has threads of its own.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, with a count.
struct Counting;

// SAFETY: everything is passed on to the system's allocator, whose contract is the same; counting does not allocate (the
// thread-local is const-initialised and has no destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_planned_serial_run_allocates_nothing() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![1_u8]));
    assert_eq!(ALLOCATIONS.get(), before + 1, "the count counts");

    let mut random = Random::new(1);
    let q = Tensor::normal([2, 4, 70, 16], Tensors::Bshd, &mut random);
    let k = Tensor::normal([2, 2, 90, 16], Tensors::Bshd, &mut random);
    let v = Tensor::normal([2, 2, 90, 24], Tensors::Bshd, &mut random);
    let bias = Tensor::normal([1, 1, 70, 90], Tensors::Bhsd, &mut random);
    for weighting in weightings() {
        for level in levels() {
            let plain = || Spec::new(weighting.clone());
            let spec =
                Spec { causal: Some(Align::BottomRight), bias: Some(bias.view()), softcap: Some(9.0), ..plain() };
            let linear = Spec { causal: Some(Align::BottomRight), form: Some(Form::Linear), ..plain() };
            for spec in [plain(), spec, linear] {
                let case = Case::new(spec, &q, &k, &v);
                // Not every weighting has a linear form.
                let Ok(problem) = Problem::new(&case.spec.options(), case.q, case.k, case.v) else {
                    assert_eq!(case.spec.form, Some(Form::Linear));
                    continue;
                };
                let plan = Plan::new(&problem, &setup_of(*level));
                let mut out = vec![0.0; problem.shape().rows() * 24];
                let mut workspace = vec![0.0; plan.workspace_len(1)];
                for _ in 0..3 {
                    let out = ViewMut::bhsd(&mut out, problem.shape().out()).expect("as long as its shape");
                    let before = ALLOCATIONS.get();
                    plan.run(&problem, out, None, &mut workspace, Execution::Serial).expect("a checked problem runs");
                    let allocations = ALLOCATIONS.get() - before;
                    assert_eq!(allocations, 0, "{weighting:?} at {level:?}");
                }
            }
        }
    }
}

#[test]
fn planning_allocates_nothing() {
    let mut random = Random::new(1);
    let q = Tensor::normal([2, 4, 70, 16], Tensors::Bshd, &mut random);
    let k = Tensor::normal([2, 2, 90, 16], Tensors::Bshd, &mut random);
    let few = Tensor::normal([2, 4, 1, 16], Tensors::Bshd, &mut random);
    for level in levels() {
        let kernel = kernels(*level).iter().find(|kernel| kernel.dtype == Dtype::F32).expect("every level has one");
        // With a profile and without.
        for setup in [setup_of(*level), setup_for(kernel, 34, 13)] {
            for q in [&q, &few] {
                let problem = Case::new(Spec::new(regard::Weighting::Softmax), q, &k, &k).problem();
                let before = ALLOCATIONS.get();
                let plan = Plan::new(&problem, &setup);
                assert_eq!(ALLOCATIONS.get() - before, 0, "{level:?}");
                drop(plan);
            }
        }
    }
}
