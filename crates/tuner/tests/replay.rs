//! The search on records of real machines, where every candidate of every class was timed: how far its choices are from the
//! best one, with samples drawn anew each time.
//!
//! `regard tune --exhaustive --record FILE --dry-run` makes a record. Those here are of a Zen 4 guest with two cores (AMD EPYC,
//! 32 KiB L1d, 1 MiB L2, 32 MiB L3, shared with other machines).
//!
//! A profile has one key block for the lanes kernels and one for the rows kernels of an element type, as a sequence gets the same
//! bits in any company. Regret is therefore told twice: over the best of all candidates of a class, which no profile has for
//! all classes (products of widened bytes at AVX2 want 32 keys where one query reads 8192, and 256 where eight share 2048, by 10
//! and 20 %), and over the best profile, which is what a search can find.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use regard_profile::Machine;
use regard_simd::{Isa, Level};
use regard_tuner::search::{Contest, Effort, Outcome, Record, Role, Search, replay};
use regard_tuner::stats::quantile;

/// Searches of each record.
const SEEDS: u64 = 12;

/// A choice may be slower than the model's by the noise of its decision, and no more.
const NOISE: f64 = 0.01;

fn records() -> Vec<(String, Record)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut found = Vec::new();
    for file in std::fs::read_dir(directory).expect("there are records") {
        let path = file.expect("it can be listed").path();
        if path.extension().is_some_and(|extension| extension == "record") {
            let record = Record::load(&path).unwrap_or_else(|error| panic!("{error}"));
            found.push((path.file_stem().unwrap().to_string_lossy().into_owned(), current(record)));
        }
    }
    assert!(found.len() >= 2, "records of two levels");
    found
}

/// The record with the candidates and predictions of the model as it is now, where this machine has the level. Classes whose
/// choice is a kernel that is newer than the record have no samples of it: they are left out, and nothing else may be.
fn current(record: Record) -> Record {
    let Some(level) = level_of(&record) else { return record };
    let machine: Machine = record.machine.clone();
    let contests = Search::new(level, &machine, Effort::Default).contests();
    let sampled = |kernel: &str| {
        let mut all = record.contests.iter().flat_map(|recorded| &recorded.contest.candidates);
        all.any(|config| config.kernel == kernel)
    };
    let known = contests.iter().filter(|contest| sampled(&contest.candidates[0].kernel)).count();
    let current = record.for_contests(&contests);
    assert_eq!(current.contests.len(), known, "classes whose samples do not have the model's pick");
    assert!(known * 10 >= record.contests.len() * 9, "the record is too old: {known} of {}", record.contests.len());
    current
}

/// The level of a record, if this machine has it: what the model says of it takes its kernels.
fn level_of(record: &Record) -> Option<Level> {
    record.isa.parse::<Isa>().ok().and_then(|isa| Level::of(isa).ok())
}

/// Contests about kernels and blocks, by their index.
fn classes(record: &Record) -> impl Iterator<Item = usize> {
    (0..record.contests.len()).filter(|i| record.contests[*i].contest.role != Role::Crossing)
}

fn truths(record: &Record) -> Vec<Vec<f64>> {
    record.contests.iter().map(|recorded| recorded.truth()).collect()
}

fn best(truth: &[f64]) -> f64 {
    truth.iter().copied().fold(f64::INFINITY, f64::min)
}

fn searched(record: &Record, seconds: f64) -> Vec<Outcome> {
    (0..SEEDS).map(|seed| replay(record, seconds, seed)).collect()
}

/// The regret of every choice, over the best of all candidates of its class and over the best that a profile can have, whose
/// classes share key blocks.
fn regrets(record: &Record, outcomes: &[Outcome]) -> [Vec<f64>; 2] {
    let truths = truths(record);
    let attainable = attainable(record, &truths);
    let over = |best: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let of = |outcome: &Outcome| -> Vec<f64> {
            let of_class = |i: usize| Some(truths[i][outcome.winners[i].as_ref()?.candidate] / best(i) - 1.0);
            classes(record).filter_map(of_class).collect()
        };
        outcomes.iter().flat_map(of).collect()
    };
    [over(&|i| best(&truths[i])), over(&|i| attainable[i])]
}

