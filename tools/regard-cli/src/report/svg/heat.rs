//! A map of numbers over two lists, darker where they are better.

use std::fmt::Write;

use super::super::html::escape;
use super::begin;

/// A map.
#[derive(Clone, Debug)]
pub(crate) struct Map<'a> {
    pub(crate) columns: &'a [usize],
    pub(crate) rows: &'a [usize],
    pub(crate) column_label: &'a str,
    pub(crate) row_label: &'a str,
    /// By row and column: 1 is the best, and `pale` as far from it as it gets.
    pub(crate) values: &'a [Vec<f64>],
    pub(crate) pale: f64,
    /// Letters in a corner of a cell, by row and column of their lists.
    pub(crate) marks: &'a [(usize, usize, &'a str)],
}

/// Units of a cell.
const CELL: [f64; 2] = [66.0, 38.0];

/// Where the first cell is.
const ORIGIN: [f64; 2] = [64.0, 26.0];

impl Map<'_> {
    /// The drawing.
    pub(crate) fn to_svg(&self, description: &str) -> String {
        let width = ORIGIN[0] + CELL[0] * self.columns.len() as f64 + 6.0;
        let height = ORIGIN[1] + CELL[1] * self.rows.len() as f64 + 44.0;
        let mut svg = begin([width, height], description);
        let bottom = height - 44.0;
        for (i, column) in self.columns.iter().enumerate() {
            let x = ORIGIN[0] + CELL[0] * (i as f64 + 0.5);
            let _ = write!(
                svg,
                "<text class=\"tick\" text-anchor=\"middle\" x=\"{x}\" y=\"{}\">{column}</text>",
                bottom + 17.0
            );
        }
        let middle = ORIGIN[0] + CELL[0] * self.columns.len() as f64 / 2.0;
        let (name, rows) = (escape(self.column_label), escape(self.row_label));
        let _ = write!(
            svg,
            "<text class=\"name\" text-anchor=\"middle\" x=\"{middle}\" y=\"{}\">{name}</text>",
            height - 6.0
        );
        let _ = write!(svg, "<text class=\"name\" x=\"2\" y=\"14\">{rows}</text>");
        for (i, (row, values)) in self.rows.iter().zip(self.values).enumerate() {
            let y = ORIGIN[1] + CELL[1] * i as f64;
            let _ = write!(
                svg,
                "<text class=\"tick\" text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{row}</text>",
                ORIGIN[0] - 8.0,
                y + CELL[1] / 2.0 + 4.0
            );
            for (j, value) in values.iter().enumerate() {
                self.cell(&mut svg, [i, j], *value);
            }
        }
        // Above all cells, so that no neighbour covers a frame.
        for (row, column, _) in self.marks {
            let [x, y] = place([*row, *column]);
            let (width, height) = (CELL[0] - 4.0, CELL[1] - 4.0);
            let _ = write!(
                svg,
                "<rect class=\"frame\" x=\"{}\" y=\"{}\" width=\"{width}\" height=\"{height}\" rx=\"3\"/>",
                x + 2.0,
                y + 2.0
            );
        }
        svg + "</svg>"
    }

    fn cell(&self, svg: &mut String, [row, column]: [usize; 2], value: f64) {
        let [x, y] = place([row, column]);
        let strength = (1.0 - (value - 1.0) / (self.pale - 1.0)).clamp(0.0, 1.0);
        let opacity = 0.06 + 0.94 * strength * strength;
        let ink = if opacity > 0.72 { "on" } else { "off" };
        let marks: Vec<&str> =
            self.marks.iter().filter(|mark| (mark.0, mark.1) == (row, column)).map(|mark| mark.2).collect();
        let text = if value <= 1.0 { "best".to_owned() } else { format!("+{:.1} %", 100.0 * (value - 1.0)) };
        let lift = if marks.is_empty() { 4.0 } else { -2.0 };
        let middle = [x + CELL[0] / 2.0, y + CELL[1] / 2.0];
        let _ = write!(
            svg,
            "<g><title>{} {}, {} {}: {text}</title>\
             <rect class=\"heat\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"3\" fill-opacity=\"{opacity:.3}\"/>\
             <text class=\"cell {ink}\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            escape(self.row_label),
            self.rows[row],
            escape(self.column_label),
            self.columns[column],
            x + 1.0,
            y + 1.0,
            CELL[0] - 2.0,
            CELL[1] - 2.0,
            middle[0],
            middle[1] + lift
        );
        if !marks.is_empty() {
            let _ = write!(
                svg,
                "<text class=\"mark {ink}\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                middle[0],
                middle[1] + 12.0,
                escape(&marks.join(" · "))
            );
        }
        *svg += "</g>";
    }
}

fn place([row, column]: [usize; 2]) -> [f64; 2] {
    [ORIGIN[0] + CELL[0] * column as f64, ORIGIN[1] + CELL[1] * row as f64]
}
