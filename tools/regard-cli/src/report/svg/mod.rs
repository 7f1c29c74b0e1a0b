//! Small charts as SVG: axes, lines, points, bars, labels that keep out of each other's way. Colours are classes of the
//! page's style sheet, so that a chart is light or dark as the page is; a `<title>` says what a mark is.

mod bars;
mod heat;
mod scale;

use std::fmt::Write;

pub(super) use self::bars::{Bar, bars};
pub(super) use self::heat::Map;
pub(super) use self::scale::{Kind, Scale};
use super::html::escape;

/// The colours of series, which the style sheet names `c0` to `c5`.
pub(super) const COLOURS: usize = 6;

/// An axis: what it shows, and from where to where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis<'a> {
    pub(super) label: &'a str,
    pub(super) kind: Kind,
    pub(super) domain: [f64; 2],
}

/// The edges of the drawing, in its units.
#[derive(Clone, Copy, Debug)]
pub(super) struct Margins {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

/// A chart with two axes.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    size: [f64; 2],
    margins: Margins,
    pub(super) x: Scale,
    pub(super) y: Scale,
    body: String,
    /// Labels at the right end of lines: where they would stand, colour, text.
    ends: Vec<(f64, usize, String)>,
}

/// Units between the baselines of labels.
const LINE_HEIGHT: f64 = 15.0;

impl Chart {
    /// A chart of this size, with grid and numbers. `description` is for those who cannot see it.
    pub(super) fn new(size: [f64; 2], margins: Margins, x: Axis<'_>, y: Axis<'_>, description: &str) -> Self {
        let [width, height] = size;
        let Margins { left, right, top, bottom } = margins;
        let x_scale = Scale::new(x.kind, x.domain, [left, width - right]);
        let y_scale = Scale::new(y.kind, y.domain, [height - bottom, top]);
        let mut body = begin(size, description);
        for (number, text) in y_scale.ticks() {
            let y = y_scale.at(number);
            let _ = write!(
                body,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                width - right
            );
            let _ = write!(
                body,
                "<text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{text}</text>",
                left - 8.0,
                y + 4.0
            );
        }
        for (number, text) in x_scale.ticks() {
            let x = x_scale.at(number);
            let base = height - bottom;
            let _ =
                write!(body, "<line class=\"axis\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{base}\" y2=\"{}\"/>", base + 4.0);
            let _ = write!(
                body,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{x:.1}\" y=\"{}\">{text}</text>",
                base + 18.0
            );
        }
        let base = height - bottom;
        let _ =
            write!(body, "<line class=\"axis\" x1=\"{left}\" x2=\"{}\" y1=\"{base}\" y2=\"{base}\"/>", width - right);
        let middle = left + (width - left - right) / 2.0;
        let _ = write!(
            body,
            "<text class=\"name\" text-anchor=\"middle\" x=\"{middle:.1}\" y=\"{}\">{}</text>",
            height - 6.0,
            escape(x.label)
        );
        let _ = write!(body, "<text class=\"name\" x=\"{}\" y=\"{}\">{}</text>", 2.0, top - 12.0, escape(y.label));
        Self { size, margins, x: x_scale, y: y_scale, body, ends: Vec::new() }
    }

    /// A line through points, with a mark at each; `titles` say what they are. Dashed if `dashed`.
    pub(super) fn line(&mut self, colour: usize, dashed: bool, points: &[([f64; 2], String)]) {
        let places: Vec<[f64; 2]> = points.iter().map(|(point, _)| self.place(*point)).collect();
        let path: Vec<String> = places.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        let dash = if dashed { " dashed" } else { "" };
        let _ =
            write!(self.body, "<polyline class=\"line c{}{dash}\" points=\"{}\"/>", colour % COLOURS, path.join(" "));
        for (point, title) in points {
            self.dot(colour, dashed, *point, title);
        }
    }

    /// A mark, hollow or full.
    pub(super) fn dot(&mut self, colour: usize, hollow: bool, point: [f64; 2], title: &str) {
        let [x, y] = self.place(point);
        let kind = if hollow { "hollow" } else { "dot" };
        let _ = write!(
            self.body,
            "<circle class=\"{kind} c{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{}</title></circle>",
            colour % COLOURS,
            escape(title)
        );
    }

    /// A straight line between two points, of a class of the style sheet.
    pub(super) fn segment(&mut self, class: &str, from: [f64; 2], to: [f64; 2], title: &str) {
        let ([x1, y1], [x2, y2]) = (self.place(from), self.place(to));
        let _ = write!(
            self.body,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"><title>{}</title></line>",
            escape(title)
        );
    }

