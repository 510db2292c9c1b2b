//! The program from outside: what it prints, how it ends, and the demo as a newcomer meets it.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Output, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

/// Longest wait for anything. Only a broken program takes so long.
const DEADLINE: Duration = Duration::from_secs(30);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepflow-load-balancer"));
    // Nothing of the environment in which the tests run is to be seen.
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program runs");
    let text = |octets| String::from_utf8(octets).expect("UTF-8");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn without_an_upstream_it_exits_2_and_says_what_to_set() {
    let (code, stdout, stderr) = run(&mut command(&[]));
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.contains("UPSTREAM_SERVICE=component-server."), "{stderr}");
}

#[test]
fn a_wrong_configuration_exits_2_with_a_line_for_each_error() {
    let (code, stdout, stderr) = run(command(&["--workers=0"]).env("BIND_ADDRESS", "x"));
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    let starts = ["invalid value \"x\"", "invalid value \"0\"", "upstream_service is not set"];
    assert_eq!(stderr.lines().count(), starts.len(), "{stderr}");
    for (line, start) in stderr.lines().zip(starts) {
        assert!(line.starts_with(start), "{stderr}");
    }
}

#[test]
fn misuse_exits_2_and_help_exits_0() {
    for (arguments, code, part) in [
        (&["--wrokers=2"][..], 2, "--workers"),
        (&["serve"], 2, "serve"),
        (&["--config"], 2, "--config"),
        (&["--help"], 0, "UPSTREAM_SERVICE"),
        (&["--version"], 0, env!("CARGO_PKG_VERSION")),
    ] {
        let (got, stdout, stderr) = run(&mut command(arguments));
        assert_eq!(got, Some(code), "{arguments:?}");
        assert!(format!("{stdout}{stderr}").contains(part), "{arguments:?}: {stdout}{stderr}");
    }
}

#[test]
fn check_prints_a_configuration_that_means_the_same() {
    let first = &mut command(&["--check", "--fields-max", "7"]);
    let (code, first, stderr) = run(first.env("UPSTREAM_SERVICE", "a:1,b:2"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(first.contains("fields_max = 7 # from flag --fields-max"), "{first}");
    let file = TemporaryFile::with(&first);
    let (code, second, _) = run(command(&["--check", "--config"]).arg(&file.0));
    assert_eq!(code, Some(0));
    let settings = |text: &str| -> Vec<String> {
        let setting = |line: &str| line.split(" # ").next().unwrap_or_default().to_owned();
        text.lines().filter(|line| line.contains(" = ")).map(setting).collect()
    };
    assert_eq!(settings(&first), settings(&second));
    let (code, _, stderr) =
        run(command(&["--check", "--config", "/nonexistent.toml"]).env("STEPFLOW_LB_WROKERS", "2"));
    assert_eq!(code, Some(2));
    assert!(stderr.starts_with("cannot read the configuration file /nonexistent.toml"));
}

#[test]
fn check_warns_of_variables_that_have_no_effect() {
    let (code, stdout, stderr) = run(command(&["--check"])
        .env("UPSTREAM_SERVICE", "a:1")
        .env("STEPFLOW_LB_WROKERS", "2")
        .env("STEPFLOW_LB_PORT_8080_TCP", "tcp://10.0.0.1:8080"));
    assert_eq!(code, Some(0));
    let want = "unknown variable STEPFLOW_LB_WROKERS in the environment is ignored; did you mean \
                STEPFLOW_LB_WORKERS?\n";
    assert_eq!(stderr, want);
    assert!(stdout.contains("workers = \"auto\" # default"));
}

#[test]
fn what_keeps_it_from_starting_is_one_line_and_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let cases: [(&[&str], &[&str]); 2] = [
        (
            &["--bind-address", &address, "--metrics-address", "127.0.0.1:0"],
            &[&address, "bind_address"],
        ),
        (&["--log-file", "/nonexistent/lb.log"], &["/nonexistent/lb.log"]),
    ];
    for (arguments, parts) in cases {
        let (code, _, stderr) = run(command(arguments).env("UPSTREAM_SERVICE", "127.0.0.1:1"));
        assert_eq!(code, Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part} in {stderr}");
        }
    }
}

