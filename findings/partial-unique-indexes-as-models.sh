#!/usr/bin/env bash
# What Python's tools make of a unique index with a WHERE (one live row a pair, and any number of deleted ones), when they write
# models for tables that exist:
#   1. sqlacodegen 4.0.4 (PyPI) ends with 0 and has written a module that is no Python: on SQLite it prints the condition as
#      bare SQL, `sqlite_where=deleted_at IS NULL`. So do its other generators, `tables` and `dataclasses`.
#   2. `inspectdb` of Django 5.2 drops the condition and keeps the uniqueness, without a comment: `unique_together` for two columns,
#      `unique=True` for one. So `full_clean()`, and with it every form and the admin, refuses a row that the database takes: who
#      left an organization can never join again.
#   3. Peewee's `pwiz` 4.5.3 does what one would hope: it declares nothing and quotes the index in a comment.
#
# Valid input: a SQLite file with two tables. Needs python3 with venv. Ends with 0 while it is so, with 1 once it is not, with 69 if
# the packages cannot be installed here.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
{ python3 -m venv python &&
  python/bin/pip install --quiet sqlacodegen==4.0.4 SQLAlchemy==2.1.9 Django==5.2.19 peewee==4.5.3; } >install.log 2>&1 ||
  { echo "the packages cannot be had here" >&2; exit 69; }

cat > try.py <<'PY'
import os, re, sqlite3, subprocess, sys
from importlib.metadata import version
from pathlib import Path

print(*(f"{name} {version(name)}" for name in ("sqlacodegen", "SQLAlchemy", "Django", "peewee")), sep=", ")
database = sqlite3.connect("members.db")
database.executescript("""
    CREATE TABLE people (id INTEGER PRIMARY KEY, username TEXT, deleted_at TEXT);
    CREATE UNIQUE INDEX people_live ON people (username) WHERE deleted_at IS NULL;
    CREATE TABLE memberships (id INTEGER PRIMARY KEY, organization TEXT NOT NULL, person TEXT NOT NULL, deleted_at TEXT);
    CREATE UNIQUE INDEX memberships_live ON memberships (organization, person) WHERE deleted_at IS NULL;
    INSERT INTO memberships (organization, person, deleted_at) VALUES ('org_1', 'user_1', '2026-01-02T03:04:05Z');
""")
database.close()
wrong = 0


def expect(what, seen, known):
    global wrong
    print(f"   {what}: {seen}")
    if seen != known:
        print(f"   CHANGED, it was: {known}")
        wrong = 1


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout


def is_python(text):
    try:
        compile(text, "models", "exec")
        return True
    except SyntaxError:
        return False


print("1. sqlacodegen")
for generator in ("declarative", "tables", "dataclasses"):
    code, made = run("python/bin/sqlacodegen", "--generator", generator, "sqlite:///members.db")
    expect(f"{generator} ends with", code, 0)
    expect(f"{generator}: the module is Python", is_python(made), False)
    expect(f"{generator}: without the two conditions it would be", is_python(re.sub(r" sqlite_where=deleted_at IS NULL,", "", made)), True)

print("2. Django")
Path("made").mkdir()
Path("made/__init__.py").touch()
import django
from django.conf import settings
from django.core.management import call_command
settings.configure(INSTALLED_APPS=["made"], DEFAULT_AUTO_FIELD="django.db.models.AutoField",
                   DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "members.db"}})
with open("made/models.py", "w") as models:
    from django.core.management.commands.inspectdb import Command
    call_command(Command(stdout=models))
text = Path("made/models.py").read_text()
for line in text.splitlines():
    if "unique" in line:
        print("  ", line.strip())
expect("the condition is anywhere in it", "NULL" in text or "condition" in text, False)
django.setup()
from django.core.exceptions import ValidationError
from made.models import Memberships, People
expect("username is unique", People._meta.get_field("username").unique, True)
again = Memberships(organization="org_1", person="user_1")
try:
    again.full_clean()
    cleaned = "valid"
except ValidationError as error:
    cleaned = " ".join(error.messages)
expect("full_clean() of the one live membership beside a deleted one", cleaned, "Memberships with this Organization and Person already exists.")
again.save()
expect("the database takes it, and has", Memberships.objects.count(), 2)

print("3. Peewee")
code, made = run(sys.executable, "-m", "pwiz", "-e", "sqlite", "members.db")
expect("its module is Python", is_python(made), True)
expect("it declares anything unique", "unique=True" in made or "indexes =" in made, False)
expect("it quotes the index", "# CREATE UNIQUE INDEX memberships_live" in made, True)
sys.exit(wrong)
PY
python/bin/python -W ignore try.py
