# syntax=docker/dockerfile:1
#
#   docker build -t clerk-sync --build-arg REVISION="$(git rev-parse HEAD)" .
#
# The versions of the toolchain, of its two additions and (by Cargo.lock) of every crate are fixed. The binary holds the list of
# its crates: `cargo audit bin` and image scanners read it. For reproducible layers also name
# the two base images by digest, and set the time of the commit:
#
#   docker buildx build -t clerk-sync --build-arg SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" \
#     --output type=docker,rewrite-timestamp=true .
FROM rust:1.95-bookworm AS chef
RUN cargo install cargo-chef --version 0.1.73 --locked && cargo install cargo-auditable --version 0.7.7 --locked
WORKDIR /build

# Computes the list of dependencies, without clerk-sync's own sources.
FROM chef AS recipe
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
# These features do nothing until you configure them, and add 2 MB: docs/tracing.md. Set it empty to leave them out.
ARG FEATURES="otel,sentry"
# Docker reuses this layer until a dependency changes.
COPY --from=recipe /build/recipe.json .
RUN cargo chef cook --profile dist --locked --bin clerk-sync --features "$FEATURES" --recipe-path recipe.json
COPY . .
RUN cargo auditable build --profile dist --locked --bin clerk-sync --features "$FEATURES" && install -d -o 10001 -g 10001 /image/data

FROM debian:bookworm-slim
# The binary has its own root certificates for PostgreSQL; requests to Clerk use the system's.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/dist/clerk-sync /usr/local/bin/clerk-sync
COPY --from=build --chown=10001:10001 /image/data /data

# A database on the volume, to try clerk-sync out. clerk-sync warns about it.
ENV DATABASE_URL=sqlite:///data/clerk-sync.db \
    HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# The image has no curl. The command asks the private listener, which `worker` has as well.
HEALTHCHECK --interval=10s --timeout=6s --start-period=35s CMD ["/usr/local/bin/clerk-sync", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/clerk-sync"]
CMD ["serve"]

# These are last because they change with every commit.
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="clerk-sync" \
      org.opencontainers.image.description="Keeps a database in step with Clerk: verified webhooks, applied exactly once and in the right order." \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
