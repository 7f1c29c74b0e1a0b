//! The search on landscapes that are known, with noise that is known.

use regard_profile::{Class, Family, MaskClass};

use super::super::rounds::Noise;
use super::*;

/// A machine that takes a known time for each candidate.
struct Synthetic {
    /// Seconds by contest and candidate; infinite for a candidate whose results are wrong.
    truth: Vec<Vec<f64>>,
    random: Random,
    /// The standard deviation of a sample, and of the slowness that all samples of a while share.
    noise: [f64; 2],
    slow: f64,
    elapsed: f64,
    /// Stops at this time.
    stop: f64,
    /// Every such canary is a disturbance.
    disturbed_every: usize,
    canaries: usize,
}

impl Synthetic {
    fn new(truth: Vec<Vec<f64>>, seed: u64, noise: [f64; 2]) -> Self {
        let random = Random::new(seed);
        Self { truth, random, noise, slow: 1.0, elapsed: 0.0, stop: f64::INFINITY, disturbed_every: 0, canaries: 0 }
    }

    /// One-sided, as the noise of machines is: nothing is ever faster than it can be.
    fn factor(&mut self, deviation: f64) -> f64 {
        let uniform = (self.random.bits() >> 11) as f64 / (1_u64 << 53) as f64;
        1.0 - deviation * (1.0 - uniform).ln()
    }
}

impl Sampler for Synthetic {
    fn verify(&mut self, contest: usize, candidate: usize) -> Result<(), String> {
        self.elapsed += 1e-3;
        if self.truth[contest][candidate].is_finite() { Ok(()) } else { Err("gave 0 for 1".to_owned()) }
    }

    fn sample(&mut self, contest: usize, candidate: usize) -> f64 {
        let seconds = self.truth[contest][candidate] * self.slow * self.factor(self.noise[0]);
        assert!(seconds.is_finite(), "a wrong candidate is timed");
        self.elapsed += seconds.max(1e-3);
        seconds
    }

    fn canary(&mut self) -> f64 {
        self.canaries += 1;
        self.elapsed += 3e-3;
        self.slow = self.factor(self.noise[1]);
        100.0 / self.slow
    }

    fn disturbance(&mut self) -> Option<String> {
        let disturbed = self.disturbed_every > 0 && self.canaries.is_multiple_of(self.disturbed_every);
        disturbed.then(|| "the quota of this container throttled it".to_owned())
    }

    fn elapsed(&self) -> f64 {
        self.elapsed
    }

    fn stopped(&self) -> bool {
        self.elapsed > self.stop
    }
}

fn class(head_dim: usize, queries: usize) -> Class {
    Class {
        isa: "any".to_owned(),
        dtype: "f32".to_owned(),
        family: Family::Exponential,
        mask: MaskClass::Full,
        head_dim,
        value_dim: head_dim,
        keys: 1024,
        queries,
    }
}

const KERNELS: [&str; 3] = ["any_lanes_f32_2x8", "any_lanes_f32_2x12", "any_lanes_f32_1x16"];
const KEY_BLOCKS: [usize; 4] = [240, 96, 192, 384];
const QUERY_BLOCKS: [usize; 5] = [256, 32, 64, 128, 512];

fn lanes(head_dim: usize) -> Contest {
    let config = |kernel: &str, key_block, query_block| Config::new(kernel, key_block, query_block);
    let mut candidates = Vec::new();
    for kernel in KERNELS {
        for key_block in KEY_BLOCKS {
            candidates.extend(QUERY_BLOCKS.map(|query_block| config(kernel, key_block, query_block)));
        }
    }
    let predicted = vec![1.0; candidates.len()];
    let class = class(head_dim, 1024);
    Contest { role: Role::Lanes, class, flops: 1e9, bytes: 0.0, dots: false, candidates, predicted }
}

/// Seconds of a candidate, smooth in its blocks: what is best is at `key_block` and `query_block`.
fn seconds(config: &Config, kernels: [f64; 3], key_block: usize, query_block: usize) -> f64 {
    let octaves = |a: usize, b: usize| (a as f64 / b as f64).log2().abs();
    let of_kernel = kernels[KERNELS.iter().position(|name| *name == config.kernel).unwrap()];
    4e-3 * of_kernel
        * (1.0 + 0.01 * octaves(config.key_block, key_block) + 0.02 * octaves(config.query_block, query_block))
}

