//! The choice of kernel and tiles: a pure function of problem, machine and profile.

use std::fmt;

use regard_kernels::launch::{self, Choice, Outputs};
use regard_kernels::table::{KEY_BLOCKS, Kernel, kernels};
use regard_kernels::view::ViewMut;
use regard_kernels::weighting::Kind;
use regard_profile::{Class, Config, Entry, Family, MaskClass, TileQuery, tiles};
use regard_simd::{Isa, Level};

use crate::exec::Execution;
use crate::options::Numerics;
use crate::problem::Shape;
use crate::{Error, Problem, Setup};

/// Keys of a block under [`Numerics::Portable`]: what the model gives for caches of 48 KiB and more.
const PORTABLE_KEY_BLOCK: usize = 384;

/// How a problem is computed. Made once, it runs any number of problems of the same shape and options.
///
/// The level and the key block decide the order of summation. They depend on the head dimensions, the level and the profile,
/// and not on batch, heads or threads.
#[derive(Clone, Debug)]
pub struct Plan {
    choice: Choice,
    key: Key,
    class: Class,
    reason: Reason,
    /// f32 of workspace for one thread.
    workspace_per_thread: usize,
    tasks: usize,
    lse: bool,
}

/// What a plan was made for. Without strings, unlike [`Class`]: it is made at each run, which allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    shape: Shape,
    isa: Isa,
    family: Family,
    mask: MaskClass,
    /// Weightings of one family may differ in the state that they keep.
    kind: Kind,
    numerics: Numerics,
}

/// Where the choice comes from.
#[derive(Clone, Debug)]
enum Reason {
    Model,
    Portable,
    Profile(Box<Entry>),
}

impl Plan {
    /// Chooses kernel and tiles for `problem` on the machine of `setup`.
    pub fn new(problem: &Problem<'_>, setup: &Setup) -> Self {
        let level = problem.level.unwrap_or(setup.level);
        let key = Key::of(problem, level.isa());
        let class = key.class();
        let entry = match problem.options.numerics {
            Numerics::Machine => setup.profile.as_ref().and_then(|profile| profile.lookup(&class)),
            Numerics::Portable => None,
        };
        let entry = entry.filter(|entry| has_blocks(&entry.config));
        let tuned = entry.and_then(|entry| Some((entry, kernel_named(level, &entry.config.kernel)?)));
        let (kernel, key_block, query_block, reason) = match tuned {
            Some((entry, kernel)) => {
                let config = &entry.config;
                (kernel, config.key_block, config.query_block, Reason::Profile(Box::new(entry.clone())))
            }
            None => {
                let kernel = default_kernel(level, problem.shape.queries);
                let modelled = tiles(&setup.machine.caches, tile_query(kernel, &problem.shape));
                match problem.options.numerics {
                    Numerics::Machine => (kernel, modelled.key_block, modelled.query_block, Reason::Model),
                    Numerics::Portable => (kernel, PORTABLE_KEY_BLOCK, modelled.query_block, Reason::Portable),
                }
            }
        };
        let query_block = shared_out(problem, query_block, kernel.tile.rows);
        let choice = Choice { level, kernel, key_block, query_block, copy: problem.has_hostile_strides() };
        let call = problem.call();
        Self {
            workspace_per_thread: launch::workspace_len(&call, &choice, 1),
            tasks: launch::tasks(&call, &choice),
            choice,
            key,
            class,
            reason,
            lse: problem.weighting.has_log_sum_exp(),
        }
    }

    /// The level that the plan computes at.
    pub fn isa(&self) -> Isa {
        self.choice.level.isa()
    }

