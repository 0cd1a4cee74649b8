//! SR-IOV: the NIC switch with its virtual functions and ports.

use core::fmt;

use vesper_sa::VmId;

use crate::queue::QueueId;

/// Names a virtual function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VfId(pub u16);

impl fmt::Display for VfId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VF {}", self.0)
    }
}

/// A PCI function of the adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// The physical function, which the host drives.
    Physical,
    /// A virtual function, which a machine drives.
    Virtual(VfId),
}

/// Names a port of the NIC switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VPortId(pub u16);

impl VPortId {
    /// The port of the physical function that the software switch is behind. It exists as long
    /// as the NIC switch.
    pub const DEFAULT: VPortId = VPortId(0);
}

impl fmt::Display for VPortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VPort {}", self.0)
    }
}

/// How the NIC switch is made (`NDIS_NIC_SWITCH_PARAMETERS`). All of it is fixed with the
/// switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NicSwitchParams {
    /// Virtual functions that there will be.
    pub virtual_functions: u16,
    /// Queue pairs of the default port.
    pub default_queue_pairs: u16,
}

/// What is read back of the NIC switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicSwitchState {
    /// As it was made.
    pub params: NicSwitchParams,
    /// Virtual functions in use.
    pub virtual_functions: Vec<(VfId, VmId, VfState)>,
    /// Ports beside the default port: function, queue.
    pub vports: Vec<(VPortId, Function, QueueId)>,
    /// Queue pairs in use.
    pub queue_pairs: u16,
    /// Queue pairs that there are.
    pub queue_pair_capacity: u16,
}

/// Where a virtual function is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VfState {
    /// Allocated; the machine does not see it yet, the synthetic path carries its traffic.
    Allocated,
    /// It has a port, whose queue receives nothing yet.
    PortCreated,
    /// The filters of the machine point at it: it carries the traffic.
    Active,
    /// The filters are back at the synthetic path.
    Released,
    /// Its port is deleted.
    PortDeleted,
    /// It was reset; it can be freed.
    Reset,
}

/// What happens to a virtual function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VfEvent {
    /// Its port was created.
    CreateVport,
    /// The filters were moved to it.
    MoveFiltersIn,
    /// The filters were moved to the synthetic path.
    MoveFiltersOut,
    /// Its port was deleted.
    DeleteVport,
    /// It was reset (function level reset).
    Reset,
}

impl VfState {
    /// The state after an event. Taking a function away has one order: the fallback receives
    /// first, then the port goes, then the function is reset.
    pub const fn on(self, event: VfEvent) -> Result<Self, WrongVfState> {
        use VfEvent::*;
        Ok(match (self, event) {
            (Self::Allocated, CreateVport) => Self::PortCreated,
            (Self::PortCreated | Self::Released, MoveFiltersIn) => Self::Active,
            (Self::Active, MoveFiltersOut) => Self::Released,
            (Self::PortCreated | Self::Released, DeleteVport) => Self::PortDeleted,
            (Self::PortDeleted | Self::Allocated | Self::Reset, VfEvent::Reset) => Self::Reset,
            (state, event) => return Err(WrongVfState { state, event }),
        })
    }
}

/// The event is not possible in this state of a virtual function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongVfState {
    /// The state.
    pub state: VfState,
    /// The event.
    pub event: VfEvent,
}

/// Why the NIC switch refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SriovError {
    /// The adapter has no SR-IOV.
    NotSupported,
    /// The NIC switch exists: the number of functions and queue pairs was fixed when it was
    /// made.
    AlreadyCreated(NicSwitchParams),
    /// There is no NIC switch.
    NoSwitch,
    /// Machines or queues exist: the switch has to come first.
    InUse,
    /// More functions than the adapter has.
    TooManyFunctions {
        /// What was asked for.
        asked: u16,
        /// What the adapter has.
        available: u16,
    },
    /// More queue pairs than are left.
    TooManyQueuePairs {
        /// What was asked for.
        asked: u16,
        /// What is left.
        available: u16,
    },
    /// All functions are in use.
    NoFunctionLeft,
    /// The machine's settings do not ask for a function (`iov_weight` is 0).
    NotWanted(VmId),
    /// The machine has one already.
    HasFunction(VfId),
    /// The machine has not declared a driver for the function.
    NoGuestDriver(VmId),
    /// No such machine.
    UnknownVm(VmId),
    /// No such function, or it is gone.
    UnknownFunction(VfId),
    /// No such port.
    UnknownVport(VPortId),
    /// The default port lives as long as the switch.
    DefaultVport,
    /// The function is in another state.
    State(WrongVfState),
    /// The queue of the port.
    Queue(crate::nic::QueueError),
}

