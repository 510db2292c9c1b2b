//! What is asked, what the backend does with it, and what a well-behaved client may get for it.
//!
//! A plan stands in the target of its request, so the backend needs no other channel to learn what
//! it has to do, and whoever reads a captured request can tell what was meant.

use crate::support::message::{chunk, chunked};

/// Octets that bodies are cut from. Large enough that no two bodies look alike.
const NOISE_BYTES: usize = 4 * 1024 * 1024;
/// The largest body.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;
/// What is sent behind a response that has ended: if it ever reached a client, its id would tell.
pub(crate) const STRAY: &[u8] =
    b"HTTP/1.1 200 OK\r\nX-Soak-Id: stray\r\nContent-Length: 5\r\n\r\nstray";

/// Random numbers that are the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// One of several streams of one seed.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut rng = Self(seed ^ stream.wrapping_mul(0xA24B_AED4_963E_E407));
        rng.next();
        rng
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("it is below a usize")
    }

    /// A number between these, both included.
    pub(crate) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub(crate) fn percent(&mut self, share: usize) -> bool {
        self.below(100) < share
    }

    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// What a backend does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    Length,
    Chunked,
    UntilClose,
    Events,
    EventsUntilClose,
    NoContent,
    NotModified,
    Interim,
    Dribble,
    Stray,
    CloseAnnounced,
    CloseUnannounced,
    Old,
    EarlyPolite,
    Tunnel,
    ResetBeforeHead,
    CloseBeforeHead,
    HalfCloseBeforeHead,
    EarlyReset,
    Garbage,
    TwoLengths,
    HugeHead,
    UnaskedUpgrade,
    StallHead,
    CutLength,
    ResetLength,
    CutChunked,
    ResetChunked,
    BadChunk,
    CutEvents,
    StallBody,
    /// Events until the other side is gone. For clients that leave.
    Endless,
}

/// What a well-behaved client gets, as long as no backend is killed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Exactly what the backend meant.
    Whole,
    /// A failure with one of these labels.
    Failure(&'static [&'static str]),
    /// A beginning of the body and then the end, or, if no octet had gone out, one of these.
    Cut(&'static [&'static str]),
    /// What the backend meant, or one of these: its reset may overtake what it said.
    WholeOr(&'static [&'static str]),
}

/// A response that ends before any of it has gone out is none at all.
const TRUNCATED: &[&str] = &["backend_closed"];

/// Every answer, how often it is drawn, and what follows from it.
const ANSWERS: &[(Answer, usize, Expect)] = &[
    (Answer::Length, 240, Expect::Whole),
    (Answer::Chunked, 160, Expect::Whole),
    (Answer::UntilClose, 30, Expect::Whole),
    (Answer::Events, 60, Expect::Whole),
    (Answer::EventsUntilClose, 15, Expect::Whole),
    (Answer::NoContent, 20, Expect::Whole),
    (Answer::NotModified, 20, Expect::Whole),
    (Answer::Interim, 20, Expect::Whole),
    (Answer::Dribble, 10, Expect::Whole),
    (Answer::Stray, 20, Expect::Whole),
    (Answer::CloseAnnounced, 20, Expect::Whole),
    (Answer::CloseUnannounced, 20, Expect::Whole),
    (Answer::Old, 10, Expect::Whole),
    (Answer::EarlyPolite, 15, Expect::Whole),
    (Answer::Tunnel, 20, Expect::Whole),
    (Answer::ResetBeforeHead, 12, Expect::Failure(&["backend_closed"])),
    (Answer::CloseBeforeHead, 12, Expect::Failure(&["backend_closed"])),
    (Answer::HalfCloseBeforeHead, 8, Expect::Failure(&["backend_closed"])),
    (Answer::EarlyReset, 8, Expect::WholeOr(&["backend_closed"])),
    (Answer::Garbage, 8, Expect::Failure(&["response_head"])),
    (Answer::TwoLengths, 8, Expect::Failure(&["response_framing"])),
    (Answer::HugeHead, 4, Expect::Failure(&["response_head"])),
    (Answer::UnaskedUpgrade, 6, Expect::Failure(&["response_upgrade"])),
    (Answer::StallHead, 2, Expect::Failure(&["response_head_timeout"])),
    (Answer::CutLength, 12, Expect::Cut(TRUNCATED)),
    (Answer::ResetLength, 12, Expect::Cut(TRUNCATED)),
    (Answer::CutChunked, 12, Expect::Cut(TRUNCATED)),
    (Answer::ResetChunked, 12, Expect::Cut(TRUNCATED)),
    (Answer::BadChunk, 12, Expect::Cut(&["response_body"])),
    (Answer::CutEvents, 12, Expect::Cut(TRUNCATED)),
    (Answer::StallBody, 2, Expect::Cut(&["response_body_timeout"])),
    (Answer::Endless, 0, Expect::Cut(&[])),
];