#[test]
fn the_demo_shows_balancing_affinity_and_a_callback() {
    let mut demo = Running::start(&[
        "demo",
        "--bind-address=127.0.0.1:0",
        "--metrics-address=127.0.0.1:0",
        "--admin-address=127.0.0.1:0",
        "--workers=1",
        "--algorithm=round_robin",
    ]);
    let balancer = demo.line_with("The Stepflow Load Balancer serves http://");
    let balancer = balancer.rsplit_once("//").unwrap().1.split(',').next().unwrap();
    let balancer: SocketAddr = balancer.parse().unwrap();
    demo.line_with("Ctrl-C ends it.");

    let call = |component: &str| {
        format!(
            r#"{{"jsonrpc":"2.0","id":"1","method":"components/execute","params":{{"component":"{component}","input":{{}}}}}}"#
        )
    };
    let mut instances: Vec<_> = (0..3)
        .map(|_| {
            let answer = post(balancer, "", &call("/demo/echo"));
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            field(&answer, "stepflow-instance-id")
        })
        .collect();
    instances.sort_unstable();
    assert_eq!(instances, ["demo-1", "demo-2", "demo-3"]);
    for _ in 0..3 {
        let line = demo.line_with("request completed");
        assert!(line.contains(" routed=balanced ") && line.contains("instance=demo-"), "{line}");
    }

    let mut stream = connect(balancer);
    send(&mut stream, "", &call("/demo/stream"));
    let mut events = BufReader::new(stream).lines().map(|line| line.expect("the stream goes on"));
    // The command that the stream offers is what a newcomer pastes; here its parts are taken.
    let command = events.find(|line| line.starts_with(": curl ")).expect("a command");
    let quoted: Vec<_> = command.split('\'').skip(1).step_by(2).collect();
    let [named_instance, _, body] = quoted[..] else { panic!("{command}") };
    let answer = post(balancer, &format!("{named_instance}\r\n"), body);
    assert!(answer.starts_with("HTTP/1.1 202 ") && answer.ends_with("\r\n\r\n\"\""), "{answer}");
    let instance = named_instance.rsplit_once(' ').unwrap().1;
    assert_eq!(field(&answer, "x-stepflow-routed-instance"), instance);
    let line = demo.line_with("status=202");
    assert!(line.contains(&format!(" instance={instance} routed=affinity ")), "{line}");
    assert!(events.any(|line| line.contains(r#""answer":{"blob_id":"b-1"}"#)), "no result");

    assert_eq!(demo.terminate(), Some(0));
}

#[test]
fn no_memory_is_in_huge_pages_from_the_first_octet() {
    let mut program = Running::start(&[
        "--upstream-service=127.0.0.1:1",
        "--bind-address=127.0.0.1:0",
        "--metrics-address=127.0.0.1:0",
        "--workers=1",
    ]);
    program.line_with("Load balancer listening on");
    let memory = format!("/proc/{}/smaps_rollup", program.child.id());
    let memory = std::fs::read_to_string(memory).expect("Linux has it");
    let huge = memory.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
    assert_eq!(huge.map(str::trim), Some("0 kB"), "{memory}");
}

/// A process that is killed if the test does not end it.
struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Running {
    fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the program runs");
        let lines = lines_of(child.stdout.take().expect("a pipe"));
        Self { child, lines, seen: Vec::new() }
    }

    /// The next line of output that contains `part`.
    fn line_with(&mut self, part: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(part) => return line,
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("{error} while waiting for {part:?} in {:#?}", self.seen),
            }
        }
    }

    /// Sends SIGTERM and waits for the end.
    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("did not end after SIGTERM: {:#?}", self.seen);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// A file that goes with the test.
struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn with(text: &str) -> Self {
        let name = format!("stepflow-lb-{}-check.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).expect("room for a file");
        Self(path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream
}

fn send(stream: &mut TcpStream, fields: &str, body: &str) {
    let request = format!(
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nConnection: close\r\n\
         {fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("room");
}

fn post(address: SocketAddr, fields: &str, body: &str) -> String {
    let mut stream = connect(address);
    send(&mut stream, fields, body);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// The value of a field in an answer.
fn field(answer: &str, name: &str) -> String {
    let value = |line: &str| {
        let (field, value) = line.split_once(": ")?;
        field.eq_ignore_ascii_case(name).then(|| value.to_owned())
    };
    answer.lines().find_map(value).unwrap_or_else(|| panic!("no {name} in {answer}"))
}