/// Ten classes, whose best query blocks and kernels differ, and whose best key block is 192 for all.
fn landscape() -> (Vec<Contest>, Vec<Vec<f64>>) {
    let contests: Vec<Contest> = (0..10).map(|i| lanes(32 + 8 * i)).collect();
    let truth = contests.iter().enumerate().map(|(i, contest)| {
        let kernels = [[1.0, 1.03, 1.4], [1.05, 1.0, 1.2], [1.02, 1.06, 1.0]][i % 3];
        let query_block = QUERY_BLOCKS[(2 * i) % 5];
        contest.candidates.iter().map(|config| seconds(config, kernels, 192, query_block)).collect()
    });
    let truth = truth.collect();
    (contests, truth)
}

fn run(contests: &[Contest], sampler: &mut Synthetic, budget: f64) -> Outcome {
    Tournament::new(contests, sampler, budget, 7, &mut |_| ()).run()
}

/// Time of each winner over the least of its class with the same key block.
fn regrets(contests: &[Contest], truth: &[Vec<f64>], outcome: &Outcome) -> Vec<f64> {
    let winners = outcome.winners.iter().enumerate().filter_map(|(i, winner)| Some((i, winner.as_ref()?)));
    let regret = |(i, winner): (usize, &Winner)| {
        let key_block = contests[i].candidates[winner.candidate].key_block;
        let with = |other: &usize| contests[i].candidates[*other].key_block == key_block;
        let best = (0..truth[i].len()).filter(with).map(|other| truth[i][other]).fold(f64::INFINITY, f64::min);
        truth[i][winner.candidate] / best - 1.0
    };
    winners.map(regret).collect()
}

#[test]
fn the_best_is_found_under_noise() {
    let (contests, truth) = landscape();
    let mut all = Vec::new();
    for seed in 0..20 {
        let mut sampler = Synthetic::new(truth.clone(), seed, [0.02, 0.03]);
        let outcome = run(&contests, &mut sampler, 30.0);
        assert!(outcome.winners.iter().all(Option::is_some), "seed {seed}");
        assert!(sampler.elapsed < 32.0, "{} s", sampler.elapsed);
        let found = regrets(&contests, &truth, &outcome);
        for (i, winner) in outcome.winners.iter().enumerate() {
            // Candidate 0 is the model's: nobody loses to it by more than noise.
            let winner = winner.as_ref().unwrap();
            assert!(truth[i][winner.candidate] <= 1.006 * truth[i][0], "seed {seed}, contest {i}: {winner:?}");
        }
        all.extend(found);
    }
    let [median, p95] = [0.5, 0.95].map(|p| crate::stats::quantile(&all, p));
    println!("regret {median:.4} median, {p95:.4} at 95 %");
    assert!(median <= 0.005 && p95 <= 0.015, "{median} {p95}");
}

#[test]
fn the_key_block_is_one_for_all() {
    let (contests, truth) = landscape();
    let mut sampler = Synthetic::new(truth, 3, [0.005, 0.01]);
    let outcome = run(&contests, &mut sampler, 60.0);
    let key_block = |i: usize| contests[i].candidates[outcome.winners[i].as_ref().unwrap().candidate].key_block;
    assert!((1..contests.len()).all(|i| key_block(i) == key_block(0)));

    // 384 gains a tenth in one class and loses a tenth in another: the model's stays.
    let truth = contests.iter().enumerate().map(|(i, contest)| {
        let best = if i == 0 { 384 } else { 240 };
        let off = |config: &Config| if config.key_block == best { 1.0 } else { 1.1 };
        contest.candidates.iter().map(|config| 4e-3 * off(config)).collect()
    });
    let mut sampler = Synthetic::new(truth.collect(), 3, [0.005, 0.01]);
    let outcome = run(&contests, &mut sampler, 60.0);
    let key_block = |i: usize| contests[i].candidates[outcome.winners[i].as_ref().unwrap().candidate].key_block;
    assert!((0..contests.len()).all(|i| key_block(i) == 240));
}

