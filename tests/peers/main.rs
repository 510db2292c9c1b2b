//! The balancer between HTTP implementations that are not ours: monoio-http, hyper and curl, as
//! clients and as backends.
//!
//! `tests/http` plays both ends octet by octet and knows what it wants to see. Here nobody knows:
//! whatever these peers send is what they usually send, and what they understand is what counts.
//! The health checks reach them too, so a backend that is found healthy has already understood one
//! request of ours.

// The suite in `tests/http` uses all of it.
#[expect(dead_code, unused_imports, reason = "only the balancer and a few helpers are needed here")]
#[path = "../support/mod.rs"]
mod support;

mod curl;
mod echo;
mod hyper_peer;
mod monoio_http_peer;
mod server;

use echo::{Exchange, exchanges};
use server::Server;
use support::Balancer;

/// A balancer in front of a server, once the server has been found healthy.
fn before(server: &Server) -> Balancer {
    let setup = Balancer::before(&[]).with("upstream_service", &server.address.to_string());
    let balancer = setup.start_unready();
    balancer.wait_for_healthy(1);
    balancer
}

#[test]
fn every_exchange_passes_whole_between_any_two_peers() {
    for (server_name, server) in [
        ("monoio-http", Server::start(monoio_http_peer::serve_echo)),
        ("hyper", Server::start(hyper_peer::serve_echo)),
    ] {
        let balancer = before(&server);
        for (client_name, client) in [
            ("monoio-http", monoio_http_peer::ask as fn(_, &[Exchange]) -> _),
            ("hyper", hyper_peer::ask),
        ] {
            let (exchanges, pair) = (exchanges(), format!("{client_name} to {server_name}"));
            let echoes = client(balancer.address, &exchanges);
            assert_eq!(echoes.len(), exchanges.len(), "{pair}");
            for (echo, exchange) in echoes.iter().zip(&exchanges) {
                echo.assert_answers(exchange, &pair);
            }
            // One connection of the client's, so one worker, and one connection of that worker's.
            let connections: Vec<_> = echoes.iter().map(|echo| &echo.connection).collect();
            assert!(connections.iter().all(|c| *c == connections[0]), "{pair}: {connections:?}");
        }
    }
}

#[test]
fn requests_that_monoio_http_pipelines_are_answered_in_order() {
    for server in
        [Server::start(monoio_http_peer::serve_echo), Server::start(hyper_peer::serve_echo)]
    {
        let balancer = before(&server);
        let exchanges = exchanges();
        let echoes = monoio_http_peer::ask_pipelined(balancer.address, &exchanges);
        assert_eq!(echoes.len(), exchanges.len());
        for (echo, exchange) in echoes.iter().zip(&exchanges) {
            echo.assert_answers(exchange, "pipelined");
        }
    }
}
