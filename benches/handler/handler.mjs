// The handler that a team writes after a tutorial: verify the request, check whether it was processed, write the user, record the
// id. Its settings are DATABASE_URL, CLERK_WEBHOOK_SIGNING_SECRET and PORT. It prints one line when it is ready.
import { drizzle } from "drizzle-orm/mysql2";
import { eq } from "drizzle-orm";
import { bigint, datetime, mysqlTable, varchar } from "drizzle-orm/mysql-core";
import express from "express";
import mysql from "mysql2/promise";
import { Webhook } from "svix";

const users = mysqlTable("users", {
  id: bigint({ mode: "number" }).autoincrement().primaryKey(),
  clerkId: varchar("clerk_id", { length: 255 }).notNull().unique(),
  email: varchar({ length: 255 }),
  firstName: varchar("first_name", { length: 255 }),
  lastName: varchar("last_name", { length: 255 }),
  imageUrl: varchar("image_url", { length: 1024 }),
  updatedAt: datetime("updated_at", { fsp: 3 }),
});
const processedWebhooks = mysqlTable("processed_webhooks", {
  svixId: varchar("svix_id", { length: 255 }).primaryKey(),
  processedAt: datetime("processed_at", { fsp: 3 }).notNull(),
});

const pool = mysql.createPool(process.env.DATABASE_URL);
await pool.query(`CREATE TABLE IF NOT EXISTS users (
  id bigint AUTO_INCREMENT PRIMARY KEY, clerk_id varchar(255) NOT NULL UNIQUE, email varchar(255), first_name varchar(255),
  last_name varchar(255), image_url varchar(1024), updated_at datetime(3))`);
await pool.query(
  "CREATE TABLE IF NOT EXISTS processed_webhooks (svix_id varchar(255) PRIMARY KEY, processed_at datetime(3) NOT NULL)",
);
const db = drizzle(pool);
const webhook = new Webhook(process.env.CLERK_WEBHOOK_SIGNING_SECRET);

const row = ({ id, email_addresses, primary_email_address_id, first_name, last_name, image_url, updated_at }) => ({
  clerkId: id,
  email: email_addresses.find((address) => address.id === primary_email_address_id)?.email_address,
  firstName: first_name,
  lastName: last_name,
  imageUrl: image_url,
  updatedAt: new Date(updated_at),
});

const app = express();
app.post("/webhooks/clerk", express.raw({ type: "application/json" }), async (request, response) => {
  let event;
  try {
    event = webhook.verify(request.body, request.headers);
  } catch {
    return response.status(400).json({ error: "invalid signature" });
  }
  const svixId = request.headers["svix-id"];
  const [processed] = await db.select().from(processedWebhooks).where(eq(processedWebhooks.svixId, svixId));
  if (processed) return response.json({ status: "duplicate" });
  switch (event.type) {
    case "user.created":
    case "user.updated":
      await db.insert(users).values(row(event.data)).onDuplicateKeyUpdate({ set: row(event.data) });
      break;
    case "user.deleted":
      await db.delete(users).where(eq(users.clerkId, event.data.id));
      break;
  }
  await db.insert(processedWebhooks).values({ svixId, processedAt: new Date() });
  response.json({ status: "applied" });
});
app.listen(Number(process.env.PORT), "127.0.0.1", () => console.log("ready"));
