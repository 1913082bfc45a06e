#!/usr/bin/env bash
# MariaDB 10.11 (Debian's package): in a session whose innodb_lock_wait_timeout is 0, `SELECT … FOR UPDATE SKIP LOCKED` does not
# skip a row that another transaction has locked. It fails with 1180, "Got error 1 "Operation not permitted" during COMMIT", though
# nothing is being committed. With 1, or where no row is locked, it works; so a program finds out only under load. 0 is an allowed
# value and means not to wait, and `NOWAIT` says 1205 with it as it should. MariaDB 11.8 does the same. MySQL makes 1 of a 0.
# Valid input: three rows, one of them locked.
#
# Ends with 0 while MariaDB behaves so, with 1 once it does not, with 69 if it cannot be installed here.
set -euo pipefail

folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; wait; rm -rf "$folder"' EXIT
cd "$folder"
{ apt-get download mariadb-server-core && python3 -m venv venv && venv/bin/pip install --quiet PyMySQL==1.1.2; } >log 2>&1 || {
    echo "the Debian package mariadb-server-core or PyMySQL 1.1.2 cannot be had here" >&2
    exit 69
}
dpkg-deb -x mariadb-server-core_*.deb tree
mariadbd=$folder/tree/usr/sbin/mariadbd
version=$("$mariadbd" --no-defaults --version) || { echo "mariadbd does not run here: libraries are missing" >&2; exit 69; }
echo "${version##*mariadbd  }"

mkdir data
"$mariadbd" --no-defaults --user="$(id -un)" --datadir="$folder/data" --lc-messages-dir="$folder/tree/usr/share/mysql" \
    --skip-grant-tables --skip-networking --socket="$folder/socket" --innodb-log-file-size=8M >>log 2>&1 &
server=$!

cat >try.py <<'PY'
import sys, time, pymysql

def connection():
    for _ in range(150):
        try:
            return pymysql.connect(unix_socket=sys.argv[1], user="root", autocommit=True)
        except pymysql.Error:
            time.sleep(0.1)
    sys.exit("the server does not answer")

holder, reader = connection(), connection()
def run(over, statement):
    with over.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()

for statement in ["CREATE DATABASE shop", "CREATE TABLE shop.jobs (id int PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO shop.jobs VALUES (1), (2), (3)"]:
    run(holder, statement)
def skips(timeout):
    run(reader, f"SET SESSION innodb_lock_wait_timeout = {timeout}")
    run(reader, "START TRANSACTION")
    try:
        return [row[0] for row in run(reader, "SELECT id FROM shop.jobs ORDER BY id FOR UPDATE SKIP LOCKED")]
    except pymysql.Error as error:
        return f"error {error.args[0]}"
    finally:
        run(reader, "ROLLBACK")
print("timeout 0, nothing locked:", skips(0))
run(holder, "START TRANSACTION")
run(holder, "SELECT id FROM shop.jobs WHERE id = 1 FOR UPDATE")
for timeout in [1, 0]:
    print(f"timeout {timeout}, row 1 locked:", skips(timeout))
PY
venv/bin/python try.py "$folder/socket" >seen || { cat seen log >&2; exit 69; }

cat seen
expected="timeout 0, nothing locked: [1, 2, 3]
timeout 1, row 1 locked: [2, 3]
timeout 0, row 1 locked: error 1180"
if [ "$(cat seen)" = "$expected" ]; then
    echo "as found: it does not skip"
else
    echo "changed: look again" >&2
    exit 1
fi
