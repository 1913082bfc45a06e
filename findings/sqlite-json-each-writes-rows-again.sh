#!/usr/bin/env bash
# SQLite 3.54.1 (apsw 3.54.1.0, PyPI): `json_each` over an array of arrays gives `value` as text, and writes that text out anew for each
# place in the query that names `value`. A query that takes the columns of a row one by one (`value ->> 0`, `value ->> 1`, …) so has
# each row written out once a column. `jsonb_each`, since SQLite 3.51, gives the row in its binary form, and the same query over the
# same text takes a quarter of the time. The documentation says what `value` is for an array, and not what it costs to name it twice.
#
# Valid input: one JSON array of 200 rows of 48 short texts, read 20 times by each function, and the quickest time of each. Seen: with one
# column taken 1.7 times as long, with 48 columns 4.0 times (96 columns of rows of 96: 4.0 too). It counts as so from 2.5 times on.
# Needs python3 with venv. Ends with 0 while it is so, with 1 once it is not, with 69 if they cannot be had here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install --quiet apsw==3.54.1.0 || exit 69
venv/bin/python - <<'PY'
import json
import sys
import time

import apsw

COLUMNS, ROWS, TIMES = 48, 200, 20
rows = json.dumps([[f"row {row} column {column}" for column in range(COLUMNS)] for row in range(ROWS)])
database = apsw.Connection(":memory:")


def best(function, columns):
    taken = " + ".join(f"length(value ->> {column})" for column in range(columns))
    query = f"SELECT sum({taken}) FROM {function}(?)"
    times = []
    for _ in range(TIMES):
        began = time.process_time()
        found = database.execute(query, (rows,)).fetchall()
        times.append(time.process_time() - began)
    return min(times), found


print("SQLite", apsw.sqlite_lib_version())
ratios = []
for columns in (1, COLUMNS):
    (text, found), (binary, same) = best("json_each", columns), best("jsonb_each", columns)
    assert found == same
    ratios.append(text / binary)
    print(f"{columns:>2} columns: json_each {text * 1e3:.2f} ms, jsonb_each {binary * 1e3:.2f} ms, {ratios[-1]:.1f} times")
sys.exit(0 if ratios[1] >= 2.5 else 1)
PY
