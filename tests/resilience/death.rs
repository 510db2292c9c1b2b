//! Backends that are killed, as `kill -9` does it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    child::Backend,
    load::{Asked, Load},
    support::{
        Process,
        process::{before, command},
    },
};

const CLIENTS: usize = 64;

/// Three backends, the program in front of them, and clients at work; then one backend is killed,
/// and work goes on.
fn kill_one_of_three(test: &str, method: &'static str) -> (Process, Vec<Backend>, Vec<Asked>) {
    let mut backends: Vec<_> =
        (0..3).map(|n| Backend::start(&format!("{test}-{n}"), "127.0.0.1:0")).collect();
    let addresses: Vec<_> = backends.iter().map(|b| b.address.to_string()).collect();
    let mut command = before(command(), &[]);
    command.env("UPSTREAM_SERVICE", addresses.join(","));
    let balancer = Process::start(command);
    balancer.wait_for_healthy(3);
    let load = Load::start(balancer.address, CLIENTS, method, |_| String::new());
    load.wait_for_more(10 * CLIENTS);
    backends[0].kill();
    load.wait_for_more(10 * CLIENTS);
    let asked = load.stop();
    (balancer, backends, asked)
}

#[test]
fn killing_one_of_three_backends_fails_no_get() {
    let (balancer, backends, asked) = kill_one_of_three("killed-get", "GET");
    let failed: Vec<_> = asked.iter().filter(|asked| !asked.succeeded()).collect();
    assert!(failed.is_empty(), "of {} failed {failed:?}", asked.len());
    // Every backend had its share, and the one that was killed was at work.
    assert!(backends.iter().all(|backend| !backend.executed().is_empty()));
    assert!(balancer.metrics().sum("stepflow_lb_retries_total", &[]) > 0);
    assert_eq!(balancer.metrics().sum("stepflow_lb_retry_budget_exhausted_total", &[]), 0);
}

#[test]
fn killing_one_of_three_backends_fails_only_the_posts_in_flight_there_and_repeats_none() {
    let (_balancer, backends, asked) = kill_one_of_three("killed-post", "POST");
    let mut executed = BTreeMap::<String, usize>::new();
    for target in backends.iter().flat_map(Backend::executed) {
        *executed.entry(target).or_default() += 1;
    }
    let repeated: Vec<_> = executed.iter().filter(|(_, times)| **times > 1).collect();
    assert!(repeated.is_empty(), "executed more than once: {repeated:?}");
    let at_the_dead: BTreeSet<_> = backends[0].executed().into_iter().collect();
    let failed: Vec<_> = asked.iter().filter(|asked| !asked.succeeded()).collect();
    for asked in &failed {
        let (status, body) = asked.answer.as_ref().expect("a failure is answered");
        assert_eq!((*status, body.starts_with("backend_closed")), (502, true), "{asked:?}");
        // It was read there, or lay in front of it unread; nobody else has got it.
        let elsewhere =
            executed.contains_key(&asked.target) && !at_the_dead.contains(&asked.target);
        assert!(!elsewhere, "{asked:?} was executed by another backend");
    }
    // One request of a client is at work at a time.
    assert!(failed.len() <= CLIENTS, "{failed:?}");
    let answered = asked.iter().filter(|asked| asked.succeeded());
    for asked in answered {
        assert_eq!(executed.get(&asked.target), Some(&1), "{asked:?}");
    }
}
