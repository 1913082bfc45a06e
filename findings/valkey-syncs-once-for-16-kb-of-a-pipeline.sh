#!/usr/bin/env bash
# Valkey 8.0.1 (Debian backports, 8.0.1+dfsg1-1~bpo12+1) with `appendfsync always` calls fdatasync once for every 16 kB that it reads of a
# client, not once for a pipeline: a pipeline of 100 XADD of 3.4 kB each, sent in one write, costs some 20 syncs, and the client
# waits for all of them. The same commands between MULTI and EXEC cost one or two. "Always" is documented as one sync for each batch of
# commands that were received at the same time; nothing says that a batch ends where 16 kB were read.
#
# Valid input: the 100 commands, once as they are and once between MULTI and EXEC; the calls of fdatasync are counted by strace. Seen: 22
# and 1. It counts as so if there are five times as many. Needs apt-get, dpkg-deb, python3 and strace on Debian 12. Ends with 0 while it
# is so, with 1 once it is not, with 69 if they cannot be had here.
set -euo pipefail
command -v strace >/dev/null && command -v apt-get >/dev/null || exit 69
folder=$(mktemp -d)
# The server is the child of strace.
trap 'pkill -P "${server:-0}" || true; sleep 1; rm -rf "$folder"' EXIT
cd "$folder"
mkdir -p cache/archives/partial lists/partial packages root
: >status
printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian %s main\n' bookworm \
    bookworm-backports >sources.list
printf '%s "%s";\n' Dir::Etc::sourcelist "$folder/sources.list" Dir::Etc::sourceparts /dev/null Dir::State::lists "$folder/lists" \
    Dir::State::status "$folder/status" Dir::Cache "$folder/cache" Acquire::Languages none >apt.conf
export APT_CONFIG=$folder/apt.conf
apt-get -qq update 2>/dev/null || exit 69
(cd packages && apt-get -qq download valkey-server=8.0.1+dfsg1-1~bpo12+1 valkey-tools=8.0.1+dfsg1-1~bpo12+1 liblzf1 libjemalloc2 libatomic1 \
    2>/dev/null && for package in *.deb; do dpkg-deb --extract "$package" ../root; done) || exit 69
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
LD_LIBRARY_PATH=$folder/root/usr/lib/x86_64-linux-gnu strace -f -e trace=fdatasync -o trace root/usr/bin/valkey-server --bind 127.0.0.1 \
    --port "$port" --dir "$folder" --save "" --appendonly yes --appendfsync always >log &
server=$!
python3 - "$port" <<'PY'
import socket
import sys
import time


def command(*words):
    words = [word.encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def syncs():
    with open("trace") as trace:
        return sum("fdatasync(" in line for line in trace)


def ask(text, last):
    client.sendall(text)
    answer = b""
    while not answer.endswith(last):
        answer += client.recv(1 << 20)


for _ in range(100):
    try:
        client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        break
    except OSError:
        time.sleep(0.1)
entries = command("XADD", "stream", "*", "body", "x" * 3400) * 100
ask(command("PING"), b"PONG\r\n")
counts = []
for text in (entries, command("MULTI") + entries + command("EXEC")):
    time.sleep(0.5)
    before = syncs()
    ask(text + command("PING"), b"PONG\r\n")
    time.sleep(0.5)
    counts.append(syncs() - before)
print(f"100 commands of 3.4 kB: {counts[0]} syncs as they are, {counts[1]} between MULTI and EXEC")
sys.exit(0 if counts[0] >= 5 * max(counts[1], 1) else 1)
PY
