//! Tables for people.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

use super::Row;

/// A table of the rows of one group: level, suite, associations and direction are the same.
///
/// `peer` says how many times as fast as the best of the others a row is, `limit` how many
/// times the core's bound it takes.
pub(crate) fn table(group: &[&Row]) -> String {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "size", "who", "cycles", "spread", "cycles/B", "Gbit/s", "Mpps", "peer", "limit",
    ]);
    let mut sizes: Vec<&str> = Vec::new();
    for row in group {
        if !sizes.contains(&row.size.as_str()) {
            sizes.push(&row.size);
        }
    }
    for size in sizes {
        let mut rows: Vec<_> = group.iter().filter(|row| row.size == size).collect();
        rows.sort_by(|a, b| a.cycles_per_packet.total_cmp(&b.cycles_per_packet));
        let best_peer = rows.iter().find(|row| row.is_peer());
        let limit = rows.iter().find(|row| row.is_limit());
        for row in &rows {
            let cycles = row.cycles_per_packet;
            let to_peer = best_peer
                .filter(|_| !row.is_limit())
                .map_or(String::new(), |best| {
                    format!("{:.2}x", best.cycles_per_packet / cycles)
                });
            let to_limit = limit.map_or(String::new(), |limit| {
                format!("{:.2}x", cycles / limit.cycles_per_packet)
            });
            table.add_row([
                row.size.clone(),
                row.who.clone(),
                format!("{cycles:.1}{}", if row.doubtful { "*" } else { "" }),
                format!("{:.1}", row.spread),
                format!("{:.3}", row.cycles_per_byte),
                format!("{:.1}", row.gbps),
                format!("{:.2}", row.mpps),
                to_peer,
                to_limit,
            ]);
        }
    }
    for column in table.column_iter_mut() {
        if column.index != 1 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::LIMIT;
    use super::super::tests::row;
    use super::*;
    use crate::case::{Direction, Size};

    #[test]
    fn ratios_are_to_the_best_peer_and_to_the_limit() {
        let size = Size::Bytes(64);
        let mut doubtful = row("slow", size, Direction::Out, 300.0);
        doubtful.doubtful = true;
        let rows = [
            doubtful,
            row("vesper-fast", size, Direction::Out, 50.0),
            row("quick", size, Direction::Out, 100.0),
            row(LIMIT, size, Direction::Out, 40.0),
        ];
        let text = table(&rows.iter().collect::<Vec<_>>());
        let cells = |who: &str| {
            let named = |line: &&str| line.contains(&format!(" {who} "));
            let line = text.lines().skip(2).find(named).unwrap();
            let cells = line
                .split('|')
                .map(str::trim)
                .filter(|cell| !cell.is_empty());
            cells.map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(cells("vesper-fast")[7..], ["2.00x", "1.25x"]);
        assert_eq!(cells("quick")[7..], ["1.00x", "2.50x"]);
        assert_eq!(cells("slow")[2], "300.0*");
        assert_eq!(cells(LIMIT)[7..], ["1.00x"]);
        let body = text.split_once("---").unwrap().1;
        let order = [LIMIT, "vesper-fast", "quick", "slow"]
            .map(|who| body.find(&format!(" {who} ")).unwrap());
        assert!(order.is_sorted());
    }
}
