//! A server on a thread of its own, whatever it is made of.

use std::{
    net::{SocketAddr, TcpListener},
    thread::JoinHandle,
};

use socket2::SockRef;

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Runs `serve` with a non-blocking listener on a free port. It must return when accepting
    /// fails, which is how it is told to end.
    pub(crate) fn start(serve: impl FnOnce(TcpListener) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("a socket takes options");
        let address = listener.local_addr().expect("a bound socket has an address");
        let accepting = listener.try_clone().expect("descriptors are left");
        let thread = std::thread::spawn(move || serve(accepting));
        Self { address, listener, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On Linux this fails a waiting accept.
        SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both).expect("it listens");
        let ended = self.thread.take().expect("it is dropped once").join();
        assert!(std::thread::panicking() || ended.is_ok(), "the server panicked");
    }
}
