//! Placeholder for the server of metrics and state.

use std::rc::Rc;

use super::AdminView;

/// Serves until the process ends.
pub async fn serve(listener: tokio::net::TcpListener, view: Rc<AdminView>) {
    let _keep = (listener, view);
    std::future::pending::<()>().await;
}
