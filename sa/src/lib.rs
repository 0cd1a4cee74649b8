//! Security associations and policy for IPsec ESP.
#![forbid(unsafe_code)]

mod association;
mod database;
mod event;
mod handle;
mod ident;
mod inbound;
mod interval;
mod lease;
mod lifetime;
mod lock;
mod outbound;
mod params;
mod replay;
mod sad;
mod sad_error;
mod selector;
mod sequence;
mod snapshot;
mod spd;
mod state;
mod table;
mod update;

pub use association::{Sa, SaParamsError, SaState, SaStatistics};
pub use database::{Change, Database, Epoch, Reader, Readers, View};
pub use event::{Event, Events, SaIdentity};
pub use handle::{ReceiveKey, Receiver, SaHandle};
pub use ident::{Direction, Spi, Timestamp, VmId};
pub use inbound::{Commit, InboundRefusal};
pub use lease::{
    Lease, LeaseError, LeaseHolder, LeaseRecord, LeaseRequest, LeaseStore, MAX_SKIP,
    MemoryLeaseStore,
};
pub use outbound::{OutboundRefusal, Reservation};
pub use params::{
    Df, Dscp, Ecn, Lifetime, Limits, Mode, NAT_TRAVERSAL_PORT, NatChecksum, ReplayProtection,
    SaParams, Scope, TunnelHeader, UdpEncapsulation, WindowSize,
};
pub use replay::ReplayRefusal;
pub use sad::{DEFAULT_SA_LIMIT, SaUsage, Sad};
pub use sad_error::{AddError, ChangeError, NotFound, SpiError};
pub use selector::{AddressRange, Flow, PortRange, Ports, Selector};
pub use snapshot::{RestoreError, SaSnapshot, SnapshotError};
pub use spd::{Action, Policy, Protection, Spd};
pub use update::{SaUpdate, UpdateError};
