//! From numbers to places on paper, and the numbers that axes show.

/// How numbers lie along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Linear,
    /// Ticks at powers of two.
    Binary,
    /// Ticks at powers of ten, and at twice and five times as much where there is room.
    Decimal,
}

/// An axis: the numbers at its ends and their places, in units of the drawing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    kind: Kind,
    domain: [f64; 2],
    range: [f64; 2],
}

impl Scale {
    /// A scale; a domain without length is widened, so that everything has a place.
    pub(crate) fn new(kind: Kind, [low, high]: [f64; 2], range: [f64; 2]) -> Self {
        let domain = match kind {
            Kind::Linear if high > low => [low, high],
            Kind::Linear => [low, low + 1.0],
            _ if low > 0.0 && high > low => [low, high],
            _ if low > 0.0 => [low / 2.0, low * 2.0],
            _ => [1.0, 10.0],
        };
        Self { kind, domain, range }
    }

    fn position(&self, number: f64) -> f64 {
        match self.kind {
            Kind::Linear => number,
            _ => number.max(f64::MIN_POSITIVE).ln(),
        }
    }

    /// The place of a number. Those that are beyond the ends stay at the ends.
    pub(crate) fn at(&self, number: f64) -> f64 {
        let [low, high] = self.domain.map(|end| self.position(end));
        let part = ((self.position(number) - low) / (high - low)).clamp(0.0, 1.0);
        let part = if part.is_nan() { 0.0 } else { part };
        self.range[0] + part * (self.range[1] - self.range[0])
    }

    /// The numbers at the ends.
    pub(crate) fn domain(&self) -> [f64; 2] {
        self.domain
    }

    /// Some five to ten numbers worth showing, with their texts.
    pub(crate) fn ticks(&self) -> Vec<(f64, String)> {
        let [low, high] = self.domain;
        let inside = |number: &f64| *number >= low * (1.0 - 1e-9) && *number <= high * (1.0 + 1e-9);
        let numbers: Vec<f64> = match self.kind {
            Kind::Linear => {
                let step = step((high - low) / 6.0);
                let first = (low / step).ceil() as i64;
                (first..).map(|i| i as f64 * step).take_while(|number| *number <= high + step * 1e-9).collect()
            }
            Kind::Binary => {
                let octaves = (high / low).log2();
                let every = (octaves / 9.0).ceil().max(1.0) as usize;
                let first = low.log2().round() as i32;
                (first..=high.log2().round() as i32)
                    .step_by(every)
                    .map(|power| f64::from(power).exp2())
                    .filter(inside)
                    .collect()
            }
            Kind::Decimal => {
                let factors: &[f64] = if high / low > 2e3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
                powers
                    .flat_map(|power| factors.iter().map(move |factor| factor * 10_f64.powi(power)))
                    .filter(inside)
                    .collect()
            }
        };
        numbers.into_iter().map(|number| (number, plain(number))).collect()
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below.
fn step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= least * (1.0 - 1e-9))
        .unwrap_or(least)
}

/// A number without needless digits: 0.25, 3, 512.
fn plain(number: f64) -> String {
    if number == 0.0 || (number - number.round()).abs() < 1e-9 * number.abs() {
        return format!("{number:.0}");
    }
    let digits = (2.0 - number.abs().log10().floor()).max(0.0) as usize;
    let text = format!("{number:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(kind: Kind, domain: [f64; 2]) -> Vec<String> {
        Scale::new(kind, domain, [0.0, 100.0]).ticks().into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(texts(Kind::Linear, [0.0, 130.0]), ["0", "50", "100"]);
        assert_eq!(texts(Kind::Linear, [0.0, 1.1]), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(texts(Kind::Binary, [128.0, 4096.0]), ["128", "256", "512", "1024", "2048", "4096"]);
        assert_eq!(texts(Kind::Binary, [0.25, 1.0]), ["0.25", "0.5", "1"]);
        assert_eq!(texts(Kind::Decimal, [3.0, 300.0]), ["5", "10", "20", "50", "100", "200"]);
    }

    #[test]
    fn everything_has_a_place() {
        for kind in [Kind::Linear, Kind::Binary, Kind::Decimal] {
            for domain in [[0.0, 0.0], [5.0, 5.0], [f64::NAN, 1.0], [1.0, 100.0]] {
                let scale = Scale::new(kind, domain, [10.0, 110.0]);
                for number in [-1.0, 0.0, 3.0, 1e300, f64::NAN, f64::INFINITY] {
                    assert!((10.0..=110.0).contains(&scale.at(number)), "{kind:?} {domain:?} {number}");
                }
                assert!(scale.ticks().len() < 30);
            }
        }
        let scale = Scale::new(Kind::Binary, [1.0, 16.0], [0.0, 100.0]);
        assert!((scale.at(4.0) - 50.0).abs() < 1e-9);
    }
}