/// The best times of the best profile: with the key block of each group of classes that loses least where it loses most, of those
/// that lose nowhere to the model's pick by more than noise.
fn attainable(record: &Record, truths: &[Vec<f64>]) -> Vec<f64> {
    let contest = |i: usize| &record.contests[i].contest;
    let group = |i: usize| (contest(i).role, contest(i).class.dtype.clone(), contest(i).class.borrowed().is_wide());
    let with = |i: usize, keys: usize| {
        let times = contest(i).candidates.iter().zip(&truths[i]).filter(|(config, _)| config.key_block == keys);
        times.map(|(_, time)| *time).fold(f64::INFINITY, f64::min)
    };
    let of_class = |i: usize| {
        let members: Vec<usize> = classes(record).filter(|other| group(*other) == group(i)).collect();
        let worst = |keys: usize, of: &dyn Fn(usize) -> f64| {
            members.iter().map(|member| with(*member, keys) / of(*member)).fold(0.0, f64::max)
        };
        let holds = |keys: &usize| worst(*keys, &|member| truths[member][0]) <= 1.0 + NOISE;
        let blocks = contest(i).candidates.iter().map(|config| config.key_block).filter(holds);
        let loss = |keys: usize| worst(keys, &|member| best(&truths[member]));
        let chosen = blocks.min_by(|a, b| loss(*a).total_cmp(&loss(*b)));
        chosen.map_or(truths[i][0], |keys| with(i, keys))
    };
    (0..record.contests.len()).map(of_class).collect()
}

/// Median, 95 % quantile and greatest, in per cent.
fn summary(regrets: &[f64]) -> [f64; 3] {
    [0.5, 0.95, 1.0].map(|p| 100.0 * quantile(regrets, p))
}

#[test]
fn the_models_pick_is_good_without_tuning() {
    for (name, record) in records() {
        if level_of(&record).is_none() {
            eprintln!("SKIPPED: {name}: the model of today is that of kernels which this machine does not have");
            continue;
        }
        let truths = truths(&record);
        for i in classes(&record) {
            let contest = &record.contests[i].contest;
            let loss = truths[i][0] / best(&truths[i]) - 1.0;
            println!("{name}: {:>5.2} % {} {:?}", 100.0 * loss, contest.class, contest.candidates[0]);
            assert!(loss <= 0.1, "{name}: the model loses {:.1} % at {}", 100.0 * loss, contest.class);
        }
    }
}

#[test]
fn choices_are_near_the_best_of_all_and_never_lose_to_the_model() {
    let mut of_profiles_everywhere = Vec::new();
    for (name, record) in records() {
        let outcomes = searched(&record, Effort::Default.seconds());
        for outcome in &outcomes {
            assert!(classes(&record).all(|i| outcome.winners[i].is_some()), "{name}: the time was too short");
        }
        let regrets = regrets(&record, &outcomes);
        let [of_all, of_profiles] = regrets.each_ref().map(|regrets| summary(regrets));
        println!("{name}: regret, median, at 95 % and at most: {of_all:.2?} % over the best of all candidates");
        println!("{name}: {of_profiles:.2?} % over the best profile");
        of_profiles_everywhere.extend_from_slice(&regrets[1]);

        let truths = truths(&record);
        let mut worst: f64 = 0.0;
        for outcome in &outcomes {
            for i in classes(&record) {
                let Some(winner) = &outcome.winners[i] else { continue };
                let loss = truths[i][winner.candidate] / truths[i][0] - 1.0;
                let Contest { class, candidates, .. } = &record.contests[i].contest;
                if loss > NOISE {
                    println!("{name}: {:.2} % at {class}: {:?}", 100.0 * loss, candidates[winner.candidate]);
                }
                worst = worst.max(loss);
            }
        }
        println!("{name}: at most {:.2} % slower than the model's pick", 100.0 * worst);
        assert!(of_all[0] <= 1.0 && of_profiles[0] <= 1.0, "{name}");
        // Where this machine does not have the level, the predictions are those of the model that was there when it was recorded.
        assert!(of_profiles[1] <= 2.0 || level_of(&record).is_none(), "{name}: {of_profiles:?}");
        assert!(worst <= NOISE, "{name}: {worst}");
    }
    let of_profiles = summary(&of_profiles_everywhere);
    println!("all: {of_profiles:.2?} % over the best profile");
    assert!(of_profiles[1] <= 2.0, "{of_profiles:?}");
}

