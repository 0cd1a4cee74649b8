//! The repetitions of one measurement, and the figures that they give.

use crate::clock::Span;

/// Clean repetitions below which a figure is doubtful.
const FEW: usize = 5;

/// Repetitions.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<Span>);

impl Samples {
    /// One more.
    pub(crate) fn add(&mut self, span: Span) {
        self.0.push(span);
    }

    /// How many nobody disturbed.
    pub(crate) fn clean(&self) -> usize {
        self.0.iter().filter(|span| span.is_clean()).count()
    }

    /// Whether too few were clean.
    pub(crate) fn are_doubtful(&self) -> bool {
        self.clean() < FEW
    }

    /// First quartile, median and third quartile in core cycles: of the clean repetitions, or
    /// of the least disturbed quarter if they are doubtful.
    pub(crate) fn quartiles(&self) -> [f64; 3] {
        let mut spans = self.0.clone();
        spans.sort_by(|a, b| a.disturbance.total_cmp(&b.disturbance));
        let count = if self.are_doubtful() {
            (spans.len() / 4).max(FEW)
        } else {
            self.clean()
        };
        let chosen = spans.iter().take(count);
        quartiles(chosen.map(|span| span.cycles).collect())
    }
}

/// Quartiles and median; the lower neighbour where they fall between two values;
/// not-a-number of nothing.
pub(crate) fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    [1, 2, 3].map(|quarter| values.get(last * quarter / 4).copied().unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(spans: impl IntoIterator<Item = (f64, f64)>) -> Samples {
        let mut samples = Samples::default();
        for (cycles, disturbance) in spans {
            samples.add(Span {
                cycles,
                disturbance,
            });
        }
        samples
    }

    #[test]
    fn quartiles_of_known_values() {
        assert_eq!(quartiles(vec![5.0, 1.0, 3.0, 2.0, 4.0]), [2.0, 3.0, 4.0]);
        assert_eq!(quartiles(vec![7.0]), [7.0; 3]);
        assert!(quartiles(Vec::new()).iter().all(|value| value.is_nan()));
    }

    #[test]
    fn disturbed_repetitions_do_not_count_while_enough_are_clean() {
        let clean = (0..5).map(|index| (f64::from(100 + index), 0.9));
        let disturbed = (0..20).map(|_| (900.0, 1.5));
        let samples = samples(disturbed.chain(clean));
        assert_eq!(samples.clean(), 5);
        assert!(!samples.are_doubtful());
        assert_eq!(samples.quartiles(), [101.0, 102.0, 103.0]);
    }

    #[test]
    fn the_least_disturbed_stand_in_when_few_are_clean() {
        let samples = samples((1..=40).map(|index| (f64::from(index), f64::from(index))));
        assert!(samples.are_doubtful());
        assert_eq!(samples.quartiles(), [3.0, 5.0, 7.0]);
    }
}
