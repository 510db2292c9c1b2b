//! Descriptors and memory: nothing is kept that is over, and running out is survived.

use std::time::{Duration, Instant};

use stepflow_load_balancer::control::ExitReason;

use crate::support::{
    Backend, Balancer, Client, Process,
    process::{before, under},
    wait_until,
};

#[test]
fn two_hundred_clients_that_leave_in_every_state_leave_nothing_behind() {
    let backend = Backend::scripted(|peer| match peer.head.target().as_str() {
        "/stream" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n";
            // Its client may have gone.
            let _ = peer.try_send(head);
            peer.wait_for_end();
            peer.close();
        }
        "/silent" => {
            peer.wait_for_end();
            peer.close();
        }
        "/upgrade" => {
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\
                        Upgrade: x\r\n\r\n";
            // Its client may have gone.
            let _ = peer.try_send(head);
            peer.wait_for_end();
            peer.close();
        }
        "/upload" => {
            peer.wait_for_end();
            peer.close();
        }
        "/half" => {
            // Its client may have gone.
            let _ = peer.try_send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
            peer.wait_for_end();
            peer.close();
        }
        _ => peer.answer("ok"),
    });
    let balancer = Balancer::start(&[&backend]);
    let beginnings = [
        "",
        "GET",
        "GET / HTTP/1.1\r\nHost: a\r\nX",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET",
        "GET /stream HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /silent HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n",
        "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc",
        "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc",
        "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        "\x16\x03\x01",
        "GET / HTTP/1.1\r\n\r\n",
    ];
    let mut clients: Vec<Client> = Vec::new();
    for n in 0..200 {
        let mut client = balancer.connect();
        client.send(beginnings[n % beginnings.len()]);
        clients.push(client);
    }
    for (n, client) in clients.iter_mut().enumerate() {
        // Some are refused and closed already; a reset then is the rudest that is left.
        match (n / beginnings.len()) % 2 {
            0 => client.close(),
            _ => client.reset(),
        }
    }
    balancer.wait_until_quiet();
    let metrics = balancer.metrics();
    let gauges =
        ["active_connections", "event_streams_open", "event_streams_reconnectable", "tunnels_open"];
    for gauge in gauges {
        assert_eq!(metrics.sum(&format!("stepflow_lb_{gauge}"), &[]), 0, "{gauge}");
    }
    assert_eq!(metrics.sum("stepflow_lb_panics_total", &[]), 0);
    balancer.shut_down();
    assert_eq!(balancer.wait(), ExitReason::Drained);
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let backend = Backend::fine();
    let limited = under(&["sh", "-c", "ulimit -n 64; exec \"$0\""]);
    let mut command = before(limited, &[&backend]);
    // Or it would not come to that.
    command.env("STEPFLOW_LB_CONNECTIONS_MAX", "100000");
    let mut process = Process::start(command);
    process.wait_for_healthy(1);
    assert_eq!(process.connect().get("/").text(), "ok");
    let mut clients: Vec<_> = (0..100).map(|_| process.connect()).collect();
    let line = process.wait_for_line("cannot accept: waiting for connections to end");
    assert!(line.contains("Too many open files"), "{line}");
    // A scrape fails as well. It waits in the queue.
    let mut scrape = Client::connect(process.metrics_address);
    scrape.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    process.wait_for_line("cannot accept for the control thread");
    // At the limit, one comes for each that goes: accepting fails anew each time. It rests in
    // between, and does not repeat itself.
    let (cpu_time, began) = (process.cpu_time(), Instant::now());
    while began.elapsed() < Duration::from_millis(1500) {
        clients.remove(0);
        clients.push(process.connect());
        std::thread::sleep(Duration::from_millis(50));
    }
    let spent = process.cpu_time() - cpu_time;
    assert!(spent < Duration::from_millis(500), "accepting in vain took {spent:?}");
    // Whoever has a connection and needs no other is served.
    assert!(process.is_running());
    clients.clear();
    assert_eq!(scrape.response().status(), 200);
    wait_until("connections are accepted and served again", || {
        let mut client = process.connect();
        client.get("/").status() == 200
    });
    let lines = process.lines_so_far();
    let complaints = lines.iter().filter(|line| line.contains("cannot accept")).count();
    // One for each of two workers, and one for the metrics port.
    assert!((2..=3).contains(&complaints), "{complaints} in {lines:#?}");
    let metrics = process.metrics();
    assert!(metrics.sum("stepflow_lb_accept_backoffs_total", &[]) > 0);
    wait_until("nothing is left open", || {
        process.metrics().sum("stepflow_lb_connections_open", &[]) == 0
    });
}

#[test]
fn a_request_for_which_no_descriptor_is_left_is_answered_503() {
    let backend = Backend::fine();
    let limited = under(&["sh", "-c", "ulimit -n 64; exec \"$0\""]);
    let mut command = before(limited, &[&backend]);
    command
        .env("HEALTH_CHECK_INTERVAL", "1h")
        .env("STEPFLOW_LB_WORKERS", "1")
        .env("STEPFLOW_LB_CONNECTIONS_MAX", "100000")
        // Every request needs a descriptor of its own.
        .env("STEPFLOW_LB_IDLE_CONNECTIONS_PER_BACKEND_MAX", "0");
    let process = Process::start(command);
    process.wait_for_healthy(1);
    let mut early = process.connect();
    early.send("G");
    let mut clients: Vec<_> = (0..100).map(|_| process.connect()).collect();
    for client in &mut clients {
        client.send("G");
    }
    // Asked until it is so: the queue is emptied little by little.
    wait_until("the balancer says that it has none left", || {
        early.send("ET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = early.response();
        early.send("G");
        assert!(matches!(response.status(), 200 | 503), "{response:?}");
        response.status() == 503 && response.label() == "descriptors_exhausted"
    });
    clients.clear();
    wait_until("requests are served again", || {
        early.send("ET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = early.response();
        early.send("G");
        response.status() == 200
    });
}

#[test]
fn before_descriptors_run_out_connections_are_refused_in_words() {
    let backend = Backend::fine();
    let limited = under(&["sh", "-c", "ulimit -n 256; exec \"$0\""]);
    let mut command = before(limited, &[&backend]);
    command.env("STEPFLOW_LB_WORKERS", "2");
    let mut process = Process::start(command);
    process.wait_for_line("connections_max=64");
    process.wait_for_healthy(1);
    let mut clients: Vec<_> = (0..100).map(|_| process.connect()).collect();
    let statuses = clients.iter_mut().map(|client| client.get("/").status());
    let served = statuses.filter(|status| *status == 200).count();
    // Two workers that count at once may both refuse the last place.
    assert!((60..=64).contains(&served), "{served} are served");
    assert_eq!(process.metrics().failures("too_many_connections"), 100 - served as u64);
    assert_eq!(process.metrics().sum("stepflow_lb_accept_backoffs_total", &[]), 0);
    clients.clear();
    wait_until("others are served again", || process.connect().get("/").status() == 200);
}
