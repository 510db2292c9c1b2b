//! One TCP connection that can be read and written at the same time.

use std::{
    cell::{Cell, UnsafeCell},
    future::{Future, poll_fn},
    io,
    mem::{ManuallyDrop, MaybeUninit},
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use monoio::{
    BufResult,
    buf::{IoBuf, IoBufMut},
    io::{AsyncReadRent, AsyncWriteRent},
    net::TcpStream,
};
use pin_project_lite::pin_project;
use socket2::{SockRef, TcpKeepalive};

use super::{Turns, polls::Watch, socket};

/// Octets that the kernel takes in for us before we ask. Left to itself it takes up to 32 MB for a
/// sender that is faster than whoever we hand them to, and charges our cgroup: a few hundred
/// clients that stop reading would end the process. This much is a gigabit at a round trip of 2 ms.
const RECEIVED_BYTES_MAX: usize = 256 * 1024;

/// Octets that may wait in the kernel before they are sent for the first time. What is on its way
/// to the peer does not count, so this costs no throughput.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// Likewise, while a large body goes through at speed. With less, pieces stay small however large
/// our buffers are, and each has a price besides its octets (docs/PERFORMANCE.md).
const RECEIVED_IN_BULK_BYTES_MAX: usize = 512 * 1024;

/// Likewise.
const UNSENT_IN_BULK_BYTES_MAX: u32 = 512 * 1024;

/// A TCP connection whose operations borrow it shared, so that one task can wait for octets in one
/// direction while it writes in the other. Each operation counts against the turn of its task
/// (see [`Turns`]).
///
/// Reads come in two kinds. [`Duplex::recv`] hands a buffer to the kernel and must not be dropped
/// before it completes unless the connection dies with it: octets that had arrived would be lost.
/// [`Duplex::readiness`] followed by [`Duplex::try_recv`] holds no buffer while it waits and may be
/// dropped at any time; it is what an idle connection waits with.
///
/// Dropped while nothing is in flight, it is closed by a plain call. monoio would ask the ring for
/// it, and then ask the ring to cancel that.
pub struct Duplex {
    stream: ManuallyDrop<UnsafeCell<TcpStream>>,
    /// Operations that may hold the descriptor: those that have begun and were not seen to end.
    in_flight: Cell<u32>,
    watch: Watch,
    turns: Rc<Turns>,
}

/// What lies ready to be read, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// Nothing; the connection is open.
    Nothing,
    /// At least one octet.
    Octets,
    /// The peer has sent all it will send.
    EndOfInput,
    /// The connection is broken.
    Broken,
}

/// What the kernel may buffer of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As much as any connection may have.
    Usual,
    /// As much as makes a large body cheap.
    Bulk,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With FIN, behind everything that was sent.
    Orderly,
    /// With RST: the peer must not take what it got for all there is.
    Broken,
}

/// Waits until a read would not block. May be polled again after it was ready, to wait anew.
pub trait Readiness {
    /// Ready when a read would give octets, the end, or an error.
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()>;
}

pin_project! {
    struct ReadinessOf<'a, F, M> {
        #[pin]
        poll: Option<F>,
        make: M,
        connection: &'a Duplex,
    }
}

impl<F: Future<Output = io::Result<()>>, M: Fn() -> F> Readiness for ReadinessOf<'_, F, M> {
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        ready!(this.connection.turns.poll_lasts(cx));
        if this.poll.is_none() {
            if let Some(standing) = this.connection.poll_standing(cx) {
                ready!(standing);
                this.connection.turns.spend();
                return Poll::Ready(());
            }
            this.connection.departs();
            this.poll.set(Some((this.make)()));
        }
        if let Some(poll) = this.poll.as_mut().as_pin_mut() {
            // A failed poll is ready too: the read that follows reports the error.
            let _ = ready!(poll.poll(cx));
        }
        this.poll.set(None);
        this.connection.lands();
        this.connection.turns.spend();
        Poll::Ready(())
    }
}

pin_project! {
    /// An operation that is in flight until it has ended.
    struct Flight<'a, F> {
        #[pin]
        operation: F,
        connection: &'a Duplex,
    }
}

impl<F: Future> Future for Flight<'_, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let output = ready!(this.operation.poll(cx));
        this.connection.lands();
        Poll::Ready(output)
    }
}