    /// Words on a line that goes through two points, so many units from its beginning.
    pub(super) fn words_along(&mut self, [from, to]: [[f64; 2]; 2], distance: f64, text: &str) {
        let ([x1, y1], [x2, y2]) = (self.place(from), self.place(to));
        let angle = (y2 - y1).atan2(x2 - x1).to_degrees();
        let _ = write!(
            self.body,
            "<text class=\"along\" transform=\"translate({x1:.1} {y1:.1}) rotate({angle:.1})\" x=\"{distance}\" y=\"4\">{}</text>",
            escape(text)
        );
    }

    /// A label to the right of the plot, at the height of a number or near it.
    pub(super) fn end_label(&mut self, colour: usize, y: f64, text: &str) {
        self.ends.push((self.y.at(y), colour, text.to_owned()));
    }

    /// The place of a point.
    pub(super) fn place(&self, [x, y]: [f64; 2]) -> [f64; 2] {
        [self.x.at(x), self.y.at(y)]
    }

    /// The drawing.
    pub(super) fn finish(mut self) -> String {
        let Margins { right, top, bottom, .. } = self.margins;
        let [width, height] = self.size;
        self.ends.sort_by(|(a, ..), (b, ..)| a.total_cmp(b));
        let wanted: Vec<f64> = self.ends.iter().map(|(y, ..)| *y).collect();
        let places = spread(&wanted, LINE_HEIGHT, [top, height - bottom]);
        for ((at, colour, text), y) in self.ends.iter().zip(places) {
            let x = width - right;
            let _ = write!(
                self.body,
                "<path class=\"leader c{0}\" d=\"M{1:.1} {at:.1} L{2:.1} {y:.1}\"/><text class=\"end c{0}\" x=\"{3:.1}\" y=\"{4:.1}\">{5}</text>",
                colour % COLOURS,
                x + 5.0,
                x + 15.0,
                x + 18.0,
                y + 4.0,
                escape(text)
            );
        }
        self.body + "</svg>"
    }
}

/// The tag of a drawing. Its text stays between four fifths and a bit more than its size; pages scroll what is too wide.
fn begin([width, height]: [f64; 2], description: &str) -> String {
    let [least, most] = [0.8, 1.1].map(|factor| factor * width);
    format!(
        "<svg viewBox=\"0 0 {width} {height}\" style=\"min-width:{least:.0}px;max-width:{most:.0}px\" role=\"img\" \
         aria-label=\"{}\">",
        escape(description)
    )
}

/// Sorted places, moved as little as keeps them apart and inside.
pub(super) fn spread(wanted: &[f64], apart: f64, [first, last]: [f64; 2]) -> Vec<f64> {
    let mut places: Vec<f64> = wanted.to_vec();
    let mut least = first;
    for place in &mut places {
        *place = place.max(least);
        least = *place + apart;
    }
    let mut most = last;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - apart;
    }
    // What was pushed down in the first pass goes back up as far as its neighbours allow.
    for i in 0..places.len() {
        let above = if i == 0 { first } else { places[i - 1] + apart };
        places[i] = places[i].min(wanted[i].max(above)).max(above.min(places[i]));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_apart() {
        let places = spread(&[10.0, 11.0, 12.0, 90.0, 100.0, 101.0], 15.0, [0.0, 100.0]);
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 14.999), "{places:?}");
        assert!(places.iter().all(|place| (0.0..=100.001).contains(place)), "{places:?}");
        assert_eq!(spread(&[10.0, 50.0], 15.0, [0.0, 100.0]), [10.0, 50.0]);
        assert!(spread(&[], 15.0, [0.0, 100.0]).is_empty());
    }

    #[test]
    fn a_chart_is_a_drawing() {
        let axis = Axis { label: "a < b", kind: Kind::Linear, domain: [0.0, 10.0] };
        let margins = Margins { left: 40.0, right: 80.0, top: 30.0, bottom: 40.0 };
        let mut chart = Chart::new([300.0, 200.0], margins, axis, axis, "what \"it\" shows");
        chart.line(0, true, &[([0.0, 1.0], "<first>".to_owned()), ([10.0, 9.0], "last".to_owned())]);
        chart.segment("roof", [0.0, 0.0], [10.0, 10.0], "a roof");
        chart.end_label(0, 9.0, "<label>");
        let svg = chart.finish();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>"));
        assert!(svg.contains("&lt;label&gt;") && svg.contains("a &lt; b") && !svg.contains("<first>"));
    }
}
