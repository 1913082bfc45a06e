#!/usr/bin/env bash
# django-clerk-users 0.4.1 (PyPI): its webhook view reads the user from Clerk's API, and records the svix-id before it does so. If the
# API cannot be reached, the view logs the error and answers 200 "OK (processing failed)", so Svix does not retry. A resend of the
# message within 45 s (CLERK_WEBHOOK_DEDUP_TIMEOUT) is answered 200 "OK (duplicate)", although nothing was stored. A resend after
# that time is handled again.
#
# Valid input: a user.created event with a right signature, sent three times while the API is unreachable: twice at once, and once
# after the time has passed. Needs Python 3.12 or newer with venv. Exits with 0 while this is so, with 1 once it is not, and with 69
# if the packages cannot be installed here.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python=""
for candidate in python3.14 python3.13 python3.12 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then python=$candidate; break; fi
done
[[ -n $python ]] || { echo "Python 3.12 or newer is missing" >&2; exit 69; }
{ "$python" -m venv venv && venv/bin/pip install --quiet django-clerk-users==0.4.1 Django==6.1.3 svix==1.99.1; } >install.log 2>&1 ||
  { echo "the packages cannot be installed here" >&2; exit 69; }

cat > urls.py <<'PY'
from django.urls import path
from django_clerk_users.webhooks import clerk_webhook_view

urlpatterns = [path("webhooks/clerk", clerk_webhook_view)]
PY

cat > try.py <<'PY'
import json, logging, sys, time
from datetime import datetime, timezone
from importlib.metadata import version

import django
from django.conf import settings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
settings.configure(
    SECRET_KEY="a" * 50,
    ALLOWED_HOSTS=["testserver"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_clerk_users"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    AUTH_USER_MODEL="django_clerk_users.ClerkUser",
    ROOT_URLCONF="urls",
    CLERK_SECRET_KEY="sk_test_of_nobody",
    CLERK_WEBHOOK_SIGNING_KEY=SECRET,
    CLERK_WEBHOOK_DEDUP_TIMEOUT=2,
)
django.setup()
logging.disable(logging.CRITICAL)

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
from svix.webhooks import Webhook

call_command("migrate", verbosity=0)

body = json.dumps({"type": "user.created", "object": "event", "data": {"id": "user_1", "object": "user"}})


def send():
    now = datetime.now(timezone.utc)
    answer = Client().post(
        "/webhooks/clerk", data=body, content_type="application/json",
        headers={"svix-id": "msg_1", "svix-timestamp": str(int(now.timestamp())),
                 "svix-signature": Webhook(SECRET).sign("msg_1", now, body)},
    )
    return answer.status_code, answer.content.decode(), get_user_model().objects.count()


seen = [send(), send()]
time.sleep(2.5)
seen.append(send())
print(f"django-clerk-users {version('django-clerk-users')}, Django {version('Django')}, Python {sys.version.split()[0]}")
for when, (status, text, users) in zip(["at first", "at once", "after 2.5 s"], seen):
    print(f"{when}: {status} {text}, {users} users")
failed, duplicate = (200, "OK (processing failed)", 0), (200, "OK (duplicate)", 0)
sys.exit(seen != [failed, duplicate, failed])
PY
# Nothing listens on this port, so Clerk's API is unreachable.
HTTPS_PROXY=http://127.0.0.1:9 NO_PROXY="" venv/bin/python try.py
