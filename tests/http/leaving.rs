//! Backends that discovery drops while sessions live on them: a pod that terminates, or that is not
//! ready for a while.

use crate::{
    support::{Backend, Balancer, Client, Health, Response, wait_until},
    zone::{SERVICE, Zone},
};

/// Gives a session to whoever brings none, and says its name and the session that it saw.
fn server(name: &'static str) -> Backend {
    let server = Backend::scripted(move |peer| {
        peer.read_body();
        let session = peer.head.field("Mcp-Session-Id").unwrap_or_else(|| "new".to_owned());
        let body = format!("{name} {session}");
        let length = body.len();
        let _ = peer.try_send(format!(
            "HTTP/1.1 200 OK\r\nMcp-Session-Id: {session}\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
    });
    server.healthy_as(name)
}

/// A balancer, and a session on the backend that discovery has dropped since.
struct Left {
    one: Backend,
    two: Backend,
    zone: Zone,
    balancer: Balancer,
    token: String,
}

impl Left {
    fn new(options: &[(&str, &str)]) -> Self {
        let (one, two) = (server("one"), server("two"));
        let zone = Zone::naming(one.address.port());
        let mut setup = Balancer::before(&[])
            .with("upstream_service", SERVICE)
            .with("dns_servers", &zone.address.to_string())
            .with("dns_refresh_min", "100ms")
            .with("dns_refresh_max", "200ms")
            .with("session_header", "Mcp-Session-Id")
            // What is pooled would serve a while longer.
            .with("idle_connections_per_backend_max", "0");
        for (key, value) in options {
            setup = setup.with(key, value);
        }
        let balancer = setup.start_unready();
        balancer.wait_for_healthy(1);
        let begun = post(&balancer, "");
        assert_eq!(begun.text(), "one new");
        let token = begun.head.field("Mcp-Session-Id").unwrap();
        zone.set(two.address.port());
        wait_until("new work goes to the other one", || {
            let metrics = balancer.metrics();
            metrics.sum("stepflow_lb_backend_pool_size", &[]) == 1
                && metrics.workers_are_up_to_date()
                && post(&balancer, "").text() == "two new"
        });
        Self { one, two, zone, balancer, token }
    }

    fn ask(&self) -> Response {
        post(&self.balancer, &format!("Mcp-Session-Id: {}\r\n", self.token))
    }

    /// How the admin port shows the one that left, if it does.
    fn state(&self) -> Option<String> {
        let admin = self.balancer.admin_address.expect("admin calls are served");
        let response = Client::connect(admin).get("/backends/one");
        let state = response.json()["backends"][0]["state"].clone();
        (response.status() == 200).then(|| state.as_str().unwrap().to_owned())
    }

    fn lost(&self) -> u64 {
        self.balancer.metrics().sum("stepflow_lb_sessions_lost_total", &[])
    }
}

fn post(balancer: &Balancer, fields: &str) -> Response {
    balancer.ask(format!("POST /mcp HTTP/1.1\r\nHost: a\r\n{fields}Content-Length: 2\r\n\r\n{{}}"))
}

#[test]
fn a_session_goes_on_at_an_idle_instance_that_discovery_has_dropped() {
    let left = Left::new(&[]);
    for _ in 0..10 {
        assert_eq!(left.ask().text(), "one new");
    }
    assert_eq!(left.state().as_deref(), Some("leaving"));
    // It is back, and takes new work again.
    left.zone.set(left.one.address.port());
    left.two.set_health(Health::Failing);
    wait_until("new work goes there", || {
        let metrics = left.balancer.metrics();
        metrics.workers_are_up_to_date() && left.state().as_deref() == Some("healthy")
    });
    assert_eq!(left.ask().text(), "one new");
    assert_eq!(left.lost(), 0);
}

#[test]
fn a_session_is_lost_as_soon_as_the_instance_that_left_takes_no_connection() {
    // Checks that come soon and checks that never do: it makes no difference.
    for options in [&[][..], &[("health_check_interval", "1h")]] {
        let mut left = Left::new(options);
        assert_eq!(left.ask().text(), "one new");
        left.one.refuse();
        let lost = left.ask();
        assert_eq!((lost.status(), lost.label().as_str()), (404, "session_lost"), "{lost:?}");
        wait_until("it is gone", || left.state().is_none());
        assert_eq!(left.ask().status(), 404);
    }
}

#[test]
fn another_process_at_the_address_of_an_instance_that_left_gets_none_of_its_sessions() {
    let left = Left::new(&[]);
    let before = left.one.requests();
    left.one.set_health(Health::Named("somebody".to_owned()));
    wait_until("the other process was met, and is nobody's", || {
        left.state().is_none() && left.balancer.metrics().workers_are_up_to_date()
    });
    assert_eq!(left.ask().status(), 404);
    assert_eq!(left.one.requests(), before);
}

#[test]
fn an_instance_that_left_is_forgotten_when_its_last_session_is() {
    let left = Left::new(&[("session_idle", "1s")]);
    wait_until("nobody has used the session for long", || {
        left.state().is_none() && left.balancer.metrics().workers_are_up_to_date()
    });
    assert_eq!(left.ask().status(), 404);
}
