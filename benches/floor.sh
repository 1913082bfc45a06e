#!/usr/bin/env bash
# What the same rows cost PostgreSQL without clerk-sync: processor time per event, for docs/design/speed.md.
#
#   benches/floor.sh PROGRAM      PROGRAM is a clerk-sync binary, which creates the tables
#
# pgbench writes the rows of 64 events, half of them about new users, in one transaction: ids, registers, users, audit lines and
# their actors. It uses two connections for ten seconds. The script needs psql, pgbench, and a PostgreSQL on this machine that
# FLOOR_URL names (default postgres://postgres@127.0.0.1:5432). It creates and drops the database clerk_bench_floor there.
set -euo pipefail
url=${FLOOR_URL:-postgres://postgres@127.0.0.1:5432}
name=clerk_bench_floor
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"; psql --quiet --command "DROP DATABASE IF EXISTS $name" "$url/postgres"' EXIT

ask() { psql --quiet --no-psqlrc --tuples-only --no-align --command "$1" "$url/$name"; }

psql --quiet --command "CREATE DATABASE $name" "$url/postgres"
DATABASE_URL="$url/$name" "$program" migrate >/dev/null 2>&1
ask "SET search_path = clerk;
     INSERT INTO users (clerk_id, email, first_name, last_name, image_url, created_at, updated_at, synced_at)
     SELECT 'user_0' || lpad(n::text, 27, '0'), n || '@example.com', 'Ada', 'Byron', 'https://img.clerk.com/sample', now(), now(), now()
     FROM generate_series(1, 10000) AS n;
     INSERT INTO entity_versions (kind, clerk_id, version, event_at, tie, deleted)
     SELECT 'user', 'user_0' || lpad(n::text, 27, '0'), 1, 1, 'msg', false FROM generate_series(1, 10000) AS n;
     CREATE SEQUENCE batch START 100000;"
ask "VACUUM (ANALYZE) clerk.users, clerk.entity_versions"

cat >"$folder/events" <<'SQL'
SELECT nextval('clerk.batch') AS b \gset
BEGIN;
INSERT INTO clerk.processed_webhooks (svix_id, event_type, outcome, clerk_id, event_at, processed_at) SELECT 'msg_' || lpad((:b * 64 + n)::text, 27, '0'), 'user.updated', 'applied', 'user_' || lpad((:b * 64 + n)::text, 28, '0'), now(), now() FROM generate_series(1, 64) AS n;
INSERT INTO clerk.entity_versions (kind, clerk_id, version, event_at, tie, deleted) SELECT 'user', 'user_1' || lpad((:b * 64 + n)::text, 27, '0'), 1, 1, 'msg', false FROM generate_series(1, 32) AS n;
UPDATE clerk.entity_versions AS v SET version = version + 1, tie = 'next' FROM generate_series(1, 32) AS n WHERE v.kind = 'user' AND v.clerk_id = 'user_0' || lpad((1 + (:b * 32 + n)::bigint * 7919 % 9999)::text, 27, '0');
INSERT INTO clerk.users (clerk_id, email, first_name, last_name, image_url, created_at, updated_at, synced_at) SELECT 'user_1' || lpad((:b * 64 + n)::text, 27, '0'), (:b * 64 + n) || '@example.com', 'Ada', 'Byron', 'https://img.clerk.com/sample', now(), now(), now() FROM generate_series(1, 32) AS n;
UPDATE clerk.users AS u SET first_name = 'Ada ' || :b, updated_at = now(), synced_at = now() FROM generate_series(1, 32) AS n WHERE u.clerk_id = 'user_0' || lpad((1 + (:b * 32 + n)::bigint * 7919 % 9999)::text, 27, '0');
WITH lines AS (INSERT INTO clerk.audit_log (at, action, clerk_id, svix_id, source, changed_fields, event_at) SELECT now(), 'USER_UPDATED', 'user_1' || lpad((:b * 64 + n)::text, 27, '0'), 'msg_' || lpad((:b * 64 + n)::text, 27, '0'), 'webhook', '{email,first_name}', now() FROM generate_series(1, 64) AS n RETURNING id) INSERT INTO clerk.audit_actors (audit_id, ip, user_agent) SELECT id, '203.0.113.7', 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36' FROM lines;
COMMIT;
SQL

ticks() {
    local sum=0 pid
    for pid in $pids; do sum=$((sum + $(awk '{print $14 + $15}' "/proc/$pid/stat"))); done
    echo "$sum"
}

pgbench --no-vacuum --protocol=prepared --client=2 --time=10 --file="$folder/events" "$url/$name" >"$folder/told" 2>&1 &
sleep 2
pids=$(ask "SELECT pid FROM pg_stat_activity WHERE datname = '$name' AND application_name = 'pgbench'")
before=$(ticks) first=$(ask "SELECT last_value FROM clerk.batch")
sleep 6
after=$(ticks) last=$(ask "SELECT last_value FROM clerk.batch")
wait $! || { cat "$folder/told" >&2 && exit 1; }
events=$(((last - first) * 64))
echo "$events events in 6 s, $(((after - before) * 1000000 / $(getconf CLK_TCK) / events)) µs of PostgreSQL's processor time each"