#[test]
fn near_ties_leave_the_models_pick() {
    let (contests, _) = landscape();
    let mut others = 0;
    for seed in 0..10 {
        let truth = contests.iter().map(|contest| vec![4e-3; contest.candidates.len()]).collect();
        let outcome = run(&contests, &mut Synthetic::new(truth, seed, [0.02, 0.03]), 30.0);
        others += outcome.winners.iter().flatten().filter(|winner| winner.candidate != 0).count();
    }
    assert!(others <= 5, "{others} of 100 choices were made by noise");
}

#[test]
fn wrong_candidates_are_never_timed() {
    let (contests, mut truth) = landscape();
    // The fastest of the first class is wrong.
    let best = (1..truth[0].len()).min_by(|a, b| truth[0][*a].total_cmp(&truth[0][*b])).unwrap();
    truth[0][best] = f64::INFINITY;
    let outcome = run(&contests, &mut Synthetic::new(truth.clone(), 1, [0.01, 0.01]), 30.0);
    assert_ne!(outcome.winners[0].as_ref().unwrap().candidate, best);
    // The model's pick is wrong: there is nothing to stand by, and no entry.
    truth[1][0] = f64::INFINITY;
    let outcome = run(&contests[1..2], &mut Synthetic::new(truth[1..2].to_vec(), 1, [0.01, 0.01]), 30.0);
    assert_eq!(outcome.winners, [None]);
    assert!(outcome.notes.iter().any(|note| note.contains("gave 0 for 1")));
}

#[test]
fn it_ends_when_it_is_told_to_and_what_it_has_is_valid() {
    let (contests, truth) = landscape();
    for stop in [0.0, 0.5, 3.0, 8.0] {
        let mut sampler = Synthetic { stop, ..Synthetic::new(truth.clone(), 1, [0.01, 0.01]) };
        let outcome = run(&contests, &mut sampler, 30.0);
        assert!(sampler.elapsed < stop + 1.0, "{} after {stop}", sampler.elapsed);
        let reached = outcome.winners.iter().flatten().count();
        let again =
            Tournament::new(&contests, &mut Synthetic::new(truth.clone(), 2, [0.01, 0.01]), 30.0, 7, &mut |_| ())
                .settled(outcome.winners.clone(), outcome.crossovers.clone())
                .run();
        assert_eq!(again.winners.iter().flatten().count(), contests.len());
        for (before, after) in outcome.winners.iter().zip(&again.winners) {
            assert!(before.is_none() || before == after, "{reached} were settled");
        }
        let key_block = |i: usize| contests[i].candidates[again.winners[i].as_ref().unwrap().candidate].key_block;
        assert!((1..contests.len()).all(|i| key_block(i) == key_block(0)), "stopped at {stop}");
    }
}

#[test]
fn disturbed_rounds_are_repeated_within_bounds() {
    let (contests, truth) = landscape();
    let mut sampler = Synthetic { disturbed_every: 2, ..Synthetic::new(truth, 1, [0.01, 0.0]) };
    let mut noise = Noise::default();
    let limit = Limit { least: 6, most: 6, until: 1e9 };
    let found = rounds(&mut sampler, 0, &[0, 1, 2], limit, &mut Random::new(1), &mut noise);
    // Every second round was disturbed; two of six may be repeated.
    assert_eq!((found.count(), noise.rounds), (6, 8));
    assert_eq!(noise.disturbed, 4);
    assert_eq!(noise.reasons.len(), 1);
    let _ = contests;
}

