//! curl, which comes with every system and speaks HTTP as most scripts do. Skipped without it.

use std::{
    io::Write,
    process::{Command, Output, Stdio},
};

use crate::{
    before, hyper_peer, monoio_http_peer,
    server::Server,
    support::{Backend, Balancer, noise},
};

/// A command that reads no configuration and no proxy from its surroundings; none if there is no
/// curl, which is said where it is seen even though the test passes.
fn curl(test: &str) -> Option<Command> {
    let works = Command::new("curl").arg("--version").output().is_ok_and(|o| o.status.success());
    if !works {
        // Not `eprintln!`, which is shown for failing tests only.
        let line = format!("SKIPPED {test}: curl is not installed\n");
        std::io::stderr().write_all(line.as_bytes()).expect("stderr is open");
        return None;
    }
    let mut command = Command::new("curl");
    command.args(["--disable", "--silent", "--show-error", "--noproxy", "*", "--max-time", "10"]);
    Some(command)
}

/// Runs it with this on its standard input.
fn run(command: &mut Command, input: &[u8]) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("there is a curl");
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it is our child");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    feeding.join().expect("writing does not panic").expect("curl reads its input");
    output
}

#[test]
fn curl_speaks_http10_to_peers_that_speak_http11() {
    let Some(mut curl) = curl("curl_speaks_http10_to_peers_that_speak_http11") else { return };
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
    let backend = Backend::answering(chunked);
    let balancer = Balancer::start(&[&backend]);
    curl.args(["--http1.0", "--include"]).arg(format!("http://{}/", balancer.address));
    let output = String::from_utf8(run(&mut curl, b"").stdout).expect("text");
    assert!(output.starts_with("HTTP/1.1 200 OK\r\n"), "{output}");
    assert!(!output.to_ascii_lowercase().contains("transfer-encoding"), "{output}");
    assert!(output.ends_with("\r\n\r\nhello"), "{output}");
}

#[test]
fn curl_waits_for_the_continue_of_a_hyper_backend_and_uploads() {
    let name = "curl_waits_for_the_continue_of_a_hyper_backend_and_uploads";
    let Some(mut curl) = curl(name) else { return };
    let server = Server::start(hyper_peer::serve_echo);
    let balancer = before(&server);
    let content = noise(1_500_000);
    curl.args(["--http1.1", "--verbose", "--header", "Expect: 100-continue"])
        // Longer than the whole may take: whoever does not pass the 100 on fails.
        .args(["--expect100-timeout", "20"])
        .args(["--data-binary", "@-"])
        .arg(format!("http://{}/", balancer.address));
    let output = run(&mut curl, &content);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("< HTTP/1.1 100 Continue"), "{log}");
    assert_eq!(output.stdout.len(), content.len());
    assert!(output.stdout == content, "other octets");
}

#[test]
fn curl_uploads_in_chunks_to_either_backend() {
    let Some(_) = curl("curl_uploads_in_chunks_to_either_backend") else { return };
    let content = noise(200_000);
    for server in
        [Server::start(hyper_peer::serve_echo), Server::start(monoio_http_peer::serve_echo)]
    {
        let balancer = before(&server);
        let mut curl = curl("").expect("it was there");
        curl.args(["--http1.1", "--upload-file", "-", "--header", "Expect:"])
            .arg(format!("http://{}/x", balancer.address));
        let output = run(&mut curl, &content);
        assert!(output.stdout == content, "{} octets came back", output.stdout.len());
    }
}

#[test]
fn curl_keeps_its_connection_from_one_request_to_the_next() {
    let name = "curl_keeps_its_connection_from_one_request_to_the_next";
    let Some(mut curl) = curl(name) else { return };
    let server = Server::start(monoio_http_peer::serve_echo);
    let balancer = before(&server);
    let report = ["--write-out", " %{http_code} %{num_connects}\n"];
    let url = |target: &str| format!("http://{}{target}", balancer.address);
    curl.args(report).args(["--data", "one"]).arg(url("/one"));
    curl.arg("--next").args(["--silent"]).args(report).arg(url("/two"));
    curl.arg("--next").args(["--silent"]).args(report);
    curl.args(["--header", "Transfer-Encoding: chunked", "--data", "three"]).arg(url("/three"));
    curl.arg("--next").args(["--silent", "--head", "--output", "/dev/null"]).args(report);
    curl.arg(url("/four"));
    let output = String::from_utf8(run(&mut curl, b"").stdout).expect("text");
    assert_eq!(output, "one 200 1\n 200 0\nthree 200 0\n 200 0\n");
}

#[test]
fn curl_reads_one_refusal_and_is_told_that_the_connection_ends() {
    let name = "curl_reads_one_refusal_and_is_told_that_the_connection_ends";
    let Some(mut curl) = curl(name) else { return };
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    curl.args(["--include", "--header", "Content-Length: 3", "--header", "Content-Length: 5"])
        .args(["--data", "hello"])
        .arg(format!("http://{}/", balancer.address));
    let output = String::from_utf8(run(&mut curl, b"").stdout).expect("text");
    assert!(output.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{output}");
    assert!(output.contains("Connection: close\r\n"), "{output}");
    assert!(output.contains("length_repeated"), "{output}");
    backend.assert_untouched();
}