impl Answer {
    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }

    fn from_name(name: &str) -> Option<Self> {
        ANSWERS.iter().map(|row| row.0).find(|answer| answer.name() == name)
    }

    pub(crate) fn expect(self) -> Expect {
        let row = ANSWERS.iter().find(|row| row.0 == self);
        row.expect("every answer has a row").2
    }

    fn draw(rng: &mut Rng) -> Self {
        let total = ANSWERS.iter().map(|row| row.1).sum();
        let mut at = rng.below(total);
        for (answer, weight, _) in ANSWERS {
            if at < *weight {
                return *answer;
            }
            at -= weight;
        }
        unreachable!("the weights add up to the total");
    }

    pub(crate) fn is_stream(self) -> bool {
        matches!(self, Self::Events | Self::EventsUntilClose | Self::CutEvents | Self::Endless)
    }

    /// The end of the backend's connection is the end of the body.
    pub(crate) fn ends_with_connection(self) -> bool {
        matches!(self, Self::UntilClose | Self::EventsUntilClose | Self::Old)
    }
}

/// How the request's body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    None,
    Length(usize),
    Chunked(usize),
    /// With a length, once the backend has said 100.
    Expected(usize),
}

impl Upload {
    pub(crate) fn len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Length(n) | Self::Chunked(n) | Self::Expected(n) => n,
        }
    }
}