/// How much slower than the best with its key block the model's pick is made, as nearly as there is a candidate.
const MISLED: f64 = 1.2;

/// The record of a machine whose model is bad: in each class of many queries it picks a candidate that is slower than the best with
/// the same key block. Gives these classes too.
fn misled(record: &Record) -> (Record, Vec<usize>) {
    let mut contests = record.contests();
    let mut classes = Vec::new();
    for (i, contest) in contests.iter_mut().enumerate().filter(|(_, contest)| contest.role == Role::Lanes) {
        let truth = record.contests[i].truth();
        let key_block = contest.candidates[0].key_block;
        let alike = |j: &usize| contest.candidates[*j].key_block == key_block && truth[*j].is_finite();
        let alike: Vec<usize> = (0..contest.candidates.len()).filter(alike).collect();
        let fastest = alike.iter().map(|j| truth[*j]).fold(f64::INFINITY, f64::min);
        let off = |j: &usize| (truth[*j] / fastest - MISLED).abs();
        let slow = alike.into_iter().min_by(|a, b| off(a).total_cmp(&off(b))).expect("the model's pick is one");
        if truth[slow] > 1.05 * fastest {
            contest.candidates.swap(0, slow);
            contest.predicted.swap(0, slow);
            classes.push(i);
        }
    }
    let misled = record.for_contests(&contests);
    assert_eq!(misled.contests.len(), contests.len());
    (misled, classes)
}

/// Where the model is wrong, a search makes up for it: otherwise to stand by the model would pass for a search.
#[test]
fn what_the_model_misses_is_found() {
    for (name, record) in records() {
        let (record, classes) = misled(&record);
        assert!(classes.len() >= 10, "{name}: {} classes have a candidate that is slow enough", classes.len());
        let truths = truths(&record);
        let mut left = Vec::new();
        for outcome in searched(&record, Effort::Default.seconds()) {
            for &i in &classes {
                let candidates = &record.contests[i].contest.candidates;
                let chosen = outcome.winners[i].as_ref().expect("there is time for all").candidate;
                let alike = (0..candidates.len()).filter(|j| candidates[*j].key_block == candidates[chosen].key_block);
                let fastest = alike.map(|j| truths[i][j]).fold(f64::INFINITY, f64::min);
                left.push(truths[i][chosen] / fastest - 1.0);
                let gain = truths[i][0] / truths[i][chosen];
                assert!(gain > 1.0 - NOISE, "{name}: {gain} at {}", record.contests[i].contest.class);
            }
        }
        let left = summary(&left);
        println!("{name}: {left:.2?} % over the best with its key block, where the model's pick is 5 to 40 % over it");
        assert!(left[0] <= 1.0 && left[1] <= 2.0, "{name}: {left:?}");
    }
}

#[test]
fn a_quick_search_is_nearly_as_good() {
    for (name, record) in records() {
        if level_of(&record).is_none() {
            eprintln!(
                "SKIPPED: {name}: half the time leans on predictions, and those in the file are of an older model"
            );
            continue;
        }
        let [of_all, of_profiles] =
            regrets(&record, &searched(&record, Effort::Quick.seconds())).map(|of| summary(&of));
        println!("{name}: regret {of_all:.2?} %, {of_profiles:.2?} % over the best profile, in half the time");
        assert!(of_all[0] <= 1.0 && of_profiles[1] <= 2.0, "{name}");
    }
}
