-- Clerk's objects as they came, where SYNC_RAW asks for them, and what applications ask for.

ALTER TABLE organizations ADD COLUMN raw TEXT;
ALTER TABLE organization_memberships ADD COLUMN raw TEXT;
ALTER TABLE permissions ADD COLUMN raw TEXT;
ALTER TABLE roles ADD COLUMN raw TEXT;
ALTER TABLE role_sets ADD COLUMN raw TEXT;
ALTER TABLE organization_domains ADD COLUMN raw TEXT;
ALTER TABLE organization_invitations ADD COLUMN raw TEXT;
ALTER TABLE plans ADD COLUMN raw TEXT;
ALTER TABLE subscriptions ADD COLUMN raw TEXT;
ALTER TABLE subscription_items ADD COLUMN raw TEXT;
ALTER TABLE payment_attempts ADD COLUMN raw TEXT;
ALTER TABLE sessions ADD COLUMN raw TEXT;
ALTER TABLE invitations ADD COLUMN raw TEXT;
ALTER TABLE waitlist_entries ADD COLUMN raw TEXT;
ALTER TABLE enterprise_connections ADD COLUMN raw TEXT;
ALTER TABLE user_email_addresses ADD COLUMN raw TEXT;
ALTER TABLE user_phone_numbers ADD COLUMN raw TEXT;
ALTER TABLE user_external_accounts ADD COLUMN raw TEXT;
ALTER TABLE user_web3_wallets ADD COLUMN raw TEXT;
ALTER TABLE users ADD COLUMN raw TEXT;

-- Who belongs to which organization, with names.
CREATE VIEW IF NOT EXISTS organization_members AS SELECT m.clerk_id, m.organization_id, o.name AS organization_name, m.user_id, u.email, u.first_name, u.last_name, m.role, coalesce(m.role_name, (SELECT max(r.name) FROM roles AS r WHERE r."key" = m.role AND r.deleted_at IS NULL)) AS role_name, m.created_at FROM organization_memberships AS m LEFT JOIN organizations AS o ON o.clerk_id = m.organization_id AND o.deleted_at IS NULL LEFT JOIN users AS u ON u.clerk_id = m.user_id AND u.deleted_at IS NULL WHERE m.deleted_at IS NULL;

-- Which permission who has in which organization.
CREATE VIEW IF NOT EXISTS organization_member_permissions AS SELECT DISTINCT m.organization_id, m.user_id, p.value AS permission FROM organization_memberships AS m CROSS JOIN json_each(coalesce(m.permissions, '[]')) AS p WHERE m.deleted_at IS NULL AND p.value IS NOT NULL;

-- The items that users and organizations have now, free ones too, with their plans.
CREATE VIEW IF NOT EXISTS active_subscriptions AS SELECT i.user_id, i.organization_id, i.subscription_id, i.clerk_id AS subscription_item_id, i.status, i.plan_id, p.name AS plan_name, p.slug AS plan_slug, i."interval", i.amount, i.currency, i.quantity, i.is_free_trial, i.period_start, i.period_end FROM current_subscription_items AS i LEFT JOIN plans AS p ON p.clerk_id = i.plan_id AND p.deleted_at IS NULL;

-- How many items of subscriptions that cost something ended in each month, in UTC.
CREATE VIEW IF NOT EXISTS churn_by_month AS SELECT strftime('%Y-%m-01', ended_at) AS month, count(*) AS ended FROM subscription_items WHERE ended_at IS NOT NULL AND amount > 0 GROUP BY 1;
