//! Runs vectors on implementations and keeps the score.

mod capture;
mod packets;
mod primitive;
mod sources;

use core::fmt;
use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;
use vesper_esp::aead::Implementation;
use vesper_esp::aead::primitive::Unsupported;

use crate::formats::Tests;

pub use sources::{LoadError, Origin, Source, Vectors, builtin, find};

/// The score of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Tests passed, counted once for each implementation.
    pub passed: u64,
    /// Tests failed, counted likewise.
    pub failed: u64,
    /// Tests skipped, counted likewise.
    pub skipped: u64,
    /// Every file of vectors, in the order of the run.
    pub sources: Vec<SourceReport>,
    /// Every failure.
    pub failures: Vec<Failure>,
}

/// The score of one file.
#[derive(Debug, Serialize)]
pub struct SourceReport {
    /// The name of the file.
    pub name: String,
    /// The kind of file.
    pub format: &'static str,
    /// Tests in the file.
    pub tests: u64,
    /// The score of each implementation.
    pub results: Vec<Score>,
}

/// The score of one implementation on one file.
#[derive(Debug, Serialize)]
pub struct Score {
    /// Its name.
    pub implementation: &'static str,
    /// Tests passed.
    pub passed: u64,
    /// Tests failed.
    pub failed: u64,
    /// Tests skipped, by reason.
    pub skipped: BTreeMap<String, u64>,
}

/// A test that an implementation failed.
#[derive(Debug, Serialize)]
pub struct Failure {
    /// The file.
    pub source: String,
    /// The test.
    pub test: String,
    /// The implementation.
    pub implementation: &'static str,
    /// What it did wrong.
    pub reason: String,
}

/// What became of one test on one implementation.
#[derive(Debug)]
enum Outcome {
    Passed,
    Failed(String),
    Skipped(Skip),
}

/// Why a test was not run.
#[derive(Clone, Debug)]
enum Skip {
    /// The implementation lacks the algorithm or a length.
    Unsupported(Unsupported),
    /// The implementation lacks a suite.
    Suite(&'static str),
    /// No suite uses the algorithm.
    Foreign(String),
}

impl Report {
    /// Whether something ran and all of it passed.
    pub const fn is_success(&self) -> bool {
        self.passed > 0 && self.failed == 0
    }

    /// Runs the tests of one file on each implementation.
    pub fn run(&mut self, vectors: &Vectors, implementations: &[Implementation]) {
        let mut results = Vec::new();
        for &implementation in implementations {
            let mut score = Score {
                implementation: implementation.name(),
                passed: 0,
                failed: 0,
                skipped: BTreeMap::new(),
            };
            let mut take = |test: &str, outcome: Outcome, times: u64| match outcome {
                Outcome::Passed => score.passed += times,
                Outcome::Failed(reason) => {
                    score.failed += times;
                    self.failures.push(Failure {
                        source: vectors.name.clone(),
                        test: test.to_owned(),
                        implementation: implementation.name(),
                        reason,
                    });
                }
                Outcome::Skipped(skip) => {
                    *score.skipped.entry(skip.to_string()).or_default() += times;
                }
            };
            match &vectors.tests {
                Tests::Primitives(tests) => {
                    let outcomes = each(tests, |test| primitive::run(test, implementation));
                    for (test, outcome) in tests.iter().zip(outcomes) {
                        take(&test.name, outcome, 1);
                    }
                }
                Tests::Packets(tests) => {
                    let outcomes = each(tests, |test| packets::run(test, implementation));
                    for (test, outcome) in tests.iter().zip(outcomes) {
                        take(&test.name, outcome, 1);
                    }
                }
                Tests::Expectation(expectation) => {
                    let outcome = capture::run(expectation, vectors, implementation);
                    take("capture", outcome, expectation.packets);
                }
                Tests::Foreign { algorithm, tests } => {
                    take(
                        "",
                        Outcome::Skipped(Skip::Foreign(algorithm.clone())),
                        *tests,
                    );
                }
            }
            self.passed += score.passed;
            self.failed += score.failed;
            self.skipped += score.skipped.values().sum::<u64>();
            results.push(score);
        }
        self.sources.push(SourceReport {
            name: vectors.name.clone(),
            format: vectors.format.name(),
            tests: vectors.count(),
            results,
        });
    }
}

/// What becomes of each test, by several threads at once where there are many.
fn each<T: Sync>(tests: &[T], run: impl Fn(&T) -> Outcome + Sync + Send) -> Vec<Outcome> {
    // A test takes some ten microseconds, as handing it to another thread does.
    tests.par_iter().with_min_len(64).map(run).collect()
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported(unsupported) => unsupported.fmt(f),
            Self::Suite(suite) => write!(f, "{suite} is not implemented"),
            Self::Foreign(algorithm) => write!(f, "no ESP suite uses {algorithm}"),
        }
    }
}
