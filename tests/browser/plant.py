"""Plant data in a service's SQLite file that the browser test needs: a history, users with all kinds of names, and problems.

    plant.py FILE past       two months of sign-ups, a week of webhooks, a reconcile that found no drift
    plant.py FILE groups     organizations, one of them large, with those users as members
    plant.py FILE trouble    drift, messages that no sink accepts, and a name that contains code

The random numbers are the same in every run; the times are relative to now.
"""

import json
import math
import random
import sqlite3
import sys
from datetime import datetime, timedelta, timezone

NAMES = [
    ("Ada", "Lovelace"), ("王", "秀英"), ("Éva", "Szabó-Kovács"), ("Muḥammad", "al-Khwārizmī"), ("José", "Núñez"),
    ("Wolfeschlegelsteinhausenbergerdorff", "Welche-Vor-Altern-Waren-Gewissenhaft-Schafers"), ("Ngọc", "Trần"),
    ("👩🏽‍🔬", "Ω"), ("Jan", "de Vries"), ("שרה", "לוי"),
]
CODE = ("<script>alert(1)</script>", "</td><img src=x onerror=alert(2)>")

now = datetime.now(timezone.utc)
chance = random.Random(1)


def text(at):
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def some_id(prefix):
    letters = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
    return f"{prefix}_2{''.join(chance.choice(letters) for _ in range(26))}"


def busy(at):
    """The activity at a time: low at night and at weekends."""
    day = 0.55 + 0.45 * math.sin((at.hour + at.minute / 60 - 9) / 24 * 2 * math.pi)
    return day * (0.5 if at.weekday() >= 5 else 1.0)


def sign_ups(database):
    rows = []
    for days in range(1, 700):
        day = now - timedelta(days=days)
        for _ in range(round(busy(day.replace(hour=14)) * (4 + 8 * chance.random()) * (1.4 - days / 700))):
            at = day - timedelta(minutes=chance.randrange(1440))
            first, last = NAMES[len(rows) % len(NAMES)]
            rows.append((some_id("user"), f"person{len(rows)}@example.com", first, last, *[text(at)] * 3))
    database.executemany(
        "INSERT INTO users (clerk_id, email, first_name, last_name, created_at, updated_at, synced_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
    return len(rows)


def webhooks(database):
    rows = []
    minute = now.replace(second=0, microsecond=0)
    for ago in range(1, 7 * 1440):
        at = minute - timedelta(minutes=ago)
        for outcome, reason, rate in [
            ("applied", "", 9.0), ("unchanged", "", 2.0), ("duplicate", "", 1.0), ("stale", "", 0.4),
            ("rejected", "missing_headers", 0.02),
        ]:
            count = round(busy(at) * rate * (0.6 + 0.8 * chance.random()))
            if outcome == "rejected":
                count = int(chance.random() < rate)
            if count:
                within = [round(count * share) for share in (0.3, 0.93, 1, 1, 1, 1)]
                rows.append((text(at), "user.updated", outcome, reason, text(at + timedelta(seconds=30)), count, *within))
    database.executemany(f"INSERT OR IGNORE INTO activity VALUES ({', '.join('?' * 12)})", rows)


def reconcile(database, seen, drift, mended):
    summary = json.dumps({"seen": seen, "drift": drift, "mended": mended})
    at = text(now - timedelta(hours=2, minutes=12))
    database.execute(
        "INSERT INTO sync_runs (id, kind, owner, parameters, progress, started_at, updated_at, finished_at)"
        " VALUES (?, 'reconcile', 'planted', '', ?, ?, ?, ?)",
        (some_id("run"), summary, at, at, at),
    )


def past(database):
    seen = sign_ups(database)
    webhooks(database)
    reconcile(database, seen, {}, 0)


def groups(database):
    users = [row[0] for row in database.execute("SELECT clerk_id FROM users ORDER BY id")]
    names = [CODE[0], "Babbage & Söhne", "株式会社サンプル", "Donaudampfschiffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"]
    for number in range(60):
        name, id = (names[number] if number < len(names) else f"Company {number}"), some_id("org")
        at = [text(now - timedelta(days=400 - number))] * 3
        database.execute(
            "INSERT INTO organizations (clerk_id, name, slug, image_url, created_by, max_allowed_memberships, admin_delete_enabled,"
            " public_metadata, private_metadata, created_at, updated_at, synced_at) VALUES (?, ?, ?, ?, ?, 500, 1, ?, ?, ?, ?, ?)",
            (id, name, f"company-{number}", f"https://img.clerk.com/{id}", users[number], '{"plan": "gold"}', '{"contract": 7731}', *at),
        )
        members = users[:70] if number == 0 else users[number : number + 3]
        database.executemany(
            "INSERT INTO organization_memberships (clerk_id, organization_id, user_id, role, permissions, created_at, updated_at,"
            " synced_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(some_id("orgmem"), id, user, "org:admin", '["org:sys_memberships:read", "org:sys_memberships:manage"]', *at) for user in members],
        )


def trouble(database):
    seen = database.execute("SELECT count(*) FROM users").fetchone()[0]
    database.execute("DELETE FROM sync_runs")
    reconcile(database, seen, {"missing": 2, "stale": 1}, 3)
    oldest = database.execute("SELECT min(id) FROM users").fetchone()[0]
    database.execute("UPDATE users SET first_name = ?, last_name = ? WHERE id = ?", (*CODE, oldest))
    database.execute("UPDATE outbox SET created_at = ? WHERE sink = 'crm'", (text(now - timedelta(minutes=26)),))
    database.execute(
        "UPDATE outbox SET state = 'dead', finished_at = created_at, next_attempt_at = NULL, lease = NULL, attempts = 15,"
        " last_error = 'the receiver answered 422 Unprocessable Entity' WHERE id IN (SELECT id FROM outbox WHERE sink = 'crm' ORDER BY id LIMIT 4)"
    )


if __name__ == "__main__":
    file, what = sys.argv[1:]
    with sqlite3.connect(file, timeout=30) as connection:
        {"past": past, "groups": groups, "trouble": trouble}[what](connection)
