"""Clerk's library for Python, which checks every answer against Clerk's OpenAPI spec, reads everything that the fake Clerk shows."""
import os

from clerk_backend_api import Clerk, models

expected = int(os.environ["USERS"])
clerk = Clerk(bearer_auth=os.environ["CLERK_SECRET_KEY"], server_url=os.environ["CLERK_API_URL"] + "/v1")
users = {}
while True:
    page = clerk.users.list(request={"limit": 100, "offset": len(users), "order_by": "+created_at"})
    users.update((user.id, user) for user in page)
    if len(page) < 100:
        break
assert len(users) == expected, len(users)
assert clerk.users.count(request={}).total_count == expected
assert any(user.web3_wallets for user in users.values())
one = next(iter(users))
assert clerk.users.get(user_id=one) == users[one]
assert clerk.instance_settings.get().environment_type == "development"
try:
    clerk.users.get(user_id="user_nobody")
except models.ClerkErrors as error:
    assert error.data.errors[0].code == "resource_not_found", error
else:
    raise AssertionError("user_nobody does not exist")
print(f"clerk-backend-api read {len(users)} users")
