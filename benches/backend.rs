//! A backend that costs next to nothing, so that a benchmark measures the proxy in front of it.
//!
//! `backend FIRST:PORT COUNT` listens on COUNT successive IPv4 addresses from FIRST on, each a
//! backend with an instance id of its own (`bench-1`, `bench-2`, …), and prints `listening on
//! FIRST:PORT` once all do; port 0 takes a free one. `scripts/bench.sh` starts it.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /health` | healthy, with the instance id, as Stepflow's workers say it |
//! | `GET /bytes/N` | N octets, whose values go round with their position |
//! | any method with a body | how many octets came |
//! | anything else | the same 100 octets |
//!
//! Every answer names its instance. A chunked request is refused with 411: no load generator that
//! drives it sends one, and a proxy that makes one of what had a length should be noticed.

#![allow(clippy::print_stdout, reason = "its output is what it is for")]
#![allow(clippy::print_stderr, reason = "whoever starts it by hand reads it there")]

use std::{
    env, io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener as BlockingListener},
    process::ExitCode,
    rc::Rc,
};

use monoio::{
    IoUringDriver, LegacyDriver, RuntimeBuilder,
    buf::IoBufMut,
    io::{AsyncReadRent, AsyncWriteRentExt},
    net::{TcpListener, TcpStream},
};
use stepflow_load_balancer::sys::ring;

/// Octets of an ordinary body.
const SMALL_BYTES: usize = 100;

/// What one write of a large body holds: far more than a socket buffer takes at once.
const BLOCK_BYTES: usize = 1 << 20;

/// What one read takes: a head, or much of a large upload.
const READ_BYTES: usize = 256 << 10;

const FIELDS_MAX: usize = 64;
const RING_ENTRIES: u32 = 1024;
const USAGE: &str = "usage: backend FIRST:PORT COUNT (an IPv4 address)";

const REFUSAL: &[u8] =
    b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backend: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let (first, count) = arguments().ok_or_else(|| io::Error::other(USAGE))?;
    let listeners = listen(first, count)?;
    let block: &'static [u8] = (0..=u8::MAX).cycle().take(BLOCK_BYTES).collect::<Vec<_>>().leak();
    match ring::usable_flags() {
        Ok(flags) => RuntimeBuilder::<IoUringDriver>::new()
            .uring_builder(ring::builder(flags))
            .with_entries(RING_ENTRIES)
            .build()?
            .block_on(serve(listeners, block)),
        Err(_) => RuntimeBuilder::<LegacyDriver>::new().build()?.block_on(serve(listeners, block)),
    }
}

/// `cargo bench` adds `--bench` to what it is told to pass on.
fn arguments() -> Option<(SocketAddrV4, u32)> {
    let mut given = env::args().skip(1).filter(|argument| argument != "--bench");
    let first = given.next()?.parse().ok()?;
    let count = given.next()?.parse().ok()?;
    given.next().is_none().then_some((first, count))
}

fn listen(first: SocketAddrV4, count: u32) -> io::Result<Vec<BlockingListener>> {
    let mut port = first.port();
    let mut listeners = Vec::new();
    for address in (u32::from(*first.ip())..).take(usize::try_from(count).unwrap_or(0)) {
        let address = SocketAddrV4::new(Ipv4Addr::from(address), port);
        let listener = BlockingListener::bind(address)
            .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
        port = listener.local_addr()?.port();
        listeners.push(listener);
    }
    println!("listening on {}:{port}", first.ip());
    Ok(listeners)
}

async fn serve(listeners: Vec<BlockingListener>, block: &'static [u8]) -> io::Result<()> {
    let mut doors = Vec::new();
    for (index, listener) in listeners.into_iter().enumerate() {
        let listener = TcpListener::from_std(listener)?;
        let answers = Rc::new(Answers::new(index + 1));
        doors.push(monoio::spawn(accept(listener, answers, block)));
    }
    for door in doors {
        door.await?;
    }
    Ok(())
}

async fn accept(
    listener: TcpListener,
    answers: Rc<Answers>,
    block: &'static [u8],
) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answers = answers.clone();
        monoio::spawn(async move {
            // A peer that goes away in the middle is the proxy's affair, which the proxy reports.
            let _ = converse(stream, &answers, block).await;
        });
    }
}

