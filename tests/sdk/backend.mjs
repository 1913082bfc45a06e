// Clerk's library for JavaScript reads everything that the fake Clerk shows.
import assert from "node:assert/strict";
import { createClerkClient } from "@clerk/backend";

const { CLERK_API_URL: apiUrl, CLERK_SECRET_KEY: secretKey, USERS } = process.env;
const clerk = createClerkClient({ apiUrl, secretKey });
const users = new Map();
for (let offset = 0; ; offset += 100) {
  const { data, totalCount } = await clerk.users.getUserList({ limit: 100, offset, orderBy: "+created_at" });
  assert.equal(totalCount, Number(USERS));
  for (const user of data) users.set(user.id, user);
  if (data.length < 100) break;
}
assert.equal(users.size, Number(USERS));
assert.equal(await clerk.users.getCount(), Number(USERS));
const wallets = [...users.values()].flatMap((user) => user.web3Wallets);
assert.ok(wallets.length > 0);
for (const { web3Wallet, verification } of wallets) {
  assert.ok(web3Wallet.startsWith("0x"));
  assert.equal(verification.strategy, "web3_metamask_signature");
}
const [one] = users.keys();
assert.deepEqual(await clerk.users.getUser(one), users.get(one));
assert.equal((await clerk.instance.get()).environmentType, "development");
await assert.rejects(
  clerk.users.getUser("user_nobody"),
  (error) => error.status === 404 && error.errors[0].code === "resource_not_found",
);
console.log(`@clerk/backend read ${users.size} users`);
