#!/usr/bin/env bash
# MariaDB 10.11 (Debian's package): information_schema.INNODB_TRX goes on showing a transaction that has ended, for as long as
# somebody reads that table more often than every 0.1 s. The server answers from a copy, and each reading puts off the next copy. So
# a program that waits in a quick loop until a transaction is gone waits for ever, and two patient ones can hold up each other.
# MySQL 9.7 does the same. SHOW ENGINE INNODB STATUS tells the truth at any pace. Valid input: one row, updated and committed.
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

writer, reader = connection(), connection()
def run(over, statement):
    with over.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()

for statement in ["CREATE DATABASE shop", "CREATE TABLE shop.orders (id int PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO shop.orders VALUES (1)"]:
    run(writer, statement)
for pause in [0.02, 0.2]:
    run(writer, "START TRANSACTION")
    run(writer, "UPDATE shop.orders SET id = id + 1")
    time.sleep(0.3)
    shown = lambda: run(reader, "SELECT count(*) FROM information_schema.innodb_trx")[0][0]
    assert shown() == 1
    run(writer, "COMMIT")
    end = time.time() + 3
    while time.time() < end:
        time.sleep(pause)
        last = shown()
    print(f"read every {pause} s, 3 s after the commit: {last} transaction")
PY
venv/bin/python try.py "$folder/socket" >seen || { cat seen log >&2; exit 69; }

cat seen
expected="read every 0.02 s, 3 s after the commit: 1 transaction
read every 0.2 s, 3 s after the commit: 0 transaction"
if [ "$(cat seen)" = "$expected" ]; then
    echo "as found: what has ended is shown as long as it is asked for"
else
    echo "changed: look again" >&2
    exit 1
fi