/// One request and the answer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) id: u64,
    pub(crate) method: &'static str,
    pub(crate) upload: Upload,
    pub(crate) answer: Answer,
    /// Octets of the response's body, or number of its events.
    pub(crate) size: usize,
    /// Where the response is cut, in octets of its body.
    pub(crate) cut: usize,
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng, id: u64) -> Self {
        let answer = Answer::draw(rng);
        let size = size(rng, answer);
        let length = body(id, answer, size).len();
        // A small cut is as likely as any: it is the head that is interesting there.
        let span = if rng.percent(50) { length.min(64) } else { length };
        let cut = rng.below(span.max(1));
        let wants_upload = match answer {
            Answer::EarlyPolite | Answer::EarlyReset => true,
            Answer::Tunnel | Answer::UnaskedUpgrade => false,
            _ => rng.percent(30),
        };
        let upload = if wants_upload { draw_upload(rng, answer) } else { Upload::None };
        let method = match (upload, answer) {
            (Upload::None, Answer::Length | Answer::Chunked) if rng.percent(10) => "HEAD",
            (Upload::None, Answer::Length) if rng.percent(10) => "DELETE",
            (Upload::None, _) => "GET",
            _ if rng.percent(20) => "PUT",
            _ => "POST",
        };
        Self { id, method, upload, answer, size, cut }
    }

    /// A request for this answer and nothing else.
    pub(crate) fn simple(id: u64, answer: Answer, size: usize) -> Self {
        Self { id, method: "GET", upload: Upload::None, answer, size, cut: 0 }
    }

    pub(crate) fn target(&self) -> String {
        let Self { id, answer, size, cut, .. } = self;
        let upload = self.upload.len();
        format!("/soak/{id}/{answer:?}/{size}/{cut}/{upload}")
    }

    /// What a backend reads out of a target: everything but how the body is framed.
    pub(crate) fn from_target(method: &str, target: &str) -> Option<Self> {
        let mut words = target.strip_prefix("/soak/")?.split('/');
        let id = words.next()?.parse().ok()?;
        let answer = Answer::from_name(words.next()?)?;
        let mut number = || words.next()?.parse().ok();
        let (size, cut, upload) = (number()?, number()?, number()?);
        let method = ["GET", "HEAD", "DELETE", "PUT", "POST"].into_iter().find(|m| *m == method)?;
        Some(Self { id, method, upload: Upload::Length(upload), answer, size, cut })
    }

    /// The head of the request.
    pub(crate) fn head(&self, instance: Option<&str>) -> String {
        use std::fmt::Write;
        let mut head = format!("{} {} HTTP/1.1\r\nHost: soak\r\n", self.method, self.target());
        let mut field = |line: std::fmt::Arguments<'_>| {
            head.write_fmt(line).expect("a string takes all");
        };
        field(format_args!("X-Soak-Id: {}\r\n", self.id));
        if let Some(instance) = instance {
            field(format_args!("Stepflow-Instance-Id: {instance}\r\n"));
        }
        match self.upload {
            Upload::None => {}
            Upload::Length(n) => field(format_args!("Content-Length: {n}\r\n")),
            Upload::Expected(n) => {
                field(format_args!("Expect: 100-continue\r\nContent-Length: {n}\r\n"));
            }
            Upload::Chunked(_) => field(format_args!("Transfer-Encoding: chunked\r\n")),
        }
        if self.answer == Answer::Tunnel {
            field(format_args!("Connection: upgrade\r\nUpgrade: soak\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    /// The content of the request's body.
    pub(crate) fn upload_content(&self) -> &'static [u8] {
        content(self.id ^ 0x5555, self.upload.len())
    }

    /// The request's body as it is sent.
    pub(crate) fn upload_octets(&self, rng: &mut Rng) -> Vec<u8> {
        let content = self.upload_content();
        match self.upload {
            Upload::Chunked(_) => {
                chunked(content, rng.between(1, 8192).max(content.len() / 64 + 1))
            }
            _ => content.to_vec(),
        }
    }

    /// The body of the response, as the backend means it.
    pub(crate) fn response_body(&self) -> Vec<u8> {
        body(self.id, self.answer, self.size)
    }

    pub(crate) fn status(&self) -> u16 {
        match self.answer {
            Answer::NoContent => 204,
            Answer::NotModified => 304,
            Answer::EarlyPolite | Answer::EarlyReset => 413,
            Answer::Tunnel => 101,
            _ => 200,
        }
    }
}

fn size(rng: &mut Rng, answer: Answer) -> usize {
    match answer {
        Answer::Events | Answer::EventsUntilClose | Answer::CutEvents => rng.between(1, 12),
        Answer::NoContent | Answer::NotModified => 0,
        Answer::Dribble => rng.between(1, 60),
        // One segment: what comes behind it is there when the response is.
        Answer::Stray => rng.between(0, 8 * 1024),
        Answer::EarlyPolite | Answer::EarlyReset => rng.between(1, 2000),
        Answer::StallBody | Answer::CutLength | Answer::ResetLength => size_of_any(rng).max(1),
        _ => size_of_any(rng),
    }
}

/// Mostly small, sometimes at the edges of buffers, rarely large.
fn size_of_any(rng: &mut Rng) -> usize {
    match rng.below(100) {
        0..60 => rng.between(0, 2000),
        60..75 => rng.between(16 * 1024 - 300, 16 * 1024 + 2),
        75..97 => rng.between(2000, 100_000),
        _ => rng.between(100_000, BODY_BYTES_MAX),
    }
}

fn draw_upload(rng: &mut Rng, answer: Answer) -> Upload {
    let len = match answer.expect() {
        Expect::Whole if answer != Answer::EarlyPolite => size_of_any(rng),
        // Fits into the kernel's buffers, so that the client can send all of it and then read.
        _ => rng.between(1, 32 * 1024),
    };
    match rng.below(10) {
        0..6 => Upload::Length(len),
        6..9 => Upload::Chunked(len),
        _ if matches!(answer, Answer::Length | Answer::Chunked) => Upload::Expected(len.max(1)),
        _ => Upload::Length(len),
    }
}

/// Octets that belong to this id.
pub(crate) fn content(id: u64, len: usize) -> &'static [u8] {
    use std::sync::LazyLock;
    static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| crate::support::noise(NOISE_BYTES));
    let span = NOISE_BYTES - BODY_BYTES_MAX;
    let from = id.wrapping_mul(0x9E37_79B9_7F4A_7C15) % span as u64;
    let from = usize::try_from(from).expect("it is below a usize");
    &NOISE[from..from + len]
}

/// One event, with characters of two, three and four octets.
pub(crate) fn event(id: u64, number: usize) -> String {
    let filling = "é€𝄞".repeat(usize::try_from(id % 40).expect("it is small") + number % 7);
    format!("id: {number}\ndata: {{\"of\": {id}, \"text\": \"{filling}\"}}\n\n")
}

fn body(id: u64, answer: Answer, size: usize) -> Vec<u8> {
    match answer {
        Answer::NoContent | Answer::NotModified | Answer::Endless => Vec::new(),
        _ if answer.is_stream() => (0..size).map(|n| event(id, n)).collect::<String>().into_bytes(),
        _ => content(id, size).to_vec(),
    }
}

/// Events as chunks, one each.
pub(crate) fn event_chunk(id: u64, number: usize) -> Vec<u8> {
    chunk(event(id, number))
}
