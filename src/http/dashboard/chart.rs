//! Charts, drawn as SVG by plotters. Colours and font sizes are in the style sheet, which distinguishes light from dark
//! and selects the drawing whose width fits the screen.

use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;

use super::page::grouped;

/// A drawing for wide and one for narrow screens: class, and size in pixels.
const SIZES: [(&str, (u32, u32)); 2] = [("wide", (960, 210)), ("narrow", (340, 210))];

/// A placeholder colour for each series; `style.css` replaces it by this value.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 0, 1), RGBColor(0, 0, 2), RGBColor(0, 0, 3)];

/// A value above zero gets at least this fraction (1/90) of the height: one failure among thousands must be visible.
const SEEN: u64 = 90;

/// The width of a bar with its gaps, and the width of each gap.
const WIDTH: (u32, u32) = (10, 1);

/// A stacked bar chart.
pub(super) struct Chart<'a> {
    /// What it shows, for screen readers.
    pub(super) title: &'a str,
    /// The name of each series, from the bottom.
    pub(super) series: &'a [&'a str],
    /// From left to right.
    pub(super) bars: Vec<Bar>,
}

/// One stack.
pub(super) struct Bar {
    /// What it represents.
    pub(super) label: String,
    /// The label below it; most bars have none.
    pub(super) tick: Option<String>,
    /// The value of each series.
    pub(super) heights: Vec<u64>,
}

impl Chart<'_> {
    /// The chart, and a table of its numbers.
    pub(super) fn draw(&self) -> Markup {
        let sums: Vec<u64> =
            (0..self.series.len()).map(|n| self.bars.iter().map(|bar| bar.heights[n]).sum()).collect();
        html! {
            figure.chart {
                figcaption {
                    (self.title)
                    span.legend {
                        @for (n, (name, sum)) in self.series.iter().zip(&sums).enumerate() {
                            span { span.key.{ "series" (n + 1) } {} " " (name) " " strong { (grouped(*sum)) } }
                        }
                    }
                }
                @if sums.iter().all(|sum| *sum == 0) {
                    p.nothing { "There were none." }
                } @else {
                    div.plot role="img" aria-label={ (self.title) ": the numbers are in the table below" } {
                        @for (class, size) in SIZES { div.(class) { (PreEscaped(self.svg(size).unwrap_or_default())) } }
                    }
                    (self.numbers())
                }
            }
        }
    }

    fn numbers(&self) -> Markup {
        html! {
            details {
                summary { "Numbers" }
                div.scroll role="region" aria-label="Numbers" tabindex="0" { table {
                    thead { tr { th { "From" } @for name in self.series { th.number { (name) } } } }
                    tbody { @for bar in &self.bars {
                        tr { th scope="row" { (bar.label) } @for height in &bar.heights { td.number { (grouped(*height)) } } }
                    } }
                } }
            }
        }
    }

    fn svg(&self, size: (u32, u32)) -> Result<String, Box<dyn std::error::Error>> {
        let highest = self.bars.iter().map(|bar| bar.heights.iter().sum::<u64>()).max().unwrap_or(0);
        let step = step(highest);
        let top = highest.div_ceil(step).max(1).saturating_mul(step);
        let lines = (0..=top / step).map(|line| line * step).collect();
        let (width, gap) = WIDTH;
        let lefts = || (0..).step_by(width as usize).zip(&self.bars);
        let ticks = lefts().filter(|(_, bar)| bar.tick.is_some()).map(|(left, _)| left + width / 2).collect();
        let tick = |middle: &u32| {
            let bar = self.bars.get((middle / width) as usize);
            bar.and_then(|bar| bar.tick.clone()).unwrap_or_default()
        };
        let right = width * u32::try_from(self.bars.len())?;
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            let mut chart = ChartBuilder::on(&area)
                .margin_top(8)
                .x_label_area_size(24)
                .y_label_area_size(8 * u32::try_from(grouped(top).chars().count())? + 12)
                .build_cartesian_2d((0..right).with_key_points(ticks), (0..top).with_key_points(lines))?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .x_labels(self.bars.len())
                .y_labels(10)
                .x_label_formatter(&tick)
                .y_label_formatter(&|line| grouped(*line))
                .axis_style(TRANSPARENT)
                .bold_line_style(BLACK)
                .light_line_style(TRANSPARENT)
                .draw()?;
            for (left, bar) in lefts() {
                for ((from, to), colour) in stacked(&bar.heights, top).into_iter().zip(COLOURS) {
                    if from < to {
                        let corners = [(left + gap, from), (left + width - gap, to)];
                        chart.draw_series([Rectangle::new(corners, colour.filled())])?;
                    }
                }
            }
            area.present()?;
        }
        Ok(svg)
    }
}

/// The lower and upper end of each segment.
fn stacked(heights: &[u64], top: u64) -> Vec<(u64, u64)> {
    let mut floor = 0;
    let stack = heights.iter().map(|height| {
        let from = floor;
        floor += if *height == 0 { 0 } else { (*height).max(top / SEEN) };
        (from, floor)
    });
    stack.collect()
}

/// The distance between grid lines: a round number, so that three or four lines reach above the highest bar.
fn step(highest: u64) -> u64 {
    let mut unit: u64 = 1;
    loop {
        for round in [1, 2, 5] {
            let step = unit.saturating_mul(round);
            if step.saturating_mul(4) >= highest {
                return step;
            }
        }
        unit = unit.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(label: &str, heights: &[u64]) -> Bar {
        Bar { label: label.to_owned(), tick: Some(label.to_owned()), heights: heights.to_vec() }
    }

    fn chart(bars: Vec<Bar>) -> String {
        Chart { title: "Webhooks", series: &["applied", "other"], bars }.draw().into_string()
    }

    #[test]
    fn a_chart_is_svg_without_styles_of_its_own_and_with_its_numbers() {
        let page = chart(vec![bar("12:00", &[3, 1]), bar("<b>", &[0, 12_345])]);
        assert!(page.contains("<svg"), "{page}");
        assert!(!page.contains("style="), "the policy for content forbids it: {page}");
        assert!(!page.contains("<b>"), "{page}");
        assert!(page.contains(&grouped(12_345)), "{page}");
        assert!(
            page.contains("\n12:00\n") && page.contains(&grouped(15_000)) && page.contains("#000002"),
            "{page}"
        );
    }

    #[test]
    fn where_there_is_nothing_that_is_said() {
        let page = chart(vec![bar("12:00", &[0, 0])]);
        assert!(!page.contains("<svg") && page.contains("There were none"), "{page}");
    }

    #[test]
    fn a_bar_stands_on_the_one_below_and_never_vanishes() {
        assert_eq!(stacked(&[50, 0, 25], 90), [(0, 50), (50, 50), (50, 75)]);
        assert_eq!(stacked(&[9_000, 0, 1], 9_000), [(0, 9_000), (9_000, 9_000), (9_000, 9_100)]);
    }

    #[test]
    fn the_scale_has_round_steps_and_little_air_above() {
        let scale = |highest: u64| (step(highest), highest.div_ceil(step(highest)).max(1) * step(highest));
        assert_eq!(
            [0, 1, 4, 9, 11, 99, 131, 12_345].map(scale),
            [(1, 1), (1, 1), (1, 4), (5, 10), (5, 15), (50, 100), (50, 150), (5000, 15_000)]
        );
        assert!(step(u64::MAX) > u64::MAX / 4, "the loop ends");
    }
}
