//! Which kernel interface the workers run on, and what happens where io_uring is not granted.

use std::path::PathBuf;

use crate::support::{
    Backend, Balancer, Process,
    process::{before, command, run, under},
};

fn drivers(process: &Process) -> (u64, u64) {
    let metrics = process.metrics();
    let epoll = metrics.sum("stepflow_lb_worker_driver", &[r#"driver="epoll""#]);
    (epoll, metrics.sum("stepflow_lb_worker_driver", &[]))
}

/// The command line that denies io_uring to what follows it; `None`, said aloud, where this machine
/// cannot do that.
fn denying_io_uring() -> Option<[String; 2]> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/deny_io_uring.py");
    let wrapper = ["python3".to_owned(), script.to_str().expect("a path of text").to_owned()];
    let probe = std::process::Command::new(&wrapper[0]).args([&wrapper[1], "true"]).output();
    match probe {
        Ok(output) if output.status.success() => Some(wrapper),
        other => {
            std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("SKIPPED: io_uring cannot be denied here: {other:?}\n").as_bytes(),
            )
            .expect("stderr is open");
            None
        }
    }
}

#[test]
fn epoll_can_be_asked_for() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("io_driver", "epoll").start();
    assert!(balancer.drivers.iter().all(|driver| driver == "epoll"), "{:?}", balancer.drivers);
    assert_eq!(balancer.get("/").text(), "ok");
    let metrics = balancer.metrics();
    let epoll = metrics.sum("stepflow_lb_worker_driver", &[r#"driver="epoll""#]);
    assert_eq!(epoll, balancer.drivers.len() as u64);
}

#[test]
fn where_io_uring_is_denied_auto_falls_back_to_epoll_and_says_why() {
    let Some(wrapper) = denying_io_uring() else { return };
    let backend = Backend::fine();
    let mut command = before(under(&wrapper.each_ref().map(String::as_str)), &[&backend]);
    command.env("STEPFLOW_LB_IO_DRIVER", "auto");
    let mut process = Process::start(command);
    process.wait_for_healthy(1);
    assert_eq!(process.connect().get("/").text(), "ok");
    let (epoll, all) = drivers(&process);
    assert_eq!(epoll, all);
    let line = process.wait_for_line("fell back to another I/O driver");
    assert!(line.contains("io_uring-1024") && line.contains("errno=1"), "{line}");
    assert!(line.contains("using=epoll"), "{line}");
}

#[test]
fn where_io_uring_is_denied_asking_for_it_ends_the_program_with_one_clear_line() {
    let Some(wrapper) = denying_io_uring() else { return };
    let mut command = before(under(&wrapper.each_ref().map(String::as_str)), &[]);
    command.env("UPSTREAM_SERVICE", "127.0.0.1:1").env("STEPFLOW_LB_IO_DRIVER", "io_uring");
    let ended = run(command);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("io_uring"), "{ended:?}");
    assert!(ended.stderr.to_lowercase().contains("not permitted"), "{ended:?}");
}

#[test]
fn an_idle_process_with_an_open_stream_rests() {
    for driver in ["auto", "epoll"] {
        let backend = Backend::played();
        let mut command = before(command(), &[&backend]);
        command.env("STEPFLOW_LB_IO_DRIVER", driver).env("HEALTH_CHECK_INTERVAL", "1h");
        let process = Process::start(command);
        process.wait_for_healthy(1);
        let mut client = process.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
        let mut peer = backend.next();
        peer.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
             Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        );
        assert_eq!(client.head().status(), 200);
        assert_eq!(client.chunk(), b"data: 1\n\n");
        let mut idle = process.connect();
        idle.send("GET / HT");
        let before = process.cpu_time();
        let measured = std::time::Duration::from_secs(1);
        std::thread::sleep(measured);
        let used = process.cpu_time() - before;
        // A loop that never sleeps would use all of it.
        assert!(used < measured / 5, "{driver}: {used:?} of CPU in {measured:?}");
    }
}
