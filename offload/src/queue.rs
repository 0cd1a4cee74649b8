//! The life of a receive queue: the state machine of NDIS ("Virtual Machine Queue States").

use core::fmt;

/// Names a receive queue. 0 is the default queue, which always exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId(pub u16);

impl QueueId {
    /// Where frames go that no filter matches. It can not be freed.
    pub const DEFAULT: QueueId = QueueId(0);
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DEFAULT => f.write_str("the default queue"),
            Self(id) => write!(f, "queue {id}"),
        }
    }
}

/// Where a queue is in its life. Undefined, the state before and after, is no queue at all.
///
/// ```text
///              set filter            allocation complete
///  Allocated ─────────────▶ Set ─────────────────────────▶ Running ◀─┐
///   │   │  ◀─────────────                                     │      │ set filter
///   │   │   clear last filter               clear last filter │      │
///   │   └────────────── allocation complete ───────────▶ Paused ─────┘
///   │ free                                                    │ free
///   └──────────────────────▶ StopDma ◀────────────────────────┘
///                               │ DMA stopped
///                               ▼
///                            Freeing ── all receives returned ──▶ gone
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueState {
    /// Allocated, without filters.
    Allocated,
    /// Has filters, but its allocation is not complete: its frames go to the default queue.
    Set,
    /// Receives.
    Running,
    /// Complete, without filters: receives nothing.
    Paused,
    /// To be freed: what was on its way is still delivered.
    StopDma,
    /// No packet comes any more; waits until the host has returned those that it holds.
    Freeing,
}

/// What happens to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QueueEvent {
    /// A filter was set on it.
    SetFilter,
    /// Its last filter was cleared or moved away.
    ClearLastFilter,
    /// The host has finished the allocation.
    AllocationComplete,
    /// The host frees it.
    Free,
    /// The adapter writes into its memory no more.
    DmaStopped,
    /// The host has returned every packet of it.
    AllReturned,
}

/// The event is not possible in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongState {
    /// The state.
    pub state: QueueState,
    /// The event.
    pub event: QueueEvent,
}

impl fmt::Display for WrongState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { state, event } = self;
        match (state, event) {
            (QueueState::Set | QueueState::Running, QueueEvent::Free) => write!(
                f,
                "the queue is in state {state:?} and has filters; clear them before freeing it"
            ),
            _ => write!(f, "{event:?} is not possible in queue state {state:?}"),
        }
    }
}

impl core::error::Error for WrongState {}

impl QueueState {
    /// The state after an event; `None` is Undefined: the queue is gone.
    pub const fn on(self, event: QueueEvent) -> Result<Option<Self>, WrongState> {
        use QueueEvent::*;
        use QueueState::*;
        Ok(Some(match (self, event) {
            (Allocated | Set, SetFilter) => Set,
            (Running | Paused, SetFilter) => Running,
            (Set, ClearLastFilter) => Allocated,
            (Running, ClearLastFilter) => Paused,
            (Set, AllocationComplete) => Running,
            (Allocated, AllocationComplete) => Paused,
            (Allocated | Paused, Free) => StopDma,
            (StopDma, DmaStopped) => Freeing,
            (Freeing, AllReturned) => return Ok(None),
            (state, event) => return Err(WrongState { state, event }),
        }))
    }

    /// Whether frames are put into the queue.
    pub const fn receives(self) -> bool {
        matches!(self, Self::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the NDIS documentation, row by row; "-" is refused.
    const TABLE: [(QueueState, [&str; 6]); 6] = {
        use QueueState::*;
        [
            // SetFilter, ClearLast, AllocationComplete, Free, DmaStopped, AllReturned
            (Allocated, ["Set", "-", "Paused", "StopDma", "-", "-"]),
            (Set, ["Set", "Allocated", "Running", "-", "-", "-"]),
            (Running, ["Running", "Paused", "-", "-", "-", "-"]),
            (Paused, ["Running", "-", "-", "StopDma", "-", "-"]),
            (StopDma, ["-", "-", "-", "-", "Freeing", "-"]),
            (Freeing, ["-", "-", "-", "-", "-", "gone"]),
        ]
    };

    #[test]
    fn states_follow_the_ndis_table() {
        use QueueEvent::*;
        let events = [
            SetFilter,
            ClearLastFilter,
            AllocationComplete,
            Free,
            DmaStopped,
            AllReturned,
        ];
        for (state, row) in TABLE {
            for (event, expected) in events.into_iter().zip(row) {
                let found = match state.on(event) {
                    Ok(Some(next)) => format!("{next:?}"),
                    Ok(None) => "gone".to_owned(),
                    Err(error) => {
                        assert_eq!(error, WrongState { state, event });
                        "-".to_owned()
                    }
                };
                assert_eq!(found, expected, "{state:?} on {event:?}");
            }
        }
    }
}
