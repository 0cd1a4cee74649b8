//! What comes out: rows, and the forms in which they are written.

mod machine;
mod plot;
mod table;

use std::io;
use std::path::Path;

use serde::Serialize;

use crate::case::{Case, Direction};
use crate::contest::Figure;

pub(crate) use machine::Machine;
pub(crate) use plot::plot;
pub(crate) use table::table;

/// The name in results of the bound of the core.
pub(crate) const LIMIT: &str = "limit";

/// What the names of our own implementations begin with.
pub(crate) const OURS: &str = "vesper-";

/// One line of the CSV file.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) level: &'static str,
    pub(crate) who: String,
    pub(crate) suite: &'static str,
    pub(crate) size: String,
    pub(crate) sas: usize,
    pub(crate) dir: &'static str,
    pub(crate) threads: usize,
    /// Core cycles that one core spends on one of its packets: the median.
    #[serde(serialize_with = "thousandths")]
    pub(crate) cycles_per_packet: f64,
    /// From the first to the third quartile, in the same unit.
    #[serde(serialize_with = "thousandths")]
    pub(crate) spread: f64,
    /// Of the inner packet or of the text.
    #[serde(serialize_with = "thousandths")]
    pub(crate) cycles_per_byte: f64,
    /// Of the inner packet or of the text, all cores together, at the core's clock meanwhile.
    #[serde(serialize_with = "thousandths")]
    pub(crate) gbps: f64,
    #[serde(serialize_with = "thousandths")]
    pub(crate) mpps: f64,
    /// Too few repetitions were undisturbed.
    #[serde(skip)]
    pub(crate) doubtful: bool,
}

impl Row {
    /// The row of a figure that `threads` cores reached together.
    pub(crate) fn new(case: &Case, threads: usize, figure: &Figure) -> Self {
        let bytes = case.size.mean();
        let per_second = threads as f64 * figure.hertz / figure.cycles;
        Self {
            level: case.level.name(),
            who: figure.who.clone(),
            suite: case.suite.name,
            size: case.size.to_string(),
            sas: case.sas,
            dir: figure.direction.name(),
            threads,
            cycles_per_packet: figure.cycles,
            spread: figure.spread,
            cycles_per_byte: figure.cycles / bytes,
            gbps: per_second * bytes * 8.0 / 1e9,
            mpps: per_second / 1e6,
            doubtful: figure.doubtful,
        }
    }

    /// The row of the bound.
    pub(crate) fn limit(case: &Case, direction: Direction, cycles: f64, hertz: f64) -> Self {
        let figure = Figure {
            who: LIMIT.into(),
            direction,
            cycles,
            spread: 0.0,
            hertz,
            doubtful: false,
        };
        Self::new(case, 1, &figure)
    }

    /// Whether it is one of ours.
    fn is_ours(&self) -> bool {
        self.who.starts_with(OURS)
    }

    fn is_limit(&self) -> bool {
        self.who == LIMIT
    }

    fn is_peer(&self) -> bool {
        !self.is_ours() && !self.is_limit()
    }
}

/// Writes all rows.
pub(crate) fn write_csv(path: &Path, rows: &[Row]) -> io::Result<()> {
    let mut writer = csv::Writer::from_path(path).map_err(io::Error::other)?;
    for row in rows {
        writer.serialize(row).map_err(io::Error::other)?;
    }
    writer.flush()
}

/// Rows of equal level, suite, associations and direction, in order.
pub(crate) fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let key = |row: &Row| (row.level, row.suite, row.sas, row.dir);
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| key(group[0]) == key(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

fn thousandths<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value * 1000.0).round() / 1000.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::case::{Level, Size};
    use vesper_esp::Suite;

    pub(crate) fn row(who: &str, size: Size, direction: Direction, cycles: f64) -> Row {
        let case = Case {
            level: Level::Aead,
            suite: Suite::by_name("aes256gcm16").unwrap(),
            size,
            sas: 1,
        };
        let figure = Figure {
            who: who.into(),
            direction,
            cycles,
            spread: 0.5,
            hertz: 4e9,
            doubtful: false,
        };
        Row::new(&case, 2, &figure)
    }

    #[test]
    fn units() {
        let row = row("x", Size::Bytes(1000), Direction::Out, 500.0);
        assert_eq!(row.cycles_per_byte, 0.5);
        // Two cores, 4 GHz, 500 cycles a packet.
        assert_eq!(row.mpps, 16.0);
        assert_eq!(row.gbps, 128.0);
    }

    #[test]
    fn csv_has_the_promised_columns() {
        let path = std::env::temp_dir().join(format!("vesper-bench-{}.csv", std::process::id()));
        write_csv(&path, &[row("ring", Size::Imix, Direction::In, 1.0 / 3.0)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some(
                "level,who,suite,size,sas,dir,threads,cycles_per_packet,spread,cycles_per_byte,\
                 gbps,mpps"
            )
        );
        let line = lines.next().unwrap();
        assert!(
            line.starts_with("aead,ring,aes256gcm16,imix,1,in,2,0.333,0.5,0.001,"),
            "{line}"
        );
    }
}
