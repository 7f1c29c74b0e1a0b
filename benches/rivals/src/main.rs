//! Other implementations of attention against ours, all taking turns on one core: the crates flash-attention-cpu and
//! candle-nn, and what one composes from the crate gemm.
//!
//! Every output is checked against f64 before it is timed. Speed-ups are those of the rival over regard: below 1 regard is
//! the faster one.
#![deny(unsafe_code)]

#[expect(unsafe_code, reason = "the crate gemm takes pointers")]
mod composed;
mod problem;

use std::process::{Command, ExitCode};
use std::{env, io};

use candle_core::{Device, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use clap::Parser;
use flash_attention_cpu::{FlashAttentionConfig, flash_attention_multihead_v2};
use regard::{Execution, Plan, Setup, ViewMut};
use regard_benches::compare::{Args, Contest, Entrant, Printer, Row};
use regard_tuner::measure::FmaProbe;
use regard_tuner::pin;

use crate::problem::Work;

/// Heads, queries, keys, columns, and whether causal. The last ones read more than a last-level cache holds.
const CASES: [([usize; 4], bool); 6] = [
    ([2, 2048, 2048, 64], false),
    ([2, 2048, 2048, 128], false),
    ([2, 2048, 2048, 128], true),
    ([2, 512, 512, 128], true),
    ([8, 16, 8192, 128], false),
    ([32, 1, 8192, 128], false),
];

/// Errors are below 1e-5; anything wrong is far above this.
const TOLERANCE: f64 = 1e-3;

/// The number of threads that candle and rayon start.
const THREADS: &str = "RAYON_NUM_THREADS";

fn main() -> ExitCode {
    let args = Args::parse();
    // It is read before `main` could set it, at the latest by the first pool.
    if env::var(THREADS).as_deref() != Ok("1") {
        let again = env::current_exe()
            .and_then(|program| Command::new(program).args(env::args_os().skip(1)).env(THREADS, "1").status());
        return match again {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            Ok(_) => ExitCode::FAILURE,
            Err(error) => fail(&error.to_string()),
        };
    }
    match pin::pinned(|| run(&args)).value {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

fn fail(why: &str) -> ExitCode {
    eprintln!("rivals: {why}");
    ExitCode::FAILURE
}

fn run(args: &Args) -> io::Result<()> {
    let setup = Setup::global().map_err(io::Error::other)?;
    let canary = FmaProbe::new(setup.level);
    let mut printer = Printer::to_stdout(args, setup);
    // One thread: its pool is that of the thread that measures, so that nobody pays for waking another.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(io::Error::other)?;
    for ([heads, queries, keys, dim], causal) in CASES {
        let work = Work::new([heads, args.rows(queries), args.rows(keys), dim], causal);
        if !args.wants("rivals", &work.name()) {
            continue;
        }
        if args.list {
            println!("rivals/{}", work.name());
            continue;
        }
        let rows = pool.install(|| hold(&work, setup, &canary, args)).map_err(io::Error::other)?;
        printer.print(&rows)?;
    }
    Ok(())
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn hold(work: &Work, setup: &Setup, canary: &FmaProbe, args: &Args) -> Result<Vec<Row>, Failure> {
    let mut entrants = vec![regard(work, setup)?, flash_attention_cpu(work, setup)?];
    entrants.extend(candle(work, setup)?);
    entrants.push(composed(work, setup)?);
    let flops = work.problem().flops();
    let contest = Contest { group: "rivals", case: work.name(), flops, entrants };
    Ok(contest.hold(canary, args.budget()))
}

/// Somebody whose output is right.
fn entrant<'a>(
    name: &str,
    work: &Work,
    setup: &Setup,
    out: &[f32],
    run: impl FnMut() + 'a,
) -> Result<Entrant<'a>, Failure> {
    let largest_error = work.largest_error(setup, out);
    if largest_error > TOLERANCE {
        return Err(format!("{name} is wrong by {largest_error:e} in {}", work.name()).into());
    }
    Ok(Entrant { name: name.to_owned(), largest_error, run: Box::new(run) })
}

fn regard<'a>(work: &'a Work, setup: &Setup) -> Result<Entrant<'a>, Failure> {
    let problem = work.problem();
    let plan = Plan::new(&problem, setup);
    let mut workspace = vec![0.0; plan.workspace_len(1)];
    let mut run = move |out: &mut [f32]| {
        let out = ViewMut::bhsd(out, problem.shape().out()).expect("as many numbers as the shape has");
        plan.run(&problem, out, None, &mut workspace, Execution::Serial).expect("a plan of this problem");
    };
    let mut out = vec![0.0; work.out_len()];
    run(&mut out);
    let checked = out.clone();
    entrant("regard", work, setup, &checked, move || run(&mut out))
}

fn flash_attention_cpu<'a>(work: &'a Work, setup: &Setup) -> Result<Entrant<'a>, Failure> {
    let config = FlashAttentionConfig { causal: work.causal, ..FlashAttentionConfig::default() };
    let run = move |out: &mut [f32]| {
        let Work { heads, queries, keys, dim, q, k, v, .. } = work;
        flash_attention_multihead_v2(q, k, v, 1, *heads, *queries, *keys, *dim, &config, out);
    };
    let mut out = vec![0.0; work.out_len()];
    run(&mut out);
    let checked = out.clone();
    entrant("flash-attention-cpu 0.2", work, setup, &checked, move || run(&mut out))
}

/// Its fused attention, and the usual three operations.
fn candle<'a>(work: &'a Work, setup: &Setup) -> Result<Vec<Entrant<'a>>, Failure> {
    let Work { heads, queries, keys, dim, causal, .. } = *work;
    let scale = work.scale();
    let tensor = |data: &[f32], rows| Tensor::from_slice(data, (1, heads, rows, dim), &Device::Cpu);
    let [q, k, v] = [tensor(&work.q, queries)?, tensor(&work.k, keys)?, tensor(&work.v, keys)?];
    // The fused one takes [batch, rows, heads, columns] and gives [batch, heads, rows, columns].
    let turned = |tensor: &Tensor| tensor.transpose(1, 2)?.contiguous();
    let [tq, tk, tv] = [turned(&q)?, turned(&k)?, turned(&v)?];
    let fused = move || {
        let mask = if causal { AttnMask::causal() } else { AttnMask::None };
        flash_attn::<f32>(&tq, &tk, &tv, scale, mask, None, None)
    };
    let checked = fused()?.flatten_all()?.to_vec1::<f32>()?;
    let mut entrants =
        vec![entrant("candle-nn 0.11 flash_attn", work, setup, &checked, move || drop(fused().expect("as before")))?];
    // A mask would have to be a tensor.
    if !causal {
        let transposed = k.t()?.contiguous()?;
        let composed = move || {
            let scores = (q.matmul(&transposed)? * f64::from(scale))?;
            candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)
        };
        let checked = composed()?.flatten_all()?.to_vec1::<f32>()?;
        let run = move || drop(composed().expect("as before"));
        entrants.push(entrant("candle-nn 0.11 composed", work, setup, &checked, run)?);
    }
    Ok(entrants)
}

fn composed<'a>(work: &'a Work, setup: &Setup) -> Result<Entrant<'a>, Failure> {
    let mut scores = vec![0.0; 64 * work.keys];
    let mut out = vec![0.0; work.out_len()];
    composed::attention(work, &mut scores, &mut out);
    let checked = out.clone();
    entrant("gemm 0.19 and softmax", work, setup, &checked, move || composed::attention(work, &mut scores, &mut out))
}
