# The balancer as an image: docker build -t stepflow-load-balancer .
#
# Two stages, no build secrets, no network in the second. `scripts/image-test.py` builds the same
# stages without a registry and runs the result as root-less, read-only and sandboxed as
# deploy/kubernetes.yaml does.

ARG RUST_VERSION=1.95
ARG DEBIAN_RELEASE=bookworm

FROM rust:${RUST_VERSION}-${DEBIAN_RELEASE} AS builder
WORKDIR /build
# Dependencies first, against an empty program: this layer is rebuilt only when the lock file is.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src \
    && echo 'fn main() {}' > src/main.rs \
    && touch src/lib.rs \
    && cargo build --release --locked \
    && rm -r src
COPY src src
# Cargo compares times, and the files of the program may be older than the empty ones were.
RUN touch src/main.rs src/lib.rs \
    && cargo build --release --locked

FROM debian:${DEBIAN_RELEASE}-slim
RUN groupadd --gid 1000 stepflow \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin stepflow
COPY --from=builder /build/target/release/stepflow-load-balancer /usr/local/bin/
# By number, so that `runAsNonRoot` can be checked without reading the image's /etc/passwd.
USER 1000:1000
# Clients and metrics. Nothing is written to the file system, so it can be mounted read-only.
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# No HEALTHCHECK: GET /health on 8080 is for the orchestrator's probes, and the image has no client.
ENTRYPOINT ["/usr/local/bin/stepflow-load-balancer"]
