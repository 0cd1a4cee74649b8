//! What `show runtime` says about the nodes of the packet graph.

/// Nodes by name, since `clear runtime`.
pub(super) struct Runtime(Vec<(String, Node)>);

/// What a node did.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    packets: u64,
    /// Ticks of the time-stamp counter for each packet; three digits are shown.
    ticks: f64,
}

impl Runtime {
    /// Lines that do not tell about a node are passed over.
    pub(super) fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(node).collect())
    }

    /// Packets that a node has worked on; 0 if it was not called.
    pub(super) fn packets(&self, name: &str) -> u64 {
        self.node(name).map_or(0, |node| node.packets)
    }

    /// Ticks that a packet cost in all of these nodes; `None` if one of them was not called.
    pub(super) fn ticks(&self, names: &[&str]) -> Option<f64> {
        names
            .iter()
            .map(|name| self.node(name).map(|node| node.ticks))
            .sum()
    }

    fn node(&self, name: &str) -> Option<Node> {
        let mut nodes = self.0.iter();
        let (_, node) = nodes.find(|(other, node)| other == name && node.packets > 0)?;
        Some(*node)
    }
}

/// A line: name, state of one or more words, calls, vectors, suspends, clocks, vectors per call.
fn node(line: &str) -> Option<(String, Node)> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [name, _, .., calls, packets, suspends, ticks, ratio] = words[..] else {
        return None;
    };
    calls.parse::<u64>().ok()?;
    suspends.parse::<u64>().ok()?;
    ratio.parse::<f64>().ok()?;
    let node = Node {
        packets: packets.parse().ok()?,
        ticks: ticks.parse().ok()?,
    };
    Some((name.to_owned(), node))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As VPP 26.10 prints it.
    const SHOWN: &str = "\
Time 1.2, 10 sec internal node vector rate 0.00 loops/sec 4021.01
  vector rates in 8.1920e3, out 0.0000e0, drop 0.0000e0, punt 0.0000e0
             Name                 State         Calls          Vectors        Suspends     Packet-Clocks    Vectors/Call
adj-midchain-tx                  active                 32            8192               0          1.21e1          256.00
api-rx-from-ring                any wait                 0               0               4          1.02e4            0.00
esp4-encrypt-tun                 active                 32            8192               0          1.36e2          256.00
unix-epoll-input                 polling             40210               0               0          9.33e2            0.00
";

    #[test]
    fn nodes_are_found_by_name() {
        let runtime = Runtime::parse(SHOWN);
        assert_eq!(runtime.packets("esp4-encrypt-tun"), 8192);
        assert_eq!(runtime.packets("adj-midchain-tx"), 8192);
        let both = runtime.ticks(&["esp4-encrypt-tun", "adj-midchain-tx"]);
        assert!((both.unwrap() - 148.1).abs() < 1e-9);
    }

    #[test]
    fn what_was_not_called_cost_nothing_and_is_no_figure() {
        let runtime = Runtime::parse(SHOWN);
        assert_eq!(runtime.packets("esp4-decrypt-tun"), 0);
        assert_eq!(runtime.ticks(&["esp4-encrypt-tun", "ip4-lookup"]), None);
        assert_eq!(runtime.ticks(&["unix-epoll-input"]), None);
        assert_eq!(runtime.packets("Time"), 0);
    }

    #[test]
    fn states_of_two_words_do_not_shift_the_columns() {
        let line = SHOWN.lines().nth(4).unwrap();
        let (name, node) = node(line).unwrap();
        assert_eq!((name.as_str(), node.packets), ("api-rx-from-ring", 0));
        assert!((node.ticks - 10_200.0).abs() < 1e-9);
    }
}
