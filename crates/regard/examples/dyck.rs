//! Brackets by attention: depths by counting, partners by lookup, and whether a word is balanced, without a stack.
//!
//! Layer 1 attends uniformly to the prefix: the mean of +1 and -1, times the length, is the depth. In layer 2 a closing
//! bracket attends to the last opening one of its own depth. Layer 3 looks for a position that is wrong. Constructions
//! of the kind that Yao et al., arXiv:2105.11115, and Yang, Strobl, Chiang and Angluin, arXiv:2412.09925, use.

use std::error::Error;

use regard::{Align, Attention, View, Weighting};

/// What attention says of a word.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) depths: Vec<i32>,
    /// Where the partner of each closing bracket stands.
    pub(crate) partners: Vec<Option<usize>>,
    pub(crate) balanced: bool,
}

/// One head with scores `<q, k>` over a batch of words of one length; `columns` numbers for each value.
fn attend<const D: usize>(
    options: Attention<'_>,
    [words, queries, keys]: [usize; 3],
    [q, k]: [Vec<[f32; D]>; 2],
    v: &[f32],
    columns: usize,
) -> Result<Vec<f32>, Box<dyn Error>> {
    let q = View::bhsd(q.as_flattened(), [words, 1, queries, D])?;
    let k = View::bhsd(k.as_flattened(), [words, 1, keys, D])?;
    Ok(regard::attention(&options.scale(1.0), q, k, View::bhsd(v, [words, 1, keys, columns])?)?)
}

/// Reads words of one length. Letters are kinds of brackets: positive if they open, negative if they close.
pub(crate) fn read(words: &[Vec<i32>]) -> Result<Vec<Reading>, Box<dyn Error>> {
    let (count, n) = (words.len(), words[0].len());
    let letters: Vec<i32> = words.concat();
    let place = |at: usize| (at % n) as f32;

    // All scores are 0: average-hard attention, like softmax, is the mean of the prefix.
    let signs: Vec<f32> = letters.iter().map(|letter| letter.signum() as f32).collect();
    let zeros = vec![[0.0]; count * n];
    let uniform = Attention::new(Weighting::AverageHard).causal(Align::TopLeft);
    let means = attend(uniform, [count, n, n], [zeros.clone(), zeros], &signs, 1)?;
    let heights: Vec<f32> = (0..count * n).map(|at| (means[at] * (place(at) + 1.0)).round()).collect();
    // A closing bracket has the depth of its partner.
    let depth = |at: usize| if letters[at] < 0 { heights[at] + 1.0 } else { heights[at] };

    // -w (depth_j - depth_i)^2 - w closing_j + j: the last opening bracket of the same depth, as w exceeds every j.
    let w = 2.0 * n as f32;
    let closing = |at: usize| if letters[at] < 0 { w } else { 0.0 };
    let q = (0..count * n).map(|at| [2.0 * w * depth(at), 1.0]).collect();
    let k = (0..count * n).map(|at| [depth(at), place(at) - w * depth(at) * depth(at) - closing(at)]).collect();
    let v: Vec<f32> = (0..count * n).flat_map(|at| [letters[at] as f32, depth(at), place(at)]).collect();
    let lookup = Attention::new(Weighting::HardRight).causal(Align::TopLeft).strict();
    let found = attend(lookup, [count, n, n], [q, k], &v, 3)?;
    let partner = |at: usize| {
        let (letter, depth_found, place) = (found[3 * at] as i32, found[3 * at + 1], found[3 * at + 2]);
        // The kinds agree, and it is an opening bracket of this depth, and not just the best that there was.
        (letters[at] < 0 && letter == -letters[at] && depth_found == depth(at)).then_some(place as usize)
    };

    // To the largest of the faults.
    let fault = |at: usize| heights[at] < 0.0 || (letters[at] < 0 && partner(at).is_none());
    let faults: Vec<f32> = (0..count * n).map(|at| f32::from(u8::from(fault(at)))).collect();
    let keys = faults.iter().map(|fault| [*fault]).collect();
    let worst = attend(Attention::new(Weighting::HardLeft), [count, 1, n], [vec![[1.0]; count], keys], &faults, 1)?;
    Ok((0..count)
        .map(|word| Reading {
            depths: (0..n).map(|i| depth(word * n + i) as i32).collect(),
            partners: (0..n).map(|i| partner(word * n + i)).collect(),
            balanced: worst[word] == 0.0 && heights[word * n + n - 1] == 0.0,
        })
        .collect())
}

/// All words of a length over this many kinds of brackets.
pub(crate) fn words(length: usize, kinds: i32) -> Vec<Vec<i32>> {
    let letters: Vec<i32> = (1..=kinds).flat_map(|kind| [kind, -kind]).collect();
    let count = letters.len().pow(length as u32);
    let word = |w: usize| (0..length as u32).map(|i| letters[w / letters.len().pow(i) % letters.len()]).collect();
    (0..count).map(word).collect()
}

/// Whether a word is balanced, by a stack.
pub(crate) fn by_stack(word: &[i32]) -> bool {
    let mut stack = Vec::new();
    for letter in word {
        if *letter > 0 {
            stack.push(*letter);
        } else if stack.pop() != Some(-letter) {
            return false;
        }
    }
    stack.is_empty()
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    const BRACKETS: [(char, i32); 6] = [('(', 1), (')', -1), ('[', 2), (']', -2), ('{', 3), ('}', -3)];
    let text = "{[]([()])}()";
    let letters = text.chars().filter_map(|c| BRACKETS.iter().find(|(bracket, _)| *bracket == c));
    let reading = read(&[letters.map(|(_, letter)| *letter).collect()])?.remove(0);
    println!("{:10}{}", "word", text.chars().map(|c| format!("{c:>3}")).collect::<String>());
    println!("{:10}{}", "depth", reading.depths.iter().map(|depth| format!("{depth:>3}")).collect::<String>());
    let partner = |partner: &Option<usize>| partner.map_or_else(|| "  .".to_owned(), |partner| format!("{partner:>3}"));
    println!("{:10}{}", "partner", reading.partners.iter().map(partner).collect::<String>());
    println!("{:10}{}\n", "balanced", reading.balanced);

    println!("{:>6} {:>7} {:>8} {:>10} {:>7}", "kinds", "length", "words", "balanced", "wrong");
    for (kinds, longest) in [(1, 12), (2, 6)] {
        for length in (2..=longest).step_by(2) {
            let words = words(length, kinds);
            let readings = read(&words)?;
            let balanced = readings.iter().filter(|reading| reading.balanced).count();
            let wrong =
                words.iter().zip(&readings).filter(|(word, reading)| by_stack(word) != reading.balanced).count();
            assert_eq!(wrong, 0);
            println!("{kinds:>6} {length:>7} {:>8} {balanced:>10} {wrong:>7}", words.len());
        }
    }
    println!("\nbalanced words are counted by Catalan numbers, times kinds^(length / 2)");
    Ok(())
}
