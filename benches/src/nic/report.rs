//! Tables and files of what offload saves.

use std::io;
use std::path::Path;

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

/// Core cycles per packet of one path in one direction.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) path: &'static str,
    pub(crate) offload: &'static str,
    pub(crate) suite: &'static str,
    pub(crate) size: String,
    pub(crate) dir: &'static str,
    pub(crate) machine: f64,
    pub(crate) host: f64,
    pub(crate) adapter: f64,
    pub(crate) total: f64,
    /// Copies for each packet received.
    pub(crate) copies: f64,
    #[serde(skip)]
    pub(crate) doubtful: bool,
}

/// Core cycles per packet of one and of two processors, out and in; with two both work at
/// once, so that half is what a packet takes of one.
#[derive(Clone, Debug)]
pub(crate) struct Pairs {
    pub(crate) suite: &'static str,
    pub(crate) size: String,
    pub(crate) one: [f64; 2],
    pub(crate) two: [f64; 2],
    pub(crate) doubtful: bool,
}

/// A table of all figures.
pub(crate) fn table(figures: &[Figures], pairs: &[Pairs]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "size", "dir", "path", "IPsec", "machine", "host", "adapter", "total", "- engine", "copies",
    ]);
    for figure in figures {
        let engine = find(figures, figure, "engine", "").map_or(f64::NAN, |engine| engine.total);
        let marked = if figure.doubtful { "*" } else { "" };
        table.add_row([
            figure.size.clone(),
            figure.dir.into(),
            figure.path.into(),
            figure.offload.into(),
            format!("{:.1}", figure.machine),
            format!("{:.1}", figure.host),
            format!("{:.1}", figure.adapter),
            format!("{:.1}{marked}", figure.total),
            match figure.offload {
                "none" => String::new(),
                _ => format!("{:.1}", figure.total - engine),
            },
            format!("{:.0}", figure.copies),
        ]);
    }
    for pair in pairs {
        for (index, dir) in ["out", "in"].into_iter().enumerate() {
            for (count, cycles) in [("1", pair.one), ("2", pair.two)] {
                let marked = if pair.doubtful { "*" } else { "" };
                table.add_row([
                    pair.size.clone(),
                    dir.into(),
                    format!("{count} processor(s)"),
                    "packet".into(),
                    String::new(),
                    String::new(),
                    String::new(),
                    format!("{:.1}{marked}", cycles[index]),
                    String::new(),
                    String::new(),
                ]);
            }
        }
    }
    for column in table.column_iter_mut() {
        if column.index > 3 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// What the figures come to, beside the goals.
pub(crate) fn verdicts(figures: &[Figures], pairs: &[Pairs]) -> Vec<String> {
    let mut lines = Vec::new();
    for figure in figures.iter().filter(|figure| figure.path == "engine") {
        let of = |path, offload| find(figures, figure, path, offload);
        let (Some(software), Some(queue), Some(function), Some(synthetic)) = (
            of("queue", "software"),
            of("queue", "packet"),
            of("function", "packet"),
            of("synthetic", "packet"),
        ) else {
            continue;
        };
        lines.push(format!(
            "{} {}: offload removes {:.0} % of the host's cycles on a queue, {:.0} % with a \
             function (goal 80 %); the host spends {:.1}x as much on the synthetic path as on a \
             function (goal 2x); adapter beyond the engine {:.1} cycles, function path {:.1} \
             (goal 40), which is {:+.1} % (goal 5 %)",
            figure.size,
            figure.dir,
            100.0 * (1.0 - queue.host / software.host),
            100.0 * (1.0 - function.host / software.host),
            synthetic.host / function.host,
            function.adapter - figure.total,
            function.total - figure.total,
            100.0 * (function.total / figure.total - 1.0),
        ));
    }
    for pair in pairs {
        lines.push(format!(
            "{}: two processors carry {:.2}x of one out, {:.2}x in (goal 1.8x)",
            pair.size,
            pair.one[0] / pair.two[0],
            pair.one[1] / pair.two[1],
        ));
    }
    lines
}

/// Writes all figures of paths, then those of processors.
pub(crate) fn csv(path: &Path, figures: &[Figures], pairs: &[Pairs]) -> io::Result<()> {
    let mut writer = csv::Writer::from_path(path).map_err(io::Error::other)?;
    for figure in figures {
        writer.serialize(figure).map_err(io::Error::other)?;
    }
    for pair in pairs {
        for (index, dir) in ["out", "in"].into_iter().enumerate() {
            for (name, total) in [
                ("1-processor", pair.one[index]),
                ("2-processors", pair.two[index]),
            ] {
                let row = Figures {
                    path: name,
                    offload: "packet",
                    suite: pair.suite,
                    size: pair.size.clone(),
                    dir,
                    machine: 0.0,
                    host: 0.0,
                    adapter: total,
                    total,
                    copies: 0.0,
                    doubtful: pair.doubtful,
                };
                writer.serialize(row).map_err(io::Error::other)?;
            }
        }
    }
    writer.flush()
}

/// The row of another path for the same packets.
fn find<'a>(
    figures: &'a [Figures],
    like: &Figures,
    path: &str,
    offload: &str,
) -> Option<&'a Figures> {
    figures.iter().find(|figure| {
        (figure.path, figure.offload) == (path, offload)
            && (&figure.size, figure.dir) == (&like.size, like.dir)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(path: &'static str, offload: &'static str, host: f64, total: f64) -> Figures {
        Figures {
            path,
            offload,
            suite: "aes256gcm16",
            size: "64".into(),
            dir: "out",
            machine: 1.0,
            host,
            adapter: total - host - 1.0,
            total,
            copies: 0.0,
            doubtful: false,
        }
    }

    #[test]
    fn verdicts_relate_paths() {
        let figures = [
            figure("engine", "", 0.0, 100.0),
            figure("synthetic", "packet", 60.0, 200.0),
            figure("queue", "software", 200.0, 260.0),
            figure("queue", "packet", 50.0, 170.0),
            figure("function", "packet", 20.0, 130.0),
        ];
        let pair = Pairs {
            suite: "aes256gcm16",
            size: "64".into(),
            one: [100.0, 200.0],
            two: [50.0, 125.0],
            doubtful: true,
        };
        let lines = verdicts(&figures, core::slice::from_ref(&pair));
        assert_eq!(lines.len(), 2);
        for part in ["75 %", "90 %", "3.0x", "30.0", "+30.0 %"] {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
        assert!(lines[1].contains("2.00x of one out, 1.60x in"));
        let text = table(&figures, &[pair]);
        assert!(text.contains("125.0*"), "{text}");
        assert_eq!(text.lines().count(), 2 + 5 + 4);
    }
}
