//! Parsers that are not written in Rust, each in a process of its own: llhttp, which is Node.js,
//! and h11, which is uvicorn and httpx. llhttp reads everything a dozen times, strictly and with
//! each of the leniencies that its users can switch on.
//!
//! `scripts/test.sh` installs them, and then demands them with `LB_FOREIGN_READERS=required`. Where
//! they are not installed and nobody demands them, the comparison does without.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use crate::reading::{Kind, Message, Reading, Start, by_name};

const HERE: &str = env!("CARGO_MANIFEST_DIR");
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/differential/foreign");

/// A process that reads a case from its input and writes a line with its readings, until it is
/// dropped.
pub(crate) struct Foreign {
    process: Child,
    cases: ChildStdin,
    readings: BufReader<ChildStdout>,
}

impl Foreign {
    /// Those that are installed.
    pub(crate) fn all() -> Vec<Self> {
        [Self::llhttp(), Self::h11()].into_iter().flatten().collect()
    }

    fn llhttp() -> Option<Self> {
        let modules = format!("{HERE}/.node-llhttp/node_modules");
        let script = format!("{SOURCES}/llhttp_reader.js");
        Self::start(&modules, "node", &[&script, &modules])
    }

    fn h11() -> Option<Self> {
        let python = format!("{HERE}/.venv-h11/bin/python");
        Self::start(&python, &python, &[&format!("{SOURCES}/h11_reader.py")])
    }

    /// `None` if `installed` does not exist.
    fn start(installed: &str, program: &str, arguments: &[&str]) -> Option<Self> {
        if !Path::new(installed).exists() {
            let demanded = std::env::var("LB_FOREIGN_READERS").unwrap_or_default();
            assert_ne!(demanded, "required", "{installed} does not exist");
            return None;
        }
        let process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut process = process.unwrap_or_else(|error| panic!("{program}: {error}"));
        let (cases, readings) = (process.stdin.take(), process.stdout.take());
        Some(Self {
            process,
            cases: cases.expect("it was asked for"),
            readings: BufReader::new(readings.expect("it was asked for")),
        })
    }

    /// Hands a case over; [`Foreign::answer`] waits for what becomes of it, so that several can be
    /// at work at once.
    pub(crate) fn ask(&mut self, kind: Kind, octets: &[u8]) {
        let kind = match kind {
            Kind::Request => "request",
            Kind::ResponseTo(method) => method,
        };
        let mut case = format!("{kind} {}\n", octets.len()).into_bytes();
        case.extend_from_slice(octets);
        self.cases.write_all(&case).expect("a reader goes on until it is dropped");
    }

    /// The readings of the last case, by name.
    pub(crate) fn answer(&mut self) -> Vec<(String, Reading)> {
        let mut line = String::new();
        self.readings.read_line(&mut line).expect("a reader writes text");
        let answer: Value = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("{error}: a reader ended, or answers {line:?}"));
        let answer = answer.as_object().expect("an object");
        answer.iter().map(|(mode, reading)| (mode_name(mode), parsed(reading))).collect()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // It may have ended by itself already; then there is nothing left but to collect it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn mode_name(mode: &str) -> String {
    match mode {
        "h11" => mode.to_owned(),
        mode => format!("llhttp ({mode})"),
    }
}

fn parsed(reading: &Value) -> Reading {
    if let Some(why) = reading["refused"].as_str() {
        return Reading::Refused(why.to_owned());
    }
    let message = &reading["whole"];
    if message.is_null() {
        assert_eq!(reading["unfinished"], Value::Bool(true), "{reading}");
        return Reading::Unfinished;
    }
    let lines: Vec<_> = list(&message["fields"]).map(|l| (text(&l[0]), octets(&l[1]))).collect();
    Reading::Whole(Message {
        start: start(&message["start"]),
        fields: by_name(lines.iter().map(|(name, value)| (*name, value.as_slice()))),
        content: octets(&message["content"]),
        end: message["end"].as_u64().and_then(|end| end.try_into().ok()).expect("a place"),
    })
}

fn start(start: &Value) -> Start {
    if let Some(status) = start.as_u64() {
        return Start::Status(status.try_into().expect("three digits"));
    }
    // They leave a target in absolute form as it is, and we do not.
    let target = octets(&start[1]);
    let is_comparable = target.starts_with(b"/") || target == b"*";
    Start::Request { method: text(&start[0]).to_owned(), target: is_comparable.then_some(target) }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("a list").iter()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// Octets as characters U+0000 to U+00FF.
fn octets(value: &Value) -> Vec<u8> {
    text(value).chars().map(|c| u8::try_from(c).expect("an octet")).collect()
}
