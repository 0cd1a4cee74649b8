//! Faults on demand: seeded, so that a run can be repeated.

use vesper_sa::Timestamp;

/// How often something happens, in events per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PerMillion(pub u32);

/// What goes wrong, and how often.
///
/// Faults strike what the adapter takes in before it looks at it, and what it puts out: a wrong
/// plain text that the adapter has authenticated could be noticed by nobody, so none is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultPlan {
    /// The beginning of the sequence of random numbers.
    pub seed: u64,
    /// A sealed packet leaves with a wrong ICV.
    pub wrong_icv: PerMillion,
    /// A sealed packet leaves with a bit of its ciphertext flipped.
    pub corrupt_output: PerMillion,
    /// The completion of a send never comes.
    pub lost_completion: PerMillion,
    /// The completion of a send comes [`late_by`](Self::late_by) later.
    pub late_completion: PerMillion,
    /// The completion of a send comes twice.
    pub double_completion: PerMillion,
    /// The completion of a send overtakes the one before.
    pub reordered_completion: PerMillion,
    /// A send is refused as busy, one packet or a whole batch.
    pub busy: PerMillion,
    /// A send is refused because the ring claims to be full.
    pub queue_full: PerMillion,
    /// A pushed sequence number takes effect [`late_by`](Self::late_by) later.
    pub late_esn: PerMillion,
    /// A bit of a received frame, behind its Ethernet header, is flipped before anybody looks
    /// at it.
    pub corrupt_input: PerMillion,
    /// A received frame is lost before it gets into a queue.
    pub lost_input: PerMillion,
    /// A received frame overtakes the one before.
    pub reordered_input: PerMillion,
    /// How late late things are, in nanoseconds.
    pub late_by: u64,
}

/// Something that goes wrong once, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The adapter forgets its associations and what is in its rings.
    Reset,
    /// The adapter can hold only this many associations from now on; it loses the others.
    Capacity(u32),
    /// A processor does nothing until then.
    Stall {
        /// Which one.
        processor: usize,
        /// Until when.
        until: Timestamp,
    },
    /// A virtual function vanishes without being asked.
    SurpriseRemoval(crate::sriov::VfId),
}

/// What a plan has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// Packets that left with a wrong ICV.
    pub wrong_icv: u64,
    /// Packets that left with corrupted text.
    pub corrupt_output: u64,
    /// Completions that were lost.
    pub lost_completions: u64,
    /// Completions that came late.
    pub late_completions: u64,
    /// Completions that came twice.
    pub double_completions: u64,
    /// Completions that overtook others.
    pub reordered_completions: u64,
    /// Sends refused as busy.
    pub busy: u64,
    /// Sends refused as if the ring were full.
    pub queue_full: u64,
    /// Pushed sequence numbers that took effect late.
    pub late_esn: u64,
    /// Received frames with a bit flipped.
    pub corrupt_input: u64,
    /// Received frames that were lost.
    pub lost_input: u64,
    /// Received frames that overtook others.
    pub reordered_input: u64,
}

/// A plan being carried out.
#[derive(Debug)]
pub(crate) struct Faults {
    pub(crate) plan: FaultPlan,
    pub(crate) counters: FaultCounters,
    state: u64,
}

impl Faults {
    pub(crate) fn new(plan: FaultPlan) -> Self {
        Self {
            plan,
            counters: FaultCounters::default(),
            state: plan.seed,
        }
    }

    /// Whether it strikes now; costs nothing where the rate is 0.
    pub(crate) fn strikes(&mut self, rate: PerMillion) -> bool {
        rate.0 != 0 && self.next() % 1_000_000 < u64::from(rate.0)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.state;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