/// What every connection of ours has: no delay, because heads and events are written whole, and
/// keep-alive probes, because a peer that vanished without a word would otherwise hold a silent
/// stream for ever; and bounds on what the kernel buffers.
///
/// Set on a listener, every connection that it accepts has it from the beginning (tcp(7)), which
/// saves seven calls for each.
pub(super) fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    let (idle, pause) = (Duration::from_secs(60), Duration::from_secs(10));
    let keep_alive = TcpKeepalive::new().with_time(idle).with_interval(pause).with_retries(3);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keep_alive)?;
    socket.set_recv_buffer_size(RECEIVED_BYTES_MAX)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

impl Duplex {
    /// Takes over a connection and gives it the options that every connection of ours has.
    ///
    /// # Errors
    /// When the socket refuses an option, which it does if the peer has reset it already.
    pub fn new(stream: TcpStream, turns: Rc<Turns>) -> io::Result<Self> {
        let connection = Self::accepted(stream, turns);
        connection.with_socket(set_options)?;
        Ok(connection)
    }

    /// Takes over a connection that was accepted from a listener of [`super::socket::listeners`]:
    /// what [`Duplex::new`] sets it has from there.
    pub fn accepted(stream: TcpStream, turns: Rc<Turns>) -> Self {
        let stream = ManuallyDrop::new(UnsafeCell::new(stream));
        Self { stream, in_flight: Cell::new(0), watch: Watch::default(), turns }
    }

    fn poll_standing(&self, cx: &mut Context<'_>) -> Option<Poll<()>> {
        self.watch.poll(self.turns.polls(), self.fd(), cx)
    }

    /// Whether nothing has come that was not read, and nothing has ended: known without asking the
    /// kernel, where a standing poll would have told. What came before this thread left the kernel
    /// last has been told. False where nobody knows.
    pub fn is_quiet(&self) -> bool {
        self.watch.is_quiet(self.turns.polls())
    }

    /// Nobody waits for this connection until it is used again, and whether it is quiet will be
    /// asked then. Without this, whoever waited last would be kept in memory.
    pub fn rest(&self) {
        self.watch.rest(self.turns.polls(), self.fd());
    }

