//! Plots for the documentation.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Machine, Row};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 560;
/// Room for the names at the right end of the lines.
const NAMES: i32 = 210;

/// Ours in blues, peers in other colours, the limit in black.
const OUR_COLOURS: [RGBColor; 5] = [
    RGBColor(8, 69, 148),
    RGBColor(33, 113, 181),
    RGBColor(66, 146, 198),
    RGBColor(107, 174, 214),
    RGBColor(158, 202, 225),
];
const PEER_COLOURS: [RGBColor; 11] = [
    RGBColor(203, 24, 29),
    RGBColor(35, 139, 69),
    RGBColor(140, 81, 10),
    RGBColor(106, 81, 163),
    RGBColor(217, 95, 2),
    RGBColor(2, 129, 138),
    RGBColor(174, 1, 126),
    RGBColor(90, 90, 90),
    RGBColor(231, 41, 138),
    RGBColor(102, 166, 30),
    RGBColor(166, 118, 29),
];

/// The size that is no point of the line.
const MIXED: &str = "imix";

/// One line of a plot.
struct Series<'a> {
    who: &'a str,
    colour: RGBColor,
    thickness: u32,
    /// Number of the size, and binary logarithm of the height.
    points: Vec<(f64, f64)>,
}

/// Writes a plot of the rows of one group and returns its path: by size, how many times the
/// core's bound everybody takes, or cycles per packet where no bound is known.
pub(crate) fn plot(
    directory: &Path,
    machine: &Machine,
    group: &[&Row],
) -> Result<Option<PathBuf>, Box<dyn Error>> {
    let Some(first) = group.first() else {
        return Ok(None);
    };
    let Row {
        level,
        suite,
        sas,
        dir,
        ..
    } = first;
    fs::create_dir_all(directory)?;
    let path = directory.join(format!("{level}-{suite}-{sas}sa-{dir}.svg"));
    let title = format!("{suite}, {level}, {dir}bound, {sas} SA");
    let image = draw(&title, &machine.to_string(), group)?;
    fs::write(&path, image)?;
    Ok(Some(path))
}

fn draw(title: &str, subtitle: &str, group: &[&Row]) -> Result<String, Box<dyn Error>> {
    let mut sizes: Vec<&str> = Vec::new();
    for row in group {
        if !sizes.contains(&row.size.as_str()) {
            sizes.push(&row.size);
        }
    }
    let mut all = series(group, &sizes);
    let heights = || {
        all.iter()
            .flat_map(|series| &series.points)
            .map(|point| point.1)
    };
    let low = heights().fold(f64::INFINITY, f64::min).floor();
    let high = heights()
        .fold(f64::NEG_INFINITY, f64::max)
        .ceil()
        .max(low + 1.0);

    let mut image = String::new();
    let area = SVGBackend::with_string(&mut image, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(title, (16, 12), text(20)))?;
    area.draw(&Text::new(subtitle, (16, 38), text(12)))?;
    let (_, below) = area.split_vertically(56);
    let (left, _) = below.split_horizontally(WIDTH as i32 - NAMES);
    let mut chart = ChartBuilder::on(&left)
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(-0.3..sizes.len() as f64 - 0.7, low..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(2 * sizes.len())
        .x_label_formatter(&|x| label(*x, &sizes))
        .y_labels((high - low) as usize + 1)
        .y_label_formatter(&|y| format!("{:.0}", y.exp2()))
        .x_desc("bytes per packet")
        .y_desc(if group.iter().any(|row| row.is_limit()) {
            "core cycles per packet, in multiples of the core's bound"
        } else {
            "core cycles per packet"
        })
        .axis_desc_style(("sans-serif", 14))
        .label_style(("sans-serif", 13))
        .draw()?;
    for series in &all {
        let style = series.colour.stroke_width(series.thickness);
        let line = series.points.iter().copied();
        let line = line.filter(|(x, _)| sizes.get(*x as usize) != Some(&MIXED));
        chart.draw_series(LineSeries::new(line, style))?;
        let dots = series.points.iter();
        chart.draw_series(dots.map(|&point| Circle::new(point, 3, series.colour.filled())))?;
    }
    // Names stand at the heights where the lines end, pushed apart where they would overlap.
    all.sort_by(|a, b| end(b).total_cmp(&end(a)));
    let mut free = i32::MIN;
    for series in &all {
        let Some(&last) = series.points.last() else {
            continue;
        };
        let (_, y) = chart.backend_coord(&last);
        let y = y.max(free);
        free = y + 15;
        name(&area, series, y)?;
    }
    drop(chart);
    drop((left, below));
    area.present()?;
    drop(area);
    Ok(image)
}

fn name(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    series: &Series<'_>,
    y: i32,
) -> Result<(), Box<dyn Error>> {
    let font = ("sans-serif", 13).into_font().color(&series.colour);
    let x = WIDTH as i32 - NAMES;
    area.draw(&Text::new(series.who.to_owned(), (x, y - 7), font))?;
    Ok(())
}

fn end(series: &Series<'_>) -> f64 {
    series
        .points
        .last()
        .map_or(f64::NEG_INFINITY, |point| point.1)
}

fn label(x: f64, sizes: &[&str]) -> String {
    let nearest = x.round();
    if (x - nearest).abs() > 1e-6 || nearest < 0.0 {
        return String::new();
    }
    sizes
        .get(nearest as usize)
        .map_or(String::new(), |&size| size.to_owned())
}

fn series<'a>(group: &[&'a Row], sizes: &[&str]) -> Vec<Series<'a>> {
    let mut all: Vec<Series<'a>> = Vec::new();
    let (mut ours, mut peers) = (0, 0);
    for row in group {
        let x = sizes.iter().position(|&size| size == row.size).unwrap_or(0);
        let limit = group
            .iter()
            .find(|other| other.is_limit() && other.size == row.size);
        let unit = limit.map_or(1.0, |limit| limit.cycles_per_packet);
        let point = (x as f64, (row.cycles_per_packet / unit).log2());
        if let Some(known) = all.iter_mut().find(|series| series.who == row.who) {
            known.points.push(point);
            continue;
        }
        let (colour, thickness) = if row.is_limit() {
            (BLACK, 1)
        } else if row.is_ours() {
            ours += 1;
            (OUR_COLOURS[(ours - 1) % OUR_COLOURS.len()], 3)
        } else {
            peers += 1;
            (PEER_COLOURS[(peers - 1) % PEER_COLOURS.len()], 1)
        };
        all.push(Series {
            who: &row.who,
            colour,
            thickness,
            points: vec![point],
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::LIMIT;
    use super::super::tests::row;
    use super::*;
    use crate::case::{Direction, Size};

    #[test]
    fn everybody_and_every_size_is_named() {
        let mut rows = Vec::new();
        for (size, cycles) in [(Size::Bytes(64), 40.0), (Size::Imix, 200.0)] {
            rows.push(row("vesper-a", size, Direction::Out, cycles));
            rows.push(row("peer <b>", size, Direction::Out, 2.0 * cycles));
            rows.push(row(LIMIT, size, Direction::Out, 0.8 * cycles));
        }
        let image = draw("title", "machine", &rows.iter().collect::<Vec<_>>()).unwrap();
        for text in [
            "title",
            "machine",
            "vesper-a",
            "peer &lt;b&gt;",
            LIMIT,
            "64",
            "imix",
        ] {
            assert!(image.contains(&format!("\n{text}\n")), "{text}: {image}");
        }
    }
}
