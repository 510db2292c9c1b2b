//! Connections for tests.

use std::{
    future::Future,
    net::{TcpListener, TcpStream},
    rc::Rc,
};

use monoio::{LegacyDriver, RuntimeBuilder};

use super::{Duplex, Turns};

/// Two ends of one connection.
pub(crate) fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, peer)
}

/// A connection in the runtime that runs, what it shares with others, and its peer, which blocks.
pub(crate) fn connection() -> (Duplex, Rc<Turns>, TcpStream) {
    let (ours, peer) = pair();
    ours.set_nonblocking(true).unwrap();
    let (turns, _bell) = Turns::new().unwrap();
    let stream = monoio::net::TcpStream::from_std(ours).unwrap();
    (Duplex::new(stream, Rc::clone(&turns)).unwrap(), turns, peer)
}

/// Lets `act` have a connection, in a runtime, and its peer, which blocks.
pub(crate) fn with_connection<F: Future<Output = ()>>(act: impl FnOnce(Duplex, TcpStream) -> F) {
    let mut runtime = RuntimeBuilder::<LegacyDriver>::new().build().unwrap();
    runtime.block_on(async {
        let (connection, _turns, peer) = connection();
        act(connection, peer).await;
    });
}