#[test]
fn the_crossover_is_where_the_lanes_kernel_wins() {
    let crossing = |queries: usize| {
        let config = |kernel: &str, query_block| Config::new(kernel, 64, query_block);
        let candidates = vec![config("any_rows_f32", 8), config(KERNELS[0], 32)];
        let class = class(128, queries);
        Contest {
            role: Role::Crossing,
            class,
            flops: 1e9,
            bytes: 0.0,
            dots: false,
            candidates,
            predicted: vec![1.0; 2],
        }
    };
    let contests: Vec<Contest> = [8, 12, 16, 24].map(crossing).into();
    let found = |rows: [f64; 4]| {
        let truth = rows.map(|rows| vec![rows * 4e-3, 4e-3]).to_vec();
        let outcome = run(&contests, &mut Synthetic::new(truth, 1, [0.01, 0.01]), 10.0);
        assert_eq!(outcome.crossovers.len(), 1);
        outcome.crossovers[0].rows_up_to
    };
    assert_eq!(found([0.5, 0.8, 1.2, 1.5]), 15);
    assert_eq!(found([0.5, 0.8, 0.9, 1.5]), 23);
    assert_eq!(found([0.5, 0.7, 0.8, 0.9]), 31);
    assert_eq!(found([0.9, 1.1, 1.2, 1.5]), 11);
    assert_eq!(found([1.1, 1.2, 1.3, 1.5]), 7);
}

#[test]
fn what_won_elsewhere_is_timed_here() {
    let (contests, truth) = landscape();
    let outcome = run(&contests, &mut Synthetic::new(truth.clone(), 1, [0.01, 0.01]), 60.0);
    let winners: BTreeSet<usize> = outcome.winners.iter().flatten().map(|winner| winner.candidate).collect();
    assert!(winners.len() > 1);
    for (i, winner) in outcome.winners.iter().enumerate() {
        let winner = winner.as_ref().unwrap();
        assert_eq!(winner.rivals.len(), winners.len() - 1);
        for (rival, ratio) in &winner.rivals {
            let expected = truth[i][*rival] / truth[i][winner.candidate];
            assert!((ratio / expected - 1.0).abs() < 0.03, "{ratio} for {expected}");
        }
    }
}

#[test]
fn key_blocks_that_were_judged_leave_a_trial() {
    let (contests, _) = landscape();
    let truth: Vec<Vec<f64>> = contests
        .iter()
        .map(|contest| contest.candidates.iter().map(|config| seconds(config, [1.0, 1.1, 1.2], 192, 256)).collect())
        .collect();
    // Steady enough that 192 is found to be the best.
    let outcome = run(&contests, &mut Synthetic::new(truth, 3, [0.0, 0.0]), 300.0);
    let won = &contests[0].candidates[outcome.winners[0].as_ref().unwrap().candidate];
    let trials = outcome.trials.iter().find(|trials| trials.class == contests[0].class).unwrap();
    let out: Vec<_> = trials.trials.iter().filter(|trial| trial.fate == Fate::KeyBlock).collect();
    let mut blocks: Vec<usize> = out.iter().map(|trial| trial.config.key_block).collect();
    blocks.push(won.key_block);
    blocks.sort_unstable();
    assert_eq!(blocks, [96, 192, 240, 384], "each block went out, or won");
    for trial in out {
        let octaves = (trial.config.key_block as f64 / 192.0).log2().abs();
        assert!((trial.ratio.unwrap() - 1.0 - 0.01 * octaves).abs() < 1e-6 && trial.samples >= 2, "{trial:?}");
    }
    let line = serde_json::to_string(trials).unwrap();
    assert_eq!(&serde_json::from_str::<Trials>(&line).unwrap(), trials);
}

#[test]
fn a_key_block_that_is_left_to_the_model_says_so() {
    let rows = |queries| Contest {
        role: Role::Rows,
        class: class(128, queries),
        candidates: [64, 128, 256].map(|key_block| Config::new("any_rows_f32", key_block, 8)).into(),
        predicted: vec![1.0; 3],
        ..lanes(128)
    };
    let why = |contests: &[Contest]| {
        let truth = vec![vec![4e-3; 3]; contests.len()];
        let outcome = run(contests, &mut Synthetic::new(truth, 1, [0.0, 0.0]), 30.0);
        outcome.winners[0].as_ref().unwrap().why.clone()
    };
    let alone = why(&[rows(1)]);
    assert!(alone.contains("no rival") && alone.contains("left to the model: one class"), "{alone}");
    let both = why(&[rows(1), rows(4)]);
    assert!(!both.contains("left to the model"), "{both}");
}
