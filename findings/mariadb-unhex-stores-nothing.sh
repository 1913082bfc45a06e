#!/usr/bin/env bash
# MariaDB 10.11 (Debian's package): INSERT … SELECT unhex(column) stores an empty value where the column is a `longtext` and the
# statement also reads the table that it writes, as `WHERE NOT EXISTS (SELECT 1 FROM that_table …)` does. There is no error and no
# warning, in strict mode too. Without that condition, or from a `varchar` column, the bytes are stored. MySQL 9.7 stores them.
# Valid input: one row, whose text is ten hexadecimal digits.
#
# Ends with 0 while MariaDB behaves so, with 1 once it does not, with 69 if it cannot be installed here.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download mariadb-server-core >/dev/null 2>&1 || {
    echo "the Debian package mariadb-server-core cannot be had here" >&2
    exit 69
}
dpkg-deb -x mariadb-server-core_*.deb tree
mariadbd=$folder/tree/usr/sbin/mariadbd
version=$("$mariadbd" --no-defaults --version) || { echo "mariadbd does not run here: libraries are missing" >&2; exit 69; }
echo "${version##*mariadbd  }"

# One statement a line.
cat > try.sql <<SQL
CREATE DATABASE shop;
USE shop;
SET sql_mode = 'STRICT_ALL_TABLES';
CREATE TABLE given (name varchar(50), long_text longtext, short_text varchar(50)) ENGINE=InnoDB;
INSERT INTO given VALUES ('one', '776f726473', '776f726473');
CREATE TABLE kept (name varchar(50) PRIMARY KEY, bytes longblob) ENGINE=InnoDB;
INSERT INTO kept SELECT g.name, unhex(g.long_text) FROM given AS g WHERE NOT EXISTS (SELECT 1 FROM kept AS k WHERE k.name = g.name);
SELECT concat('longtext, reads its target: ', length(bytes), ' bytes') FROM kept INTO OUTFILE '$folder/1';
DELETE FROM kept;
INSERT INTO kept SELECT g.name, unhex(g.short_text) FROM given AS g WHERE NOT EXISTS (SELECT 1 FROM kept AS k WHERE k.name = g.name);
SELECT concat('varchar, reads its target: ', length(bytes), ' bytes') FROM kept INTO OUTFILE '$folder/2';
DELETE FROM kept;
INSERT INTO kept SELECT g.name, unhex(g.long_text) FROM given AS g;
SELECT concat('longtext, does not: ', length(bytes), ' bytes') FROM kept INTO OUTFILE '$folder/3';
SQL
mkdir data
# The whole life of a server in one process: it reads statements, and ends.
"$mariadbd" --no-defaults --user="$(id -un)" --datadir="$folder/data" --lc-messages-dir="$folder/tree/usr/share/mysql" \
    --bootstrap --innodb-log-file-size=8M < try.sql > log 2>&1 || { cat log >&2; exit 69; }

cat 1 2 3
expected="longtext, reads its target: 0 bytes
varchar, reads its target: 5 bytes
longtext, does not: 5 bytes"
if [ "$(cat 1 2 3)" = "$expected" ]; then
    echo "as found: the bytes are lost"
else
    echo "changed: look again" >&2
    exit 1
fi
