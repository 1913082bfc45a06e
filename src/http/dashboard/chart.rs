//! Charts, drawn as SVG. Lengths across are parts of the whole, so that bars fit every screen and labels keep their size;
//! colours stand in the style sheet, which knows light from dark.

use maud::{Markup, html};

use super::page::grouped;

/// How high the bars can be, in pixels; below it stand the ticks.
const HEIGHT: u64 = 180;

/// Room for the ticks.
const BELOW: u64 = 24;

/// Whatever is not nothing is at least so high, in tenths of a pixel: one failure among thousands is to be seen.
const SEEN: u64 = 20;

/// Bars that stand on each other.
pub(super) struct Chart<'a> {
    /// What it shows, for whoever cannot see it.
    pub(super) title: &'a str,
    /// What the colours mean, from below.
    pub(super) series: &'a [&'a str],
    /// From left to right.
    pub(super) bars: Vec<Bar>,
}

/// What is stacked at one place.
pub(super) struct Bar {
    /// What it stands for.
    pub(super) label: String,
    /// What stands below it; of most bars nothing.
    pub(super) tick: Option<String>,
    /// The number of each series.
    pub(super) heights: Vec<u64>,
}

impl Chart<'_> {
    /// The chart, and its numbers for those who want them.
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
                    div.plot role="img" aria-label={ (self.title) ": the numbers are in the table below" } { (self.svg()) }
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

    fn svg(&self) -> Markup {
        let highest = self.bars.iter().map(|bar| bar.heights.iter().sum::<u64>()).max().unwrap_or(0);
        let step = step(highest);
        let top = highest.div_ceil(step).max(1).saturating_mul(step);
        let lines: Vec<u64> = (0..=top / step).map(|n| n * step).collect();
        // What a digit takes up at the size of the style sheet.
        let margin = 8 * grouped(top).chars().count() + 8;
        let count = self.bars.len() as u64;
        html! {
            svg.scale width=(margin) height=(HEIGHT + BELOW) {
                @for line in &lines { text x=(margin - 8) y=(tenths(HEIGHT * 10 - scaled(*line, top))) dy="0.35em" { (grouped(*line)) } }
            }
            svg.bars height=(HEIGHT + BELOW) {
                @for line in &lines {
                    @let y = tenths(HEIGHT * 10 - scaled(*line, top));
                    line x1="0" x2="100%" y1=(y) y2=(y) {}
                }
                @for (index, bar) in (0..).zip(&self.bars) {
                    g {
                        title { (self.told(bar)) }
                        rect.hit x=(percent(index * 10, count)) width=(percent(10, count)) y="0" height=(HEIGHT) {}
                        @for (series, (from, height)) in stacked(&bar.heights, top).into_iter().enumerate() {
                            @if height > 0 {
                                rect.{ "series" (series + 1) } x=(percent(index * 10 + 1, count)) width=(percent(8, count))
                                    y=(tenths((HEIGHT * 10).saturating_sub(from + height))) height=(tenths(height)) {}
                            }
                        }
                    }
                    @if let Some(tick) = &bar.tick {
                        text x=(percent(index * 10 + 5, count)) y=(HEIGHT + BELOW - 6) { (tick) }
                    }
                }
            }
        }
    }

    /// A bar in words.
    fn told(&self, bar: &Bar) -> String {
        let heights = self.series.iter().zip(&bar.heights);
        let heights: Vec<String> =
            heights.map(|(name, height)| format!("{} {name}", grouped(*height))).collect();
        format!("{}: {}", bar.label, heights.join(", "))
    }
}

/// From where, and how high, in tenths of a pixel.
fn stacked(heights: &[u64], top: u64) -> Vec<(u64, u64)> {
    let mut floor = 0;
    let stack = heights.iter().map(|height| {
        let height = if *height == 0 { 0 } else { scaled(*height, top).max(SEEN) };
        floor += height;
        (floor - height, height)
    });
    stack.collect()
}

/// How high something stands, in tenths of a pixel.
fn scaled(value: u64, top: u64) -> u64 {
    value.saturating_mul(HEIGHT * 10) / top.max(1)
}

fn tenths(length: u64) -> String {
    format!("{}.{}", length / 10, length % 10)
}

/// So many tenths of the width of one bar, as a part of the whole.
fn percent(tenths: u64, bars: u64) -> String {
    let hundredths = tenths * 1000 / bars.max(1);
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

/// From line to line: a round number, of which three or four reach above the highest bar.
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
        assert!(page.contains("12:00: 3 applied, 1 other"), "{page}");
    }

    #[test]
    fn where_there_is_nothing_that_is_said() {
        let page = chart(vec![bar("12:00", &[0, 0])]);
        assert!(!page.contains("<svg") && page.contains("There were none"), "{page}");
    }

    #[test]
    fn a_bar_stands_on_the_one_below_and_never_vanishes() {
        assert_eq!(stacked(&[50, 0, 25], 100), [(0, 900), (900, 0), (900, 450)]);
        assert_eq!(stacked(&[1_000_000, 0, 1], 1_000_000), [(0, 1800), (1800, 0), (1800, SEEN)]);
    }

    #[test]
    fn the_scale_has_round_steps_and_little_air_above() {
        let scale = |highest: u64| (step(highest), highest.div_ceil(step(highest)).max(1) * step(highest));
        assert_eq!(
            [0, 1, 4, 9, 11, 99, 131, 12_345].map(scale),
            [(1, 1), (1, 1), (1, 4), (5, 10), (5, 15), (50, 100), (50, 150), (5000, 15_000)]
        );
        assert!(step(u64::MAX) > u64::MAX / 4, "and an end");
    }
}
