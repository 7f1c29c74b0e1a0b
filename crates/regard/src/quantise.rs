//! Rows of f32 to rows of signed bytes.

use regard_kernels::tensor::{Quantised, Tensor};
use regard_kernels::view::View;

/// The largest magnitude of a quantised element.
const MOST: f32 = 127.0;

/// A quantised tensor that owns its data; contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantisedRows {
    /// `[batch, heads, rows, columns]`, from -127 to 127.
    pub data: Vec<i8>,
    /// `[batch, heads, rows]`
    pub scales: Vec<f32>,
    /// `[batch, heads, rows, columns]`
    pub shape: [usize; 4],
}

impl QuantisedRows {
    /// The tensor, for [`Problem::new`](crate::Problem::new).
    ///
    /// # Panics
    /// If the fields were changed so that they do not fit each other.
    pub fn tensor(&self) -> Tensor<'_> {
        let [batch, heads, rows, _] = self.shape;
        Quantised {
            data: View::bhsd(&self.data, self.shape).expect("an element for each place"),
            scales: View::bhsd(&self.scales, [batch, heads, rows, 1]).expect("a scale for each row"),
        }
        .into()
    }
}

/// Quantises each row of each head by itself, symmetrically: `x` becomes the integer nearest to `x / scale` (ties to
/// even), where `scale` is the f32 nearest to `max |x| / 127`.
///
/// An element is then off by at most half a scale: `|x - q * scale| <= scale / 2 * (1 + f32::EPSILON)`. (Where the
/// largest magnitude is so small that the scale is subnormal, it is rounded up for that; where it is the largest f32,
/// down, so that `127 * scale` is finite.) A row of zeros has the scale 0, and is exact. A row with NaN or infinity has
/// the scale NaN, and is NaN in all elements when it is read: no number that is not finite passes for one that is.
///
/// ```
/// use regard::{View, quantise};
///
/// let rows = quantise(View::bhsd(&[0.0, 63.5, -127.0, 126.8], [1, 1, 1, 4])?);
/// assert_eq!((&*rows.data, &*rows.scales), (&[0, 64, -127, 127][..], &[1.0][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics
/// If the view repeats rows so often that the copy has more elements than memory holds.
pub fn quantise(view: View<'_, f32>) -> QuantisedRows {
    let shape = view.shape();
    let [batch, heads, rows, columns] = shape;
    let count = batch * heads * rows;
    let mut data = vec![0; count * columns];
    let mut scales = Vec::with_capacity(count);
    let contiguous = columns <= 1 || view.strides()[3] == 1;
    let mut gathered = Vec::new();
    for index in 0..count {
        let [b, h, r] = [index / (heads * rows), index / rows % heads, index % rows];
        let row = if contiguous {
            view.row([b, h, r])
        } else {
            gathered.clear();
            gathered.extend((0..columns).map(|c| *view.get([b, h, r, c])));
            &gathered
        };
        scales.push(quantise_row(row, &mut data[index * columns..][..columns]));
    }
    QuantisedRows { data, scales, shape }
}

/// Quantises one row, and gives its scale.
pub(crate) fn quantise_row(row: &[f32], to: &mut [i8]) -> f32 {
    let mut max = 0.0_f32;
    let mut finite = true;
    for x in row {
        finite &= x.is_finite();
        max = max.max(x.abs());
    }
    if !finite {
        to.fill(0);
        return f32::NAN;
    }
    if max == 0.0 {
        to.fill(0);
        return 0.0;
    }
    let mut scale = max / MOST;
    // A subnormal scale may be so much too small that the largest element would be out of reach.
    if f64::from(max) > f64::from(scale) * f64::from(MOST + 0.5) {
        scale = scale.next_up();
    }
    // The scale of the largest f32 is so much too large that the largest element would be infinite when it is read.
    if (scale * MOST).is_infinite() {
        scale = scale.next_down();
    }
    // In f64, where the quotient is as good as exact: in f32 it could be rounded to the other side of a half.
    let inverse = f64::from(scale);
    for (to, x) in to.iter_mut().zip(row) {
        let quotient = (f64::from(*x) / inverse).round_ties_even();
        *to = quotient.clamp(-f64::from(MOST), f64::from(MOST)) as i8;
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of every magnitude.
    fn rows() -> Vec<Vec<f32>> {
        let mut state = 1_u64;
        let mut random = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        let mut rows: Vec<Vec<f32>> = Vec::new();
        for exponent in -149..=127 {
            let scale = (f64::from(exponent)).exp2();
            rows.push((0..33).map(|_| (f64::from(random()) * scale) as f32).collect());
        }
        rows.push(vec![f32::MAX, -f32::MAX, 1.0]);
        rows.push(vec![f32::from_bits(1), 0.0, f32::from_bits(190)]);
        rows.push((0..255).map(f32::from_bits).collect());
        rows
    }

    #[test]
    fn the_error_is_at_most_half_a_scale() {
        for row in rows() {
            let mut data = vec![0; row.len()];
            let scale = quantise_row(&row, &mut data);
            assert!(scale.is_finite() && data.iter().all(|q| *q >= -127));
            for (x, q) in row.iter().zip(&data) {
                let error = (f64::from(*x) - f64::from(*q) * f64::from(scale)).abs();
                let most = f64::from(scale) / 2.0 * (1.0 + f64::from(f32::EPSILON));
                assert!(error <= most, "{x:e} as {q} of {scale:e}");
                assert!((f32::from(*q) * scale).is_finite(), "{x:e} as {q} of {scale:e}");
            }
            let max = row.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
            assert!(scale == max / 127.0 || scale < f32::MIN_POSITIVE || max == f32::MAX, "{scale:e}");
        }
    }

    #[test]
    fn zeros_are_exact_and_what_is_not_finite_stays_so() {
        let mut data = [1; 3];
        assert_eq!((quantise_row(&[0.0, -0.0, 0.0], &mut data), data), (0.0, [0; 3]));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut data = [1; 3];
            let scale = quantise_row(&[1.0, bad, 3.0], &mut data);
            assert!(data.iter().all(|q| (f32::from(*q) * scale).is_nan()));
        }
        assert_eq!(quantise_row(&[], &mut []), 0.0);
    }

    #[test]
    fn any_strides() {
        let data: Vec<f32> = (0..60).map(|i| i as f32 - 30.0).collect();
        let straight = quantise(View::bhsd(&data, [1, 3, 4, 5]).unwrap());
        assert_eq!(straight.tensor().shape(), [1, 3, 4, 5]);
        let across = View::strided(&data, [1, 4, 3, 5], [0, 5, 20, 1]).unwrap();
        let turned = quantise(across);
        assert_eq!(turned.tensor().get([0, 3, 2, 4]), straight.tensor().get([0, 2, 3, 4]));
        let columns = quantise(View::strided(&data, [1, 1, 5, 4], [0, 0, 1, 5]).unwrap());
        assert_eq!(columns.scales[4], 26.0_f32.max(11.0) / 127.0);
    }
}
