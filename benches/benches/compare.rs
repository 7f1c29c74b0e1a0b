//! This machine against itself, both sides taking turns: levels, weightings, element types, threads, and what was tuned
//! against the analytic model. `cargo bench --bench compare -- --help` says how to choose and how to print.

use std::io;

use rayon::{ThreadPool, ThreadPoolBuilder};
use regard::{Dtype, Execution, Level, Setup};
use regard_benches::compare::{Args, Contest, Entrant, Printer, Row};
use regard_benches::{Case, Inputs};
use regard_tuner::measure::FmaProbe;
use regard_tuner::pin;
use regard_tuner::search::{Effort, Search};
use regard_tuner::shapes::{DECODE, LEVELS, Rows, Shape, THREADS, WEIGHTINGS, Weights};

fn main() -> io::Result<()> {
    let args = Args::of_process();
    let setup = Setup::global().expect("REGARD_ISA names a level of this machine");
    let cores = setup.machine.cores.usable();
    // Made here, as threads that are made on a pinned one stay on its core.
    let pool = ThreadPoolBuilder::new().num_threads(cores).build().expect("the system grants threads");
    let mut printer = Printer::to_stdout(&args, setup);
    pin::pinned(|| {
        let mut run = Run { args: &args, setup, canary: FmaProbe::new(setup.level), printer: &mut printer };
        run.levels()?;
        run.weightings()?;
        run.dtypes()?;
        run.threads(&pool)?;
        run.tuned()
    })
    .value
}

struct Run<'a> {
    args: &'a Args,
    setup: &'a Setup,
    canary: FmaProbe,
    printer: &'a mut Printer<io::Stdout>,
}

impl Run<'_> {
    /// Every level of this machine against the portable one.
    fn levels(&mut self) -> io::Result<()> {
        for shape in LEVELS {
            let shape = self.sized(shape, 1);
            self.contest("levels", &shape.name(), |run| {
                let inputs = Inputs::warm(&shape);
                let case =
                    |level: &Level| (level.isa().to_string(), Case::new(&inputs, run.setup, *level, Execution::Serial));
                run.hold("levels", &shape, Level::available().iter().map(case).collect())
            })?;
        }
        Ok(())
    }

    /// Every weighting against softmax.
    fn weightings(&mut self) -> io::Result<()> {
        let shape = self.sized(WEIGHTINGS, 1);
        self.contest("weightings", &shape.name(), |run| {
            let inputs = Inputs::warm(&shape);
            let case = |weights: Weights| {
                let case = Case::with_weights(&inputs, weights, run.setup, run.setup.level, Execution::Serial);
                (weights.name().to_owned(), case)
            };
            run.hold("weightings", &shape, Weights::ALL.into_iter().map(case).collect())
        })
    }

    /// Every element type against f32: a prompt, and one token against a cache in memory.
    fn dtypes(&mut self) -> io::Result<()> {
        let decode = [self.sized(DECODE[0], 8), self.sized(DECODE[4], 64)];
        for shape in [self.sized(WEIGHTINGS, 1), decode[0], decode[1]] {
            self.contest("dtypes", &shape.name(), |run| {
                let reads = matches!(shape.rows, Rows::One { queries: 1, .. }) && !run.args.test;
                let cache = run.setup.machine.caches.l3_or_default();
                let inputs = Dtype::ALL.map(|dtype| {
                    let shape = Shape { dtype, ..shape };
                    if reads { Inputs::cold(&shape, cache) } else { Inputs::warm(&shape) }
                });
                let case = |(dtype, inputs): (Dtype, _)| {
                    (dtype.to_string(), Case::new(inputs, run.setup, run.setup.level, Execution::Serial))
                };
                run.hold("dtypes", &shape, Dtype::ALL.into_iter().zip(&inputs).map(case).collect())
            })?;
        }
        Ok(())
    }

    /// All cores against one.
    fn threads(&mut self, pool: &ThreadPool) -> io::Result<()> {
        let count = pool.current_num_threads();
        if count < 2 {
            eprintln!("threads: there is one core only");
            return Ok(());
        }
        for shape in THREADS.into_iter().chain([DECODE[0]]) {
            let shape = self.sized(shape, shape.heads);
            self.contest("threads", &shape.name(), |run| {
                let inputs = Inputs::warm(&shape);
                let case = |execution| Case::new(&inputs, run.setup, run.setup.level, execution);
                let all = (format!("{count} threads"), case(Execution::Pool(pool)));
                run.hold("threads", &shape, vec![("1 thread".to_owned(), case(Execution::Serial)), all])
            })?;
        }
        Ok(())
    }

    /// The profile of this machine, or else one that is made for the occasion, against the analytic model.
    fn tuned(&mut self) -> io::Result<()> {
        let model = self.setup.without_profile();
        let mut tuned = None;
        for head_dim in [64, 128] {
            for causal in [false, true] {
                let shape = LEVELS[0];
                let mask = if causal { THREADS[1].mask } else { shape.mask };
                let shape = self.sized(Shape { head_dim, mask, ..shape }, 4);
                self.contest("tuned", &shape.name(), |run| {
                    let tuned = tuned.get_or_insert_with(|| run.profiled());
                    let inputs = Inputs::warm(&shape);
                    let case = |setup| Case::new(&inputs, setup, model.level, Execution::Serial);
                    run.hold(
                        "tuned",
                        &shape,
                        vec![("model".to_owned(), case(&model)), ("tuned".to_owned(), case(tuned))],
                    )
                })?;
            }
        }
        Ok(())
    }

    fn profiled(&self) -> Setup {
        let Self { args, setup, .. } = self;
        if setup.profile.is_some() {
            return (*setup).clone();
        }
        eprintln!("tuned: there is no profile of this machine; making a quick one, which is not kept");
        let seconds = if args.test { 0.0 } else { Effort::Quick.seconds() };
        let found = Search::new(setup.level, &setup.machine, Effort::Quick).seconds(seconds).run(&mut |_| ());
        Setup { profile: Some(found.profile.into()), ..(*setup).clone() }
    }

    /// A shape with so many heads, small in a test.
    fn sized(&self, shape: Shape, heads: usize) -> Shape {
        let rows = match shape.rows {
            Rows::One { queries, keys } => Rows::One { queries: self.args.rows(queries), keys: self.args.rows(keys) },
            packed => packed,
        };
        Shape { rows, heads, kv_heads: shape.kv_heads.min(heads), ..shape }
    }

    fn contest(&mut self, group: &str, case: &str, hold: impl FnOnce(&Self) -> Vec<Row>) -> io::Result<()> {
        match self.args.wants(group, case) {
            false => Ok(()),
            true if self.args.list => {
                println!("{group}/{case}");
                Ok(())
            }
            true => {
                let rows = hold(self);
                self.printer.print(&rows)
            }
        }
    }

    /// The first of the cases against the others. Each is run once before, and checked.
    fn hold<'c>(&self, group: &'static str, shape: &Shape, cases: Vec<(String, Case<'c>)>) -> Vec<Row> {
        let flops = cases[0].1.flops();
        let entrant = |(name, mut case): (String, Case<'c>)| {
            case.run();
            let largest_error = case.largest_error();
            let sound = largest_error < 0.1;
            assert!(sound, "{group}/{}: {name} is wrong by {largest_error:e}", shape.name());
            Entrant { name, largest_error, run: Box::new(move || case.run()) as Box<dyn FnMut() + 'c> }
        };
        let entrants = cases.into_iter().map(entrant).collect();
        Contest { group, case: shape.name(), flops, entrants }.hold(&self.canary, self.args.budget())
    }
}
