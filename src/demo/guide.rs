//! What the demo prints: what runs, and what to try.

use std::{fmt, net::SocketAddr};

use super::DemoBackends;

/// The text.
#[derive(Clone, Copy, Debug)]
pub struct Guide<'a> {
    /// The component servers.
    pub demo: &'a DemoBackends,
    /// Where the balancer serves.
    pub data: SocketAddr,
    /// Where its metrics are.
    pub metrics: SocketAddr,
}

impl fmt::Display for Guide<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { demo, data, metrics } = self;
        writeln!(f, "\nThe Stepflow Load Balancer serves http://{data}, in front of")?;
        for (instance, address) in &demo.backends {
            writeln!(f, "  {instance} at {address}")?;
        }
        writeln!(f, "and its metrics are at http://{metrics}/metrics.")?;
        for (usual, actual) in [(8080, data.port()), (9090, metrics.port())] {
            if usual != actual {
                writeln!(f, "(Not on port {usual}: it was taken, or another was asked for.)")?;
            }
        }
        writeln!(f, "\nTry from another terminal:")?;
        let call = |component: &str| {
            format!(
                "-H 'Content-Type: application/json' -d '{{\"jsonrpc\":\"2.0\",\"id\":\"1\",\
                 \"method\":\"components/execute\",\"params\":{{\"component\":\"{component}\",\
                 \"input\":{{\"hello\":\"world\"}}}}}}'"
            )
        };
        let (echo, stream) = (call("/demo/echo"), call("/demo/stream"));
        let steps = [
            (
                "A component call, answered with JSON. Repeat it: the instances take turns.",
                format!("curl -sS http://{data}/ {echo}"),
            ),
            (
                "An event stream that asks something back, and prints the command that answers. \
                 The\n  # answer names its instance, so it reaches the process that waits for it.",
                format!("curl -sSN http://{data}/ {stream}"),
            ),
            (
                "Any request can name its instance. One that is not there gets a 503 that \
                 Stepflow retries.",
                format!("curl -sSi http://{data}/hello -H 'Stepflow-Instance-Id: demo-2'"),
            ),
            ("How many backends are healthy.", format!("curl -sS http://{data}/health")),
        ];
        for (what, command) in steps {
            writeln!(f, "\n  # {what}\n  {command}")?;
        }
        writeln!(f, "\nEach request is a line below: which instance, and why. Ctrl-C ends it.\n")
    }
}
