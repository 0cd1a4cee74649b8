//! The built-in set passes on every implementation, and nothing is skipped but what an
//! implementation lacks.

use vesper_esp::aead::Implementation;
use vesper_verify::verify::{Report, builtin};

#[test]
fn every_builtin_vector_passes_on_every_implementation() {
    let implementations: Vec<Implementation> = Implementation::available().collect();
    let mut report = Report::default();
    for source in builtin() {
        let vectors = source.load().unwrap().expect("vectors");
        report.run(&vectors, &implementations);
    }
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert!(report.is_success());
    for source in &report.sources {
        for score in &source.results {
            let skipped: u64 = score.skipped.values().sum();
            assert_eq!(
                score.passed + skipped,
                source.tests,
                "{} on {}",
                source.name,
                score.implementation
            );
            println!(
                "{} {} {} {:?}",
                source.name, score.implementation, score.passed, score.skipped
            );
        }
    }
}
