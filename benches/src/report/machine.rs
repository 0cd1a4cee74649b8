//! Where and when figures were measured.

use std::fmt;

use time::OffsetDateTime;

/// The machine and the day, for the heads of tables and plots.
#[derive(Debug)]
pub(crate) struct Machine {
    processor: String,
    gigahertz: f64,
    kernel: String,
    date: String,
}

impl Machine {
    /// This one, whose core runs at `hertz`.
    pub(crate) fn here(hertz: f64) -> Self {
        let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: processor(&information),
            gigahertz: hertz / 1e9,
            kernel: release.trim().into(),
            date: OffsetDateTime::now_utc().date().to_string(),
        }
    }
}

/// Model, family and model number of the first processor.
fn processor(information: &str) -> String {
    let field = |name: &str| {
        information
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map_or("?", |(_, value)| value.trim())
    };
    let (name, family, model) = (field("model name"), field("cpu family"), field("model"));
    format!("{name} (family {family}, model {model})")
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            processor,
            gigahertz,
            kernel,
            date,
        } = self;
        write!(
            f,
            "{processor}, core at {gigahertz:.2} GHz, Linux {kernel}, {date}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_processor_of_several() {
        let text = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\n\
                    processor\t: 1\ncpu family\t: 6\nmodel\t\t: 1\nmodel name\t: other\n";
        assert_eq!(processor(text), "AMD EPYC (family 25, model 17)");
        assert_eq!(processor(""), "? (family ?, model ?)");
    }
}
