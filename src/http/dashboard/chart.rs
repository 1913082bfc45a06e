//! Charts, drawn as SVG by plotters. Colours are named by the style sheet, which knows light from dark.

use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 200);

/// A colour for each series; `style.css` gives them another one by the value that stands here.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 0, 1), RGBColor(0, 0, 2), RGBColor(0, 0, 3)];

/// Bars that stand on each other.
pub(super) struct Chart<'a> {
    /// What it shows, for whoever cannot see it.
    pub(super) title: &'a str,
    /// What the colours mean, from below.
    pub(super) series: &'a [&'a str],
    /// From left to right: what stands below, and the height of each series.
    pub(super) bars: Vec<(String, Vec<u64>)>,
}

impl Chart<'_> {
    /// The chart, and its numbers for those who want them.
    pub(super) fn draw(&self) -> Markup {
        let svg = self.svg().unwrap_or_default();
        let sums: Vec<u64> =
            (0..self.series.len()).map(|n| self.bars.iter().map(|(_, heights)| heights[n]).sum()).collect();
        html! {
            figure.chart {
                figcaption {
                    (self.title)
                    span.legend {
                        @for (n, (name, sum)) in self.series.iter().zip(&sums).enumerate() {
                            span { span.key.{ "series" (n + 1) } {} " " (name) " " strong { (sum) } }
                        }
                    }
                }
                div role="img" aria-label={ (self.title) ": the numbers are in the table below" } { (PreEscaped(svg)) }
                details {
                    summary { "Numbers" }
                    div.scroll tabindex="0" { table {
                        thead { tr { th { "From" } @for name in self.series { th.number { (name) } } } }
                        tbody { @for (label, heights) in &self.bars {
                            tr { th scope="row" { (label) } @for height in heights { td.number { (height) } } }
                        } }
                    } }
                }
            }
        }
    }

    fn svg(&self) -> Result<String, Box<dyn std::error::Error>> {
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let highest = self.bars.iter().map(|(_, heights)| heights.iter().sum::<u64>()).max().unwrap_or(0);
            let count = u32::try_from(self.bars.len().max(1))?;
            let mut chart = ChartBuilder::on(&area)
                .margin(4)
                .x_label_area_size(22)
                .y_label_area_size(44)
                .build_cartesian_2d(0..count * 10, 0..ceiling(highest))?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .x_labels(8)
                .y_labels(4)
                .x_label_formatter(&|x| {
                    let bar = self.bars.get((x / 10) as usize);
                    bar.map(|(label, _)| label.clone()).unwrap_or_default()
                })
                .axis_style(TRANSPARENT)
                .light_line_style(TRANSPARENT)
                .label_style(("sans-serif", 13))
                .draw()?;
            for (index, (_, heights)) in self.bars.iter().enumerate() {
                let left = u32::try_from(index)? * 10;
                let mut floor = 0;
                for (height, colour) in heights.iter().zip(COLOURS) {
                    if *height > 0 {
                        let corners = [(left + 1, floor), (left + 9, floor + height)];
                        chart.draw_series([Rectangle::new(corners, colour.filled())])?;
                        floor += height;
                    }
                }
            }
            area.present()?;
        }
        Ok(svg)
    }
}

/// A round number above the highest bar.
fn ceiling(highest: u64) -> u64 {
    let mut step = 1;
    while step * 10 <= highest {
        step *= 10;
    }
    let rounded = highest.div_ceil(step) * step;
    rounded.max(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_is_svg_without_styles_of_its_own_and_with_its_numbers() {
        let chart = Chart {
            title: "Webhooks",
            series: &["applied", "other"],
            bars: vec![("12:00".to_owned(), vec![3, 1]), ("<b>".to_owned(), vec![0, 12_345])],
        };
        let page = chart.draw().into_string();
        assert!(page.contains("<svg") && page.contains("viewBox"), "{page}");
        assert!(!page.contains("style="), "the policy for content forbids it: {page}");
        assert!(!page.contains("<b>"), "{page}");
        assert!(page.contains("12345"), "{page}");
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        assert_eq!([0, 3, 4, 9, 11, 99, 101, 12_345].map(ceiling), [4, 4, 4, 9, 20, 100, 200, 20_000]);
    }
}
