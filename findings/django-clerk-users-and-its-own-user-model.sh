#!/usr/bin/env bash
# django-clerk-users 0.4.1 (PyPI): its README says to extend `AbstractClerkUser` for fields of one's own, and to name that model in
# AUTH_USER_MODEL. With Django 5.2.8 and such a model, `manage.py migrate` stops in the package's own migration 0005, which reads the
# model that was swapped out: "Manager isn't available; 'django_clerk_users.ClerkUser' has been swapped for 'myapp.CustomUser'".
# With the package's own model the same command succeeds.
#
# Valid input: a new project with the settings and the model of that README, and an empty SQLite database. Needs Python 3.12 or newer
# with venv. Exits with 0 while this is so, with 1 once it is not, and with 69 if the packages cannot be installed here.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
python=""
for candidate in python3.14 python3.13 python3.12 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then python=$candidate; break; fi
done
[[ -n $python ]] || { echo "Python 3.12 or newer is missing" >&2; exit 69; }
{ "$python" -m venv venv && venv/bin/pip install --quiet django-clerk-users==0.4.1 Django==5.2.8; } >install.log 2>&1 ||
  { echo "the packages cannot be installed here" >&2; exit 69; }

# Make a project, migrate it, and print the last line: migrate MODEL
migrate() {
    rm -rf project && mkdir project && cd project
    ../venv/bin/django-admin startproject site_ . && ../venv/bin/python manage.py startapp myapp
    cat >> site_/settings.py <<PY
INSTALLED_APPS += ["django_clerk_users", "myapp"]
AUTH_USER_MODEL = "$1"
CLERK_SECRET_KEY = "sk_test_of_nobody"
CLERK_WEBHOOK_SIGNING_KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CLERK_FRONTEND_HOSTS = ["http://localhost:3000"]
PY
    if [[ $1 == myapp.* ]]; then
        cat > myapp/models.py <<'PY'
from django.db import models
from django_clerk_users.models import AbstractClerkUser


class CustomUser(AbstractClerkUser):
    company = models.CharField(max_length=255, blank=True)

    class Meta(AbstractClerkUser.Meta):
        swappable = "AUTH_USER_MODEL"
PY
        ../venv/bin/python manage.py makemigrations myapp >/dev/null
    fi
    { ../venv/bin/python manage.py migrate 2>&1 || true; } | tail -n 1
    cd ..
}

own=$(migrate django_clerk_users.ClerkUser)
extended=$(migrate myapp.CustomUser)
printf 'django-clerk-users 0.4.1, Django 5.2.8\nits own model: %s\nthe extended model: %s\n' "$own" "$extended"
[[ $own == *OK && $extended == *"has been swapped for 'myapp.CustomUser'"* ]]
