// Creates clerk-sync's role and user, which docs/mongodb.md explains: mongosh "mongodb://root@host/app" users.js
//
// The role may not update or remove lines of the audit trail. MongoDB cannot revoke an action that a wider privilege grants, so
// the role lists every collection.

/// The value of TABLE_PREFIX.
const prefix = "";

const trail = ["audit_log", "audit_seals"];

const others = [
  "users", "organizations", "organization_memberships", "organization_invitations", "organization_domains", "roles",
  "permissions", "role_sets", "sessions", "waitlist_entries", "invitations", "subscriptions", "subscription_items",
  "payment_attempts", "plans", "enterprise_connections", "user_email_addresses", "user_phone_numbers",
  "user_external_accounts", "user_web3_wallets",
  "processed_webhooks", "entity_versions", "audit_actors", "webhook_queue", "outbox", "outbox_recipients", "outbox_sinks",
  "outbox_paused", "erasure_receipts", "sync_runs", "activity", "clerk_instance", "leases", "counters",
  "_clerk_sync_migrations",
];

const grow = ["find", "insert", "createCollection", "createIndex", "listIndexes"];

const on = (collections, actions) =>
  collections.map((name) => ({ resource: { db: db.getName(), collection: prefix + name }, actions }));

db.createRole({
  role: "clerkSync",
  roles: [],
  privileges: [
    ...on(trail, grow),
    ...on(others, [...grow, "update", "remove", "dropIndex"]),
    { resource: { db: db.getName(), collection: "" }, actions: ["listCollections", "dbStats"] },
  ],
});

db.createUser({
  user: "clerk_sync",
  pwd: require("fs").readFileSync("/run/secrets/mongodb-password", "utf8").trim(),
  roles: ["clerkSync"],
});
