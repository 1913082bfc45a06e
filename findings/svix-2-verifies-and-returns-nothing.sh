#!/usr/bin/env bash
# svix (PyPI) up to 1.99.1: `Webhook.verify` returns the parsed body. From 2.0.0 on, seen in 2.0.0 and 2.9.1, it returns None for a
# right signature, so the caller has to parse the body. Code that uses the result gets None and no error.
# django-clerk-users 0.4.1 (PyPI) is such code, and asks for `svix>=1`. So a new installation gets svix 2.9.1, and its webhook view
# answers every genuine webhook 400 "Invalid payload". With svix 1.99.1 the same request is answered 200.
#
# Valid input: a message signed by the library itself, and an event of a session (which needs no request to Clerk). Needs Python 3.12
# or newer with venv. Exits with 0 while this is so, with 1 once it is not, and with 69 if the packages cannot be installed here.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python=""
for candidate in python3.14 python3.13 python3.12 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then python=$candidate; break; fi
done
[[ -n $python ]] || { echo "Python 3.12 or newer is missing" >&2; exit 69; }
{ "$python" -m venv venv && venv/bin/pip install --quiet django-clerk-users==0.4.1 Django==5.2.8 svix==2.9.1; } >install.log 2>&1 ||
  { echo "the packages cannot be installed here" >&2; exit 69; }

cat > urls.py <<'PY'
from django.urls import path
from django_clerk_users.webhooks import clerk_webhook_view

urlpatterns = [path("webhooks/clerk", clerk_webhook_view)]
PY

cat > try.py <<'PY'
import json, logging
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
    AUTH_USER_MODEL="django_clerk_users.ClerkUser",
    ROOT_URLCONF="urls",
    CLERK_WEBHOOK_SIGNING_KEY=SECRET,
)
django.setup()
logging.disable(logging.CRITICAL)

from django.core.management import call_command
from django.test import Client
from svix.webhooks import Webhook

call_command("migrate", verbosity=0)
data = {"id": "sess_1", "object": "session", "user_id": "user_1", "status": "ended"}
body = json.dumps({"type": "session.ended", "object": "event", "data": data})
now = datetime.now(timezone.utc)
headers = {
    "svix-id": "msg_1", "svix-timestamp": str(int(now.timestamp())),
    "svix-signature": Webhook(SECRET).sign("msg_1", now, body),
}
verified = type(Webhook(SECRET).verify(body, headers)).__name__
answer = Client().post("/webhooks/clerk", data=body, content_type="application/json", headers=headers)
print(f"svix {version('svix')}: verify returns {verified}, the view answers {answer.status_code} {answer.content.decode()}")
PY

new=$(venv/bin/python try.py)
{ venv/bin/pip install --quiet svix==2.0.0; } >>install.log 2>&1
first=$(venv/bin/python try.py)
{ venv/bin/pip install --quiet svix==1.99.1; } >>install.log 2>&1
old=$(venv/bin/python try.py)
printf '%s\n' "$new" "$first" "$old"
[[ $new == 'svix 2.9.1: verify returns NoneType, the view answers 400 {"error": "Invalid payload"}' &&
   $first == 'svix 2.0.0: verify returns NoneType, the view answers 400 {"error": "Invalid payload"}' &&
   $old == 'svix 1.99.1: verify returns dict, the view answers 200 OK' ]]
