-- The name of a role, as people read it: "Admin" where the key is "org:admin".
ALTER TABLE organization_memberships ADD COLUMN role_name text;
