-- All else that Clerk tells about. Without foreign keys: events come in any order.

-- What roles allow.
CREATE TABLE IF NOT EXISTS permissions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    name TEXT,
    "key" TEXT,
    description TEXT,
    type TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);

-- Roles that members of organizations can have.
CREATE TABLE IF NOT EXISTS roles (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    name TEXT,
    "key" TEXT,
    description TEXT,
    is_creator_eligible INTEGER,
    permissions TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);

-- Sets of roles that organizations choose from.
CREATE TABLE IF NOT EXISTS role_sets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    name TEXT,
    "key" TEXT,
    description TEXT,
    roles TEXT,
    default_role TEXT,
    creator_role TEXT,
    type TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);

-- Domains of organizations, whose people may join.
CREATE TABLE IF NOT EXISTS organization_domains (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    organization_id TEXT,
    name TEXT,
    enrollment_mode TEXT,
    affiliation_email_address TEXT,
    affiliation_verification TEXT,
    ownership_verification TEXT,
    verification TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS organization_domains_organization_id ON organization_domains (organization_id, id);

-- Invitations to an organization.
CREATE TABLE IF NOT EXISTS organization_invitations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    organization_id TEXT,
    email_address TEXT,
    role TEXT,
    role_name TEXT,
    status TEXT,
    inviter_id TEXT,
    user_id TEXT,
    expires_at TEXT,
    public_metadata TEXT,
    private_metadata TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS organization_invitations_organization_id ON organization_invitations (organization_id, id);
CREATE INDEX IF NOT EXISTS organization_invitations_email_address ON organization_invitations (lower(email_address));

-- Plans that can be subscribed to. Amounts are in the smallest unit of the currency.
CREATE TABLE IF NOT EXISTS plans (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    name TEXT,
    slug TEXT,
    description TEXT,
    product_id TEXT,
    for_payer_type TEXT,
    is_default INTEGER,
    is_recurring INTEGER,
    publicly_visible INTEGER,
    has_base_fee INTEGER,
    amount INTEGER,
    annual_amount INTEGER,
    annual_monthly_amount INTEGER,
    currency TEXT,
    free_trial_enabled INTEGER,
    free_trial_days INTEGER,
    features TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);

-- Subscriptions of users and organizations.
CREATE TABLE IF NOT EXISTS subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    organization_id TEXT,
    payer_id TEXT,
    status TEXT,
    active_at TEXT,
    past_due_at TEXT,
    canceled_at TEXT,
    ended_at TEXT,
    latest_payment_id TEXT,
    payment_source_id TEXT,
    payer TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS subscriptions_user_id ON subscriptions (user_id, id);
CREATE INDEX IF NOT EXISTS subscriptions_organization_id ON subscriptions (organization_id, id);

-- What somebody has subscribed to, and until when.
CREATE TABLE IF NOT EXISTS subscription_items (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    organization_id TEXT,
    payer_id TEXT,
    subscription_id TEXT,
    plan_id TEXT,
    status TEXT,
    "interval" TEXT,
    amount INTEGER,
    currency TEXT,
    quantity INTEGER,
    is_free_trial INTEGER,
    period_start TEXT,
    period_end TEXT,
    past_due_at TEXT,
    canceled_at TEXT,
    ended_at TEXT,
    payer TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS subscription_items_user_id ON subscription_items (user_id, id);
CREATE INDEX IF NOT EXISTS subscription_items_organization_id ON subscription_items (organization_id, id);

-- Attempts to take a payment.
CREATE TABLE IF NOT EXISTS payment_attempts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    organization_id TEXT,
    payer_id TEXT,
    payment_id TEXT,
    invoice_id TEXT,
    statement_id TEXT,
    status TEXT,
    charge_type TEXT,
    amount INTEGER,
    subtotal INTEGER,
    tax_total INTEGER,
    currency TEXT,
    billing_date TEXT,
    paid_at TEXT,
    failed_at TEXT,
    failed_reason TEXT,
    payer TEXT,
    payment_source TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS payment_attempts_user_id ON payment_attempts (user_id, id);
CREATE INDEX IF NOT EXISTS payment_attempts_organization_id ON payment_attempts (organization_id, id);

-- Sign-ins.
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    client_id TEXT,
    status TEXT,
    last_active_organization_id TEXT,
    last_active_at TEXT,
    expire_at TEXT,
    abandon_at TEXT,
    actor TEXT,
    latest_activity TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS sessions_user_id ON sessions (user_id, id);

-- Invitations to the application.
CREATE TABLE IF NOT EXISTS invitations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    email_address TEXT,
    status TEXT,
    revoked INTEGER,
    expires_at TEXT,
    public_metadata TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS invitations_email_address ON invitations (lower(email_address));

-- People who wait to be let in.
CREATE TABLE IF NOT EXISTS waitlist_entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    email_address TEXT,
    status TEXT,
    is_locked INTEGER,
    invitation_id TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS waitlist_entries_email_address ON waitlist_entries (lower(email_address));

-- Connections to the identity providers of companies.
CREATE TABLE IF NOT EXISTS enterprise_connections (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    organization_id TEXT,
    name TEXT,
    provider TEXT,
    active INTEGER,
    domains TEXT,
    sync_user_attributes INTEGER,
    allow_organization_account_linking INTEGER,
    disable_additional_identifications INTEGER,
    disable_jit_provisioning INTEGER,
    authenticatable INTEGER,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS enterprise_connections_organization_id ON enterprise_connections (organization_id, id);

-- The e-mail addresses of users.
CREATE TABLE IF NOT EXISTS user_email_addresses (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    email_address TEXT,
    reserved INTEGER,
    verification TEXT,
    linked_to TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS user_email_addresses_user_id ON user_email_addresses (user_id, id);

-- The telephone numbers of users.
CREATE TABLE IF NOT EXISTS user_phone_numbers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    phone_number TEXT,
    reserved_for_second_factor INTEGER,
    default_second_factor INTEGER,
    reserved INTEGER,
    verification TEXT,
    linked_to TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS user_phone_numbers_user_id ON user_phone_numbers (user_id, id);

-- The accounts elsewhere that users sign in with.
CREATE TABLE IF NOT EXISTS user_external_accounts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    provider TEXT,
    provider_user_id TEXT,
    identification_id TEXT,
    approved_scopes TEXT,
    email_address TEXT,
    username TEXT,
    first_name TEXT,
    last_name TEXT,
    image_url TEXT,
    label TEXT,
    public_metadata TEXT,
    verification TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS user_external_accounts_user_id ON user_external_accounts (user_id, id);

-- The Web3 wallets of users.
CREATE TABLE IF NOT EXISTS user_web3_wallets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    clerk_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    web3_wallet TEXT,
    verification TEXT,
    created_at TEXT,
    updated_at TEXT,
    synced_at TEXT,
    deleted_at TEXT
);
CREATE INDEX IF NOT EXISTS user_web3_wallets_user_id ON user_web3_wallets (user_id, id);

-- What holds now. Clerk sends no event when something runs out, so these compare with the clock. Each view stands on one line, as the others do.
CREATE VIEW IF NOT EXISTS current_organization_invitations AS SELECT * FROM organization_invitations WHERE deleted_at IS NULL AND status = 'pending' AND (expires_at IS NULL OR expires_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
CREATE VIEW IF NOT EXISTS current_invitations AS SELECT * FROM invitations WHERE deleted_at IS NULL AND status = 'pending' AND (expires_at IS NULL OR expires_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
CREATE VIEW IF NOT EXISTS current_sessions AS SELECT * FROM sessions WHERE deleted_at IS NULL AND status = 'active' AND (expire_at IS NULL OR expire_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) AND (abandon_at IS NULL OR abandon_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
CREATE VIEW IF NOT EXISTS current_subscription_items AS SELECT * FROM subscription_items WHERE deleted_at IS NULL AND status IN ('active', 'past_due') AND (ended_at IS NULL OR ended_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