    /// The name of the kernel.
    pub fn kernel(&self) -> &'static str {
        self.choice.kernel.name
    }

    /// Keys of a block.
    pub fn key_block(&self) -> usize {
        self.choice.key_block
    }

    /// Query rows of a task.
    pub fn query_block(&self) -> usize {
        self.choice.query_block
    }

    /// The number of tasks that threads share, which does not depend on how many there are.
    pub fn tasks(&self) -> usize {
        self.tasks
    }

    /// The class of problem that the plan was made for, as profiles name it.
    pub fn class(&self) -> &Class {
        &self.class
    }

    /// f32 of workspace that a run on `threads` threads takes.
    pub fn workspace_len(&self, threads: usize) -> usize {
        self.workspace_per_thread.saturating_mul(threads.clamp(1, self.tasks.max(1)))
    }

    /// The same in bytes.
    pub fn workspace_bytes(&self, threads: usize) -> usize {
        self.workspace_len(threads).saturating_mul(size_of::<f32>())
    }

    /// Computes `problem` into `out` (`[batch, query_heads, queries, d_v]`) and, for softmax, the log-sum-exp of each row
    /// into `lse` (`[batch, query_heads, queries]`).
    ///
    /// `workspace` holds at least [`Plan::workspace_len`] f32 for the threads of `execution`; its contents do not matter.
    /// A serial run allocates nothing.
    ///
    /// # Errors
    /// [`Error`], with `out` and `lse` untouched, if the problem is not of the kind that the plan was made for, if `out`
    /// or `lse` has the wrong size or no meaning, or if the workspace is too short.
    pub fn run(
        &self,
        problem: &Problem<'_>,
        out: ViewMut<'_, f32>,
        lse: Option<&mut [f32]>,
        workspace: &mut [f32],
        execution: Execution<'_>,
    ) -> Result<(), Error> {
        let key = Key::of(problem, self.isa());
        let level = problem.level.map_or(self.isa(), Level::isa);
        if key != self.key || level != self.isa() {
            return Err(Error::Plan { planned: self.key.to_string(), found: key.to_string() });
        }
        check_outputs(problem, &out, lse.as_deref(), self.lse)?;
        let execution = execution.for_work(problem, self.tasks);
        let threads = execution.threads();
        let needed = self.workspace_len(threads);
        if workspace.len() < needed {
            return Err(Error::Workspace { found: workspace.len(), needed, threads });
        }
        launch::run(&problem.call(), &self.choice, Outputs { out, lse }, workspace, &execution);
        Ok(())
    }

    /// Why this kernel and these tiles, in one line.
    pub fn why(&self) -> impl fmt::Display + '_ {
        &self.reason
    }

    /// The entry of the profile that decided, if one did.
    pub fn profile_entry(&self) -> Option<&Entry> {
        match &self.reason {
            Reason::Profile(entry) => Some(entry),
            Reason::Model | Reason::Portable => None,
        }
    }

    /// Which kernel, which tiles, and why.
    pub fn explain(&self) -> impl fmt::Display + '_ {
        Explanation(self)
    }
}

/// The kernel to use when nothing was measured: the first of its level, or a single vector of lanes where it holds all
/// queries. Kernels of one level give the same bits.
fn default_kernel(level: Level, queries: usize) -> &'static Kernel {
    let kernels = kernels(level);
    let narrow = kernels.iter().find(|kernel| kernel.tile.vectors == 1 && queries <= kernel.tile.rows);
    narrow.unwrap_or(&kernels[0])
}

/// The query block, halved while there are fewer than [`FEW_TASKS`] tasks. It has no influence on the bits of a result.
fn shared_out(problem: &Problem<'_>, mut query_block: usize, tile_rows: usize) -> usize {
    let Shape { batch, query_heads, queries, .. } = problem.shape;
    while query_block >= 4 * tile_rows && batch * query_heads * queries.div_ceil(query_block) < FEW_TASKS {
        query_block = (query_block / 2).next_multiple_of(tile_rows);
    }
    query_block
}

/// Threads wait for the last task: with this many, not for long on the cores of a small machine. Not the number of
/// threads, as a plan does not depend on who runs it.
const FEW_TASKS: usize = 8;

