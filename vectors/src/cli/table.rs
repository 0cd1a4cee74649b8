//! Tables for people.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

/// An empty table with these columns; those whose name begins with a space hold numbers.
pub(super) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(columns.iter().map(|column| column.trim()));
    for (index, column) in columns.iter().enumerate() {
        if let Some(shape) = table.column_mut(index).filter(|_| column.starts_with(' ')) {
            shape.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A cell with a number; nothing if it is 0.
pub(super) fn number(value: u64) -> Cell {
    Cell::new(match value {
        0 => String::new(),
        value => super::grouped(value),
    })
}
