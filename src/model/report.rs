//! Pure: what workers tell the control thread.

use super::{BackendId, InstanceId};

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
}
