//! An induction head: what came after the letter that stands here, when it stood here last?
//!
//! Layer 1 copies the previous letter to every position (score -(i - 1 - j)^2). Layer 2 attends to the positions whose
//! previous letter is the current one. Rightmost-hard attention copies what came last; average-hard attention is the
//! distribution of all that ever came, a bigram model that is learnt in context.

use std::error::Error;

use regard::{Align, Attention, View, Weighting};

/// What a position expects next; nothing if its letter is new.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expectation {
    /// What came last time.
    pub(crate) last: Option<char>,
    /// The share of each letter among all times, zeros left out.
    pub(crate) shares: Vec<(char, f32)>,
}

pub(crate) fn expectations(text: &str) -> Result<Vec<Expectation>, Box<dyn Error>> {
    let text: Vec<char> = text.chars().collect();
    let n = text.len();
    let mut letters = text.clone();
    letters.sort_unstable();
    letters.dedup();
    let l = letters.len();
    let one_hot: Vec<f32> =
        text.iter().flat_map(|c| letters.iter().map(move |letter| f32::from(u8::from(c == letter)))).collect();
    let now = View::bhsd(&one_hot, [1, 1, n, l])?;

    let q: Vec<f32> = (0..n).flat_map(|i| [2.0 * (i as f32 - 1.0), -1.0]).collect();
    let k: Vec<f32> = (0..n).flat_map(|j| [j as f32, (j * j) as f32]).collect();
    let (q, k) = (View::bhsd(&q, [1, 1, n, 2])?, View::bhsd(&k, [1, 1, n, 2])?);
    let copy = Attention::new(Weighting::HardLeft).scale(1.0).causal(Align::TopLeft).strict();
    // Position 0 sees nothing, and gets zeros: no letter.
    let before = regard::attention(&copy, q, k, now)?;

    // Values hold the letter, and the one before it, which tells a match from the lack of any.
    let both: Vec<f32> = one_hot.chunks(l).zip(before.chunks(l)).flat_map(|(a, b)| [a, b].concat()).collect();
    let attend = |weighting| {
        let options = Attention::new(weighting).scale(1.0).causal(Align::TopLeft);
        let (k, v) = (View::bhsd(&before, [1, 1, n, l])?, View::bhsd(&both, [1, 1, n, 2 * l])?);
        regard::attention(&options, now, k, v).map_err(Box::<dyn Error>::from)
    };
    let (last, all) = (attend(Weighting::HardRight)?, attend(Weighting::AverageHard)?);
    Ok((0..n)
        .map(|i| {
            let (last, all) = (&last[2 * l * i..][..2 * l], &all[2 * l * i..][..2 * l]);
            let matched = (0..l).any(|c| letters[c] == text[i] && last[l + c] == 1.0);
            let shares = letters.iter().copied().zip(all.iter().copied()).filter(|(_, share)| matched && *share > 0.0);
            Expectation {
                last: (0..l).find(|c| matched && last[*c] == 1.0).map(|c| letters[c]),
                shares: shares.collect(),
            }
        })
        .collect())
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    for text in ["abcadbaca", "abracadabra"] {
        println!("{:10} {:6} all that came after it so far", text, "last");
        for (i, Expectation { last, shares }) in expectations(text)?.into_iter().enumerate() {
            let shares: String = shares.iter().map(|(letter, share)| format!("{letter} {share:.2}  ")).collect();
            println!(
                "{:10} {:6} {}",
                &text[..=i],
                last.map_or_else(|| "-".to_owned(), String::from),
                shares.trim_end()
            );
        }
        println!();
    }
    Ok(())
}
