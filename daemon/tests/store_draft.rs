//! Many associations that are put together: other associations get their numbers between the
//! parts, and after a power cut all of them are there, or none.

mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bed::faulty::Disk;
use bed::{NODE, Random, begin, is_long, put, stored, words};
use vesper_daemon::store::{
    Change, Kek, Recovered, Refill, RefillSettings, Standing, Store, Watched,
};
use vesper_sa::Direction;

/// Associations that are put together.
const MANY: u32 = 300;

fn many(store: &Store, first: u32) -> Vec<Change> {
    let words = (first..first + MANY).map(|number| words(number, Direction::Outbound, number));
    words
        .map(|words| Change::PutSa(stored(store, &words)))
        .collect()
}

/// How many of those from `first` on are there.
fn found(recovered: &Recovered, first: u32) -> usize {
    let spis = 0x1000 + first..0x1000 + first + MANY;
    let there = recovered.sas.iter().map(|sa| sa.sa.name.sa.spi.get());
    there.filter(|spi| spis.contains(spi)).count()
}

#[test]
fn after_a_power_cut_all_are_there_or_none() {
    let cuts = if is_long() { 600 } else { 60 };
    let mut random = Random(7);
    let kek = Kek::random().unwrap();
    let (mut all, mut none, mut between) = (0, 0, 0);
    for _ in 0..cuts {
        let disk = Disk::new();
        let (store, _) = Store::open(disk.clone(), &kek).unwrap();
        let (refill, thread) =
            Refill::start(store.clone(), RefillSettings::default(), |_| ()).unwrap();
        let inbound = words(1, Direction::Inbound, 1);
        let receiver = begin(&refill, &inbound, &put(&store, &inbound).unwrap());
        disk.cut_after(1 + random.below(500));
        let is_over = AtomicBool::new(false);
        let (preparing, while_preparing) = (AtomicBool::new(true), AtomicU64::new(0));
        let is_told = thread::scope(|scope| {
            // Packets go on, and ask for higher marks.
            let marks = scope.spawn(|| {
                let mut sequence = 0;
                while !is_over.load(Ordering::Relaxed) {
                    sequence += 1000;
                    let mut commit = receiver.commit(bed::NOW);
                    let _ = commit.accept(sequence, 100);
                    commit.finish();
                    let again = Watched::new(NODE, Arc::clone(&receiver), &Standing::Fresh);
                    if refill.watch(vec![again]).is_err() {
                        break;
                    }
                    let is_between = preparing.load(Ordering::Relaxed);
                    while_preparing.fetch_add(is_between.into(), Ordering::Relaxed);
                }
            });
            let prepared = store.prepare(&many(&store, 100));
            preparing.store(false, Ordering::Relaxed);
            let is_told = prepared.is_ok() && store.settle().is_ok();
            is_over.store(true, Ordering::Relaxed);
            marks.join().unwrap();
            is_told
        });
        between += while_preparing.into_inner();
        drop(refill);
        thread.join().unwrap();
        drop(store);
        let disk = disk.after_cut(&mut random);
        let (store, recovered) = Store::open(disk.clone(), &kek).unwrap();
        match found(&recovered, 100) {
            0 => none += 1,
            count => {
                assert_eq!(count, MANY as usize);
                all += 1;
            }
        }
        assert!(!is_told || found(&recovered, 100) == MANY as usize);
        // What was dropped leaves nothing behind that would drop the next ones.
        put(&store, &words(100, Direction::Outbound, 100)).unwrap();
        store.prepare(&many(&store, 500)).unwrap();
        store.settle().unwrap();
        drop(store);
        let (_, recovered) = Store::open(disk, &kek).unwrap();
        assert!(found(&recovered, 100) > 0);
        assert_eq!(found(&recovered, 500), MANY as usize);
    }
    println!("{cuts} cuts: {all} times all, {none} times none; {between} marks between the parts");
    assert!(all > 0 && none > 0 && between > 0);
}

#[test]
fn what_could_not_be_taken_back_is_dropped_unless_it_is_put_again() {
    let kek = Kek::random().unwrap();
    let disk = Disk::new();
    let (store, _) = Store::open(disk.clone(), &kek).unwrap();
    // The last of them is refused, after parts of the others are there.
    let mut changes = many(&store, 100);
    let unknown = stored(&store, &words(9, Direction::Outbound, 9)).name;
    changes.push(Change::DeleteSa(unknown));
    store.prepare(&changes).unwrap_err();
    // One of them comes again, alone, and so do others.
    let again = stored(&store, &words(100, Direction::Outbound, 100));
    store.prepare(&[Change::PutSa(again)]).unwrap();
    store.prepare(&many(&store, 500)).unwrap();
    store.settle().unwrap();
    drop(store);
    let (_, recovered) = Store::open(disk, &kek).unwrap();
    assert_eq!(found(&recovered, 100), 1);
    assert_eq!(found(&recovered, 500), MANY as usize);
}

#[test]
fn what_was_lost_before_it_was_whole_is_not_said_to_be_durable() {
    let kek = Kek::random().unwrap();
    let disk = Disk::new();
    let (store, _) = Store::open(disk.clone(), &kek).unwrap();
    let (refill, thread) = Refill::start(store.clone(), RefillSettings::default(), |_| ()).unwrap();
    let inbound = words(1, Direction::Inbound, 1);
    let receiver = begin(&refill, &inbound, &put(&store, &inbound).unwrap());
    store.prepare(&many(&store, 100)).unwrap();
    // Another association's mark can not be raised, and the store is read again.
    disk.fail(true);
    let again = || vec![Watched::new(NODE, Arc::clone(&receiver), &Standing::Fresh)];
    let mut commit = receiver.commit(bed::NOW);
    let _ = commit.accept(3000, 100);
    commit.finish();
    refill.watch(again()).unwrap_err();
    disk.fail(false);
    store.settle().unwrap_err();
    // The next change has nothing to do with it.
    store.prepare(&many(&store, 500)).unwrap();
    store.settle().unwrap();
    drop(refill);
    thread.join().unwrap();
    drop(store);
    let (_, recovered) = Store::open(disk, &kek).unwrap();
    assert_eq!(found(&recovered, 100), 0);
    assert_eq!(found(&recovered, 500), MANY as usize);
}

/// Another key has the name in the store, but is not in force: the one before goes on within what
/// it was granted, and none of its numbers are counted for the other.
#[test]
fn numbers_of_another_key_are_not_for_the_one_before() {
    let kek = Kek::random().unwrap();
    let (store, _) = Store::open(Disk::new(), &kek).unwrap();
    let (refill, thread) = Refill::start(store.clone(), RefillSettings::default(), |_| ()).unwrap();
    let out = words(1, Direction::Outbound, 1);
    let sender = begin(&refill, &out, &put(&store, &out).unwrap());
    let other = stored(&store, &words(1, Direction::Outbound, 2));
    store.prepare(&[Change::PutSa(other)]).unwrap();
    store.settle().unwrap();
    let mut last = 0;
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(300) {
        let granted = sender.reserve(bed::NOW, [100].into_iter());
        match granted.refused {
            None => last = granted.first,
            Some(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    let again = put(&store, &words(9, Direction::Outbound, 1)).unwrap();
    let Standing::After { sequence, .. } = again else {
        panic!("{again:?}");
    };
    assert!(last > 0 && last <= sequence, "{last} {sequence}");
    drop(refill);
    thread.join().unwrap();
}
