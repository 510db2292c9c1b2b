//! Listening sockets and the descriptor limit.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::duplex::set_options;

/// Connections that may wait in one listener's accept queue. The kernel caps it at
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Binds one listener per worker to the same address, so that the kernel spreads connections over
/// the workers. Port 0 becomes one free port for all of them.
///
/// # Errors
/// The kernel's. An address on which somebody already listens is `AddrInUse`, even if that listener
/// has `SO_REUSEPORT` too: two balancers on one port would each get half of the traffic and
/// neither operator would know why.
pub fn listeners(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    // The first is bound as one that shares with nobody, and shares from then on: it has the port
    // all the time, and nobody else can come between.
    let first = bound(address, Sharing::Refuse)?;
    first.set_reuse_port(true)?;
    let address = first.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let others = (1..count).map(|_| bound(address, Sharing::Allow));
    let all = std::iter::once(Ok(first)).chain(others);
    all.map(|socket| {
        let socket = socket?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    })
    .collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Allow,
    Refuse,
}

fn bound(address: SocketAddr, sharing: Sharing) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier process in TIME_WAIT must not keep us from starting.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sharing == Sharing::Allow)?;
    // `[::]` takes IPv4 clients too, whatever the host's default is.
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    set_options(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Which of `events` a descriptor has at this moment, and what it has without being asked
/// (`POLLERR`, `POLLHUP`); none of them if the kernel cannot say.
pub(super) fn asked_now(fd: BorrowedFd<'_>, events: libc::c_short) -> libc::c_short {
    let mut asked = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: the descriptor is open while it is borrowed, and the one entry that the kernel is
    // told of is ours for the length of the call, which waits for nothing.
    let answered = unsafe { libc::poll(&raw mut asked, 1, 0) };
    if answered > 0 { asked.revents } else { 0 }
}

/// Whether a connection waits in the accept queue of this listener. An accept that finds none makes
/// a socket and a file for it first, which takes 3 µs where this takes 0.2.
pub fn is_called(listener: &TcpListener) -> bool {
    asked_now(listener.as_fd(), libc::POLLIN) != 0
}

/// Raises the soft limit on open descriptors to the hard limit; each connection through the
/// balancer takes two. Returns the limit in force.
///
/// # Errors
/// The kernel's.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the kernel to write one `rlimit` to.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is a valid `rlimit` for the kernel to read.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

/// Whether an error means that this process or this machine has run out of descriptors, buffers or
/// ports: no fault of the peer, and no reason to think ill of it.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_share_one_free_port_and_refuse_a_second_owner() {
        let shared = listeners("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let address = shared[0].local_addr().unwrap();
        assert_ne!(address.port(), 0);
        assert_eq!(shared[1].local_addr().unwrap(), address);
        let second = listeners(address, 1).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn the_kernel_spreads_connections_over_all_listeners() {
        let shared = listeners("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let address = shared[0].local_addr().unwrap();
        // A port after the other, or what is not accepted yet would be in the way.
        let clients = (0..64).map(|_| std::net::TcpStream::connect(address).unwrap());
        let _clients: Vec<_> = clients.collect();
        assert!(shared.iter().all(is_called), "64 connections, and none of them for one of three");
    }
}
