"""The proxies that are compared, each with one worker and, as far as that goes, one configuration.

All keep connections alive on both sides, write no access log, balance by least connections, check
the health of their backends where they can, have their metrics on where they have any, and tell the
backend of the client in X-Forwarded-For, -Proto, -Host and Via. None limits the time or the size of
a body. What else a proxy does by default, it does.
"""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from processes import Child, Children, free_port, wait_for

# As many to all backends as ours keeps by default to three.
IDLE_CONNECTIONS = 384
CHECK_INTERVAL_S = 10


@dataclass(frozen=True)
class Site:
    """Where a proxy is to run, and in front of what."""

    host: str
    backends: list[str]
    cpus: list[int]
    workers: int = 1
    connections_max: int = 4096
    serves_streams: bool = False
    checks_health: bool = True
    group: Path | None = None
    """A cgroup's `cgroup.procs`, to start in."""


@dataclass(frozen=True)
class Proxy:
    """A proxy that answers."""

    kind: str
    child: Child
    host: str
    port: int

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}:{self.port}{path}"

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of one request on a connection of its own; 0 where none comes."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def has_all(self, backends: int) -> bool:
        """Whether it answers, and where it says how many backends are healthy, whether all are."""
        status, body = self.ask("/health")
        if status != 200:
            return False
        try:
            counts = json.loads(body).get("backends")
        except ValueError:
            return True
        return counts is None or bool(counts["healthy"] == backends)


@dataclass(frozen=True)
class Kind:
    """A proxy, or a way to run one."""

    key: str
    label: str
    program: str
    configure: Callable[[Path, Site, int, str], tuple[list[object], dict[str, str]]]
    """Writes its files (under this prefix, for this port), gives argv and environment."""

    def is_there(self) -> bool:
        return shutil.which(self.program) is not None

    def start(self, children: Children, site: Site, name: str = "") -> Proxy:
        """Starts it and waits until it answers."""
        name = name or self.key
        port = free_port(site.host)
        argv, env = self.configure(children.directory / name, site, port, self.program)
        if site.group:
            script = 'echo $$ >"$0" && exec "$@"'
            argv = ["sh", "-c", script, site.group / "cgroup.procs", *argv]
        child = children.start(name, argv, site.cpus, env)
        proxy = Proxy(self.key, child, site.host, port)
        count = len(site.backends)
        wait_for(lambda: proxy.has_all(count), f"an answer from {name}", [child])
        return proxy


def ours(program: str, key: str, label: str, **options: object) -> Kind:
    """Our balancer, as it is by default but for these options."""

    def configure(
        prefix: Path, site: Site, port: int, program: str
    ) -> tuple[list[object], dict[str, str]]:
        settings = {
            "upstream_service": ",".join(site.backends),
            "bind_address": f"{site.host}:{port}",
            "metrics_address": f"{site.host}:0",
            "admin_address": f"{site.host}:0",
            "workers": site.workers,
            "drain_grace": "0s",
            # Else it would wait for streams when it is told to end.
            "drain_timeout": "0s",
        } | options
        # A file, because an environment variable does not hold the names of 10,000 backends.
        path = prefix.with_suffix(".toml")
        path.write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        )
        return [program, "--config", path], {}

    return Kind(key, label, program, configure)


