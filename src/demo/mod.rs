//! What `stepflow-load-balancer demo` brings along: three component servers on loopback, and the
//! lines to try them with.
//!
//! They behave on the wire as Stepflow's do, as far as a balancer can tell: JSON-RPC over `POST /`,
//! event streams that call back and wait for the answer, `/health` with an instance id, and a
//! keep-alive of five seconds. Owns nothing of the balancer, which takes them for backends like any
//! others.

mod component;
mod guide;
mod server;

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

pub use guide::Guide;

use crate::sys::socket;

/// How many there are: enough to see balancing.
const BACKENDS: usize = 3;

/// Running component servers. Dropping them ends them.
#[derive(Debug)]
pub struct DemoBackends {
    /// Instance id and address of each.
    pub backends: Vec<(String, SocketAddr)>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DemoBackends {
    /// Starts them, on free ports and a thread of their own.
    ///
    /// # Errors
    /// When the system grants no port or thread.
    pub fn start() -> io::Result<Self> {
        let mut listeners = Vec::with_capacity(BACKENDS);
        let mut backends = Vec::with_capacity(BACKENDS);
        for number in 1..=BACKENDS {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            listener.set_nonblocking(true)?;
            let instance = format!("demo-{number}");
            backends.push((instance.clone(), listener.local_addr()?));
            listeners.push((instance, listener));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("demo-backends".to_owned())
            .spawn(move || server::run(&runtime, listeners, stopped))?;
        Ok(Self { backends, stop: Some(stop), thread: Some(thread) })
    }

    /// Defaults under which the balancer is a demonstration: in front of these backends, on
    /// loopback, with a line for each request, and gone soon after Ctrl-C. The usual ports are
    /// taken if they are free.
    pub fn defaults(&self) -> Vec<(&'static str, String)> {
        let upstream: Vec<_> = self.backends.iter().map(|(_, a)| a.to_string()).collect();
        vec![
            ("upstream_service", upstream.join(",")),
            ("bind_address", free_or_any(8080).to_string()),
            ("metrics_address", free_or_any(9090).to_string()),
            ("admin_address", free_or_any(9901).to_string()),
            ("access_log", "all".to_owned()),
            ("drain_grace", "0".to_owned()),
            ("drain_timeout", "2s".to_owned()),
        ]
    }
}

impl Drop for DemoBackends {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread has ended already if nobody listens.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed; there is nothing left to stop then.
            let _ = thread.join();
        }
    }
}

/// Waits until the balancer with these metrics takes requests, so that what the guide says to try
/// works at once; gives up after five seconds, because then the log says more than waiting would.
pub fn wait_until_ready(metrics: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !is_ready(metrics).unwrap_or(false) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_ready(metrics: SocketAddr) -> io::Result<bool> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&metrics, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n")?;
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line)?;
    Ok(status_line.ends_with(b" 200"))
}

/// The loopback address with this port, or with port 0 when somebody else has it.
fn free_or_any(port: u16) -> SocketAddr {
    let preferred = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match socket::listeners(preferred, 1) {
        Ok(_) => preferred,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

#[cfg(test)]
mod tests;
