//! The admin calls: what the backends are doing, and emptying one of them.
//!
//! | call | answer |
//! | --- | --- |
//! | `GET /backends` | every backend, in the order in which they were met |
//! | `GET /backends/NAME` | those of this name: an address, or an instance id |
//! | `POST /backends/NAME/drain` | 200 once nothing runs there, else 202 |
//! | `POST /backends/NAME/drain?wait=30s` | the same, but not before it is empty or time is up |
//! | `POST /backends/NAME/undrain` | 200 |
//!
//! A name may be percent-encoded (RFC 3986 §2.1). An address drains whoever answers there until the
//! order is taken back or discovery drops the address; an instance id drains that process, and
//! whoever takes its address afterwards serves.
//!
//! Invariants
//! - A drain is answered only when every worker has the snapshot that says so: what is empty then
//!   stays empty, but for requests that name the instance.
//! - What a web page sends is refused: a browser reaches loopback for any page that asks it to.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::AdminView;
use crate::{
    endpoint::{Request, Response},
    http1::Method,
    model::{Backend, BackendId, BackendState, Snapshot},
    plane::{DrainScope, Input},
};

/// How often a call that waits looks again.
const LOOK_PERIOD: Duration = Duration::from_millis(20);

/// How long a call waits for the workers to hear of a drain when nobody asked it to wait. They
/// hear at once; only a worker that is stuck lets this pass.
const HEARING_MAX: Duration = Duration::from_secs(1);

/// Longest that a call may wait. A preStop hook has less.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

