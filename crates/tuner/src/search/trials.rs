//! What became of every candidate: the log of a search, from which `regard explain` tells its story.

use regard_profile::{Class, Config};
use serde::{Deserialize, Serialize};

use super::Role;
use super::rounds::RunOff;

/// The log of a contest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trials {
    /// What was decided.
    pub role: Role,
    /// For which class.
    pub class: Class,
    /// Candidates, as they went out.
    pub trials: Vec<Trial>,
    /// Run-offs, in order.
    pub run_offs: Vec<Duel>,
}

/// What became of a candidate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The candidate.
    pub config: Config,
    /// When it went out, or that it won.
    pub fate: Fate,
    /// Its time over that of the fastest of its rung, or of all key blocks; if it was pruned, the predicted times; `None` if it
    /// was wrong.
    pub ratio: Option<f64>,
    /// Its samples.
    pub samples: usize,
}

/// When a candidate went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Its results were wrong.
    Failed,
    /// The model said that it cannot win.
    Pruned,
    /// It was the fastest with its key block, and another key block was settled for all classes.
    KeyBlock,
    /// Too slow in this rung, from 1.
    Dropped(usize),
    /// It was among the last.
    LostRunOff,
    /// It was chosen.
    Won,
}

/// A run-off of two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Duel {
    /// Who was to be replaced.
    pub incumbent: Config,
    /// By whom.
    pub challenger: Config,
    /// How many times as fast the challenger was.
    pub speedup: f64,
    /// The 95 % interval of it.
    pub interval: [f64; 2],
    /// The noise: what the incumbent seemed to gain over itself.
    pub floor: f64,
    /// Rounds.
    pub rounds: usize,
}

impl Trials {
    pub(super) fn new(role: Role, class: Class) -> Self {
        Self { role, class, trials: Vec::new(), run_offs: Vec::new() }
    }

    pub(super) fn add(&mut self, config: &Config, fate: Fate, ratio: f64, samples: usize) {
        let ratio = ratio.is_finite().then_some(ratio);
        self.trials.push(Trial { config: config.clone(), fate, ratio, samples });
    }

    pub(super) fn add_run_off(&mut self, incumbent: &Config, challenger: &Config, found: &RunOff) {
        let RunOff { speedup, interval, floor, rounds } = *found;
        let [incumbent, challenger] = [incumbent, challenger].map(Clone::clone);
        self.run_offs.push(Duel {
            incumbent,
            challenger,
            speedup,
            interval: [interval.low, interval.high],
            floor,
            rounds,
        });
    }
}
