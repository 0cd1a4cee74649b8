//! The files of the store: what is in them, and who may open them.

mod bed;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use bed::{open, put, words};
use vesper_daemon::store::{Durable, Files, Kek, RefillSettings, Store, StoreError, StorePaths};
use vesper_sa::{Direction, Timestamp};

#[test]
fn no_key_is_in_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = open(directory.path());
    put(&store, &words(1, Direction::Outbound, 0xc0de_cafe)).unwrap();
    drop(store);
    let key = bed::key_text(0xc0de_cafe);
    for file in ["store.redb", "store.anchor"] {
        let bytes = fs::read(directory.path().join(file)).unwrap();
        for needle in [&key.as_bytes()[..16], &[0xc0, 0xde, 0xca, 0xfe]] {
            assert!(!bytes.windows(needle.len()).any(|window| window == needle));
        }
        let mode = fs::metadata(directory.path().join(file))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600, "{file}");
    }
}

#[test]
fn a_second_daemon_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let kek = Kek::random().unwrap();
    let files = Files::in_directory(directory.path());
    let (store, _) = Store::open(files.clone(), &kek).unwrap();
    assert!(matches!(
        Store::open(files.clone(), &kek),
        Err(StoreError::InUse { .. })
    ));
    // With an anchor of its own it does not get further.
    let other = Files {
        anchor: directory.path().join("other"),
        ..files.clone()
    };
    assert!(matches!(
        Store::open(other, &kek),
        Err(StoreError::InUse { .. })
    ));
    drop(store);
    let wrong = Kek::random().unwrap();
    assert!(matches!(
        Store::open(files.clone(), &wrong),
        Err(StoreError::WrongKey)
    ));
    assert!(Store::open(files, &kek).unwrap().1.loss.is_none());
}

/// Neither would it open the store, nor could one tell the two apart afterwards.
#[test]
fn a_key_that_is_lost_is_not_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let paths = StorePaths {
        files: Files::in_directory(directory.path()),
        kek: directory.path().join("key"),
    };
    let open = || Durable::open(&paths, RefillSettings::default(), |_| ());
    open().unwrap().close(Timestamp::from_secs(1)).unwrap();
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&paths.kek, &elsewhere).unwrap();
    let refused = open().unwrap_err().to_string();
    assert!(
        refused.contains("key: does not exist; put back"),
        "{refused}"
    );
    assert!(!paths.kek.exists());
    fs::rename(&elsewhere, &paths.kek).unwrap();
    assert!(open().unwrap().loss().is_none());
}

#[test]
fn a_newer_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    let path = directory.path().join("store.redb");
    let database = redb::Database::open(&path).unwrap();
    let meta: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("meta");
    let transaction = database.begin_write().unwrap();
    transaction
        .open_table(meta)
        .unwrap()
        .insert("format", 2_u32.to_be_bytes().as_slice())
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let kek = Kek::read(&directory.path().join("kek")).unwrap();
    let refused = Store::open(Files::in_directory(directory.path()), &kek).unwrap_err();
    assert!(matches!(refused, StoreError::Newer { found: 2, known: 1 }));
    assert!(refused.to_string().contains("newer release"));
}
