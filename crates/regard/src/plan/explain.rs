//! What a plan says of itself.

use std::fmt;

use regard_kernels::Reading;
use regard_kernels::launch::{Few, RowsChoice};
use regard_kernels::table::rows_kernels_for;
use regard_kernels::tensor::Dtype;
use regard_profile::Class;

use super::{Plan, Uses};
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
        if let Some(Few { kernel, below }) = choice.few {
            writeln!(f, "few          {}, for sequences of fewer than {below} queries", kernel.name)?;
        }
        writeln!(f, "key block    {} keys (decides the order of summation)", choice.key_block)?;
        writeln!(f, "query block  {} rows", choice.query_block)?;
        if choice.kernel.dtype == Dtype::F32 && choice.kernel.extension.is_some() {
            writeln!(
                f,
                "split        K and V block by block, into parts of bf16, whose products on tile registers add up to f32"
            )?;
        } else if choice.copy {
            writeln!(f, "copy         K and V block by block: their rows are a multiple of 4096 bytes apart")?;
        } else if key.kv_dtype != Dtype::F32 && choice.kernel.dtype == Dtype::F32 {
            writeln!(f, "copy         K and V block by block, widened to f32")?;
        }
        Ok(())
    }

    /// Whether the machine could multiply pairs of bf16 and does not, as the model says that widening is faster.
    fn spares_bf16(&self) -> bool {
        let Plan { choice, key, uses, .. } = self.0;
        let has = rows_kernels_for(choice.level, key.kv_dtype, |_| true)[0].native;
        let widens = uses.lanes && choice.kernel.extension.is_none()
            || self.used_rows().any(|which| !choice.rows[which].kernel.native);
        key.native == Native::WherePays && has && widens
    }

    fn linear(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { linear: Some(method), key, uses, .. } = self.0 else { return Ok(()) };
        let features = method.features.count();
        let why = match key.form {
            Form::Linear => "as asked for",
            _ if key.gated => "which gates need",
            _ if uses.quadratic() => "where it takes less time by counting multiply-adds, as measured on Zen 4",
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

    /// Which rows kernels to speak of: one at least, where there are no queries at all.
    fn used_rows(&self) -> impl Iterator<Item = usize> + use<> {
        let Uses { rows, lanes, .. } = self.0.uses;
        (0..2).filter(move |which| rows[*which] || *which == 0 && !lanes && rows == [false; 2])
    }

    fn rows(&self, which: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { choice, key, uses, .. } = self.0;
        let RowsChoice { kernel, key_block, up_to, prefetch } = choice.rows[which];
        let group = key.shape.group().max(1);
        // The most queries that are computed by the first one.
        let few = choice.rows[1].kernel.least_rows.saturating_sub(1) / group;
        let alone = [uses.rows[0], uses.rows[1], uses.lanes].into_iter().filter(|used| *used).count() < 2;
        let whom = match [few, up_to] {
            _ if alone => String::new(),
            [1, _] if which == 0 => ", for sequences of one query".to_owned(),
            [few, up_to] if which == 0 => format!(", for sequences of up to {} queries", few.min(up_to)),
            [0, up_to] => format!(", for sequences of up to {up_to} queries"),
            [few, usize::MAX] => format!(", for sequences of more than {few} queries"),
            [few, up_to] => format!(", for sequences of {} to {up_to} queries", few + 1),
        };
        writeln!(
            f,
            "kernel       {}: keys and values read once for all queries and heads that share them, up to {} rows at a \
             time{whom}",
            kernel.name, kernel.group
        )?;
        writeln!(f, "key block    {key_block} keys (decides the order of summation)")?;
        let most = if which == 0 { few.min(up_to) } else { up_to };
        let Reading { turn, ahead } = prefetch.reading(group.saturating_mul(key.shape.queries.min(most)));
        f.write_str("memory       ")?;
        match turn {
            0 => f.write_str("the keys of a block, then its values")?,
            1 => f.write_str("values in turns with the keys of the next block, a few at a time")?,
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
        let Plan { choice, key, uses, .. } = self.0;
        writeln!(f, "problem      {key}")?;
        if uses.linear {
            self.linear(f)?;
        }
        let forms = key.form == Form::Quadratic || key.series.is_some();
        if forms && !uses.linear {
            let why = if key.form == Form::Quadratic {
                "as asked for"
            } else {
                "which takes less time by counting multiply-adds, as measured on Zen 4"
            };
            writeln!(f, "form         quadratic, {why}")?;
        }
        if *uses == Uses::LINEAR_ALONE {
            writeln!(f, "tasks        {}, shared by the threads", self.0.tasks())?;
            return write!(f, "workspace    {} bytes per thread", self.0.workspace_bytes(1));
        }
        if uses.lanes {
            self.lanes(f)?;
        }
        for which in self.used_rows() {
            self.rows(which, f)?;
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
