//! Formulas of linear temporal logic, compiled to attention: each temporal operator is one layer of masked hard
//! attention, or of softmax at a low temperature whose Booleans are repaired afterwards. Both are checked on all words.
//!
//! Yang, Strobl, Chiang and Angluin, "Simulating hard attention using soft attention", arXiv:2412.09925; scores,
//! temperatures and repair are explained in `regard::papers::hard`.

use std::error::Error;
use std::fmt;

use Formula::{A, Always, And, Not, Once, Or, Previous, Since};
use regard::{Align, Attention, Temperature, View, Weighting};

/// A formula about the letters (a or b) up to a position.
#[derive(Clone, Debug)]
pub(crate) enum Formula {
    /// The letter is an a.
    A,
    Not(Box<Formula>),
    And(Box<Formula>, Box<Formula>),
    Or(Box<Formula>, Box<Formula>),
    /// At some position up to here.
    Once(Box<Formula>),
    /// At all positions up to here.
    Always(Box<Formula>),
    /// At the position before; false at the first.
    Previous(Box<Formula>),
    /// The second held at some position up to here, and the first at all positions after it.
    Since(Box<Formula>, Box<Formula>),
}

impl fmt::Display for Formula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            A => write!(f, "a"),
            Not(x) => write!(f, "!{x}"),
            And(x, y) => write!(f, "({x} & {y})"),
            Or(x, y) => write!(f, "({x} | {y})"),
            Once(x) => write!(f, "once {x}"),
            Always(x) => write!(f, "always {x}"),
            Previous(x) => write!(f, "prev {x}"),
            Since(x, y) => write!(f, "({x} since {y})"),
        }
    }
}

impl Formula {
    /// By definition, at every position of a word (true is a).
    fn truth(&self, word: &[bool]) -> Vec<bool> {
        let each = |f: &dyn Fn(usize) -> bool| (0..word.len()).map(f).collect();
        match self {
            A => word.to_vec(),
            Not(x) => x.truth(word).iter().map(|x| !x).collect(),
            And(x, y) => x.truth(word).iter().zip(y.truth(word)).map(|(x, y)| *x && y).collect(),
            Or(x, y) => x.truth(word).iter().zip(y.truth(word)).map(|(x, y)| *x || y).collect(),
            Once(x) => each(&|i| x.truth(word)[..=i].contains(&true)),
            Always(x) => each(&|i| !x.truth(word)[..=i].contains(&false)),
            Previous(x) => each(&|i| i > 0 && x.truth(word)[i - 1]),
            Since(x, y) => {
                let (x, y) = (x.truth(word), y.truth(word));
                each(&|i| (0..=i).any(|j| y[j] && !x[j + 1..=i].contains(&false)))
            }
        }
    }
}

/// All words of a length, as a batch of sequences, and the attention that computes on them.
struct Machine {
    n: usize,
    /// Hard attention with this tie rule where any will do; softmax if none.
    tie_rule: Option<Weighting>,
    /// How far a soft layer was from a Boolean before repair.
    error: f32,
}

impl Machine {
    fn words(&self) -> usize {
        1 << self.n
    }

    /// The value of a formula, 0 or 1, at every position of every word.
    fn run(&mut self, formula: &Formula) -> Result<Vec<f32>, Box<dyn Error>> {
        let n = self.n;
        let ln = ((3 * n + 1) as f32).ln();
        let size = n as f32;
        Ok(match formula {
            A => (0..self.words() * n).map(|at| letter(at / n, at % n)).map(|a| f32::from(u8::from(a))).collect(),
            // What stands at one position only takes no attention: a feed-forward layer computes 1 - x, min and max.
            Not(x) => self.run(x)?.iter().map(|x| 1.0 - x).collect(),
            And(x, y) => self.run(x)?.iter().zip(self.run(y)?).map(|(x, y)| x.min(y)).collect(),
            Or(x, y) => self.run(x)?.iter().zip(self.run(y)?).map(|(x, y)| x.max(y)).collect(),
            // To a position where x holds, if there is one.
            Once(x) => {
                let x = self.run(x)?;
                self.attend(None, 1.0 / ln, false, |_| [1.0, 0.0], |at| [x[at], 0.0], &x)?
            }
            // To a position where x does not hold, if there is one.
            Always(x) => {
                let x = self.run(x)?;
                self.attend(None, 1.0 / ln, false, |_| [1.0, 0.0], |at| [1.0 - x[at], 0.0], &x)?
            }
            // -(i - 1 - j)^2 up to what all j share. The first position sees nothing, and gives 0.
            Previous(x) => {
                let x = self.run(x)?;
                let place = |at: usize| (at % n) as f32;
                let query = |i: usize| [2.0 * (i as f32 - 1.0), -1.0];
                self.attend(None, 0.4, true, query, |at| [place(at), place(at) * place(at)], &x)?
            }
            // To the last position that decides: y holds there, or x does not. For softmax, j breaks ties.
            Since(x, y) => {
                let (x, y) = (self.run(x)?, self.run(y)?);
                let query = if self.tie_rule.is_some() { [1.0, 0.0] } else { [2.0 * size, 1.0] };
                let key = |at: usize| [(1.0 - x[at]).max(y[at]), (at % n) as f32];
                self.attend(Some(Weighting::HardRight), 0.3, false, |_| query, key, &y)?
            }
        })
    }

