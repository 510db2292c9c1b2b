//! Pure: what workers tell the control thread.

use std::net::IpAddr;

use super::{BackendId, Initialize, InstanceId, Recording};

/// What a worker saw that the control thread should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A connection to this backend could not be opened.
    ConnectFailed(BackendId),
    /// This backend failed a request. What exactly, stands in its counts: this says that they are
    /// worth a look before their turn.
    Failing(BackendId),
    /// A response named the instance that sent it.
    InstanceSeen(BackendId, InstanceId),
    /// A request named an instance that this worker does not know. The newest process may be one
    /// that discovery or health checks have not met yet.
    InstanceUnknown,
    /// This backend answered a client's `initialize`, and nothing in the answer says no.
    InitializeAnswered(BackendId, Box<Initialize>),
    /// A client sent `initialized`, and waits for the answer until everybody has been told.
    InitializedReceived {
        /// Who sent it.
        client: IpAddr,
        /// The notification.
        request: Recording,
    },
}
