//! Bars that lie, one under the other, each with its name and its figure.

use std::fmt::Write;

use super::super::html::escape;
use super::{COLOURS, Kind, Scale, begin};

/// A bar.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) value: f64,
    /// The ends of an interval.
    pub(crate) interval: Option<[f64; 2]>,
    /// What stands behind the bar.
    pub(crate) figure: String,
    pub(crate) note: String,
    pub(crate) title: String,
    pub(crate) colour: usize,
}

/// Units of a row.
const ROW: f64 = 26.0;

/// Where bars begin, and how far they may go. Behind that stand the figures, and the notes.
const PLOT: [f64; 2] = [104.0, 262.0];

/// Where notes end, which is the width of the drawing.
const WIDTH: f64 = 540.0;

/// Bars from zero. `rule` is a number to draw a line at, with its name.
pub(crate) fn bars(bars: &[Bar], rule: Option<(f64, &str)>, description: &str) -> String {
    let most = bars.iter().flat_map(|bar| [Some(bar.value), bar.interval.map(|[_, high]| high)]).flatten();
    let most = most.chain(rule.map(|(at, _)| at)).fold(0.0, f64::max);
    let scale = Scale::new(Kind::Linear, [0.0, most], PLOT);
    let top = if rule.is_some() { 22.0 } else { 4.0 };
    let height = top + ROW * bars.len() as f64 + 4.0;
    let mut svg = begin([WIDTH, height], description);
    for (i, bar) in bars.iter().enumerate() {
        let Bar { name, value, interval, figure, note, title, colour } = bar;
        let middle = top + ROW * (i as f64 + 0.5);
        let (from, to) = (PLOT[0], scale.at(*value));
        let _ = write!(
            svg,
            "<g><title>{}</title><text class=\"label\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>\
             <rect class=\"fill c{}\" x=\"{from}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" rx=\"2\"/>",
            escape(title),
            from - 10.0,
            middle + 4.0,
            escape(name),
            colour % COLOURS,
            middle - 8.0,
            (to - from).max(0.5),
            16.0
        );
        if let Some([low, high]) = interval {
            let (low, high) = (scale.at(*low), scale.at(*high));
            let _ = write!(
                svg,
                "<path class=\"whisker\" d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {0:.1}v8M{high:.1} {0:.1}v8\"/>",
                middle - 4.0
            );
        }
        let behind = to.max(interval.map_or(0.0, |[_, high]| scale.at(high))) + 8.0;
        let _ = write!(
            svg,
            "<text class=\"figure\" x=\"{behind:.1}\" y=\"{0:.1}\">{1}</text>\
             <text class=\"tick\" text-anchor=\"end\" x=\"{2}\" y=\"{0:.1}\">{3}</text></g>",
            middle + 4.0,
            escape(figure),
            WIDTH - 2.0,
            escape(note)
        );
    }
    if let Some((at, name)) = rule {
        let x = scale.at(at);
        let _ = write!(
            svg,
            "<line class=\"rule\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"12\">{}</text>",
            top - 4.0,
            height - 2.0,
            escape(name)
        );
    }
    svg + "</svg>"
}
