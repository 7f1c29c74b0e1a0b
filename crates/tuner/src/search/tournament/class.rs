//! The contest of one class, by successive halving: many candidates for few rounds, fewer for more, and a run-off.

use regard_profile::Config;

use super::super::decide;
use super::super::space::Contest;
use super::super::trials::Fate;
use super::{Limit, Tournament, Winner};

/// What cannot win: predicted to be slower than the best by this factor.
const PRUNED: f64 = 1.5;

/// Candidates that are timed whatever is predicted of them.
const KEPT: usize = 8;

/// A rung: rounds, the parts of the time at which it ends, and who goes on: within a factor of the fastest, and so many.
struct Rung {
    rounds: [usize; 2],
    ends: f64,
    factor: f64,
    most: usize,
}

const RUNGS: [Rung; 3] = [
    Rung { rounds: [2, 2], ends: 0.35, factor: 1.25, most: 12 },
    Rung { rounds: [2, 5], ends: 0.55, factor: 1.08, most: 6 },
    Rung { rounds: [3, 12], ends: 0.75, factor: 1.03, most: 3 },
];

/// What is known of a class when its contest is over.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    /// Candidates and their latest times, over that of the winner.
    ratios: Vec<(usize, f64)>,
}

impl Tournament<'_> {
    /// The winner of a class, with the key block that was settled.
    pub(super) fn settle_class(&mut self, contest: usize, until: f64) {
        let start = self.sampler.elapsed();
        let part = |part: f64| start + part * (until - start);
        let contests = self.contests;
        let Contest { class, candidates, .. } = &contests[contest];
        let name = class.to_string();
        self.say(&name, None);
        let key_block = self.key_blocks[contest].unwrap_or(candidates[0].key_block);
        let Some(incumbent) = self.of_model(contest, key_block) else { return };
        let entrants = self.entrants(contest, key_block, incumbent);
        let passed = self.gate(contest, &entrants, part(0.2));
        if passed.first() != Some(&incumbent) {
            return;
        }
        let mut alive = passed;
        let mut samples = 0;
        let mut ratios: Vec<(usize, f64)> = Vec::new();
        let mut seconds = f64::NAN;
        for (number, rung) in RUNGS.iter().enumerate() {
            let [least, most] = rung.rounds;
            let found = self.rounds(contest, &alive, Limit { least, most, until: part(rung.ends) });
            let times = found.relative();
            samples += found.count();
            let leader = decide::leader(&times);
            seconds = found.medians()[leader];
            let on = decide::survivors(&times, rung.factor, rung.most);
            for (i, candidate) in alive.iter().enumerate() {
                let ratio = times[i] / times[leader];
                ratios.retain(|(other, _)| other != candidate);
                ratios.push((*candidate, ratio));
                if !on.contains(&i) {
                    self.trials(contest).add(&candidates[*candidate], Fate::Dropped(number + 1), ratio, samples);
                }
            }
            self.say(&name, Some(&candidates[alive[leader]]));
            let leader = alive[leader];
            alive = on.into_iter().map(|i| alive[i]).collect();
            if number == 0 {
                // Steps from the leader to its neighbours enter at the second rung.
                let near: Vec<usize> = self.neighbours(contest, leader);
                let near: Vec<usize> = near.into_iter().filter(|i| !entrants.contains(i)).collect();
                if !near.is_empty() {
                    alive.extend(self.gate(contest, &near, part(0.45)));
                }
            }
            if alive.len() == 1 && number > 0 || self.sampler.stopped() {
                break;
            }
        }
        let time_of =
            |candidate: usize| ratios.iter().find(|(other, _)| *other == candidate).map_or(1.0, |found| found.1);
        alive.sort_by(|a, b| time_of(*a).total_cmp(&time_of(*b)));
        let (winner, mut why, rounds) = self.finals(contest, incumbent, &alive, until, entrants.len());
        if let Some(reason) = self.left_to_model.get(&contest) {
            why += &format!("; the key block is left to the model: {reason}");
        }
        for &candidate in &alive {
            let fate = if candidate == winner { Fate::Won } else { Fate::LostRunOff };
            self.trials(contest).add(&candidates[candidate], fate, time_of(candidate), samples);
        }
        let (of_winner, of_incumbent) = (time_of(winner), time_of(incumbent));
        for (_, ratio) in &mut ratios {
            *ratio /= of_winner;
        }
        let others = ratios.iter().filter(|(candidate, _)| *candidate != winner);
        let runner_up = others.min_by(|a, b| a.1.total_cmp(&b.1)).copied();
        self.outcome.winners[contest] = Some(Winner {
            candidate: winner,
            seconds: seconds * of_winner,
            ratio_to_model: of_winner / of_incumbent,
            ratio_interval: None,
            samples: samples + 2 * rounds,
            runner_up,
            rivals: Vec::new(),
            why,
        });
        self.findings[contest] = Some(Finding { ratios });
    }

    /// Run-offs: the leader against the one after it, and whoever is faster against the incumbent.
    fn finals(
        &mut self,
        contest: usize,
        incumbent: usize,
        finalists: &[usize],
        until: f64,
        of: usize,
    ) -> (usize, String, usize) {
        let mut leader = finalists.first().copied().unwrap_or(incumbent);
        let mut rounds = 0;
        let second = finalists.iter().copied().find(|candidate| ![leader, incumbent].contains(candidate));
        if let Some(second) = second.filter(|_| leader != incumbent) {
            let now = self.sampler.elapsed();
            let limit = Limit { least: 4, most: 20, until: now + 0.35 * (until - now) };
            let found = self.run_off(contest, [leader, second], limit);
            rounds += found.rounds;
            if decide::replaces(&found) {
                leader = second;
            }
        }
        let candidates = &self.contests[contest].candidates;
        let model = match candidates[incumbent].key_block == candidates[0].key_block {
            true => "the model's pick",
            false => "the model's pick with the key block of this profile",
        };
        if leader == incumbent {
            let why = match of {
                1 => format!("{model}, which had no rival with this key block"),
                _ => format!("{model} was the fastest of {of} candidates"),
            };
            return (incumbent, why, rounds);
        }
        let found = self.run_off(contest, [incumbent, leader], Limit { least: 6, most: 60, until });
        rounds += found.rounds;
        let percent = |ratio: f64| 100.0 * (ratio - 1.0);
        let gain = format!(
            "{:+.1} % in a run-off of {} rounds, interval {:+.1} to {:+.1} %, noise {:.1} %",
            percent(found.speedup),
            found.rounds,
            percent(found.interval.low),
            percent(found.interval.high),
            100.0 * found.floor
        );
        if decide::replaces(&found) {
            (leader, format!("faster than {model}: {gain}"), rounds)
        } else {
            (incumbent, format!("{model}: the leader of {of} candidates had {gain}"), rounds)
        }
    }

    /// Who is timed at first, the incumbent before all others: every second query block of what the model does not rule out.
    fn entrants(&mut self, contest: usize, key_block: usize, incumbent: usize) -> Vec<usize> {
        let contests = self.contests;
        let Contest { candidates, predicted, .. } = &contests[contest];
        let mut open: Vec<usize> =
            (0..candidates.len()).filter(|i| candidates[*i].key_block == key_block && *i != incumbent).collect();
        open.sort_by(|a, b| predicted[*a].total_cmp(&predicted[*b]));
        let best = open.iter().chain([&incumbent]).map(|i| predicted[*i]).fold(f64::INFINITY, f64::min);
        let mut entrants = vec![incumbent];
        for (place, i) in open.into_iter().enumerate() {
            if place >= KEPT && predicted[i] > PRUNED * best {
                self.trials(contest).add(&candidates[i], Fate::Pruned, predicted[i] / best, 0);
                continue;
            }
            let smaller = candidates.iter().filter(|other| {
                let Config { kernel, key_block, query_block, .. } = other;
                let it = &candidates[i];
                *kernel == it.kernel && *key_block == it.key_block && *query_block < it.query_block
            });
            if place < KEPT || smaller.count() % 2 == 0 {
                entrants.push(i);
            }
        }
        entrants
    }

    /// The query blocks next to a candidate's with its kernel, and the other kernels with nearly its query block.
    fn neighbours(&self, contest: usize, of: usize) -> Vec<usize> {
        let candidates = &self.contests[contest].candidates;
        let Config { kernel, key_block, query_block, .. } = &candidates[of];
        let with_block = |i: &usize| candidates[*i].key_block == *key_block;
        let all: Vec<usize> = (0..candidates.len()).filter(with_block).collect();
        let own = || all.iter().copied().filter(|i| candidates[*i].kernel == *kernel);
        let block = |i: &usize| candidates[*i].query_block;
        let mut near: Vec<usize> = Vec::new();
        near.extend(own().filter(|i| block(i) < *query_block).max_by_key(block));
        near.extend(own().filter(|i| block(i) > *query_block).min_by_key(block));
        let mut others: Vec<&str> = all.iter().map(|i| &*candidates[*i].kernel).filter(|name| name != kernel).collect();
        others.sort_unstable();
        others.dedup();
        for name in others {
            let of_kernel = all.iter().copied().filter(|i| candidates[*i].kernel == name);
            near.extend(of_kernel.min_by_key(|i| block(i).abs_diff(*query_block)));
        }
        near
    }

    /// What is left when all classes have a winner: the winner against the model's own pick, whose key block may be another
    /// one, and what won elsewhere against what won here.
    pub(super) fn confirm(&mut self, contest: usize, until: f64) {
        let Some(mut winner) = self.outcome.winners[contest].take() else { return };
        let contests = self.contests;
        let Contest { class, candidates, .. } = &contests[contest];
        let now = self.sampler.elapsed();
        self.say(&format!("confirming: {class}"), Some(&candidates[winner.candidate]));
        if winner.candidate != 0 && !self.gate(contest, &[0], until).is_empty() {
            let limit = Limit { least: 4, most: 40, until: now + 0.6 * (until - now) };
            let found = self.run_off(contest, [0, winner.candidate], limit);
            winner.ratio_to_model = 1.0 / found.speedup;
            winner.ratio_interval = Some([1.0 / found.interval.high, 1.0 / found.interval.low]);
            winner.samples += 2 * found.rounds;
        } else {
            winner.ratio_to_model = 1.0;
            winner.ratio_interval = None;
        }
        let rivals = self.rivals(contest, winner.candidate);
        let known = self.findings[contest].as_ref().map_or(&[][..], |finding| &finding.ratios);
        let known_of = |rival: &usize| known.iter().find(|(candidate, _)| candidate == rival).copied();
        winner.rivals = rivals.iter().filter_map(known_of).collect();
        let unknown: Vec<usize> = rivals.into_iter().filter(|rival| known_of(rival).is_none()).collect();
        let mut all = vec![winner.candidate];
        all.extend(if unknown.is_empty() { Vec::new() } else { self.gate(contest, &unknown, until) });
        if all.len() > 1 && self.sampler.elapsed() < until {
            let found = self.rounds(contest, &all, Limit { least: 2, most: 6, until });
            let times = found.relative();
            winner.rivals.extend(all.iter().zip(&times).skip(1).map(|(rival, time)| (*rival, time / times[0])));
        }
        self.outcome.winners[contest] = Some(winner);
    }

    /// The winner against its runner-up, for as long as there is time: what is left of it goes to the closest decisions.
    pub(super) fn polish(&mut self, contest: usize, until: f64) {
        let Some(mut winner) = self.outcome.winners[contest].take() else { return };
        if let Some((runner_up, _)) = winner.runner_up {
            let candidates = &self.contests[contest].candidates;
            self.say(&format!("once more: {}", self.contests[contest].class), Some(&candidates[winner.candidate]));
            let found =
                self.run_off(contest, [winner.candidate, runner_up], Limit { least: 2, most: usize::MAX, until });
            winner.samples += 2 * found.rounds;
            // The model's pick was beaten in one run-off already, and is not brought back by another.
            if decide::replaces(&found) && runner_up != 0 {
                let ratio = 1.0 / found.speedup;
                self.trials(contest).add(&candidates[runner_up], Fate::Won, ratio, 2 * found.rounds);
                winner = Winner {
                    candidate: runner_up,
                    seconds: winner.seconds / found.speedup,
                    ratio_to_model: winner.ratio_to_model / found.speedup,
                    ratio_interval: None,
                    runner_up: Some((winner.candidate, found.speedup)),
                    why: format!("{}; its runner-up was faster in {} more rounds", winner.why, found.rounds),
                    ..winner
                };
            }
        }
        self.outcome.winners[contest] = Some(winner);
    }

    /// The candidates that won other contests about the same key block.
    fn rivals(&self, contest: usize, winner: usize) -> Vec<usize> {
        let contests = self.contests;
        let own = &contests[contest].candidates;
        let mut found: Vec<usize> = Vec::new();
        for (other, won) in self.outcome.winners.iter().enumerate() {
            let Some(won) = won.as_ref().filter(|_| contests[other].shares_key_block(&contests[contest])) else {
                continue;
            };
            let config = &contests[other].candidates[won.candidate];
            let here = own.iter().position(|candidate| candidate == config);
            found.extend(here.filter(|here| *here != winner && !found.contains(here)));
        }
        found
    }
}
