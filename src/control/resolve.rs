//! Asks DNS. The only place that names the resolver library.
//!
//! Order and search follow the system's own resolver, so that the balancer sees what other
//! programs on the machine see: `/etc/hosts` first, then the search list, each name at one server
//! after the other. Four things are done here instead of in the library:
//!
//! - *The search list.* The library hands back the error of the last name it tried, so a server
//!   failure at `workers.ns.svc` followed by NXDOMAIN at `workers.` would look like NXDOMAIN.
//! - *The order of servers.* The library asks two at once, or gives a dead first one all the time
//!   there is. Two servers with different views of the same names need strict order.
//! - *Hosts files.* A name that is there with one family has no records of the other.
//! - *Changes.* Both files are read again when they change, so a broken one heals.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::{self, ResponseCode},
        rr::{Name, RData, RecordType},
    },
    system_conf::parse_resolv_conf,
};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    config::Dns,
    plane::{Absence, Query, QueryKind, Resolution, ResolveFailure, Service},
};

/// Longest one server may take for one name, its retry over TCP included.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Rounds over all servers before a name counts as unanswered.
const ROUNDS: usize = 2;

/// Longest that one question may take, search list and all.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(15);

/// How often the files are looked at for changes.
const FILES_CHECK_PERIOD: Duration = Duration::from_secs(1);

/// Where the system keeps its servers and search list.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where the system keeps names that DNS is not asked for.
const HOSTS: &str = "/etc/hosts";

/// Asks DNS as the configuration and the system's files say.
pub struct Resolver {
    servers_override: Vec<SocketAddr>,
    files: Files,
    state: RefCell<State>,
}

#[derive(Debug)]
struct Files {
    resolv_conf: PathBuf,
    hosts: PathBuf,
}

/// Enough of a file's metadata to see that it changed.
type Stamp = Option<(SystemTime, u64)>;

struct State {
    active: Rc<Active>,
    stamps: [Stamp; 2],
    checked: Instant,
    /// Under which full name a relative one was found last.
    found: HashMap<Query, Name>,
}

/// One reading of the files.
struct Active {
    servers: Vec<TokioResolver>,
    search: Vec<Name>,
    ndots: usize,
    hosts: Hosts,
}

/// How one name fared at one server or at all of them.
enum Answer {
    Found(Lookup),
    Absent(Absence),
    Failed(ResolveFailure),
}

impl Resolver {
    /// Reads the system's files. Must be called within a Tokio runtime.
    pub fn new(dns: &Dns) -> Self {
        Self::with_files(dns, Path::new(RESOLV_CONF), Path::new(HOSTS))
    }

    /// As [`Resolver::new`], with other files than the system's.
    pub fn with_files(dns: &Dns, resolv_conf: &Path, hosts: &Path) -> Self {
        let files = Files { resolv_conf: resolv_conf.to_path_buf(), hosts: hosts.to_path_buf() };
        let state = State {
            stamps: files.stamps(),
            active: Rc::new(files.read(&dns.servers)),
            checked: Instant::now(),
            found: HashMap::new(),
        };
        Self { servers_override: dns.servers.clone(), files, state: RefCell::new(state) }
    }

    /// Asks one question. Always comes back, after 15 seconds at the latest.
    pub async fn resolve(&self, query: &Query) -> Resolution {
        self.refresh();
        let active = Rc::clone(&self.state.borrow().active);
        tokio::time::timeout(QUESTION_TIMEOUT, self.search(&active, query))
            .await
            .unwrap_or(Resolution::Failed(ResolveFailure::Timeout))
    }

    /// Reads the files again if they changed. Questions that are running keep what they have.
    fn refresh(&self) {
        let mut state = self.state.borrow_mut();
        if state.checked.elapsed() < FILES_CHECK_PERIOD {
            return;
        }
        state.checked = Instant::now();
        let stamps = self.files.stamps();
        if stamps != state.stamps {
            info!(files = ?self.files, "Resolver files changed: reading them again");
            state.stamps = stamps;
            state.active = Rc::new(self.files.read(&self.servers_override));
        }
    }