    /// One layer, causal; `at` counts positions of all words.
    fn attend(
        &mut self,
        tie_rule: Option<Weighting>,
        temperature: f32,
        strict: bool,
        query: impl Fn(usize) -> [f32; 2],
        key: impl Fn(usize) -> [f32; 2],
        values: &[f32],
    ) -> Result<Vec<f32>, Box<dyn Error>> {
        let (words, n) = (self.words(), self.n);
        let q: Vec<f32> = (0..n).flat_map(query).collect();
        let k: Vec<f32> = (0..words * n).flat_map(key).collect();
        let options = match &self.tie_rule {
            Some(any) => Attention::new(tie_rule.unwrap_or(any.clone())),
            None => Attention::softmax().temperature(Temperature::Constant(temperature)),
        };
        let options = options.scale(1.0).causal(Align::TopLeft);
        // All words have the same queries: their stride is 0.
        let q = View::strided(&q, [words, 1, n, 2], [0, 0, 2, 1])?;
        let (k, v) = (View::bhsd(&k, [words, 1, n, 2])?, View::bhsd(values, [words, 1, n, 1])?);
        let mut out = regard::attention(&if strict { options.strict() } else { options }, q, k, v)?;
        if self.tie_rule.is_none() {
            for x in &mut out {
                self.error = self.error.max((*x - x.round()).abs());
                *x = repair(*x);
            }
        }
        Ok(out)
    }
}

/// A feed-forward layer that maps [0, 1/4] to 0 and [3/4, 1] to 1: errors of soft layers never add up.
fn repair(x: f32) -> f32 {
    (2.0 * x - 0.5).max(0.0) - (2.0 * x - 1.5).max(0.0)
}

/// Whether letter `i` of a word is an a.
fn letter(word: usize, i: usize) -> bool {
    word >> i & 1 == 1
}

/// What a check over all words up to a length found.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) positions: usize,
    pub(crate) wrong: usize,
    /// The largest distance from a Boolean before repair.
    pub(crate) error: f32,
}

/// Compares the compiled formula with its definition at every position of every word.
pub(crate) fn check(formula: &Formula, tie_rule: Option<Weighting>, longest: usize) -> Result<Outcome, Box<dyn Error>> {
    let mut outcome = Outcome::default();
    for n in 1..=longest {
        let mut machine = Machine { n, tie_rule: tie_rule.clone(), error: 0.0 };
        let got = machine.run(formula)?;
        for (word, got) in got.chunks(n).enumerate() {
            let letters: Vec<bool> = (0..n).map(|i| letter(word, i)).collect();
            let wanted = formula.truth(&letters).into_iter().map(|truth| f32::from(u8::from(truth)));
            outcome.wrong += got.iter().zip(wanted).filter(|(got, wanted)| **got != *wanted).count();
        }
        outcome.positions += got.len();
        outcome.error = outcome.error.max(machine.error);
    }
    Ok(outcome)
}

fn not(x: Formula) -> Formula {
    Not(x.into())
}

/// Formulas with names.
pub(crate) fn formulas() -> Vec<(&'static str, Formula)> {
    let b = || not(A);
    let previous = |x: Formula| Previous(x.into());
    let first = || not(previous(Or(A.into(), b().into())));
    let implies = |x: Formula, y: Formula| Or(not(x).into(), y.into());
    // After an a comes a b or nothing, and before a b stands an a.
    let alternates = And(implies(A, Or(first().into(), previous(b()).into())).into(), implies(b(), previous(A)).into());
    vec![
        ("an a so far", Once(A.into())),
        ("a all along", Always(A.into())),
        ("a before this", previous(A)),
        ("only a since the last ab", Since(A.into(), And(b().into(), previous(A).into()).into())),
        ("a*b*", Always(not(And(A.into(), Once(b().into()).into())).into())),
        ("(ab)*", And(b().into(), Always(alternates.into()).into())),
    ]
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    const LONGEST: usize = 12;
    println!("all words of a and b up to length {LONGEST}, at every position\n");
    println!("{:26} {:>10} {:>12} {:>12} {:>14}", "", "positions", "wrong: hard", "wrong: soft", "before repair");
    for (name, formula) in formulas() {
        let hard = check(&formula, Some(Weighting::HardRight), LONGEST)?;
        let soft = check(&formula, None, LONGEST)?;
        println!("{name:26} {:>10} {:>12} {:>12} {:>14.4}", hard.positions, hard.wrong, soft.wrong, soft.error);
        println!("    {formula}");
        assert_eq!(hard.wrong + soft.wrong, 0, "{formula}");
    }
    println!("\nsoft layers are off by 1/4 at most, which repair maps to 0 and 1");
    Ok(())
}
