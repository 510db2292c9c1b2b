//! One end of a connection whose other end may do anything: every read tells how it ended.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::support::message::{Framing, Head};

/// Longest that anything may take that must come. Far beyond every timeout of the balancer's in
/// these runs, and beyond what a busy machine adds to them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no more to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Closed,
    Reset,
    /// Nothing came within [`PATIENCE`].
    Late,
    /// What came is no chunked framing.
    Malformed,
}

/// What was read before the end, and the end.
pub(crate) type Cut = (Vec<u8>, Ended);

/// One end of a connection.
pub(crate) struct Inbox {
    stream: Arc<TcpStream>,
    octets: Vec<u8>,
    /// A pause between two reads, and the most octets that one takes.
    pub(crate) slowness: Option<(Duration, usize)>,
}

impl Inbox {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::new(Arc::new(TcpStream::connect_timeout(&address, PATIENCE)?))
    }

    pub(crate) fn new(stream: Arc<TcpStream>) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, octets: Vec::new(), slowness: None })
    }

    pub(crate) fn send(&self, octets: impl AsRef<[u8]>) -> io::Result<()> {
        (&*self.stream).write_all(octets.as_ref())
    }

    pub(crate) fn finish_sending(&self) {
        // Whoever is gone already needs no word of it.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Breaks the connection with a RST.
    pub(crate) fn reset(self) {
        // A connection that is broken already takes no option.
        let _ = SockRef::from(&*self.stream).set_linger(Some(Duration::ZERO));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    /// Receives something, or says why not. `Late` after this long.
    fn more(&mut self, patience: Option<Duration>) -> Result<(), Ended> {
        let mut buffer = [0; 16 * 1024];
        let mut room = buffer.len();
        if let Some((pause, octets)) = self.slowness {
            std::thread::sleep(pause);
            room = octets;
        }
        let patience = patience.map(|patience| patience.max(Duration::from_millis(1)));
        if self.stream.set_read_timeout(patience).is_err() {
            return Err(Ended::Reset);
        }
        match (&*self.stream).read(&mut buffer[..room]) {
            Ok(0) => Err(Ended::Closed),
            Ok(n) => {
                self.octets.extend_from_slice(&buffer[..n]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(Ended::Late),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(_) => Err(Ended::Reset),
        }
    }

    fn take_by(
        &mut self,
        patience: Option<Duration>,
        mut found: impl FnMut(&[u8]) -> Option<usize>,
    ) -> Result<Vec<u8>, Ended> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        loop {
            if let Some(n) = found(&self.octets) {
                let rest = self.octets.split_off(n);
                return Ok(std::mem::replace(&mut self.octets, rest));
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Ended::Late);
            }
            self.more(left)?;
        }
    }

    fn take(&mut self, n: usize) -> Result<Vec<u8>, Ended> {
        self.take_by(Some(PATIENCE), |octets| (octets.len() >= n).then_some(n))
    }

    fn line(&mut self) -> Result<Vec<u8>, Ended> {
        let end = |octets: &[u8]| octets.windows(2).position(|w| w == b"\r\n").map(|at| at + 2);
        self.take_by(Some(PATIENCE), end)
    }

    /// The next head, however long it takes, or what there was of it.
    pub(crate) fn head(&mut self, patience: Option<Duration>) -> Result<Head, Cut> {
        let mut searched = 0;
        let end = |octets: &[u8]| {
            let from = searched;
            searched = octets.len().saturating_sub(3);
            let tail = octets.get(from..)?;
            tail.windows(4).position(|w| w == b"\r\n\r\n").map(|at| from + at + 4)
        };
        match self.take_by(patience, end) {
            Ok(octets) => Ok(Head::new(octets)),
            Err(ended) => Err((std::mem::take(&mut self.octets), ended)),
        }
    }

    /// A body, or what there was of it.
    pub(crate) fn body(&mut self, framing: Framing) -> Result<Vec<u8>, Cut> {
        match framing {
            Framing::Length(n) => self.take(n).map_err(|e| (std::mem::take(&mut self.octets), e)),
            Framing::Chunked => {
                let mut content = Vec::new();
                match self.chunks(&mut content) {
                    Ok(()) => Ok(content),
                    Err(ended) => Err((content, ended)),
                }
            }
            Framing::UntilClose => match self.rest() {
                (octets, Ended::Closed) => Ok(octets),
                cut => Err(cut),
            },
        }
    }

    fn chunks(&mut self, content: &mut Vec<u8>) -> Result<(), Ended> {
        loop {
            let line = self.line()?;
            let digits = line.strip_suffix(b"\r\n").and_then(|d| std::str::from_utf8(d).ok());
            let size = digits.and_then(|digits| usize::from_str_radix(digits, 16).ok());
            match size {
                None => return Err(Ended::Malformed),
                Some(0) => break,
                Some(size) => match self.take(size + 2) {
                    Ok(chunk) if chunk.ends_with(b"\r\n") => {
                        content.extend_from_slice(&chunk[..size]);
                    }
                    Ok(_) => return Err(Ended::Malformed),
                    Err(ended) => {
                        let rest = std::mem::take(&mut self.octets);
                        content.extend_from_slice(&rest[..rest.len().min(size)]);
                        return Err(ended);
                    }
                },
            }
        }
        // Nobody here sends trailers.
        if self.line()? == b"\r\n" { Ok(()) } else { Err(Ended::Malformed) }
    }

    /// Everything until the other side ends.
    pub(crate) fn rest(&mut self) -> Cut {
        loop {
            if let Err(ended) = self.more(Some(PATIENCE)) {
                return (std::mem::take(&mut self.octets), ended);
            }
        }
    }

    /// Takes whatever comes until the other side is gone, however long that takes.
    pub(crate) fn drain(&mut self) {
        while self.more(None).is_ok() {
            self.octets.clear();
        }
    }

    /// Takes whatever comes within this time. Whether the other side is still there.
    pub(crate) fn drain_for(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            match self.more(Some(left)) {
                Ok(()) => self.octets.clear(),
                Err(Ended::Late) => return true,
                Err(_) => return false,
            }
        }
    }

    /// Whatever comes next, for a tunnel.
    pub(crate) fn some(&mut self) -> Result<Vec<u8>, Ended> {
        self.take_by(Some(PATIENCE), |octets| (!octets.is_empty()).then_some(octets.len()))
    }

    /// The next octets of a tunnel.
    pub(crate) fn exactly(&mut self, n: usize) -> Result<Vec<u8>, Cut> {
        self.body(Framing::Length(n))
    }
}
