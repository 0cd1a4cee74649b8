//! Neighbours: who is where on the network of the uplink, and what a machine is told about its
//! own network, on which there is nobody but us.
//!
//! Both sit in front of a port and are ports themselves: [`Uplink`] finds the Ethernet address
//! of the next hop of tunnel packets, and answers for the tunnel's address; [`Edge`] answers a
//! machine's questions for its peers, tells it when its packets are too big for the tunnel, and
//! clamps the segments that it agrees upon. Neither has a socket or a clock.

mod cache;
mod edge;
mod message;
mod uplink;

pub use cache::{Cache, CacheLimits, Hop, Question, Resolution};
pub use edge::{Edge, EdgeOptions};
pub use message::{Heard, LONGEST, Message, answer, question, read};
pub use uplink::{Uplink, UplinkOptions};
