#!/usr/bin/env bash
# Caddy 2.6 (Debian's package): with `lb_retry_match { method POST }` a request that one upstream dropped is sent to the next
# one with its Content-Length and without its body, also with `buffer_requests`. Valid input: a plain POST of 15 bytes, and an
# upstream that closes the connection. Receivers that verify signatures see a truncated or an empty body.
#
# Ends with 0 while Caddy behaves so, with 1 once it does not, with 69 if it cannot be installed here.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get download caddy >/dev/null 2>&1 || { echo "the Debian package caddy cannot be had here" >&2; exit 69; }
dpkg-deb -x caddy_*.deb tree
caddy=$folder/tree/usr/bin/caddy
"$caddy" version

cat > try.py <<'PY'
import http.client, http.server, socket, subprocess, sys, threading, time

received = []

class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        announced = int(self.headers["content-length"])
        received.append((announced, self.rfile.read(announced)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=receiver.serve_forever, daemon=True).start()

# An upstream that restarts: it reads the request and closes.
restarting = socket.create_server(("127.0.0.1", 0))

def restart():
    while True:
        connection, _ = restarting.accept()
        connection.recv(65536)
        connection.close()

threading.Thread(target=restart, daemon=True).start()

free = socket.create_server(("127.0.0.1", 0))
port = free.getsockname()[1]
free.close()
with open("Caddyfile", "w") as file:
    file.write(f"""{{
	admin off
	auto_https off
}}
http://127.0.0.1:{port} {{
	reverse_proxy 127.0.0.1:{restarting.getsockname()[1]} 127.0.0.1:{receiver.server_port} {{
		lb_policy round_robin
		lb_retries 2
		lb_retry_match {{
			method POST
		}}
		buffer_requests
	}}
}}
""")
caddy = subprocess.Popen([sys.argv[1], "run", "--config", "Caddyfile", "--adapter", "caddyfile"], stderr=subprocess.DEVNULL)
try:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
    for _ in range(6):
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        client.request("POST", "/", body=b"hello, receiver")
        print("answered", client.getresponse().status)
        client.close()
    time.sleep(1)
finally:
    caddy.terminate()
    caddy.wait()
print("the other upstream received (announced bytes, body):", received)
sys.exit(0 if (15, b"") in received else 1)
PY
python3 try.py "$caddy"
