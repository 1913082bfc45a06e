#!/usr/bin/env bash
# segment-analytics-python 2.4.0 and rudder-sdk-python 2.1.9 (PyPI) take a naive datetime as `timestamp`, and which zone they take
# it to be in depends on how old it is: UTC, unless it is less than 5 s before the local wall clock or anywhere after it; then it
# is local. So where the machine's zone is not UTC, one line of code is right for some events and wrong for others:
#   1. West of Greenwich a naive UTC time (`utcnow()`, `utcfromtimestamp(created_at / 1000)`) is right, but for what happened within
#      the last hours, as many as the zone is behind: that is sent as so many hours later, and so lies in the future. Of two sign-ups 5
#      hours apart in the zone UTC-5 the receiver gets 10 hours.
#   2. East of it a naive local time (`datetime.now()`) is right for 5 s; the same value handed over after that, as from a queue, is
#      sent as a later time by the zone's offset.
# No warning is given. Datetimes with a zone are always right.
#
# Valid input: track() with a naive datetime, sent to a server here. Needs python3 with venv. Ends with 0 while it is so, with 1 once
# it is not, with 69 if they cannot be installed here.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
{ python3 -m venv python &&
  python/bin/pip install --quiet segment-analytics-python==2.4.0 rudder-sdk-python==2.1.9; } >install.log 2>&1 ||
  { echo "the packages cannot be had here" >&2; exit 69; }

cat > try.py <<'PY'
import gzip, http.server, importlib, json, os, sys, threading, time, warnings
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

warnings.simplefilter("ignore", DeprecationWarning)
received = []


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        received.extend(json.loads(body)["batch"])
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"


def utc(moment):
    return moment.astimezone(timezone.utc).replace(tzinfo=None)


def local(moment):
    return moment.astimezone().replace(tzinfo=None)


def zoned(moment):
    return moment


wrong = 0
for package, module in (
    ("segment-analytics-python", "segment.analytics.client"),
    ("rudder-sdk-python", "rudderstack.analytics.client"),
):
    print(package, version(package))
    client = importlib.import_module(module).Client("write-key", host=address, sync_mode=True)
    for zone, write, age, known in (
        ("EST5", utc, timedelta(hours=6), 0),
        ("EST5", utc, timedelta(hours=1), 5),
        ("EST5", zoned, timedelta(hours=1), 0),
        ("CET-1", local, timedelta(0), 0),
        ("CET-1", local, timedelta(seconds=20), 1),
        ("UTC0", utc, timedelta(hours=1), 0),
    ):
        os.environ["TZ"] = zone
        time.tzset()
        happened = datetime.now(timezone.utc) - age
        received.clear()
        client.track("user_1", "Signed Up", timestamp=write(happened))
        sent = datetime.fromisoformat(received[0]["timestamp"])
        late = round((sent - happened).total_seconds() / 3600, 3) + 0.0
        print(f"   machine in {zone}, {write.__name__} time of {age} ago: sent as {late} hours later than it was")
        if late != known:
            print(f"   CHANGED, it was: {known}")
            wrong = 1
sys.exit(wrong)
PY
python/bin/python try.py
