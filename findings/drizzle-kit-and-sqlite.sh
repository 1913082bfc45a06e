#!/usr/bin/env bash
# What drizzle-kit does with a SQLite file that others write to as well. Nobody would guess that
#   1. `pull` gives up the whole file if a view in it is written on several lines,
#   2. `push` with a tablesFilter ends with 1, without a word and without doing anything, if the filter leaves a view out,
#   3. `pull` cuts CHECK (x IN ('a', 'b')) off before its last parenthesis, so that what it wrote cannot be run.
# Needs node and npm. Ends with another code than 0 if any of this changes.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
npm init -y >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts=false drizzle-kit@0.31.11 drizzle-orm@0.45.4 @libsql/client@0.18.0 >/dev/null 2>&1
for package in drizzle-kit drizzle-orm @libsql/client; do
    echo "$package $(sed -n 's/.*"version": *"\([^"]*\)".*/\1/p' "node_modules/$package/package.json" | head -1)"
done

sql() { node --input-type=module -e '
import { createClient } from "@libsql/client";
const [file, text] = process.argv.slice(1);
const client = createClient({ url: "file:" + file });
await client.executeMultiple(text);
const { rows } = await client.execute("SELECT count(*) AS n FROM sqlite_master WHERE name = '"'app_orders'"'");
console.log(Number(rows[0].n));
client.close();' "$@"; }

cat > pull.config.ts <<'END'
import { defineConfig } from "drizzle-kit";
export default defineConfig({ dialect: "sqlite", out: "./pulled", dbCredentials: { url: "file:" + process.env.FILE } });
END
cat > push.config.ts <<'END'
import { defineConfig } from "drizzle-kit";
export default defineConfig({ dialect: "sqlite", schema: "./schema.ts", tablesFilter: ["app_*"], dbCredentials: { url: "file:" + process.env.FILE } });
END
cat > schema.ts <<'END'
import { integer, sqliteTable } from "drizzle-orm/sqlite-core";
export const orders = sqliteTable("app_orders", { id: integer("id").primaryKey() });
END
kit() { timeout 120 npx drizzle-kit "$@" </dev/null 2>&1; }
wrong=0
expect() { echo "   $1: $2"; [ "$2" = "$3" ] || { echo "   CHANGED, it was: $3"; wrong=1; }; }
has() { if grep -q "$1" "$2" 2>/dev/null; then echo yes; else echo no; fi; }

echo "1. a view on two lines"
sql several.db "CREATE TABLE notes (id INTEGER PRIMARY KEY, at TEXT);
CREATE VIEW recent AS
  SELECT id
  FROM notes;" >/dev/null
FILE=several.db kit pull --config pull.config.ts > out || true
expect "pull says 'Could not process view'" "$(has 'Could not process view' out)" yes
expect "anything pulled" "$([ -e pulled/schema.ts ] && echo yes || echo no)" no

echo "2. a view that the tablesFilter leaves out"
sql one.db "CREATE TABLE notes (id INTEGER PRIMARY KEY, at TEXT); CREATE VIEW recent AS SELECT id FROM notes;" >/dev/null
code=0; FILE=one.db kit push --config push.config.ts --force > out || code=$?
expect "push ends with" "$code" 1
expect "push says why" "$(if grep -qi -e error -e view out; then echo yes; else echo no; fi)" no
expect "tables made" "$(sql one.db "")" 0
code=0; sql one.db "DROP VIEW recent;" >/dev/null; FILE=one.db kit push --config push.config.ts --force > out || code=$?
expect "without the view push ends with" "$code" 0
expect "tables made" "$(sql one.db "")" 1

echo "3. a CHECK with a list"
sql check.db "CREATE TABLE notes (id INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('a', 'b')));" >/dev/null
rm -rf pulled; FILE=check.db kit pull --config pull.config.ts > out || true
grep check\( pulled/schema.ts | sed 's/^/   /'
expect "the list has lost its parenthesis" "$(has "IN ('a', 'b'\`" pulled/schema.ts)" yes
exit $wrong
