#!/usr/bin/env bash
# `verifyWebhook` of @clerk/fastify 3.1.79 (npm) always verifies JSON.stringify(request.body). So no parser that
# Fastify can be given makes it take every genuine delivery of Clerk:
#   1. If the route keeps the bytes as they came (a Buffer or a string, what every guide to signatures asks for), each delivery is
#      refused with "No matching signature found", also the plainest one.
#   2. If Fastify parses the body, a delivery is refused whose JSON JavaScript would have written otherwise: a user whose metadata
#      has the keys "10" and "2" in this order, a number 1.0, an ampersand as \u0026 (as Go writes it), an integer above 2^53.
#      Such a user is refused at every attempt, and others are not.
# The same deliveries are all taken by the same vendor's @clerk/backend 3.25.0, and by @clerk/express 2.1.70 over the raw body.
#
# Valid input: one user.updated, signed once for each body, sent to servers of Fastify and Express. Needs node 20.9 or newer and
# npm. Ends with 0 while it is so, with 1 once it is not, with 69 if the packages cannot be installed here.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
{ npm init -y && npm install --no-audit --no-fund --ignore-scripts --legacy-peer-deps @clerk/backend@3.25.0 @clerk/fastify@3.1.79 \
    @clerk/express@2.1.70 fastify@5.12.8 express@5.3.0 standardwebhooks@1.1.1; } >install.log 2>&1 ||
  { echo "the packages cannot be had here" >&2; exit 69; }
for package in @clerk/backend @clerk/fastify @clerk/express fastify express; do
    echo "$package $(node -p "JSON.parse(fs.readFileSync('node_modules/$package/package.json')).version")"
done

cat > try.mjs <<'JS'
import { randomBytes } from "node:crypto";
import express from "express";
import Fastify from "fastify";
import { verifyWebhook } from "@clerk/backend/webhooks";
import { verifyWebhook as verifyExpress } from "@clerk/express/webhooks";
import { verifyWebhook as verifyFastify } from "@clerk/fastify/webhooks";
import { Webhook } from "standardwebhooks";

const signingSecret = "whsec_" + randomBytes(24).toString("base64");
const bodies = Object.entries({
  "plain": '{"plan":"pro"}',
  'keys "10", "2"': '{"10":"b","2":"a"}',
  "1.0": '{"score":1.0}',
  "\\u0026": '{"firm":"Example \\u0026 Daughters"}',
  "2^53 + 1": '{"number":9007199254740993}',
}).map(([name, metadata]) => [name, `{"data":{"id":"user_1","object":"user","public_metadata":${metadata}},"object":"event","type":"user.updated"}`]);

const answer = async (verified) => verified.then((event) => event.type, (error) => error.message);
async function fastify(parser) {
  const app = Fastify();
  if (parser) app.addContentTypeParser("application/json", { parseAs: parser }, (_request, body, done) => done(null, body));
  app.post("/", (request) => answer(verifyFastify(request, { signingSecret })));
  return [await app.listen({ port: 0, host: "127.0.0.1" }), () => app.close()];
}
async function overExpress(parser) {
  const app = express();
  app.post("/", parser, async (request, response) => response.send(await answer(verifyExpress(request, { signingSecret }))));
  const server = await new Promise((done) => { const server = app.listen(0, "127.0.0.1", () => done(server)); });
  return [`http://127.0.0.1:${server.address().port}`, () => server.close()];
}
const ways = {
  "@clerk/backend": [null, "all"],
  "@clerk/express, raw": [await overExpress(express.raw({ type: "application/json" })), "all"],
  "@clerk/fastify, parsed": [await fastify(), "plain"],
  "@clerk/fastify, raw as Buffer": [await fastify("buffer"), "none"],
  "@clerk/fastify, raw as string": [await fastify("string"), "none"],
};

let wrong = 0;
for (const [way, [at, takes]] of Object.entries(ways)) {
  console.log(way);
  for (const [name, body] of bodies) {
    const now = new Date();
    const headers = {
      "content-type": "application/json",
      "svix-id": "msg_1",
      "svix-timestamp": String(Math.floor(now / 1000)),
      "svix-signature": new Webhook(signingSecret).sign("msg_1", now, body),
    };
    const seen = at
      ? await (await fetch(at[0], { method: "POST", headers, body })).text()
      : await answer(verifyWebhook(new Request("http://receiver.test/", { method: "POST", headers, body }), { signingSecret }));
    const taken = seen === "user.updated";
    const refused = seen.includes("No matching signature found");
    console.log(`   ${name}: ${taken ? "taken" : refused ? "No matching signature found" : seen}`);
    const known = takes === "all" || (takes === "plain" && name === "plain");
    if (known ? !taken : !refused) { console.log(`   CHANGED, it was ${known ? "taken" : "refused"}`); wrong = 1; }
  }
}
for (const [at] of Object.values(ways)) at?.[1]();
process.exit(wrong);
JS
node try.mjs
