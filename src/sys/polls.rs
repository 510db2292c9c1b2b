//! Standing polls: a descriptor is watched from one wait to the next, not for one wait.
//!
//! monoio arms a poll for each wait, and it is gone when it completes. The kernel can leave a poll
//! in place (`IORING_POLL_ADD_MULTI`, Linux 5.13) and say each time that something has come. monoio
//! 0.2.4 has no such operation, so these polls live in a ring of their own, beside monoio's
//! (ADR 32). Nothing else is ever submitted to it, so the kernel writes to no memory of ours but
//! its queue of completions.
//!
//! A standing poll tells of *changes*, and a wait asks for a *state*: is there something to read?
//! So a source remembers that it was told, until whoever reads finds that nothing is left: a read
//! blocks, or gives less than it had room for (epoll(7)). A peer that sends urgent data
//! (RFC 9293 §3.8.5), as nobody does who speaks HTTP, makes reads stop before it: what lies behind
//! it is told with what comes next, and a connection may pass for quiet meanwhile. Whoever does so
//! delays or garbles its own messages, which it could do without.
//!
//! The kernel completes polls whenever this thread leaves it, by whatever call. The completions are
//! taken up when monoio's ring says that there are some ([`Polls::bell`]), or when somebody asks.

use std::{
    cell::{Cell, RefCell},
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd},
    task::{Context, Poll, Waker},
};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use monoio::net::UnixStream;

use super::ring;

/// Submissions that fit before they are entered, which each is at once.
const SUBMISSIONS: u32 = 16;

/// Completions that may wait to be taken up. The kernel ends the poll of whoever finds no room, and
/// it is armed again with the next wait: slower, and nothing is lost.
const COMPLETIONS: u32 = 4096;

/// Octets, or their end. What has broken is told unasked.
const EVENTS: libc::c_short = libc::POLLIN | libc::POLLRDHUP;

/// After one of these, every read gives octets, the end or an error, and none would have to wait.
const LASTING: libc::c_short = libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR;

/// How often completions that found no room are fetched in a row.
const ROUNDS_MAX: u32 = 16;

/// Token of submissions whose outcome is of no interest. No source has this number.
const NOBODY: u64 = u64::MAX;

/// The standing polls of one thread.
pub struct Polls {
    ring: RefCell<IoUring>,
    sources: RefCell<Sources>,
    /// Polls that are still to be cancelled, because the kernel did not take the order.
    doomed: RefCell<Vec<u64>>,
    /// Completions that the kernel had no memory to keep, so far.
    lost: Cell<u32>,
}

#[derive(Default)]
struct Sources {
    all: Vec<Source>,
    /// Numbers that nobody has.
    free: Vec<u32>,
}

/// One descriptor that is watched.
#[derive(Default)]
struct Source {
    /// How many polls had this number before. What is still said of those concerns nobody.
    generation: u32,
    poll: Kept,
    news: News,
    waiter: Option<Waker>,
}

/// What has become of a poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kept {
    /// The kernel watches.
    #[default]
    Armed,
    /// It found no room to say more.
    Over,
    /// The kernel cannot watch this descriptor.
    Refused,
}

/// What is there to read, as far as is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum News {
    #[default]
    Nothing,
    Something,
    /// The end, or an error. It stays.
    Lasting,
}

/// The kernel does not watch a descriptor for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused;