const CALLS: &str = "GET /backends, GET /backends/NAME, POST /backends/NAME/drain[?wait=SECONDS] \
                     and POST /backends/NAME/undrain; NAME is an address or an instance id";

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Call<'a> {
    List,
    Show(Cow<'a, str>),
    Drain(Cow<'a, str>),
    Undrain(Cow<'a, str>),
}

impl<'a> Call<'a> {
    fn read(path: &'a [u8]) -> Option<Self> {
        if path == b"/backends" {
            return Some(Self::List);
        }
        let rest = path.strip_prefix(b"/backends/")?;
        let name = |octets: &'a [u8]| Some(decoded(octets)).filter(|name| !name.is_empty());
        if let Some(octets) = rest.strip_suffix(b"/drain") {
            return name(octets).map(Self::Drain);
        }
        if let Some(octets) = rest.strip_suffix(b"/undrain") {
            return name(octets).map(Self::Undrain);
        }
        name(rest).map(Self::Show)
    }

    fn takes(&self, method: Method) -> bool {
        match self {
            Self::List | Self::Show(_) => matches!(method, Method::Get | Method::Head),
            Self::Drain(_) | Self::Undrain(_) => method == Method::Post,
        }
    }

    fn allow(&self) -> &'static str {
        match self {
            Self::List | Self::Show(_) => "GET, HEAD",
            Self::Drain(_) | Self::Undrain(_) => "POST",
        }
    }
}

pub(super) async fn answer(request: &Request, view: &AdminView) -> Response {
    if request.has_origin {
        return refusal(403, "admin calls are not for web pages, and this one has an Origin");
    }
    let Some(call) = Call::read(request.path()) else {
        return refusal(404, &format!("there is no such call; the calls are {CALLS}"));
    };
    if !call.takes(request.method) {
        let text = format!("this call takes {}; the calls are {CALLS}", call.allow());
        return refusal(405, &text).with("Allow", call.allow().to_owned());
    }
    let wait = match waiting(request.query()) {
        Ok(wait) => wait,
        Err(text) => return refusal(400, &text),
    };
    let snapshot = || Arc::clone(&view.snapshot.borrow());
    match call {
        Call::List => Response::json(200, shown(&snapshot().backends.iter().collect::<Vec<_>>())),
        Call::Show(name) => match named(&snapshot(), &name) {
            (_, found) if found.is_empty() => unknown(&name),
            (_, found) => Response::json(200, shown(&found)),
        },
        Call::Drain(name) => order(view, &name, Order::Drain, wait).await,
        Call::Undrain(name) => order(view, &name, Order::Undrain, Duration::ZERO).await,
    }
}

/// How long a call shall wait, from `wait=SECONDS`.
fn waiting(query: Option<&[u8]>) -> Result<Duration, String> {
    let accepted = "wait=SECONDS, from 0 to 3600, such as wait=30 or wait=30s";
    let Some(query) = query else { return Ok(Duration::ZERO) };
    let query = String::from_utf8_lossy(query);
    let seconds = query.strip_prefix("wait=").map(|text| text.strip_suffix('s').unwrap_or(text));
    let seconds = seconds.and_then(|text| text.parse::<u16>().ok()).map(u64::from);
    let wait = seconds.map(Duration::from_secs).filter(|wait| *wait <= WAIT_MAX);
    wait.ok_or_else(|| format!("{query:?} is not understood; what is accepted is {accepted}"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Drain,
    Undrain,
}

/// Gives the order, and answers when every worker knows of it and, as far as that was asked, the
/// backend is empty.
async fn order(view: &AdminView, name: &str, order: Order, wait: Duration) -> Response {
    let snapshot = Arc::clone(&view.snapshot.borrow());
    let (scope, found) = named(&snapshot, name);
    if found.is_empty() {
        return unknown(name);
    }
    let ids: Vec<BackendId> = found.iter().map(|backend| backend.id).collect();
    for backend in &ids {
        let order = (order == Order::Drain).then_some(scope);
        // Nobody listens any more only while the process ends.
        let _ = view.inputs.send(Input::DrainOrdered { backend: *backend, order });
    }
    let asked = Instant::now();
    loop {
        let snapshot = Arc::clone(&view.snapshot.borrow());
        let left: Vec<&Backend> =
            snapshot.backends.iter().filter(|b| ids.contains(&b.id)).collect();
        let is_heard = left.iter().all(|b| b.draining.is_some() == (order == Order::Drain));
        let is_known = is_heard
            && view
                .workers
                .iter()
                .all(|worker| worker.snapshot_version.get() >= snapshot.version.0);
        let is_empty = || left.iter().all(|backend| backend.stats.in_flight() == 0);
        let is_done = is_known && (order == Order::Undrain || is_empty());
        let patience = if is_known { wait } else { wait.max(HEARING_MAX) };
        if is_done || asked.elapsed() >= patience {
            return Response::json(if is_done { 200 } else { 202 }, shown(&left));
        }
        sleep(LOOK_PERIOD).await;
    }
}

/// The backends of this name. An address comes first: no instance id should look like one.
fn named<'a>(snapshot: &'a Snapshot, name: &str) -> (DrainScope, Vec<&'a Backend>) {
    let all = || snapshot.backends.iter();
    match name.parse::<SocketAddr>() {
        Ok(address) => (DrainScope::Address, all().filter(|b| b.address == address).collect()),
        Err(_) => {
            let is_it = |b: &&Backend| b.instance.as_ref().is_some_and(|i| i.as_str() == name);
            (DrainScope::Instance, all().filter(is_it).collect())
        }
    }
}

fn shown(backends: &[&Backend]) -> String {
    let backends: Vec<Value> = backends.iter().copied().map(one).collect();
    format!("{:#}\n", json!({ "backends": backends }))
}

fn one(backend: &Backend) -> Value {
    json!({
        "address": backend.address.to_string(),
        "instance": backend.instance.as_ref().map(|instance| instance.as_str()),
        "state": BackendState::of(backend).label(),
        "drain_wanted_by": backend.draining.map(|cause| cause.label()),
        "takes_new_work": backend.takes_new_work(),
        "in_flight": backend.stats.in_flight(),
        "event_streams": backend.stats.event_streams(),
        "sessions": backend.stats.sessions_live(),
        "weight": backend.weight.get(),
        "priority": backend.priority,
    })
}

fn unknown(name: &str) -> Response {
    let text = format!("no backend has the address or the instance id {name:?}; see GET /backends");
    refusal(404, &text)
}

fn refusal(status: u16, text: &str) -> Response {
    Response::json(status, format!("{}\n", json!({ "error": text })))
}

/// Text with its percent-encoding undone. What is no encoding stays as it is.
fn decoded(octets: &[u8]) -> Cow<'_, str> {
    if !octets.contains(&b'%') {
        return String::from_utf8_lossy(octets);
    }
    let mut plain = Vec::with_capacity(octets.len());
    let mut rest = octets;
    while let Some((first, behind)) = rest.split_first() {
        let encoded = behind.get(..2).filter(|_| *first == b'%');
        let digits = encoded.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(octet) => {
                plain.push(octet);
                rest = &behind[2..];
            }
            None => {
                plain.push(*first);
                rest = behind;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&plain).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_documented() {
        let cases: &[(&str, Option<Call<'_>>)] = &[
            ("/backends", Some(Call::List)),
            ("/backends/", None),
            ("/backends/10.0.0.1:80", Some(Call::Show("10.0.0.1:80".into()))),
            ("/backends/[::1]:80/drain", Some(Call::Drain("[::1]:80".into()))),
            ("/backends/%5B::1%5D:80/drain", Some(Call::Drain("[::1]:80".into()))),
            ("/backends/pod-1/undrain", Some(Call::Undrain("pod-1".into()))),
            ("/backends/a%2Fb/drain", Some(Call::Drain("a/b".into()))),
            ("/backends/a%zz%4/drain", Some(Call::Drain("a%zz%4".into()))),
            // A backend that is called so can still be drained.
            ("/backends/drain/drain", Some(Call::Drain("drain".into()))),
            ("/backends//drain", None),
            ("/metrics", None),
            ("/backend", None),
        ];
        for (path, want) in cases {
            assert_eq!(Call::read(path.as_bytes()).as_ref(), want.as_ref(), "{path}");
        }
    }

    #[test]
    fn a_wait_is_a_number_of_seconds() {
        let seconds = |n| Ok(Duration::from_secs(n));
        assert_eq!(waiting(None), seconds(0));
        assert_eq!(waiting(Some(b"wait=30")), seconds(30));
        assert_eq!(waiting(Some(b"wait=30s")), seconds(30));
        assert_eq!(waiting(Some(b"wait=3600")), seconds(3600));
        for wrong in ["", "wait", "wait=", "wait=-1", "wait=3601", "wait=1m", "patience=3"] {
            let said = waiting(Some(wrong.as_bytes())).unwrap_err();
            assert!(said.contains("wait=SECONDS"), "{wrong}: {said}");
        }
    }
}