    async fn search(&self, active: &Active, query: &Query) -> Resolution {
        let Ok(name) = Name::from_str_relaxed(&*query.name) else {
            return Resolution::Failed(ResolveFailure::InvalidName);
        };
        if let Some(resolution) = active.in_hosts(&name, query.kind) {
            return resolution;
        }
        let names = active.candidates(&name);
        let last_found = self.state.borrow().found.get(query).cloned();
        let mut failure = None;
        let mut absence = Absence::NoSuchName;
        for candidate in &names {
            match active.ask(candidate, query.kind).await {
                Answer::Found(lookup) => {
                    if !name.is_fqdn() {
                        let mut state = self.state.borrow_mut();
                        state.found.insert(query.clone(), candidate.clone());
                    }
                    return resolution(&lookup, query.kind);
                }
                Answer::Absent(Absence::NoRecords) => absence = Absence::NoRecords,
                Answer::Absent(Absence::NoSuchName) => {}
                Answer::Failed(reason) => {
                    failure.get_or_insert(reason);
                    // A name further down the list would be somebody else's.
                    if last_found.as_ref() == Some(candidate) {
                        break;
                    }
                }
            }
        }
        failure.map_or(Resolution::Absent(absence), Resolution::Failed)
    }
}

impl Files {
    fn stamps(&self) -> [Stamp; 2] {
        [&self.resolv_conf, &self.hosts].map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    fn read(&self, servers: &[SocketAddr]) -> Active {
        let (config, mut options) = self.read_resolv_conf(servers);
        // Caching is the plane's business; retries and order are ours.
        options.cache_size = 0;
        options.timeout = SERVER_TIMEOUT;
        options.attempts = 0;
        options.num_concurrent_reqs = 1;
        options.max_active_requests = 256;
        let (domain, mut search, system_servers) = config.into_parts();
        if search.is_empty() {
            search.extend(domain);
        }
        let servers = match servers {
            [] => system_servers,
            servers => servers.iter().map(name_server).collect(),
        };
        let client = |server: NameServerConfig| {
            let config = ResolverConfig::from_name_servers(vec![server]);
            let mut builder =
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = options.clone();
            builder.build().inspect_err(|error| warn!(%error, "Cannot use a DNS server")).ok()
        };
        Active {
            servers: servers.into_iter().filter_map(client).collect(),
            search,
            ndots: options.ndots,
            hosts: self.read_hosts(),
        }
    }

    fn read_resolv_conf(&self, servers: &[SocketAddr]) -> (ResolverConfig, ResolverOpts) {
        let path = self.resolv_conf.display();
        let text = fs::read(&self.resolv_conf).map_err(|error| error.to_string());
        let parsed = text.and_then(|mut text| {
            // With servers of its own the balancer needs only the search list of the file, which
            // the parser refuses to give for a file without a server.
            if !servers.is_empty() {
                text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
            }
            parse_resolv_conf(text).map_err(|error| error.to_string())
        });
        match parsed {
            Ok(parsed) => parsed,
            Err(error) if servers.is_empty() => {
                warn!(
                    file = %path,
                    error,
                    "No DNS server is configured; asking 127.0.0.1:53 until this file names one"
                );
                (fallback(), ResolverOpts::default())
            }
            Err(error) => {
                warn!(file = %path, error, "No search list: relative names are asked as they are");
                (fallback(), ResolverOpts::default())
            }
        }
    }

    fn read_hosts(&self) -> Hosts {
        let mut hosts = Hosts::default();
        let read = fs::File::open(&self.hosts).and_then(|file| hosts.read_hosts_conf(file));
        if let Err(error) = read
            && error.kind() != std::io::ErrorKind::NotFound
        {
            warn!(file = %self.hosts.display(), %error, "Cannot read the hosts file");
        }
        hosts
    }
}

/// What the C library does without a configuration (resolv.conf(5)).
fn fallback() -> ResolverConfig {
    let server = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
    ResolverConfig::from_name_servers(vec![server])
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.to_vec())
}