def nginx(prefix: Path, site: Site, port: int, program: str) -> tuple[list[object], dict[str, str]]:
    servers = " ".join(f"server {backend};" for backend in site.backends)
    temporary = " ".join(
        f"{kind}_temp_path {prefix}-{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    buffering = "proxy_buffering off;" if site.serves_streams else "proxy_max_temp_file_size 0;"
    path = prefix.with_suffix(".conf")
    path.write_text(f"""
daemon off;
worker_processes {site.workers};
pid {prefix}.pid;
error_log stderr warn;
events {{ worker_connections {site.connections_max}; }}
http {{
    access_log off;
    {temporary}
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 0;
    upstream backends {{
        least_conn;
        {servers}
        keepalive {IDLE_CONNECTIONS};
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen {site.host}:{port} backlog=4096 reuseport;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header Via "1.1 nginx";
        proxy_request_buffering off;
        {buffering}
        proxy_read_timeout 1h;
        proxy_send_timeout 1h;
        location / {{ proxy_pass http://backends; }}
        location = /nginx-status {{ stub_status; }}
    }}
}}
""")
    return [program, "-c", path, "-p", prefix.parent, "-e", f"{prefix}.error.log"], {}


def haproxy(mode: str) -> Callable[[Path, Site, int, str], tuple[list[object], dict[str, str]]]:
    http_frontend = """
    option http-no-delay
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request add-header Via "1.1 haproxy"
"""
    http_backend = """
    option http-no-delay
    http-reuse always
    option httpchk GET /health
"""

    def configure(
        prefix: Path, site: Site, port: int, program: str
    ) -> tuple[list[object], dict[str, str]]:
        check = f"check inter {CHECK_INTERVAL_S}s" if site.checks_health else ""
        servers = "\n".join(
            f"    server backend-{number} {backend} {check}"
            for number, backend in enumerate(site.backends)
        )
        path = prefix.with_suffix(".cfg")
        path.write_text(f"""
global
    nbthread {site.workers}
    maxconn {site.connections_max // 2 - 32}
defaults
    mode {mode}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-request 30s
    timeout http-keep-alive 1h
frontend clients
    bind {site.host}:{port} backlog 4096
    default_backend backends
{http_frontend if mode == "http" else ""}
backend backends
    balance leastconn
{http_backend if mode == "http" else ""}
    default-server pool-purge-delay 1h
{servers}
frontend metrics
    mode http
    bind {site.host}:{free_port(site.host)}
    http-request use-service prometheus-exporter
""")
        return [program, "-db", "-f", path], {}

    return configure


def envoy(prefix: Path, site: Site, port: int, program: str) -> tuple[list[object], dict[str, str]]:
    def address(host: str, port: int) -> dict[str, object]:
        return {"socket_address": {"address": host, "port_value": port}}

    endpoints = []
    for backend in site.backends:
        host, at = backend.rsplit(":", 1)
        endpoints.append({"endpoint": {"address": address(host, int(at))}})
    unlimited = {
        "max_connections": 1 << 20,
        "max_pending_requests": 1 << 20,
        "max_requests": 1 << 20,
        "max_retries": 3,
    }
    types = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "use_remote_address": True,
        "via": "envoy",
        "generate_request_id": False,
        "stream_idle_timeout": "0s",
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "request_headers_to_add": [
                        {"header": {"key": "X-Forwarded-Host", "value": "%REQ(:AUTHORITY)%"}}
                    ],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {"cluster": "backends", "timeout": "0s"},
                        }
                    ],
                }
            ]
        },
    }
    listener = {
        "address": address(site.host, port),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    check = {
        "timeout": "5s",
        "interval": f"{CHECK_INTERVAL_S}s",
        "unhealthy_threshold": 3,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/health"},
    }
    cluster = {
        "name": "backends",
        "type": "STATIC",
        "connect_timeout": "5s",
        "lb_policy": "LEAST_REQUEST",
        "health_checks": [check],
        "circuit_breakers": {"thresholds": [unlimited]},
        "load_assignment": {
            "cluster_name": "backends",
            "endpoints": [{"lb_endpoints": endpoints}],
        },
    }
    bootstrap = {
        "admin": {"address": address(site.host, free_port(site.host))},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }
    path = prefix.with_suffix(".json")
    path.write_text(json.dumps(bootstrap, indent=1))
    argv = [program, "-c", path, "--concurrency", site.workers, "--disable-hot-restart"]
    return [*argv, "-l", "warn"], {}


def all_kinds(balancer: str, envoy_program: str) -> list[Kind]:
    """Ours first, to which all are related."""
    return [
        ours(balancer, "ours", "this balancer"),
        ours(balancer, "ours-epoll", "this balancer, epoll", io_driver="epoll"),
        Kind("nginx", "nginx", "nginx", nginx),
        Kind("haproxy", "HAProxy, HTTP", "haproxy", haproxy("http")),
        Kind("haproxy-tcp", "HAProxy, TCP", "haproxy", haproxy("tcp")),
        Kind("envoy", "Envoy", envoy_program or "envoy", envoy),
    ]
