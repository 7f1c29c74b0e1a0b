//! What a plan says of itself.

use std::fmt;

use regard_kernels::Reading;
use regard_kernels::table::rows_kernel;
use regard_kernels::tensor::Dtype;
use regard_profile::Class;

use super::Plan;
use crate::Form;
use crate::options::{Native, Numerics};

pub(super) struct Explanation<'a>(pub(super) &'a Plan);

/// Why these kernels and tiles, in one line.
pub(super) struct Why<'a>(pub(super) &'a Plan);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.0;
        if plan.key.numerics == Numerics::Portable {
            return f.write_str("portable numerics: a fixed key block, and the default kernel");
        }
        let Some(entry) = plan.profile_entry() else {
            return f.write_str("no profile entry for this level: the default kernel, tiles by cache sizes");
        };
        let Class { head_dim, value_dim, keys, queries, .. } = entry.class;
        write!(
            f,
            "profile entry d {head_dim}:{value_dim}, {queries} x {keys}: {:.1} GFLOP/s, {:.3} of the peak, {:.3} \
             of the model's time",
            entry.gflops, entry.fraction_of_peak, entry.ratio_to_model
        )?;
        if let Some([low, high]) = entry.ratio_interval {
            write!(f, " ({low:.3} to {high:.3})")?;
        }
        write!(f, "; {}", entry.why)
    }
}

impl Explanation<'_> {
    fn lanes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { choice, key, .. } = self.0;
        let tile = choice.kernel.tile;
        writeln!(
            f,
            "kernel       {}: {} query rows in {} vectors of lanes, {} keys or value columns per register tile",
            choice.kernel.name, tile.rows, tile.vectors, tile.keys
        )?;
        writeln!(f, "key block    {} keys (decides the order of summation)", choice.key_block)?;
        writeln!(f, "query block  {} rows", choice.query_block)?;
        if choice.copy {
            writeln!(f, "copy         K and V block by block: their rows are a multiple of 4096 bytes apart")?;
        } else if key.kv_dtype != Dtype::F32 && choice.kernel.dtype == Dtype::F32 {
            writeln!(f, "copy         K and V block by block, widened to f32")?;
        }
        Ok(())
    }

    /// Whether the machine could multiply pairs of bf16 and does not, as the model says that widening is faster.
    fn spares_bf16(&self) -> bool {
        let Plan { choice, key, uses: [rows, lanes, _], .. } = self.0;
        let has = rows_kernel(choice.level, key.kv_dtype, 1, |_| true).extension.is_some();
        let widens =
            *lanes && choice.kernel.extension.is_none() || (*rows || !lanes) && choice.rows.extension.is_none();
        key.native == Native::WherePays && has && widens
    }

    fn linear(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { linear: Some(method), key, uses: [rows, lanes, _], .. } = self.0 else { return Ok(()) };
        let features = method.features.count();
        let why = match key.form {
            Form::Linear => "as asked for",
            _ if key.gated => "which gates need",
            _ if *rows || *lanes => "where it takes less time by counting multiply-adds, as measured on Zen 4",
            _ => "which takes less time by counting multiply-adds, as measured on Zen 4",
        };
        writeln!(f, "form         linear, {why}: {features} monomials of d {}", method.features.d())?;
        writeln!(
            f,
            "kernel       {}: {} query rows share each load of the sums over keys",
            method.kernel.name, method.kernel.lanes
        )?;
        writeln!(f, "chunk        {} keys, quadratic within (decides the order of summation)", method.chunk)
    }

    fn rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let choice = &self.0.choice;
        let both = self.0.uses[..2] == [true; 2];
        let whom = if both { format!(", for sequences of up to {} queries", choice.rows_up_to) } else { String::new() };
        writeln!(
            f,
            "kernel       {}: keys and values read once for all queries and heads that share them, up to {} rows at a \
             time{whom}",
            choice.rows.name, choice.rows.group
        )?;
        writeln!(f, "key block    {} keys (decides the order of summation)", choice.rows_key_block)?;
        let shape = &self.0.key.shape;
        let group = shape.query_heads / shape.kv_heads.max(1);
        let Reading { turn, ahead } = choice.prefetch.reading(group.saturating_mul(shape.queries));
        f.write_str("memory       ")?;
        match turn {
            0 => f.write_str("the keys of a block, then its values")?,
            bytes => write!(f, "values in turns with the keys of the next block, {bytes} bytes of them")?,
        }
        match ahead {
            0 => writeln!(f, "; left to the processor's prefetching"),
            bytes => writeln!(f, "; asked for {bytes} bytes ahead"),
        }
    }
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { choice, key, uses: [rows, lanes, linear], .. } = self.0;
        writeln!(f, "problem      {key}")?;
        if *linear {
            self.linear(f)?;
        }
        let forms = key.form == Form::Quadratic || key.series.is_some();
        if forms && !linear {
            let why = if key.form == Form::Quadratic {
                "as asked for"
            } else {
                "which takes less time by counting multiply-adds, as measured on Zen 4"
            };
            writeln!(f, "form         quadratic, {why}")?;
        }
        if *linear && !rows && !lanes {
            writeln!(f, "tasks        {}, shared by the threads", self.0.tasks())?;
            return write!(f, "workspace    {} bytes per thread", self.0.workspace_bytes(1));
        }
        if *lanes {
            self.lanes(f)?;
        }
        if *rows || !lanes {
            self.rows(f)?;
        }
        if self.spares_bf16() {
            writeln!(
                f,
                "bf16         widened, as this processor multiplies pairs of bf16 more slowly than f32 (native_half asks for \
                 it all the same)"
            )?;
        }
        let key_block = self.0.key_block();
        let span = choice.split.span(key.shape.queries, key.shape.keys, key_block);
        if span < key.shape.keys {
            writeln!(
                f,
                "spans        {span} keys, computed apart and merged in order (decides the order of summation)"
            )?;
        }
        match self.0.ignores_index {
            Some(why) => writeln!(f, "index        of no use: {why}")?,
            None if key.indexed => writeln!(f, "index        leaves out blocks of keys where it can")?,
            None => {}
        }
        writeln!(f, "tasks        {}, shared by the threads", self.0.tasks())?;
        writeln!(f, "workspace    {} bytes per thread", self.0.workspace_bytes(1))?;
        write!(f, "why          {}", Why(self.0))
    }
}