    /// Tells those who wait whether a look has found that nothing is left.
    fn note_look<T>(&self, seen: &io::Result<T>, is_all: impl FnOnce(&T) -> bool) {
        let is_exhausted = match seen {
            Ok(seen) => is_all(seen),
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        if is_exhausted {
            self.watch.is_exhausted(self.turns.polls());
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn connect(address: SocketAddr, turns: Rc<Turns>) -> io::Result<Self> {
        Self::new(TcpStream::connect_addr(address).await?, turns)
    }

    fn stream(&self) -> &TcpStream {
        // SAFETY: the cell is only ever borrowed mutably inside `recv` and `send_all`, for the
        // length of one synchronous call that does not call back into this type; `Duplex` is not
        // `Sync`. One shared borrow outlives such calls, that of a `readiness` in waiting: monoio's
        // `readable` looks through it in its first poll only, which follows its making at once.
        unsafe { &*self.stream.get() }
    }

    /// An operation begins to hold the descriptor.
    fn departs(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// It has ended, and holds it no more.
    fn lands(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open for as long as `self` is borrowed, because the stream
        // that owns it does.
        unsafe { BorrowedFd::borrow_raw(self.stream().as_raw_fd()) }
    }

    fn with_socket<R>(&self, operate: impl FnOnce(&SockRef<'_>) -> R) -> R {
        operate(&SockRef::from(&self.fd()))
    }

    fn send_now(&self, octets: &[u8], flags: libc::c_int) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | flags;
        self.with_socket(|s| s.send_with_flags(octets, flags))
    }

    /// Waits until this thread's turn lasts.
    fn turn(&self) -> impl Future<Output = ()> {
        poll_fn(|cx| self.turns.poll_lasts(cx))
    }

    /// Receives into `buf` from its beginning, by handing it to the kernel. Counts against the turn
    /// but does not wait for the next: what is received is sent on, and that does.
    pub fn recv<B: IoBufMut>(&self, buf: B) -> impl Future<Output = BufResult<usize, B>> {
        self.turns.spend();
        // SAFETY: monoio's `read` needs `&mut` only by its trait; it clones the descriptor handle
        // into an operation that owns the buffer, and the operation does not touch the stream
        // again. No other borrow is live during this call (see `stream`). monoio's own `into_split`
        // rests on the same.
        let stream = unsafe { &mut *self.stream.get() };
        self.departs();
        Flight { operation: stream.read(buf), connection: self }
    }

    /// Sends all octets of `buf`; gives the buffer back in any case.
    ///
    /// # Errors
    /// The kernel's. How much was sent before is not known then.
    pub fn send_all<B: IoBuf>(&self, mut buf: B) -> impl Future<Output = BufResult<(), B>> {
        let mut sent = 0;
        // Not an `async fn`, which would hold its argument beside what becomes of it.
        async move {
            while sent < buf.bytes_init() {
                self.turn().await;
                let len = buf.bytes_init();
                // SAFETY: as in `recv`, with `write` in place of `read`.
                let stream = unsafe { &mut *self.stream.get() };
                self.departs();
                let (result, slice) = stream.write(buf.slice(sent..len)).await;
                self.lands();
                buf = slice.into_inner();
                self.turns.spend_on(*result.as_ref().unwrap_or(&0));
                match result {
                    Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                    Ok(n) => sent += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return (Err(error), buf),
                }
            }
            (Ok(()), buf)
        }
    }

    /// Waits until a read would not block.
    pub fn readiness(&self) -> impl Readiness + '_ {
        ReadinessOf { poll: None, make: || self.stream().readable(false), connection: self }
    }

    /// Appends what lies ready to `buf`, as far as its spare capacity goes, without waiting. The
    /// end of input is `Ok(0)`, so `buf` must have spare capacity.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if nothing lies ready.
    pub fn try_recv(&self, buf: &mut Vec<u8>) -> io::Result<usize> {
        self.try_recv_within(buf, usize::MAX)
    }

    /// As [`Duplex::try_recv`], at most `bytes_max`.
    ///
    /// # Errors
    /// As there.
    pub fn try_recv_within(&self, buf: &mut Vec<u8>, bytes_max: usize) -> io::Result<usize> {
        debug_assert!(buf.capacity() > buf.len() && bytes_max > 0, "no room to receive into");
        let spare: &mut [MaybeUninit<u8>] = buf.spare_capacity_mut();
        let room = spare.len().min(bytes_max);
        let spare = &mut spare[..room];
        let received = self.with_socket(|s| s.recv_with_flags(spare, libc::MSG_DONTWAIT));
        // Less than there was room for is all there was (epoll(7)). An end stays.
        self.note_look(&received, |&n| n > 0 && n < room);
        let n = received?;
        // SAFETY: the kernel has written `n` octets into the spare capacity, whose length it was
        // given, so `len + n <= capacity` and all octets up to there are initialised.
        unsafe { buf.set_len(buf.len() + n) };
        Ok(n)
    }

    /// Sends what the kernel takes at once, without waiting.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock` if it takes nothing.
    pub fn try_send(&self, octets: &[u8]) -> io::Result<usize> {
        self.send_now(octets, 0)
    }

    /// As [`Duplex::try_send`], for the last octets of a connection that is about to end. They wait
    /// for its end, whatever brings it about, and leave in one segment with it: a packet less to
    /// make, to deliver and to acknowledge, and the peer is woken once instead of twice.
    ///
    /// # Errors
    /// As there.
    pub fn try_send_last(&self, octets: &[u8]) -> io::Result<usize> {
        self.send_now(octets, libc::MSG_MORE)
    }

    /// Lets the kernel take in so much for us from here on. A socket that the peer has reset
    /// refuses, and the read that follows says why.
    pub fn receive_into(&self, room: Room) {
        let bytes = match room {
            Room::Usual => RECEIVED_BYTES_MAX,
            Room::Bulk => RECEIVED_IN_BULK_BYTES_MAX,
        };
        let widened = self.with_socket(|socket| socket.set_recv_buffer_size(bytes));
        if room == Room::Usual || widened.is_err() {
            return;
        }
        // What the peer is offered stays within what the buffer had room for when the connection
        // was opened. The kernel doubles a buffer's size for its own needs, so twice is the whole.
        let offered = libc::c_int::try_from(2 * bytes).unwrap_or(libc::c_int::MAX);
        let size = libc::socklen_t::try_from(size_of_val(&offered)).unwrap_or(0);
        let (level, option) = (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP);
        let fd = self.stream().as_raw_fd();
        // SAFETY: the descriptor is open while `self` is borrowed, and the kernel reads one `c_int`
        // from where it is pointed, whose size it is told.
        unsafe { libc::setsockopt(fd, level, option, (&raw const offered).cast(), size) };
    }

    /// Lets so much wait in the kernel before it is sent for the first time, from here on.
    /// Refused as by [`Duplex::receive_into`].
    pub fn send_from(&self, room: Room) {
        let bytes = match room {
            Room::Usual => UNSENT_BYTES_MAX,
            Room::Bulk => UNSENT_IN_BULK_BYTES_MAX,
        };
        let _ = self.with_socket(|socket| socket.set_tcp_notsent_lowat(bytes));
    }

    /// What lies ready.
    pub fn peek(&self) -> Peek {
        let mut octet = [MaybeUninit::<u8>::uninit()];
        let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
        let seen = self.with_socket(|s| s.recv_with_flags(&mut octet, flags));
        self.note_look(&seen, |_| false);
        match seen {
            Ok(0) => Peek::EndOfInput,
            Ok(_) => Peek::Octets,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Peek::Nothing,
            Err(_) => Peek::Broken,
        }
    }

    /// How the peer has ended, even behind octets that lie unread: [`Peek::EndOfInput`],
    /// [`Peek::Broken`], or [`Peek::Nothing`] if it has not.
    pub fn ending(&self) -> Peek {
        match socket::asked_now(self.fd(), libc::POLLRDHUP) {
            0 => Peek::Nothing,
            events if events & (libc::POLLERR | libc::POLLHUP) != 0 => Peek::Broken,
            _ => Peek::EndOfInput,
        }
    }

    /// Octets sent that the peer has not acknowledged. As long as it falls, the peer is reading:
    /// room to send more appears only once a good part of the kernel's buffer is free.
    pub fn unacknowledged(&self) -> u32 {
        let mut octets: libc::c_int = 0;
        let fd = self.stream().as_raw_fd();
        // SAFETY: the descriptor is open while `self` is borrowed, and `TIOCOUTQ` writes one
        // `c_int` to where it is pointed.
        let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut octets) };
        // A socket that does not know has nothing on its way.
        if result == 0 { u32::try_from(octets).unwrap_or(0) } else { 0 }
    }

    /// Decides how the peer sees this connection end when it is dropped, by whatever way.
    ///
    /// # Errors
    /// When the socket refuses the option, which it does if the peer has reset it already.
    pub fn end_as(&self, ending: Ending) -> io::Result<()> {
        let linger = match ending {
            Ending::Orderly => None,
            Ending::Broken => Some(Duration::ZERO),
        };
        self.with_socket(|s| s.set_linger(linger))
    }

    /// Tells the peer that nothing more will be sent. That the peer is gone already is no news to
    /// the caller, who is done with it.
    pub fn finish_sending(&self) {
        let _ = self.with_socket(|s| s.shutdown(std::net::Shutdown::Write));
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        self.watch.release(self.turns.polls());
        // SAFETY: the stream is taken once, here, and nobody can look for it afterwards.
        let stream = unsafe { ManuallyDrop::take(&mut self.stream) }.into_inner();
        // An operation that was dropped on its way, or of which nobody has seen the end, shares
        // the descriptor: then it is closed by whoever lets go of it last.
        if self.in_flight.get() == 0 {
            // SAFETY: the stream gives its descriptor away, and nobody else closes it.
            drop(unsafe { OwnedFd::from_raw_fd(stream.into_raw_fd()) });
        }
    }
}

impl std::fmt::Debug for Duplex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Duplex").field(&self.stream().as_raw_fd()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream as StdStream,
    };

    use super::*;
    use crate::sys::testing::with_connection;

    /// Octets that fit into a socket whose peer has stopped reading.
    fn fill(mut stream: &StdStream) -> usize {
        stream.set_nonblocking(true).unwrap();
        let octets = vec![0; 64 * 1024];
        let mut taken = 0;
        loop {
            match stream.write(&octets) {
                Ok(n) => taken += n,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return taken;
                }
            }
        }
    }

    /// The most octets that fit into the peer's socket and ours after all that lay ready has been
    /// received, again and again: the kernel trusts a reader that is fast with more and more.
    fn take_and_fill(connection: &Duplex, buffer: &mut Vec<u8>, peer: &StdStream) -> usize {
        let mut most = 0;
        for _ in 0..16 {
            while connection.try_recv(buffer).is_ok() {
                buffer.clear();
            }
            // What the peer has written leaves it in the kernel's own time.
            let (mut taken, mut last) = (0, std::time::Instant::now());
            while last.elapsed() < Duration::from_millis(30) {
                let n = fill(peer);
                if n > 0 {
                    (taken, last) = (taken + n, std::time::Instant::now());
                }
            }
            most = most.max(taken);
        }
        most
    }

    #[test]
    fn an_end_is_seen_behind_octets_that_lie_unread() {
        for (breaks, want) in [(false, Peek::EndOfInput), (true, Peek::Broken)] {
            with_connection(async |connection, mut peer| {
                assert_eq!(connection.ending(), Peek::Nothing);
                peer.write_all(b"unread").unwrap();
                assert_eq!(connection.ending(), Peek::Nothing);
                if breaks {
                    SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
                    drop(peer);
                } else {
                    peer.shutdown(std::net::Shutdown::Write).unwrap();
                }
                let deadline = std::time::Instant::now() + Duration::from_secs(10);
                while connection.ending() == Peek::Nothing {
                    assert!(std::time::Instant::now() < deadline, "the end is not seen");
                }
                assert_eq!(connection.ending(), want);
            });
        }
    }

    /// Segments that a socket has received.
    fn received(socket: &StdStream) -> u32 {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap();
        let (level, name) = (libc::IPPROTO_TCP, libc::TCP_INFO);
        // SAFETY: the kernel writes at most `len` octets to `info`, which has room for them.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                level,
                name,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0);
        // SAFETY: all of it is numbers, and what the kernel has not written is zero.
        unsafe { info.assume_init() }.tcpi_segs_in
    }

    #[test]
    fn what_is_sent_last_comes_in_one_segment_with_the_end() {
        with_connection(async |connection, mut peer| {
            let before = received(&peer);
            assert_eq!(connection.try_send_last(b"the end").unwrap(), 7);
            drop(connection);
            let mut text = String::new();
            peer.read_to_string(&mut text).unwrap();
            assert_eq!((text.as_str(), received(&peer) - before), ("the end", 1));
        });
    }

    #[test]
    fn a_side_that_stops_reading_costs_a_bounded_amount_of_the_kernels_memory() {
        with_connection(async |connection, peer| {
            let same = StdStream::from(connection.fd().try_clone_to_owned().unwrap());
            SockRef::from(&peer).set_send_buffer_size(16 * 1024).unwrap();
            SockRef::from(&peer).set_recv_buffer_size(16 * 1024).unwrap();
            let mut buffer = Vec::with_capacity(64 * 1024);
            let received = take_and_fill(&connection, &mut buffer, &peer);
            assert!(received <= 1024 * 1024, "the kernel took in {received} octets for us");
            // In bulk it is more, and afterwards no more than before.
            connection.receive_into(Room::Bulk);
            let max = std::fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap();
            let want = RECEIVED_IN_BULK_BYTES_MAX.min(max.trim().parse().unwrap());
            // The kernel tells twice of what it was told.
            let room = connection.with_socket(|socket| socket.recv_buffer_size().unwrap());
            assert_eq!(room, 2 * want);
            let more = take_and_fill(&connection, &mut buffer, &peer);
            assert!(more <= 2 * 1024 * 1024, "{more} octets in bulk");
            connection.receive_into(Room::Usual);
            let received = take_and_fill(&connection, &mut buffer, &peer);
            assert!(received <= 1024 * 1024, "{received} octets after a body in bulk");
            let unsent = fill(&same);
            assert!(unsent <= 1024 * 1024, "the kernel keeps {unsent} octets of ours");
            connection.send_from(Room::Bulk);
            let more = fill(&same);
            assert!(more > 0 && unsent + more <= 2 * 1024 * 1024, "{unsent} and {more} in bulk");
        });
    }
}
