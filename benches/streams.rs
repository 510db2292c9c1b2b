//! Many event streams through something that is measured, every event checked octet for octet.
//!
//!     streams --listen ADDR [--listen ADDR…]
//!     streams --target ADDR [--streams N] [--rate R] [--seconds S] [--warmup S] [--size N]
//!             [--method get|post] [--seed N] [--pid PID]
//!
//! The first form is the backend: it prints `listening on ADDR` for each address, whose port may be
//! 0, and serves until it is killed. What to send it learns from each request; `GET /health` is
//! answered with 200.
//! The second form opens N streams (1000) at R events a second each (10; 0 is silence), of SIZE
//! octets on average (100), waits until all have begun and for `--warmup` seconds (1) more, and
//! measures for S seconds (10). It prints one line of JSON; the latency of an event is from just
//! before the backend's write to just behind the client's read. With `--pid` it looks at that
//! process and its descendants as well: their processor time for each event, and their memory before
//! the streams and while they are open. Exits 1 if a stream was refused, cut or wrong.
//!
//! Without arguments both forms run in one process for a second, as a sample of the output.

// A package has one set of names for the program and all of its tests.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program for a terminal")]

#[path = "streaming/mod.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod streaming;

use std::{
    cell::{Cell, RefCell},
    error::Error,
    net::SocketAddr,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use stepflow_load_balancer::sys::socket::raise_descriptor_limit;
use streaming::{
    client::{Method, Position, Progress, Visit},
    event::{Framing, Order},
    figures, now_ns,
    source::{self, Ledger},
};
use tokio::{
    sync::Semaphore,
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

/// Connections that are being opened at once: no accept queue overflows.
const OPENING_MAX: usize = 64;
/// Longest that it may take until every stream has begun.
const OPENING: Duration = Duration::from_secs(60);
/// Octets that a stream's reader takes at once.
const READ_OCTETS: usize = 2048;
/// From one event to the next of a silent stream.
const SILENCE: Duration = Duration::from_secs(24 * 3600);

/// What is asked for on the command line.
#[derive(Clone, Copy, Debug)]
struct Load {
    target: SocketAddr,
    streams: usize,
    rate: f64,
    seconds: f64,
    warmup: f64,
    size: usize,
    method: Method,
    seed: u64,
    pid: Option<u32>,
}

impl Load {
    fn on(target: SocketAddr) -> Self {
        Self {
            target,
            streams: 1000,
            rate: 10.0,
            seconds: 10.0,
            warmup: 1.0,
            size: 100,
            method: Method::Get,
            seed: now_ns(),
            pid: None,
        }
    }

    fn order(&self, stream: u64) -> Order {
        Order {
            stream,
            seed: self.seed,
            period: if self.rate > 0.0 {
                Duration::from_secs_f64(1.0 / self.rate)
            } else {
                SILENCE
            },
            events: u64::MAX,
            size: self.size,
            framing: Framing::Chunked,
            since_ns: 0,
        }
    }
}

/// What the readers of all streams have seen.
#[derive(Debug, Default)]
struct Seen {
    is_measuring: Cell<bool>,
    begun: Cell<usize>,
    latency_us: RefCell<Vec<u32>>,
    /// What went wrong, one line for each stream.
    troubles: RefCell<Vec<String>>,
}

fn main() -> ExitCode {
    let run = || -> Result<ExitCode, Box<dyn Error>> {
        let mut listen = Vec::new();
        let mut load = Load::on(SocketAddr::from(([127, 0, 0, 1], 0)));
        // `cargo bench` says that it is one.
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        while let Some(option) = words.next() {
            let value = words.next().ok_or_else(|| format!("{option}: a value is wanted"))?;
            set(&mut load, &mut listen, &option, &value)
                .map_err(|error| format!("{option} {value}: {error}"))?;
        }
        raise_descriptor_limit()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, async {
            let is_sample = listen.is_empty() && load.target.port() == 0;
            if is_sample {
                listen.push(load.target);
                (load.streams, load.seconds) = (100, 1.0);
            }
            let mut serving = Vec::new();
            for address in listen {
                let listener = source::listen(address)?;
                load.target = listener.local_addr()?;
                println!("listening on {}", load.target);
                serving.push(spawn_local(async move {
                    let name = format!("streams-{}", load.target.port());
                    source::serve(listener, Arc::new(Ledger::default()), &name).await;
                }));
            }
            if is_sample || serving.is_empty() {
                return drive(load).await;
            }
            for each in serving {
                each.await?;
            }
            Ok(ExitCode::SUCCESS)
        })
    };
    run().unwrap_or_else(|error| {
        eprintln!("streams: {error}");
        ExitCode::from(2)
    })
}

fn set(
    load: &mut Load,
    listen: &mut Vec<SocketAddr>,
    option: &str,
    value: &str,
) -> Result<(), Box<dyn Error>> {
    let amount = || match value.parse::<f64>() {
        Ok(amount) if (0.0..1e6).contains(&amount) => Ok(amount),
        _ => Err("a number from 0 to a million is wanted"),
    };
    match option {
        "--listen" => listen.push(value.parse()?),
        "--target" => load.target = value.parse()?,
        "--streams" => load.streams = value.parse()?,
        "--rate" => load.rate = amount()?,
        "--seconds" => load.seconds = amount()?,
        "--warmup" => load.warmup = amount()?,
        "--size" => load.size = value.parse()?,
        "--seed" => load.seed = value.parse()?,
        "--pid" => load.pid = Some(value.parse()?),
        "--method" => {
            load.method = match value {
                "get" => Method::Get,
                "post" => Method::Post,
                _ => return Err("get or post is wanted".into()),
            }
        }
        _ => return Err("no such option".into()),
    }
    Ok(())
}

/// Opens the streams, measures, and prints what came of it.
async fn drive(load: Load) -> Result<ExitCode, Box<dyn Error>> {
    let pss_before_kib = load.pid.map(figures::pss_kib).transpose()?;
    let seen = Rc::new(Seen::default());
    let opening = Rc::new(Semaphore::new(OPENING_MAX));
    for stream in 0..load.streams {
        let (seen, opening) = (Rc::clone(&seen), Rc::clone(&opening));
        spawn_local(async move {
            let position = Position::start(load.order(u64::try_from(stream).unwrap_or(u64::MAX)));
            if let Err(trouble) = read(load, position, &seen, &opening).await {
                seen.troubles.borrow_mut().push(trouble);
            }
        });
    }
    let all_begun = async {
        while seen.begun.get() < load.streams && seen.troubles.borrow().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    if timeout(OPENING, all_begun).await.is_err() {
        let begun = seen.begun.get();
        return Err(format!("{begun} of {} streams have begun", load.streams).into());
    }
    sleep(Duration::from_secs_f64(load.warmup)).await;
    let spent = || -> std::io::Result<(u64, u64)> {
        let measured = load.pid.map(figures::cpu_ns).transpose()?;
        Ok((measured.unwrap_or(0), figures::cpu_ns(std::process::id())?))
    };
    let before = spent()?;
    seen.is_measuring.set(true);
    sleep(Duration::from_secs_f64(load.seconds)).await;
    seen.is_measuring.set(false);
    let after = spent()?;
    let pss_kib = load.pid.map(figures::pss_kib).transpose()?;

    let mut latency_us = seen.latency_us.take();
    latency_us.sort_unstable();
    let events = latency_us.len();
    let per_event = |ns: u64| match events {
        0 => None,
        events => Some((ns as f64 / 10.0 / events as f64).round() / 100.0),
    };
    let measured = load.pid.map(|_| per_event(after.0 - before.0));
    let growth_kib = pss_before_kib.zip(pss_kib).map(|(before, now)| now.saturating_sub(before));
    let troubles = seen.troubles.take();
    let line = serde_json::json!({
        "streams": load.streams,
        "rate": load.rate,
        "seconds": load.seconds,
        "seed": load.seed,
        "events": events,
        "latency_us_p50": figures::quantile(&latency_us, 0.5),
        "latency_us_p99": figures::quantile(&latency_us, 0.99),
        "latency_us_max": figures::quantile(&latency_us, 1.0),
        "cpu_us_per_event": measured.flatten(),
        "driver_cpu_us_per_event": per_event(after.1 - before.1),
        "pss_before_kib": pss_before_kib,
        "pss_kib": pss_kib,
        "pss_bytes_per_stream": growth_kib.map(|kib| kib * 1024 / load.streams.max(1) as u64),
        "troubles": troubles.len(),
    });
    println!("{line}");
    for trouble in troubles.iter().take(3) {
        eprintln!("streams: {trouble}");
    }
    Ok(if troubles.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads one stream for as long as the program runs. Gives what was wrong with it.
async fn read(
    load: Load,
    mut position: Position,
    seen: &Seen,
    opening: &Semaphore,
) -> Result<(), String> {
    let begin = async {
        let _turn = opening.acquire().await.map_err(|error| error.to_string())?;
        let begun = Visit::begin(load.target, load.method, &position).await;
        begun.map_err(|trouble| trouble.to_string())
    };
    let mut visit = begin.await?;
    let mut buffer = [0; READ_OCTETS];
    let mut has_begun = false;
    loop {
        let read = visit.read(&mut position, &mut buffer, |sent_ns| {
            if seen.is_measuring.get() {
                let took = now_ns().saturating_sub(sent_ns) / 1000;
                seen.latency_us.borrow_mut().push(u32::try_from(took).unwrap_or(u32::MAX));
            }
        });
        match read.await {
            Ok(Progress::Open) if has_begun => {}
            Ok(Progress::Open) => {
                has_begun = true;
                seen.begun.set(seen.begun.get() + 1);
            }
            Ok(Progress::Ended) => return Err("a stream without end has ended".to_owned()),
            Err(trouble) => return Err(trouble.to_string()),
        }
    }
}
