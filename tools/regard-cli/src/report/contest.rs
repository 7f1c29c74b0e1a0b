//! Weightings, levels and block sizes: all ways of doing the same take turns.

use regard::{Level, Setup};
use regard_kernels::table::{KEY_BLOCKS, kernels};
use regard_profile::{Class, Confidence, Config, Entry, Profile, Run, Tool};
use regard_tuner::measure::{Budget, FmaProbe, RoundRobin, round_robin_within};
use regard_tuner::shapes::Weights;

use super::data::{Contest, Elsewhere, Heat, Way};
use super::entrant::{Entrant, Shared};
use crate::bench::parse;
use crate::error::CliError;

/// Every weighting, against ReLU, which is the cheapest function of a score.
pub(super) fn weightings(options: &str, setup: &Setup, canary: &FmaProbe, budget: Budget) -> Result<Contest, CliError> {
    let ways = Weights::ALL.map(|weights| (weights.name().to_owned(), weights.options()));
    contest("weightings", Weights::Relu.name(), options, &ways, setup, canary, budget)
}

/// Every level up to the one in use, against that.
pub(super) fn levels(options: &str, setup: &Setup, canary: &FmaProbe, budget: Budget) -> Result<Contest, CliError> {
    let levels = Level::available().iter().map(|level| level.isa()).filter(|isa| *isa <= setup.level.isa());
    let ways: Vec<_> = levels.map(|isa| (isa.to_string(), format!("--isa {isa}"))).collect();
    contest("levels", setup.level.isa().name(), options, &ways, setup, canary, budget)
}

fn contest(
    name: &str,
    base: &str,
    options: &str,
    ways: &[(String, String)],
    setup: &Setup,
    canary: &FmaProbe,
    budget: Budget,
) -> Result<Contest, CliError> {
    let shared = Shared::new(&parse(options)?)?;
    let entrant = |(_, more): &(String, String)| Entrant::new(&shared, &parse(&format!("{options} {more}"))?, setup);
    let mut entrants = ways.iter().map(entrant).collect::<Result<Vec<_>, _>>()?;
    let errors = entrants.iter_mut().map(|entrant| Ok(entrant.check()?.max_abs_error));
    let errors = errors.collect::<Result<Vec<f64>, CliError>>()?;
    let flops = entrants[0].flops();
    let found = take_turns(&mut entrants, canary, budget);
    let base_index = ways.iter().position(|(way, _)| way == base).unwrap_or(0);
    let way = |(index, ((name, _), max_abs_error)): (usize, (&(String, String), f64))| {
        let comparison = found.comparison(index, base_index);
        Way {
            name: name.clone(),
            gflops: flops / comparison.a_seconds / 1e9,
            cost: comparison.speedup,
            low: comparison.interval.low,
            high: comparison.interval.high,
            max_abs_error,
        }
    };
    Ok(Contest {
        name: name.to_owned(),
        options: options.to_owned(),
        base: ways[base_index].0.clone(),
        ways: ways.iter().zip(errors).enumerate().map(way).collect(),
        rounds: found.canaries.len() - 1,
        spread: found.canary_spread(),
    })
}

