# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS chef
RUN cargo install cargo-chef --locked
WORKDIR /build

# What the dependencies are, without our own sources.
FROM chef AS recipe
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
# This layer lasts until a dependency changes.
COPY --from=recipe /build/recipe.json .
RUN cargo chef cook --release --locked --bin clerk-sync --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --bin clerk-sync && install -d -o 10001 -g 10001 /image/data

FROM debian:bookworm-slim
# To PostgreSQL the binary brings its own roots; requests to Clerk use the system's.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /build/target/release/clerk-sync /usr/local/bin/clerk-sync
COPY --from=build --chown=10001:10001 /image/data /data

# A database that outlives the container, to try things out; the program warns about it.
ENV DATABASE_URL=sqlite:///data/clerk-sync.db \
    HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
# There is no shell and no curl in here; the private listener is asked, which `worker` has as well.
HEALTHCHECK --interval=10s --timeout=6s --start-period=35s CMD ["/usr/local/bin/clerk-sync", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/clerk-sync"]
CMD ["serve"]