impl fmt::Display for SriovError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => f.write_str("the adapter has no SR-IOV"),
            Self::AlreadyCreated(params) => write!(
                f,
                "the NIC switch was made with {} virtual functions and can not be changed; \
                 make a new adapter with other parameters and move the machines there",
                params.virtual_functions
            ),
            Self::NoSwitch => f.write_str(
                "there is no NIC switch; create it before the first machine, an existing \
                 switch can not be converted",
            ),
            Self::InUse => f.write_str(
                "machines exist on the adapter; create the NIC switch before the first machine",
            ),
            Self::TooManyFunctions { asked, available } => {
                write!(
                    f,
                    "{asked} virtual functions asked for, {available} available"
                )
            }
            Self::TooManyQueuePairs { asked, available } => {
                write!(f, "{asked} queue pairs asked for, {available} available")
            }
            Self::NoFunctionLeft => f.write_str("all virtual functions are in use"),
            Self::NotWanted(vm) => write!(f, "iov_weight of {vm} is 0; set it to 1 to 100"),
            Self::HasFunction(vf) => write!(f, "the machine has {vf} already"),
            Self::NoGuestDriver(vm) => write!(
                f,
                "{vm} has not declared a driver for virtual functions; it stays synthetic"
            ),
            Self::UnknownVm(vm) => write!(f, "{vm} does not exist"),
            Self::UnknownFunction(vf) => write!(f, "{vf} does not exist or is gone"),
            Self::UnknownVport(vport) => write!(f, "{vport} does not exist"),
            Self::DefaultVport => f.write_str("the default VPort lives as long as the switch"),
            Self::State(WrongVfState { state, event }) => {
                write!(f, "{event:?} is not possible in VF state {state:?}")
            }
            Self::Queue(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SriovError {}

impl From<WrongVfState> for SriovError {
    fn from(error: WrongVfState) -> Self {
        Self::State(error)
    }
}

/// A virtual function in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VirtualFunction {
    pub(crate) vm: VmId,
    pub(crate) state: VfState,
    pub(crate) vport: Option<VPortId>,
}

/// A port of the NIC switch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VPort {
    pub(crate) function: Function,
    pub(crate) queue: QueueId,
    pub(crate) queue_pairs: u16,
}

/// The NIC switch.
#[derive(Debug)]
pub(crate) struct NicSwitch {
    pub(crate) params: NicSwitchParams,
    pub(crate) functions: Vec<Option<VirtualFunction>>,
    /// By number; the default port, number 0, is implied.
    pub(crate) vports: Vec<Option<VPort>>,
    pub(crate) queue_pair_capacity: u16,
}

impl NicSwitch {
    pub(crate) fn new(params: NicSwitchParams, queue_pair_capacity: u16) -> Self {
        Self {
            params,
            functions: vec![None; usize::from(params.virtual_functions)],
            vports: vec![None],
            queue_pair_capacity,
        }
    }

    pub(crate) fn function(&self, vf: VfId) -> Result<VirtualFunction, SriovError> {
        let function = self.functions.get(usize::from(vf.0)).copied().flatten();
        function.ok_or(SriovError::UnknownFunction(vf))
    }

    pub(crate) fn set_function(&mut self, vf: VfId, function: Option<VirtualFunction>) {
        if let Some(place) = self.functions.get_mut(usize::from(vf.0)) {
            *place = function;
        }
    }

    pub(crate) fn queue_pairs_used(&self) -> u16 {
        let ports = self.vports.iter().flatten();
        ports.map(|vport| vport.queue_pairs).sum::<u16>() + self.params.default_queue_pairs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_taken_away_in_one_order() {
        use VfEvent::*;
        let all = [
            CreateVport,
            MoveFiltersIn,
            MoveFiltersOut,
            DeleteVport,
            Reset,
        ];
        let mut state = VfState::Allocated;
        for event in all {
            state = state.on(event).unwrap();
        }
        assert_eq!(state, VfState::Reset);
        // While the filters point at it, nothing but their removal is possible.
        for event in [CreateVport, MoveFiltersIn, DeleteVport, Reset] {
            assert!(VfState::Active.on(event).is_err(), "{event:?}");
        }
    }
}