/// All entrants once per round. They have run before, so that nothing can go wrong.
fn take_turns(entrants: &mut [Entrant<'_>], canary: &FmaProbe, budget: Budget) -> RoundRobin {
    /// Fixed: the order of the rounds is the same in every report.
    const SEED: u64 = 1;
    let mut runs: Vec<_> = entrants.iter_mut().map(|entrant| || drop(entrant.run())).collect();
    round_robin_within(canary, &mut runs, budget, SEED)
}

/// Every pair of block sizes of a class, with the kernel that is used for it.
pub(super) fn heat(options: &str, setup: &Setup, canary: &FmaProbe, budget: Budget) -> Result<Heat, CliError> {
    let case = parse(options)?;
    let shared = Shared::new(&case)?;
    let modelled = Entrant::new(&shared, &case, &setup.without_profile())?.plan;
    let (kernel, class) = (modelled.kernel(), modelled.class().clone());
    let tile = kernels(setup.level).iter().find(|other| other.name == kernel).map_or(1, |kernel| kernel.tile.rows);
    // A block that holds all queries is as good as any larger one.
    let most = class.queries.next_multiple_of(tile);
    let blocks = |query_block: usize, key_block: usize| [query_block.min(most), key_block];
    let model = blocks(modelled.query_block(), modelled.key_block());
    let profiled = Some(Entrant::new(&shared, &case, setup)?).filter(|entrant| entrant.plan.profile_entry().is_some());
    let (on_map, mut off_map) = match profiled {
        Some(entrant) if entrant.plan.kernel() != kernel => (None, Some(entrant)),
        other => (other, None),
    };
    let tuned = on_map.map(|Entrant { plan, .. }| blocks(plan.query_block(), plan.key_block()));
    let picks = [Some(model), tuned];
    let steps = |list: Vec<usize>, which: usize| {
        let mut list: Vec<usize> = list.into_iter().chain(picks.iter().flatten().map(|pick| pick[which])).collect();
        list.sort_unstable();
        list.dedup();
        list
    };
    let query_blocks =
        steps([1, 2, 4, 8, 16].map(|tiles| tiles * tile).into_iter().filter(|rows| *rows <= most).collect(), 0);
    let keys = [48, 96, 144, 192, 288, 384, 576].into_iter().filter(|keys| KEY_BLOCKS.contains(keys));
    let key_blocks = steps(keys.collect(), 1);

    let mut entrants = Vec::new();
    let mut max_abs_error = 0.0_f64;
    for query_block in &query_blocks {
        for key_block in &key_blocks {
            let config = Config::new(kernel, *key_block, *query_block);
            let mut entrant = Entrant::new(&shared, &case, &with_config(setup, &class, config))?;
            max_abs_error = max_abs_error.max(entrant.check()?.max_abs_error);
            entrants.push(entrant);
        }
    }
    let flops = entrants[0].flops();
    if let Some(entrant) = &mut off_map {
        max_abs_error = max_abs_error.max(entrant.check()?.max_abs_error);
    }
    let off_plan = off_map.as_ref().map(|entrant| entrant.plan.clone());
    entrants.extend(off_map);
    let found = take_turns(&mut entrants, canary, budget);
    let mut medians = found.medians();
    let off_map = off_plan.and_then(|plan| Some((plan, medians.pop()?)));
    let (best, least) = medians.iter().enumerate().min_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap_or((0, &1.0));
    let columns = key_blocks.len();
    Ok(Heat {
        options: options.to_owned(),
        kernel: kernel.to_owned(),
        slowdown: medians.chunks(columns).map(|row| row.iter().map(|seconds| seconds / least).collect()).collect(),
        model,
        tuned,
        elsewhere: off_map.map(|(plan, seconds)| Elsewhere {
            kernel: plan.kernel().to_owned(),
            blocks: [plan.query_block(), plan.key_block()],
            slowdown: seconds / least,
        }),
        best: [query_blocks[best / columns], key_blocks[best % columns]],
        gflops: flops / least / 1e9,
        rounds: found.canaries.len() - 1,
        max_abs_error,
        key_blocks,
        query_blocks,
    })
}

/// The machine with a profile that says this configuration for everything.
fn with_config(setup: &Setup, class: &Class, config: Config) -> Setup {
    let run =
        Run { unix_time: 0, seconds: 0.0, mode: "map".to_owned(), confidence: Confidence::Low, notes: Vec::new() };
    let entry = Entry {
        class: class.clone(),
        config,
        gflops: 0.0,
        fraction_of_peak: 0.0,
        ratio_to_model: 1.0,
        ratio_interval: None,
        samples: 0,
        runner_up: None,
        rivals: Vec::new(),
        why: String::new(),
    };
    let mut profile = Profile::new(Tool::default(), setup.machine.clone(), run);
    profile.entries.push(entry);
    Setup { profile: Some(profile.into()), ..setup.clone() }
}

#[cfg(test)]
mod tests {
    use regard::Dtype;

    use super::*;
    use crate::setup::detect;

    #[test]
    fn every_block_is_timed_and_the_model_is_among_them() {
        let setup = detect(true).unwrap();
        let canary = FmaProbe::new(setup.level);
        let options = "--heads 8 --queries 64 --keys 96 --head-dim 16";
        let map = heat(options, &setup, &canary, Budget::rounds(1)).unwrap();
        assert_eq!(map.slowdown.len(), map.query_blocks.len());
        assert!(map.slowdown.iter().all(|row| row.len() == map.key_blocks.len()));
        assert!(map.slowdown.iter().flatten().all(|slowdown| *slowdown >= 1.0));
        assert_eq!((map.slowdown_of(map.best), map.tuned, &map.elsewhere), (Some(1.0), None, &None));
        assert!(super::super::page::picks(&map).contains("There is no profile"));
        assert!(map.slowdown_of(map.model).is_some() && map.max_abs_error < 1e-5);
    }

    #[test]
    fn a_profile_with_another_kernel_is_timed_too() {
        let setup = detect(true).unwrap();
        let canary = FmaProbe::new(setup.level);
        let options = "--heads 8 --queries 64 --keys 96 --head-dim 16 --no-f32-on-tiles";
        let case = parse(options).unwrap();
        let plan = Entrant::new(&Shared::new(&case).unwrap(), &case, &setup).unwrap().plan;
        let other = |kernel: &&regard_kernels::table::Kernel| {
            kernel.dtype == Dtype::F32 && kernel.extension.is_none() && kernel.name != plan.kernel()
        };
        let Some(other) = kernels(setup.level).iter().find(other) else { return };
        let setup = with_config(&setup, &plan.class(), Config::new(other.name, plan.key_block(), plan.query_block()));
        let map = heat(options, &setup, &canary, Budget::rounds(1)).unwrap();
        let elsewhere = map.elsewhere.as_ref().unwrap();
        assert_eq!((&*elsewhere.kernel, elsewhere.blocks[1], map.tuned), (other.name, plan.key_block(), None));
        assert!(elsewhere.slowdown > 0.0 && map.kernel == plan.kernel());
        assert_eq!(map.slowdown.iter().map(Vec::len).sum::<usize>(), map.query_blocks.len() * map.key_blocks.len());
        assert!(super::super::page::picks(&map).contains(other.name));
    }

    #[test]
    fn everybody_is_compared_with_the_base() {
        let setup = detect(true).unwrap();
        let canary = FmaProbe::new(setup.level);
        let options = "--heads 1 --queries 32 --keys 48 --head-dim 16";
        let found = weightings(options, &setup, &canary, Budget::rounds(2)).unwrap();
        assert_eq!((found.ways.len(), &*found.base, found.rounds), (11, "relu", 2));
        let relu = found.ways.iter().find(|way| way.name == "relu").unwrap();
        assert_eq!((relu.cost, relu.is_significant()), (1.0, false));
        assert!(found.ways.iter().all(|way| way.low <= way.cost && way.cost <= way.high && way.gflops > 0.0));
        let found = levels(options, &setup, &canary, Budget::rounds(1)).unwrap();
        assert_eq!(found.base, setup.level.isa().name());
    }
}