/// What one backend says, ready to be written.
struct Answers {
    instance: String,
    small: &'static [u8],
    health: &'static [u8],
}

impl Answers {
    fn new(number: usize) -> Self {
        let instance = format!("bench-{number}");
        let health = format!(r#"{{"status":"healthy","instanceId":"{instance}"}}"#);
        let small = "x".repeat(SMALL_BYTES);
        Self {
            small: whole(&instance, "text/plain", &small).leak(),
            health: whole(&instance, "application/json", &health).leak(),
            instance,
        }
    }
}

fn head(instance: &str, kind: &str, body_bytes: u64) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nStepflow-Instance-Id: {instance}\r\n\
         Content-Length: {body_bytes}\r\n\r\n"
    )
}

fn whole(instance: &str, kind: &str, body: &str) -> Vec<u8> {
    (head(instance, kind, u64::try_from(body.len()).unwrap_or(u64::MAX)) + body).into_bytes()
}

/// What a request asks for.
enum Ask {
    Small,
    Health,
    Bytes(u64),
    Upload(u64),
    Chunked,
}

async fn converse(
    mut stream: TcpStream,
    answers: &Answers,
    block: &'static [u8],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(READ_BYTES);
    loop {
        let (head_bytes, ask) = loop {
            if let Some(read) = read_head(&buffer)? {
                break read;
            }
            if read_more(&mut stream, &mut buffer).await? == 0 {
                return Ok(());
            }
        };
        buffer.drain(..head_bytes);
        match ask {
            Ask::Small => stream.write_all(answers.small).await.0.map(drop)?,
            Ask::Health => stream.write_all(answers.health).await.0.map(drop)?,
            Ask::Bytes(count) => {
                let head = head(&answers.instance, "application/octet-stream", count);
                stream.write_all(head.into_bytes()).await.0?;
                send_bytes(&mut stream, count, block).await?;
            }
            Ask::Upload(count) => {
                take_bytes(&mut stream, &mut buffer, count).await?;
                let answer = whole(&answers.instance, "text/plain", &count.to_string());
                stream.write_all(answer).await.0?;
            }
            Ask::Chunked => return stream.write_all(REFUSAL).await.0.map(drop),
        }
    }
}

/// The octets of the first head and what it asks, if all of it is there.
fn read_head(octets: &[u8]) -> io::Result<Option<(usize, Ask)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let head_bytes = match request.parse(octets) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(io::Error::other(error)),
    };
    let mut body_bytes = None;
    for field in request.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            body_bytes = number(field.value);
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(Some((head_bytes, Ask::Chunked)));
        }
    }
    let path = request.path.unwrap_or_default();
    let ask = match (body_bytes, path.strip_prefix("/bytes/")) {
        (Some(count), _) if count > 0 => Ask::Upload(count),
        (_, Some(count)) => Ask::Bytes(number(count.as_bytes()).unwrap_or(0)),
        _ if path == "/health" => Ask::Health,
        _ => Ask::Small,
    };
    Ok(Some((head_bytes, ask)))
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Reads behind what is there.
async fn read_more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let octets = std::mem::take(buffer);
    let there = octets.len();
    if there == octets.capacity() {
        return Err(io::Error::other("a head that does not end"));
    }
    let (result, slice) = stream.read(octets.slice_mut(there..)).await;
    *buffer = slice.into_inner();
    result
}

async fn send_bytes(stream: &mut TcpStream, count: u64, block: &'static [u8]) -> io::Result<()> {
    let mut left = count;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        stream.write_all(&block[..part]).await.0?;
        left -= u64::try_from(part).unwrap_or(left);
    }
    Ok(())
}

/// Takes the body from what is there and from what comes.
async fn take_bytes(stream: &mut TcpStream, buffer: &mut Vec<u8>, count: u64) -> io::Result<()> {
    let mut left = count;
    loop {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        buffer.drain(..part);
        left -= u64::try_from(part).unwrap_or(left);
        if left == 0 {
            return Ok(());
        }
        if read_more(stream, buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
