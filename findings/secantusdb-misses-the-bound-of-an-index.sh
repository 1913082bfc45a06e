#!/usr/bin/env bash
# SecantusDB 0.7.0b3 (PyPI), a server for tests that speaks MongoDB's protocol: a bound with `$lte` on the middle member of a compound
# index misses the documents that lie on the bound, if the index has another member behind it. Without the index, or with an index that
# ends with that member, the same query finds them. Nothing says that anything is missing. Whoever tests the claim of a queue against it
# ("due at this moment or before") sees entries that are due and are never claimed.
#
# Valid input: three documents with `state`, `due` 1, 2 and 3, and `n`; the query is state = "pending", due <= 2, which two of them meet.
# Seen: without an index 2, with an index (state, due) 2, with an index (state, due, n) 1. Needs python3 with venv. Ends with 0 while it
# is so, with 1 once it is not, with 69 if the packages cannot be had here.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv && venv/bin/pip install --quiet secantusdb==0.7.0b3 pymongo==4.20.1 || exit 69
port=$(venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
venv/bin/secantusd-py --port "$port" --storage-path "$folder/data" --cache-size 128M >log 2>&1 &
server=$!
venv/bin/python - "$port" <<'PY'
import sys
import time

import pymongo

client = pymongo.MongoClient(f"mongodb://127.0.0.1:{sys.argv[1]}/?directConnection=true", serverSelectionTimeoutMS=30000)
print("SecantusDB says that it is", client.server_info()["version"])
found = {}
for index in [None, ["state", "due"], ["state", "due", "n"]]:
    entries = client.trial["entries" + str(len(index or []))]
    if index:
        entries.create_index([(member, 1) for member in index])
    entries.insert_many([{"state": "pending", "due": due, "n": due} for due in (1, 2, 3)])
    found[str(index)] = entries.count_documents({"state": "pending", "due": {"$lte": 2}}), len(list(entries.find({"state": "pending", "due": {"$lte": 2}})))
    print(index, "counted and found:", found[str(index)])
sys.exit(0 if found["None"] == (2, 2) and found["['state', 'due']"] == (2, 2) and found["['state', 'due', 'n']"][1] == 1 else 1)
PY
