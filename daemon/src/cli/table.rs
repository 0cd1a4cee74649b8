//! Tables and numbers for people.

use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// Prints rows under a heading; columns whose heading begins with `>` are numbers.
pub(super) fn print(
    out: &mut dyn Write,
    heading: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(heading.iter().map(|name| name.trim_start_matches('>')));
    for row in rows {
        table.add_row(row);
    }
    for (column, name) in table.column_iter_mut().zip(heading) {
        column.set_padding((0, 2));
        if name.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A name, or as much of it as there is room for.
pub(super) fn cut(name: &str, room: usize) -> String {
    match name.chars().count() > room {
        true => (name.chars().take(room.saturating_sub(1)))
            .chain(['…'])
            .collect(),
        false => name.to_owned(),
    }
}

/// A number with its thousands apart: `12,345`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as people say them: `3s`, `5m`, `2h`, `4d`.
pub(super) fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_readable() {
        assert_eq!(
            (grouped(0), grouped(1_234_567)),
            ("0".into(), "1,234,567".into())
        );
        assert_eq!([3, 300, 7200, 200_000].map(ago), ["3s", "5m", "2h", "2d"]);
    }
}