/// How one connection is waited for. What is released twice, or with the polls of another thread,
/// would be somebody else's: so only [`super::Duplex`] has one, beside the polls of its thread.
#[derive(Debug, Default)]
pub(super) struct Watch(Cell<Manner>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Manner {
    /// Nobody has waited for it.
    #[default]
    Unknown,
    /// It was waited for once, with a poll for one wait. Many are never waited for again, and
    /// a poll that stands costs more to arm and has to be cancelled.
    Once,
    /// With the standing poll of this number.
    Standing(u32),
    /// With a poll for each wait.
    Each,
}

impl Polls {
    /// A ring for standing polls.
    ///
    /// # Errors
    /// When the kernel refuses the ring, or is older than 6.0: before 5.17 a poll that stood could
    /// miss an end that came right behind octets.
    pub fn new() -> io::Result<Self> {
        Self::with_room_for(COMPLETIONS)
    }

    fn with_room_for(completions: u32) -> io::Result<Self> {
        let flags = ring::usable_flags()?;
        if flags != ring::Flags::Tuned {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut builder = ring::builder(flags);
        let ring = builder.setup_cqsize(completions).build(SUBMISSIONS.min(completions))?;
        Ok(Self {
            ring: ring.into(),
            sources: RefCell::default(),
            doomed: RefCell::default(),
            lost: Cell::new(0),
        })
    }

    /// What monoio can wait for: whenever it is readable, [`Polls::take_up`] is due.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn bell(&self) -> io::Result<UnixStream> {
        let ring = self.ring.borrow();
        // SAFETY: the ring keeps its descriptor open for as long as it is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        // It is no socket. Whoever only asks whether it can be read does not care.
        UnixStream::from_std(fd.try_clone_to_owned()?.into())
    }

    /// Takes up what the kernel has to tell, and wakes whom it concerns. Whether that is all.
    pub fn take_up(&self) -> bool {
        // What found no room is waiting in the kernel, and takes the room of what is taken up.
        for _ in 0..ROUNDS_MAX {
            let lost = {
                let mut ring = self.ring.borrow_mut();
                let mut completions = ring.completion();
                completions.by_ref().for_each(|completion| self.note(&completion));
                completions.overflow()
            };
            if lost != self.lost.replace(lost) {
                self.look_at_all();
            }
            let doomed = self.doomed.borrow_mut().pop();
            if let Some(token) = doomed {
                self.cancel(token);
            }
            let mut ring = self.ring.borrow_mut();
            let submissions = ring.submission();
            if submissions.is_empty() && !submissions.cq_overflow() {
                return true;
            }
            drop(submissions);
            if ring.submit().is_err() {
                return false;
            }
        }
        false
    }

    /// Somebody has not been told of something: has everybody look, and be watched anew.
    fn look_at_all(&self) {
        let count = self.sources.borrow().all.len();
        for number in (0..count).filter_map(|number| u32::try_from(number).ok()) {
            let token = self.token(number);
            let (was, waiter) = self.with(number, |source| {
                if source.news == News::Nothing {
                    source.news = News::Something;
                }
                source.generation = source.generation.wrapping_add(1);
                (std::mem::replace(&mut source.poll, Kept::Over), source.waiter.take())
            });
            if was == Kept::Armed {
                self.cancel(token);
            }
            if let Some(waiter) = waiter {
                waiter.wake();
            }
        }
    }

    fn note(&self, completion: &cqueue::Entry) {
        let (number, generation) = parts(completion.user_data());
        let mut sources = self.sources.borrow_mut();
        let known = sources.all.get_mut(number as usize);
        let Some(source) = known.filter(|source| source.generation == generation) else { return };
        match u32::try_from(completion.result()) {
            Ok(events) if events & bits(LASTING) != 0 => source.news = News::Lasting,
            Ok(_) if source.news == News::Nothing => source.news = News::Something,
            Ok(_) => {}
            Err(_) => source.poll = Kept::Refused,
        }
        if source.poll == Kept::Armed && !cqueue::more(completion.flags()) {
            source.poll = Kept::Over;
        }
        let waiter = source.waiter.take();
        drop(sources);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Has a descriptor watched. Gives its number.
    fn watch(&self, fd: BorrowedFd<'_>) -> io::Result<u32> {
        let number = {
            let mut sources = self.sources.borrow_mut();
            let fresh = u32::try_from(sources.all.len()).map_err(io::Error::other)?;
            sources.free.pop().unwrap_or_else(|| {
                sources.all.push(Source::default());
                fresh
            })
        };
        self.with(number, |source| (source.poll, source.news) = (Kept::Armed, News::Nothing));
        match self.arm(fd, self.token(number)) {
            Ok(()) => Ok(number),
            Err(error) => {
                self.release(number);
                Err(error)
            }
        }
    }

    fn token(&self, number: u32) -> u64 {
        token(number, self.sources.borrow().all[number as usize].generation)
    }

    fn arm(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let fd = types::Fd(fd.as_raw_fd());
        self.submit(&opcode::PollAdd::new(fd, bits(EVENTS)).multi(true).build().user_data(token))
    }

    fn submit(&self, entry: &squeue::Entry) -> io::Result<()> {
        let mut ring = self.ring.borrow_mut();
        if ring.submission().is_full() {
            ring.submit()?;
        }
        // SAFETY: polls and cancels refer to no memory.
        unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
        ring.submit()?;
        Ok(())
    }

    /// Ready when a read would not have to wait; else the task is woken when that may be so.
    fn poll(
        &self,
        number: u32,
        fd: BorrowedFd<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, Refused> {
        let mut sources = self.sources.borrow_mut();
        let source = &mut sources.all[number as usize];
        match source.poll {
            Kept::Refused => return Err(Refused),
            _ if source.news != News::Nothing => return Ok(Poll::Ready(())),
            Kept::Armed => {}
            Kept::Over => {
                source.generation = source.generation.wrapping_add(1);
                source.poll = Kept::Armed;
                let token = token(number, source.generation);
                self.arm(fd, token).map_err(|_| Refused)?;
            }
        }
        let mut former = None;
        if !source.waiter.as_ref().is_some_and(|waiter| waiter.will_wake(cx.waker())) {
            former = source.waiter.replace(cx.waker().clone());
        }
        // Perhaps the last that knew of a task, which ends with it, and with its connections.
        drop(sources);
        drop(former);
        Ok(Poll::Pending)
    }

    fn with<R>(&self, number: u32, act: impl FnOnce(&mut Source) -> R) -> R {
        act(&mut self.sources.borrow_mut().all[number as usize])
    }

    /// Ends a watch, at once: the poll would keep the connection open.
    fn release(&self, number: u32) {
        let token = self.token(number);
        let fresh = Source { generation: parts(token).1.wrapping_add(1), ..Source::default() };
        let old = self.with(number, |source| std::mem::replace(source, fresh));
        self.sources.borrow_mut().free.push(number);
        if old.poll == Kept::Armed {
            self.cancel(token);
        }
    }

    /// Ends a poll. `IORING_OP_POLL_REMOVE` would leave a poll that is about to tell something as
    /// it is (`EALREADY`), and a standing poll tells something whenever the peer likes.
    fn cancel(&self, token: u64) {
        if self.submit(&opcode::AsyncCancel::new(token).build().user_data(NOBODY)).is_err() {
            self.doomed.borrow_mut().push(token);
        }
    }
}

impl fmt::Debug for Polls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sources = self.sources.borrow();
        let watched = sources.all.len() - sources.free.len();
        f.debug_struct("Polls").field("watched", &watched).finish_non_exhaustive()
    }
}

fn token(number: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(number)
}

/// Number and generation.
#[expect(clippy::cast_possible_truncation, reason = "each is a half")]
fn parts(token: u64) -> (u32, u32) {
    (token as u32, (token >> 32) as u32)
}

fn bits(events: libc::c_short) -> u32 {
    u32::from(events.cast_unsigned())
}

impl Watch {
    /// Waits until a read would not block; `None` if that is for a poll to find out which lasts for
    /// this wait only.
    pub(super) fn poll(
        &self,
        polls: Option<&Polls>,
        fd: BorrowedFd<'_>,
        cx: &mut Context<'_>,
    ) -> Option<Poll<()>> {
        let polls = polls?;
        let number = match self.0.get() {
            Manner::Each => return None,
            Manner::Unknown => {
                self.0.set(Manner::Once);
                return None;
            }
            Manner::Once => self.stand(polls, fd)?,
            Manner::Standing(number) => number,
        };
        polls.poll(number, fd, cx).inspect_err(|_| self.end(Some(polls), Manner::Each)).ok()
    }

    /// Whether nothing has come, as far as a standing poll has told; false if there is none.
    pub(super) fn is_quiet(&self, polls: Option<&Polls>) -> bool {
        self.standing(polls).is_some_and(|(polls, number)| {
            let is_quiet =
                |source: &mut Source| source.news == News::Nothing && source.poll == Kept::Armed;
            polls.take_up() && polls.with(number, is_quiet)
        })
    }

    /// A read has found that nothing is left.
    pub(super) fn is_exhausted(&self, polls: Option<&Polls>) {
        if let Some((polls, number)) = self.standing(polls) {
            polls.with(number, |source| {
                if source.news == News::Something {
                    source.news = News::Nothing;
                }
            });
        }
    }

    /// Nobody waits, and the connection is to be used again: it stands from now on, so that it is
    /// known what comes meanwhile. Forgets whom it would wake.
    pub(super) fn rest(&self, polls: Option<&Polls>, fd: BorrowedFd<'_>) {
        let Some(polls) = polls else { return };
        match self.0.get() {
            Manner::Standing(number) => drop(polls.with(number, |source| source.waiter.take())),
            Manner::Unknown | Manner::Once => drop(self.stand(polls, fd)),
            Manner::Each => {}
        }
    }

    /// Has the connection watched, if the kernel agrees.
    fn stand(&self, polls: &Polls, fd: BorrowedFd<'_>) -> Option<u32> {
        let number = polls.watch(fd).ok();
        self.0.set(number.map_or(Manner::Each, Manner::Standing));
        number
    }

    /// The connection is about to be closed.
    pub(super) fn release(&self, polls: Option<&Polls>) {
        self.end(polls, Manner::Unknown);
    }

    fn end(&self, polls: Option<&Polls>, then: Manner) {
        if let Some((polls, number)) = self.standing(polls) {
            polls.release(number);
        }
        self.0.set(then);
    }

    fn standing<'p>(&self, polls: Option<&'p Polls>) -> Option<(&'p Polls, u32)> {
        match self.0.get() {
            Manner::Standing(number) => polls.map(|polls| (polls, number)),
            Manner::Unknown | Manner::Once | Manner::Each => None,
        }
    }
}

#[cfg(test)]
mod tests;
