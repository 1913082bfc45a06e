#!/usr/bin/env bash
# @clerk/backend 3.25.0 (npm) takes an answer of Clerk's Backend API for JSON only if its Content-Type is letter for letter
# `application/json`. If anything on the way spells it in another valid way (`application/json; charset=utf-8`, as many proxies,
# mocks and mirrors do; `Application/JSON`), it parses nothing and raises nothing:
#   1. `getUserList()` succeeds with the page's text as `data`, so that a loop over "the users" goes through its characters;
#      `totalCount` is a text too,
#   2. `getUser()` succeeds with a string, whose `.id` is undefined,
#   3. an error keeps its status, but its `errors` are empty.
# Clerk's SDK for Python (clerk-backend-api 7.0.0) reads the same answers of the same server.
#
# Valid input: a page of two users. Needs node 20.9 or newer, npm, python3 with venv. Ends with 0 while both behave so, with 1 once
# one does not, with 69 if they cannot be installed here.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
{ npm init -y && npm install --no-audit --no-fund --ignore-scripts @clerk/backend@3.25.0 &&
  python3 -m venv python && python/bin/pip install --quiet clerk-backend-api==7.0.0 pydantic==2.14.4; } >install.log 2>&1 ||
  { echo "@clerk/backend or clerk-backend-api cannot be had here" >&2; exit 69; }
echo "@clerk/backend $(node -p 'require("./node_modules/@clerk/backend/package.json").version'), node $(node -v)"
python/bin/python -c 'from importlib.metadata import version; print("clerk-backend-api", version("clerk-backend-api"))'

cat > users.py <<'PY'
import sys
from clerk_backend_api import Clerk
with Clerk(bearer_auth="sk_test_example", server_url=sys.argv[1] + "/v1") as clerk:
    print(" ".join(user.id for user in clerk.users.list(request={})))
PY
cat > try.mjs <<'JS'
import { execFile } from "node:child_process";
import http from "node:http";
import { promisify } from "node:util";
import { createClerkClient } from "@clerk/backend";

const user = (id) => ({
  id, object: "user", external_id: null, username: null, first_name: "Ada", last_name: null, has_image: false, image_url: "",
  primary_email_address_id: null, primary_phone_number_id: null, primary_web3_wallet_id: null, public_metadata: {},
  email_addresses: [], phone_numbers: [], web3_wallets: [], passkeys: [], external_accounts: [], saml_accounts: [],
  enterprise_accounts: [], password_enabled: true, two_factor_enabled: false, totp_enabled: false, backup_code_enabled: false,
  mfa_enabled_at: null, mfa_disabled_at: null, last_sign_in_at: null, banned: false, locked: false,
  lockout_expires_in_seconds: null, verification_attempts_remaining: null, created_at: 1716883199900, updated_at: 1716883199950,
  delete_self_enabled: true, create_organization_enabled: true, last_active_at: null, legal_accepted_at: null,
});
const page = JSON.stringify([user("user_1"), user("user_2")]);
let type;
const server = http.createServer((request, response) => {
  const { pathname } = new URL(request.url, "http://clerk.test");
  const [status, body] = {
    "/v1/users": [200, page],
    "/v1/users/count": [200, '{"object":"total_count","total_count":2}'],
    "/v1/users/user_1": [200, JSON.stringify(user("user_1"))],
  }[pathname] ?? [404, '{"errors":[{"code":"resource_not_found","message":"not found"}]}'];
  response.writeHead(status, { "content-type": type });
  response.end(body);
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const address = `http://127.0.0.1:${server.address().port}`;
const clerk = createClerkClient({ secretKey: "sk_test_example", apiUrl: address });

let wrong = 0;
const expect = (what, seen, known) => {
  console.log(`   ${what}: ${JSON.stringify(seen)}`);
  if (seen !== known) { console.log(`   CHANGED, it was: ${JSON.stringify(known)}`); wrong = 1; }
};
for (const [spelling, parsed] of [["application/json", true], ["application/json; charset=utf-8", false], ["Application/JSON", false]]) {
  type = spelling;
  console.log(`Content-Type: ${type}`);
  const list = await clerk.users.getUserList();
  let rounds = 0;
  for (const _ of list.data) rounds += 1;
  expect("getUserList(): data is", Array.isArray(list.data) ? "a list" : typeof list.data, parsed ? "a list" : "string");
  expect("rounds of a loop over data", rounds, parsed ? 2 : page.length);
  expect("totalCount", list.totalCount, parsed ? 2 : '{"object":"total_count","total_count":2}');
  expect("getUser().id", (await clerk.users.getUser("user_1")).id, parsed ? "user_1" : undefined);
  const error = await clerk.users.getUser("user_3").catch((error) => error);
  expect("an unknown user: status and codes", `${error.status} ${error.errors.map(({ code }) => code)}`, parsed ? "404 resource_not_found" : "404 ");
  const { stdout } = await promisify(execFile)("python/bin/python", ["users.py", address]);
  expect("clerk-backend-api: ids", stdout.trim(), "user_1 user_2");
}
server.close();
process.exit(wrong);
JS
node try.mjs