impl Active {
    fn in_hosts(&self, name: &Name, kind: QueryKind) -> Option<Resolution> {
        let lookup = |kind| {
            let query = op::Query::query(name.clone(), record_type(kind));
            self.hosts.lookup_static_host(&query)
        };
        match (kind, lookup(kind)) {
            (QueryKind::Srv, _) => None,
            (_, Some(found)) => Some(resolution(&found, kind)),
            (QueryKind::A, None) => lookup(QueryKind::Aaaa).map(|_| NO_RECORDS),
            (QueryKind::Aaaa, None) => lookup(QueryKind::A).map(|_| NO_RECORDS),
        }
    }

    /// The full names that `name` may stand for, in the order in which they are tried
    /// (resolv.conf(5), `search` and `ndots`).
    fn candidates(&self, name: &Name) -> Vec<Name> {
        let absolute = || {
            let mut absolute = name.clone();
            absolute.set_fqdn(true);
            absolute
        };
        if name.is_fqdn() {
            return vec![name.clone()];
        }
        let mut names: Vec<Name> = self
            .search
            .iter()
            .filter_map(|domain| name.clone().append_domain(domain).ok())
            .collect();
        for candidate in &mut names {
            candidate.set_fqdn(true);
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let at = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(at, absolute());
        names
    }

    /// Asks one server after the other, and all of them again.
    async fn ask(&self, name: &Name, kind: QueryKind) -> Answer {
        let mut failure = ResolveFailure::Unreachable;
        for server in (0..ROUNDS).flat_map(|_| &self.servers) {
            let lookup = server.lookup(name.clone(), record_type(kind));
            // The library's own timeout does not cover the retry over TCP.
            let answer = match tokio::time::timeout(SERVER_TIMEOUT, lookup).await {
                Ok(Ok(lookup)) => Answer::Found(lookup),
                Ok(Err(error)) => negative(&error),
                Err(_) => Answer::Failed(ResolveFailure::Timeout),
            };
            match answer {
                Answer::Failed(reason) => failure = reason,
                Answer::Found(_) | Answer::Absent(_) => return answer,
            }
        }
        Answer::Failed(failure)
    }
}

const NO_RECORDS: Resolution = Resolution::Absent(Absence::NoRecords);

fn record_type(kind: QueryKind) -> RecordType {
    match kind {
        QueryKind::A => RecordType::A,
        QueryKind::Aaaa => RecordType::AAAA,
        QueryKind::Srv => RecordType::SRV,
    }
}

fn resolution(lookup: &Lookup, kind: QueryKind) -> Resolution {
    let records = lookup.answers();
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or(0);
    let ttl = Duration::from_secs(u64::from(ttl));
    match kind {
        QueryKind::A | QueryKind::Aaaa => {
            let addresses = records.iter().filter_map(|record| record.data.ip_addr());
            Resolution::Addresses { addresses: addresses.collect(), ttl }
        }
        QueryKind::Srv => {
            let services = records.iter().filter_map(|record| match &record.data {
                RData::SRV(srv) => Some(Service {
                    host: Arc::from(srv.target.to_ascii()),
                    port: srv.port,
                    priority: srv.priority,
                    weight: srv.weight,
                }),
                _ => None,
            });
            Resolution::Services { services: services.collect(), ttl }
        }
    }
}

fn negative(error: &NetError) -> Answer {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Answer::Absent(Absence::NoSuchName),
            // A referral to other servers is not a word about the name: this server does not
            // recurse for us.
            ResponseCode::NoError if none.ns.is_some() && none.soa.is_none() => {
                Answer::Failed(ResolveFailure::Refused)
            }
            ResponseCode::NoError => Answer::Absent(Absence::NoRecords),
            _ => Answer::Failed(ResolveFailure::ErrorCode),
        },
        NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)) => {
            Answer::Failed(ResolveFailure::ServerFailure)
        }
        NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused)) => {
            Answer::Failed(ResolveFailure::Refused)
        }
        NetError::Dns(_) => Answer::Failed(ResolveFailure::ErrorCode),
        NetError::Timeout => Answer::Failed(ResolveFailure::Timeout),
        NetError::Io(_) | NetError::NoConnections => Answer::Failed(ResolveFailure::Unreachable),
        NetError::Proto(_) | NetError::Truncated => Answer::Failed(ResolveFailure::Malformed),
        _ => Answer::Failed(ResolveFailure::Internal),
    }
}
