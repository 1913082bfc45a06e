# syntax=docker/dockerfile:1
#
#   docker build -t clerk-sync --build-arg REVISION="$(git rev-parse HEAD)" .
#
# The toolchain, cargo-chef and, by Cargo.lock, every crate have a version. Whoever wants the very same layers again also
# names the two base images by their digests, and the time of the commit:
#
#   docker buildx build -t clerk-sync --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" \
#     --output type=docker,rewrite-timestamp=true .
FROM rust:1.95-bookworm AS chef
RUN cargo install cargo-chef --version 0.1.73 --locked
WORKDIR /build

# What the dependencies are, without our own sources.
FROM chef AS recipe
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
# What does nothing until it is configured, and costs 2 MB: docs/tracing.md. Empty for an image without.
ARG FEATURES="otel,sentry"
# This layer lasts until a dependency changes.
COPY --from=recipe /build/recipe.json .
RUN cargo chef cook --profile dist --locked --bin clerk-sync --features "$FEATURES" --recipe-path recipe.json
COPY . .
RUN cargo build --profile dist --locked --bin clerk-sync --features "$FEATURES" && install -d -o 10001 -g 10001 /image/data

FROM debian:bookworm-slim
# To PostgreSQL the binary brings its own roots; requests to Clerk use the system's.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/dist/clerk-sync /usr/local/bin/clerk-sync
COPY --from=build --chown=10001:10001 /image/data /data

# A database that outlives the container, to try things out; the program warns about it.
ENV DATABASE_URL=sqlite:///data/clerk-sync.db \
    HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# There is no curl in here; the private listener is asked, which `worker` has as well.
HEALTHCHECK --interval=10s --timeout=6s --start-period=35s CMD ["/usr/local/bin/clerk-sync", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/clerk-sync"]
CMD ["serve"]

# Last, because they change with every commit.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="clerk-sync" \
      org.opencontainers.image.description="Keeps a database in step with Clerk: verified webhooks, applied exactly once and in the right order." \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
