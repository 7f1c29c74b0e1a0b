//! What decides the order of summation: key blocks, and up to how many queries the rows kernel is used. One for all classes
//! of an element type, so what is best on the whole wins, and only if no class loses by it.

use regard_profile::{Config, Crossover};

use super::super::decide;
use super::super::space::{Contest, Role};
use super::super::trials::Fate;
use super::{JUDGES, Limit, RunOff, Tournament, crossovers};

/// The part of the time of such a contest after which options have been compared, and what is left is for run-offs.
const COMPARED: f64 = 0.6;

/// Key blocks that meet the incumbent in run-offs, one after the other until one wins.
const CHALLENGERS: usize = 2;

/// Classes with few queries that decide a key block, at least.
const FEWEST_OF_ROWS: usize = 2;

/// What a class says of key blocks.
struct Judge {
    contest: usize,
    /// The fastest candidate with each of them, and its time, unless they were not timed.
    fastest: Vec<usize>,
    times: Vec<f64>,
    /// Samples of each.
    samples: usize,
}

impl Tournament<'_> {
    /// The key block of contests that share one.
    pub(super) fn settle_key_block(&mut self, members: &[usize], until: f64) {
        let chosen = self.key_block(members, until);
        for (other, slot) in self.key_blocks.iter_mut().enumerate() {
            if self.contests[members[0]].shares_key_block(&self.contests[other]) {
                *slot = Some(chosen);
            }
        }
    }

    fn key_block(&mut self, members: &[usize], until: f64) -> usize {
        let start = self.sampler.elapsed();
        let contests = self.contests;
        // What fits where the model takes the fewest keys fits everywhere.
        let modelled = members.iter().map(|i| contests[*i].candidates[0].key_block);
        let incumbent = modelled.min().unwrap_or(0);
        let mut options: Vec<usize> = contests[members[0]].candidates.iter().map(|config| config.key_block).collect();
        options.sort_unstable();
        options.dedup();
        options.retain(|keys| *keys != incumbent && members.iter().all(|i| self.of_model(*i, *keys).is_some()));
        options.insert(0, incumbent);
        // One class with few queries says nothing of the others: what gains 5 % where one query reads all keys by itself can lose 7 %
        // where eight share them. A search of so few classes leaves the block to the model.
        if contests[members[0]].role == Role::Rows && members.len() < FEWEST_OF_ROWS {
            let why = "one class with few queries is not enough to compare key blocks";
            self.left_to_model.extend(members.iter().map(|contest| (*contest, why)));
            return incumbent;
        }

        let judges = &members[..members.len().min(JUDGES)];
        let mut judged = Vec::new();
        for (i, &contest) in judges.iter().enumerate() {
            let now = self.sampler.elapsed();
            let end = start + COMPARED * (until - start);
            if i > 0 && (now >= end || self.sampler.stopped()) {
                break;
            }
            let share = now + (end - now) / (judges.len() - i) as f64;
            self.say(&format!("key block: {}", contests[contest].class), None);
            judged.extend(self.judge(contest, &options, share));
        }
        if judged.is_empty() && options.len() > 1 {
            let why = "there was no time to compare key blocks";
            self.left_to_model.extend(members.iter().map(|contest| (*contest, why)));
        }
        let times: Vec<Vec<f64>> = judged.iter().map(|judge| judge.times.clone()).collect();
        // Those without times can still say no.
        for &contest in members {
            if !judged.iter().any(|judge| judge.contest == contest) {
                let fastest = options.iter().filter_map(|keys| self.of_model(contest, *keys)).collect();
                judged.push(Judge { contest, fastest, times: Vec::new(), samples: 0 });
            }
        }
        let mut chosen = 0;
        let challengers = decide::challengers(&times, 0, CHALLENGERS);
        for (place, &option) in challengers.iter().enumerate() {
            let now = self.sampler.elapsed();
            let share = now + (until - now).max(0.0) / (challengers.len() - place) as f64;
            if self.wins_everywhere(&judged, option, &options, share) {
                chosen = option;
                break;
            }
        }
        for judge in &judged {
            self.note_key_blocks(judge, chosen);
        }
        options[chosen]
    }

    /// Notes how the fastest candidate with each key block did that was not chosen. The others go on.
    fn note_key_blocks(&mut self, judge: &Judge, chosen: usize) {
        let Judge { contest, fastest, times, samples } = judge;
        let candidates = &self.contests[*contest].candidates;
        let best = times.iter().copied().fold(f64::INFINITY, f64::min);
        for (option, (candidate, time)) in fastest.iter().zip(times).enumerate() {
            // Where all with a block were wrong, it was noted that they are.
            if option != chosen && time.is_finite() {
                self.trials(*contest).add(&candidates[*candidate], Fate::KeyBlock, time / best, *samples);
            }
        }
    }

    /// Whether a key block gains over the first of the options in some class and loses in none, by run-offs. The first class that
    /// it loses in ends them.
    ///
    /// It meets the fastest with that block, and its own kernel with that block: which kernel was the fastest with each of them may
    /// be chance, and what a kernel gains is not to be had by the key block alone.
    fn wins_everywhere(&mut self, judged: &[Judge], option: usize, options: &[usize], until: f64) -> bool {
        let contests = self.contests;
        let mut run_offs: Vec<RunOff> = Vec::new();
        for (i, Judge { contest, fastest, .. }) in judged.iter().enumerate() {
            let now = self.sampler.elapsed();
            let share = now + (until - now).max(0.0) / (judged.len() - i) as f64;
            let what = format!("key block, {} against {}: {}", options[option], options[0], contests[*contest].class);
            let candidates = &contests[*contest].candidates;
            let challenger = &candidates[fastest[option]];
            self.say(&what, Some(challenger));
            let own = Config { key_block: options[0], ..challenger.clone() };
            let own = candidates.iter().position(|config| *config == own).filter(|own| *own != fastest[0]);
            let own = own.filter(|own| self.passed.contains(&(*contest, *own)));
            let incumbents: Vec<usize> = own.into_iter().chain([fastest[0]]).collect();
            let both = [fastest[0], fastest[option]];
            if self.gate(*contest, &both, f64::INFINITY) != both {
                return false;
            }
            let mut closest: Option<RunOff> = None;
            for (done, &incumbent) in incumbents.iter().enumerate() {
                let now = self.sampler.elapsed();
                let until = now + (share - now).max(0.0) / (incumbents.len() - done) as f64;
                let found = self.run_off(*contest, [incumbent, fastest[option]], Limit { least: 8, most: 60, until });
                if !decide::holds(&found) || self.sampler.stopped() {
                    return false;
                }
                closest = closest.filter(|other| other.speedup < found.speedup).or(Some(found));
            }
            run_offs.extend(closest);
        }
        decide::replaces_everywhere(&run_offs)
    }

    /// The time of each key block in a class, with the kernel that is fastest with it: the weights of a narrow register tile
    /// leave room for more keys. `None` if not all were reached, as those would be ruled out everywhere, and if there is no
    /// incumbent to stand by.
    fn judge(&mut self, contest: usize, options: &[usize], until: f64) -> Option<Judge> {
        let contests = self.contests;
        let candidates = &contests[contest].candidates;
        let mut kernels: Vec<&str> = candidates.iter().map(|config| &*config.kernel).collect();
        kernels.sort_unstable();
        kernels.dedup();
        let model = &candidates[0];
        // The model's kernel, and the others with nearly its query block.
        let with = |keys: usize| {
            let nearest = |kernel: &&str| {
                let own = |i: &usize| candidates[*i].kernel == **kernel && candidates[*i].key_block == keys;
                let far = |i: &usize| candidates[*i].query_block.abs_diff(model.query_block);
                (0..candidates.len()).filter(own).min_by_key(far)
            };
            let mut of_option: Vec<usize> = kernels.iter().filter_map(nearest).collect();
            // Before all others, so that it is always reached.
            of_option.sort_by_key(|i| candidates[*i].kernel != model.kernel);
            of_option
        };
        let of_options: Vec<Vec<usize>> = options.iter().map(|keys| with(*keys)).collect();
        let all: Vec<usize> = of_options.iter().flatten().copied().collect();
        let passed = self.gate(contest, &all, until);
        let failed = all.iter().filter(|candidate| self.failed.contains(&(contest, **candidate))).count();
        if passed.first() != all.first() || passed.len() + failed < all.len() {
            return None;
        }
        let rounds = self.rounds(contest, &passed, Limit { least: 2, most: 8, until });
        let found = rounds.relative();
        let time = |candidate: &usize| {
            let place = passed.iter().position(|other| other == candidate);
            place.map_or(f64::INFINITY, |place| found[place])
        };
        let fastest = |of: &Vec<usize>| of.iter().copied().min_by(|a, b| time(a).total_cmp(&time(b)));
        let fastest = of_options.iter().map(fastest).collect::<Option<Vec<usize>>>()?;
        Some(Judge { contest, times: fastest.iter().map(time).collect(), fastest, samples: rounds.count() })
    }

    /// Up to how many queries the rows kernel of an element type is used.
    pub(super) fn settle_crossing(&mut self, members: &[usize], until: f64) {
        let start = self.sampler.elapsed();
        let contests = self.contests;
        let mut times = Vec::new();
        let mut timed = Vec::new();
        for (i, &contest) in members.iter().enumerate() {
            let now = self.sampler.elapsed();
            let end = start + COMPARED * (until - start);
            if now >= end || self.sampler.stopped() {
                return;
            }
            let share = now + (end - now) / (members.len() - i) as f64;
            self.say(&format!("rows or lanes: {}", contests[contest].class), None);
            let Some((rows, lanes)) = self.sides(contest) else { continue };
            let both: Vec<usize> = rows.into_iter().chain(lanes).collect();
            let passed = self.gate(contest, &both, share);
            if passed.first() != both.first() || passed.len() < 2 {
                continue;
            }
            let found = self.rounds(contest, &passed, Limit { least: 2, most: 10, until: share }).relative();
            let best = decide::leader(&found[1..]) + 1;
            times.push([found[0], found[best]]);
            timed.push((contest, [passed[0], passed[best]]));
        }
        let options = crossovers(&contests[members[0]]);
        let of_option = |rows_up_to: usize| {
            let side = |(contest, _): &(usize, [usize; 2])| usize::from(contests[*contest].class.queries > rows_up_to);
            timed.iter().map(side).collect::<Vec<_>>()
        };
        let assigned: Vec<Vec<usize>> = options.iter().map(|rows_up_to| of_option(*rows_up_to)).collect();
        let losses: Vec<Vec<f64>> =
            (0..timed.len()).map(|i| assigned.iter().map(|sides| times[i][sides[i]]).collect()).collect();
        let best = decide::least_regret(&losses, 0);
        let mut chosen = 0;
        if best != 0 {
            let changed: Vec<usize> = (0..timed.len()).filter(|i| assigned[0][*i] != assigned[best][*i]).collect();
            let mut run_offs = Vec::new();
            for (done, &i) in changed.iter().enumerate() {
                let (contest, pair) = timed[i];
                let [old, new] = [assigned[0][i], assigned[best][i]].map(|side| pair[side]);
                let now = self.sampler.elapsed();
                let share = now + (until - now).max(0.0) / (changed.len() - done) as f64;
                run_offs.push(self.run_off(contest, [old, new], Limit { least: 5, most: 40, until: share }));
            }
            if decide::replaces_everywhere(&run_offs) && !self.sampler.stopped() {
                chosen = best;
            }
        }
        if let Some((contest, [rows, _])) = timed.first() {
            let kernel = contests[*contest].candidates[*rows].kernel.clone();
            self.outcome.crossovers.push(Crossover { kernel, rows_up_to: options[chosen] });
        }
    }

    /// The rows candidate and the lanes candidates of a crossing, with the key blocks that were settled.
    fn sides(&self, contest: usize) -> Option<(Vec<usize>, Vec<usize>)> {
        let contests = self.contests;
        let crossing = &contests[contest];
        let block_of = |rows: bool| {
            let like = |i: &usize| {
                let other = &contests[*i];
                let wide = |contest: &Contest| contest.class.borrowed().is_wide();
                let alike = other.class.dtype == crossing.class.dtype && wide(other) == wide(crossing);
                alike && other.candidates[0].takes_rows() == rows
            };
            (0..contests.len()).filter(like).find_map(|i| self.key_blocks[i])
        };
        let with = |rows: bool| -> Vec<usize> {
            let of_kind = |i: &usize| crossing.candidates[*i].takes_rows() == rows;
            let kind: Vec<usize> = (0..crossing.candidates.len()).filter(of_kind).collect();
            let wanted = block_of(rows).or_else(|| kind.first().map(|i| crossing.candidates[*i].key_block));
            kind.into_iter().filter(|i| Some(crossing.candidates[*i].key_block) == wanted).collect()
        };
        let (rows, lanes) = (with(true), with(false));
        (!rows.is_empty() && !lanes.is_empty()).then(|| (rows[..1].to_vec(), lanes))
    }
}
