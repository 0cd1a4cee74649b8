//! The tables that hold no secrets: policies, machines, settings.

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::StoreError;
use super::model::{Change, Recovered};

/// Node and machine -> words, one policy a line.
const POLICIES: TableDefinition<'static, (&str, &str), &str> = TableDefinition::new("policies");
/// Node and machine -> settings.
const VMS: TableDefinition<'static, (&str, &str), &str> = TableDefinition::new("vms");
/// Name -> value.
const SETTINGS: TableDefinition<'static, &str, &str> = TableDefinition::new("settings");

/// Carries out what is not about associations.
pub(super) fn change(transaction: &WriteTransaction, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::PutSa(_) | Change::DeleteSa(_) => {}
        Change::PutPolicies { node, vm, words } => {
            let mut table = transaction.open_table(POLICIES)?;
            let name = (node.as_str(), vm.as_str());
            if words.is_empty() {
                table.remove(name)?;
            } else {
                table.insert(name, words.join("\n").as_str())?;
            }
        }
        Change::PutVm { node, vm, settings } => {
            let mut table = transaction.open_table(VMS)?;
            table.insert((node.as_str(), vm.as_str()), settings.as_str())?;
        }
        Change::DeleteVm { node, vm } => {
            let mut table = transaction.open_table(VMS)?;
            table.remove((node.as_str(), vm.as_str()))?;
        }
        Change::PutSetting { name, value } => {
            let mut table = transaction.open_table(SETTINGS)?;
            table.insert(name.as_str(), value.as_str())?;
        }
    }
    Ok(())
}

type Row = (String, String, String);

/// Reads all of them.
pub(super) fn read(
    transaction: &WriteTransaction,
    recovered: &mut Recovered,
) -> Result<(), StoreError> {
    let rows = |definition| -> Result<Vec<Row>, StoreError> {
        let table: Table<'_, (&str, &str), &str> = transaction.open_table(definition)?;
        let mut rows = Vec::new();
        for row in table.iter()? {
            let (name, value) = row?;
            let (node, vm) = name.value();
            rows.push((node.to_owned(), vm.to_owned(), value.value().to_owned()));
        }
        Ok(rows)
    };
    for (node, vm, words) in rows(POLICIES)? {
        let words = words.lines().map(str::to_owned).collect();
        recovered.policies.push((node, vm, words));
    }
    recovered.vms = rows(VMS)?;
    for row in transaction.open_table(SETTINGS)?.iter()? {
        let (name, value) = row?;
        let setting = (name.value().to_owned(), value.value().to_owned());
        recovered.settings.push(setting);
    }
    Ok(())
}