fn check_outputs(
    problem: &Problem<'_>,
    out: &ViewMut<'_, f32>,
    lse: Option<&[f32]>,
    has_lse: bool,
) -> Result<(), Error> {
    let (found, expected) = (out.shape(), problem.shape.out());
    if let Some(i) = (0..4).find(|i| found[*i] != expected[*i]) {
        return Err(Error::Dimension {
            tensor: "out",
            dimension: ["batch", "heads", "rows", "columns"][i],
            found: found[i],
            expected: expected[i],
            reason: "q with the columns of v",
        });
    }
    let Some(lse) = lse else { return Ok(()) };
    if !has_lse {
        return Err(Error::NoMeaning {
            option: "a log-sum-exp",
            weighting: problem.options.weighting.name(),
            reason: "its weights are not exponentials",
        });
    }
    let expected = problem.shape.rows();
    if lse.len() != expected {
        return Err(Error::Length { list: "lse", found: lse.len(), expected, reason: "one for each row of q" });
    }
    Ok(())
}

impl Key {
    fn of(problem: &Problem<'_>, isa: Isa) -> Self {
        Self {
            shape: problem.shape,
            isa,
            family: problem.options.weighting.family(),
            mask: problem.mask_class(),
            kind: problem.weighting.kind(),
            numerics: problem.options.numerics,
        }
    }

    fn class(&self) -> Class {
        let Self { shape, isa, family, mask, .. } = *self;
        Class {
            isa: isa.name().to_owned(),
            dtype: DTYPE.to_owned(),
            family,
            mask,
            head_dim: shape.head_dim,
            value_dim: shape.value_dim,
            keys: shape.keys,
            queries: shape.queries,
        }
    }
}

/// The element type of all tensors.
const DTYPE: &str = "f32";

/// Whether kernels take the blocks of a configuration. Files are checked when they are loaded, but a profile may also have
/// been made by hand.
fn has_blocks(config: &Config) -> bool {
    KEY_BLOCKS.contains(&config.key_block) && config.key_block.is_multiple_of(2) && config.query_block > 0
}

fn kernel_named(level: Level, name: &str) -> Option<&'static Kernel> {
    kernels(level).iter().find(|kernel| kernel.name == name)
}

fn tile_query(kernel: &Kernel, shape: &Shape) -> TileQuery {
    TileQuery {
        lanes_per_tile: kernel.tile.rows,
        keys_per_tile: kernel.tile.keys,
        head_dim: shape.head_dim,
        value_dim: shape.value_dim,
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shape, isa, family, mask, kind, numerics } = self;
        let ties = if *kind == Kind::TiedRows { " of all ties" } else { "" };
        write!(f, "{shape}, {DTYPE}, {} weights{ties}, {} mask, {isa}", family.name(), mask.name())?;
        if *numerics == Numerics::Portable { f.write_str(", portable numerics") } else { Ok(()) }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model => f.write_str("no profile entry for this level: the default kernel, tiles by cache sizes"),
            Self::Portable => f.write_str("portable numerics: a fixed key block, and the default kernel"),
            Self::Profile(entry) => {
                let Class { head_dim, value_dim, keys, queries, .. } = entry.class;
                write!(
                    f,
                    "profile entry d {head_dim}:{value_dim}, {queries} x {keys}: {:.1} GFLOP/s, {:.3} of the peak, {:.3} \
                     of the model's time; {}",
                    entry.gflops, entry.fraction_of_peak, entry.ratio_to_model, entry.why
                )
            }
        }
    }
}

struct Explanation<'a>(&'a Plan);

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { choice, key, reason, tasks, .. } = self.0;
        let tile = choice.kernel.tile;
        writeln!(f, "problem      {key}")?;
        writeln!(
            f,
            "kernel       {}: {} query rows in {} vectors of lanes, {} keys or value columns per register tile",
            choice.kernel.name, tile.rows, tile.vectors, tile.keys
        )?;
        writeln!(f, "key block    {} keys (decides the order of summation)", choice.key_block)?;
        writeln!(f, "query block  {} rows: {tasks} tasks, shared by the threads", choice.query_block)?;
        if choice.copy {
            writeln!(f, "copy         K and V block by block: their rows are a multiple of 4096 bytes apart")?;
        }
        writeln!(f, "workspace    {} bytes per thread", self.0.workspace_bytes(1))?;
        write!(f, "why          {reason}")
    }
}
