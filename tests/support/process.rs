//! The product as its operator runs it: the binary, its arguments, its environment, its signals.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, unbounded};

use super::{Backend, Client, Metrics, PATIENCE, balancer::FROM_ENVIRONMENT, wait_until};

/// A running process. Killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    /// Address that clients connect to.
    pub(crate) address: SocketAddr,
    /// Address of the metrics.
    pub(crate) metrics_address: SocketAddr,
    /// Lines that it has printed so far.
    pub(crate) lines: Vec<String>,
    output: Receiver<String>,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

/// The program, with an environment that says nothing but what the test run as a whole decides.
pub(crate) fn command() -> Command {
    under(&[])
}

/// The same, run by another program: its command line comes first.
pub(crate) fn under(wrapper: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_stepflow-load-balancer");
    let mut words = wrapper.iter().copied().chain([program]);
    let mut command = Command::new(words.next().expect("at least the program"));
    command.args(words).env_clear().stdin(Stdio::null());
    // Wrappers are found by it.
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("STEPFLOW_LB_WORKERS", "2");
    for name in FROM_ENVIRONMENT.into_iter().chain(OF_THE_SANITIZER) {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Read by the program when it is built for scripts/sanitize.sh.
const OF_THE_SANITIZER: [&str; 2] = ["ASAN_OPTIONS", "LSAN_OPTIONS"];

/// Sets what every balancer in these tests needs.
pub(crate) fn before(mut command: Command, backends: &[&Backend]) -> Command {
    let addresses: Vec<_> = backends.iter().map(|b| b.address.to_string()).collect();
    command
        .env("UPSTREAM_SERVICE", addresses.join(","))
        .env("BIND_ADDRESS", "127.0.0.1:0")
        .env("METRICS_ADDRESS", "127.0.0.1:0")
        .env("STEPFLOW_LB_ADMIN_ADDRESS", "127.0.0.1:0")
        .env("HEALTH_CHECK_INTERVAL", "100ms")
        .env("STEPFLOW_LB_UPSTREAM_IDLE_TIMEOUT", "60s");
    command
}

/// Runs a program that is expected to end by itself.
pub(crate) fn run(mut command: Command) -> Ended {
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program can be started");
    let mut pipe = child.stderr.take().expect("it is piped");
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).expect("output is text");
        text
    });
    let status = wait(&mut child);
    Ended { status, stderr: reading.join().expect("reading does not panic") }
}

fn wait(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return status;
        }
        if Instant::now() > deadline {
            // Nobody else would end it.
            let _ = child.kill();
            panic!("the program has not ended");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Process {
    /// Starts a balancer and waits until it says where it listens.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program can be started");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let (sender, output) = unbounded();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test has ended if it takes no more.
                let _ = sender.send(line);
            }
        });
        let mut lines = Vec::new();
        let mut await_line = |marker: &str| -> String {
            loop {
                let line = output.recv_timeout(PATIENCE);
                let line = line.unwrap_or_else(|_| panic!("no {marker:?} in {lines:#?}"));
                lines.push(line.clone());
                if let Some((_, rest)) = line.split_once(marker) {
                    return rest.to_owned();
                }
            }
        };
        let data = await_line("Load balancer listening on ");
        let metrics = await_line("Prometheus metrics available on http://");
        let address = |text: &str, end| -> SocketAddr {
            // In JSON the line ends behind a quote.
            let address = text.split([end, '"']).next().unwrap_or_default();
            address.parse().expect("an address")
        };
        let (data, metrics) = (address(&data, ' '), address(&metrics, '/'));
        Self { child, address: data, metrics_address: metrics, lines, output }
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(self.address)
    }

    pub(crate) fn metrics(&self) -> Metrics {
        Metrics::read(self.metrics_address)
    }

    /// Waits until so many backends are healthy.
    #[track_caller]
    pub(crate) fn wait_for_healthy(&self, healthy: u64) {
        wait_until(&format!("{healthy} backends are healthy"), || {
            let metrics = self.metrics();
            metrics.sum("stepflow_lb_backend_pool_size", &[]) == healthy
                && metrics.workers_are_up_to_date()
        });
    }

    /// Sends a signal, by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        // The shell's own `kill` needs neither unsafe code nor another package.
        let kill = format!("kill -{name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &kill]).status();
        assert!(status.expect("there is a shell").success(), "{kill}");
    }

    /// Waits for the line that holds this text.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        if let Some(line) = self.lines.iter().find(|line| line.contains(text)) {
            return line.clone();
        }
        loop {
            let line = self.output.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no {text:?} in {:#?}", self.lines));
            self.lines.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Every line that it has printed so far.
    pub(crate) fn lines_so_far(&mut self) -> &[String] {
        self.lines.extend(self.output.try_iter());
        &self.lines
    }

    /// Its number among the processes.
    #[allow(dead_code, reason = "not every suite looks at the process itself")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used so far.
    pub(crate) fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).expect("it runs");
        // Behind the name, which may hold spaces: user and system time in hundredths of a second.
        let rest = stat.rsplit_once(") ").expect("a name in parentheses").1;
        let ticks = rest.split(' ').skip(11).take(2).map(|n| n.parse::<u64>().expect("a number"));
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
