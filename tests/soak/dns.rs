//! A name server for one name, whose answers follow the backends and may be as bad as any.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::Duration,
};

use crate::world::{World, lock};

/// How questions are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// With the addresses of the backends that are listed.
    Fine,
    ServerFailure,
    Silence,
    Garbage,
    /// With the answer cut short and marked so; nobody listens on TCP.
    Truncated,
}

pub(crate) const NAME: &str = "backends.soak.test";

/// The server. Ends when it is dropped.
pub(crate) struct NameServer {
    pub(crate) address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    pub(crate) fn start(world: &Arc<World>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket takes options");
        let address = socket.local_addr().expect("it is bound");
        let mood = Arc::new(Mutex::new(Mood::Fine));
        let is_over = Arc::new(AtomicBool::new(false));
        let (world, its_mood, its_end) =
            (Arc::clone(world), Arc::clone(&mood), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !its_end.load(SeqCst) {
                let Ok((n, from)) = socket.recv_from(&mut buffer) else { continue };
                let mood = *lock(&its_mood);
                world.count(&format!("name server: {mood:?}"));
                if let Some(answer) = answer(&world, &buffer[..n], mood) {
                    // Who does not wait for it any more need not get it.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, mood, is_over, thread: Some(thread) }
    }

    pub(crate) fn set_mood(&self, mood: Mood) {
        *lock(&self.mood) = mood;
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.is_over.store(true, SeqCst);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || !matches!(ended, Some(Err(_))), "it panicked");
    }
}

/// RFC 1035 §4: a header of twelve octets, then one question.
fn answer(world: &World, question: &[u8], mood: Mood) -> Option<Vec<u8>> {
    const SERVER_FAILURE: u8 = 2;
    const TYPE_A: u16 = 1;
    let name_end = 12 + question.get(12..)?.iter().position(|octet| *octet == 0)? + 1;
    let asked = question.get(12..name_end + 4)?;
    let kind = u16::from_be_bytes([*question.get(name_end)?, *question.get(name_end + 1)?]);
    let mut records: Vec<[u8; 4]> = Vec::new();
    if kind == TYPE_A {
        for backend in world.backends.iter().filter(|backend| backend.is_listed()) {
            if let IpAddr::V4(address) = backend.address.ip() {
                records.push(address.octets());
            }
        }
    }
    let (flags, code) = match mood {
        Mood::Silence => return None,
        Mood::Garbage => return Some([&question[..2], &[0xff; 30][..]].concat()),
        Mood::Fine => (0x84, 0),
        Mood::ServerFailure => (0x84, SERVER_FAILURE),
        // Bit 1 of the third octet says that there is more.
        Mood::Truncated => (0x86, 0),
    };
    if mood != Mood::Fine {
        records.clear();
    }
    let count = u8::try_from(records.len()).ok()?;
    let authorities = u8::from(records.is_empty());
    let mut message = question[..2].to_vec();
    message.extend_from_slice(&[flags, code, 0, 1, 0, count, 0, authorities, 0, 0]);
    message.extend_from_slice(asked);
    for address in records {
        // The name of the question; type A, class IN, a TTL of 0, four octets.
        message.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        message.extend_from_slice(&address);
    }
    if authorities == 1 {
        // An SOA with a TTL of 1 says that there really is nothing of this type.
        message.extend_from_slice(&[0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 1, 0, 22, 0, 0]);
        message.extend_from_slice(&[0, 0, 0, 1].repeat(5));
    }
    Some(message)
}
