-- All else that Clerk tells about. Without foreign keys: events come in any order.

-- What roles allow.
CREATE TABLE IF NOT EXISTS permissions (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    name longtext,
    "key" longtext,
    description longtext,
    type longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Roles that members of organizations can have.
CREATE TABLE IF NOT EXISTS roles (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    name longtext,
    "key" longtext,
    description longtext,
    is_creator_eligible boolean,
    permissions longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Sets of roles that organizations choose from.
CREATE TABLE IF NOT EXISTS role_sets (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    name longtext,
    "key" longtext,
    description longtext,
    roles longtext,
    default_role longtext,
    creator_role longtext,
    type longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Domains of organizations, whose people may join.
CREATE TABLE IF NOT EXISTS organization_domains (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    organization_id varchar(255),
    name longtext,
    enrollment_mode longtext,
    affiliation_email_address longtext,
    affiliation_verification longtext,
    ownership_verification longtext,
    verification longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY organization_domains_organization_id (organization_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Invitations to an organization.
CREATE TABLE IF NOT EXISTS organization_invitations (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    organization_id varchar(255),
    email_address varchar(255),
    role longtext,
    role_name longtext,
    status longtext,
    inviter_id longtext,
    user_id longtext,
    expires_at datetime(3),
    public_metadata longtext,
    private_metadata longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY organization_invitations_organization_id (organization_id, id),
    email_address_folded varchar(255) GENERATED ALWAYS AS (lower(email_address)) STORED,
    KEY organization_invitations_email_address (email_address_folded)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Plans that can be subscribed to. Amounts are in the smallest unit of the currency.
CREATE TABLE IF NOT EXISTS plans (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    name longtext,
    slug longtext,
    description longtext,
    product_id longtext,
    for_payer_type longtext,
    is_default boolean,
    is_recurring boolean,
    publicly_visible boolean,
    has_base_fee boolean,
    amount bigint,
    annual_amount bigint,
    annual_monthly_amount bigint,
    currency longtext,
    free_trial_enabled boolean,
    free_trial_days bigint,
    features longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Subscriptions of users and organizations.
CREATE TABLE IF NOT EXISTS subscriptions (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    user_id varchar(255),
    organization_id varchar(255),
    payer_id longtext,
    status longtext,
    active_at datetime(3),
    past_due_at datetime(3),
    canceled_at datetime(3),
    ended_at datetime(3),
    latest_payment_id longtext,
    payment_source_id longtext,
    payer longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY subscriptions_user_id (user_id, id),
    KEY subscriptions_organization_id (organization_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- What somebody has subscribed to, and until when.
CREATE TABLE IF NOT EXISTS subscription_items (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    user_id varchar(255),
    organization_id varchar(255),
    payer_id longtext,
    subscription_id longtext,
    plan_id longtext,
    status longtext,
    "interval" longtext,
    amount bigint,
    currency longtext,
    quantity bigint,
    is_free_trial boolean,
    period_start datetime(3),
    period_end datetime(3),
    past_due_at datetime(3),
    canceled_at datetime(3),
    ended_at datetime(3),
    payer longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY subscription_items_user_id (user_id, id),
    KEY subscription_items_organization_id (organization_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Attempts to take a payment.
CREATE TABLE IF NOT EXISTS payment_attempts (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    user_id varchar(255),
    organization_id varchar(255),
    payer_id longtext,
    payment_id longtext,
    invoice_id longtext,
    statement_id longtext,
    status longtext,
    charge_type longtext,
    amount bigint,
    subtotal bigint,
    tax_total bigint,
    currency longtext,
    billing_date datetime(3),
    paid_at datetime(3),
    failed_at datetime(3),
    failed_reason longtext,
    payer longtext,
    payment_source longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY payment_attempts_user_id (user_id, id),
    KEY payment_attempts_organization_id (organization_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Sign-ins.
CREATE TABLE IF NOT EXISTS sessions (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    user_id varchar(255),
    client_id longtext,
    status longtext,
    last_active_organization_id longtext,
    last_active_at datetime(3),
    expire_at datetime(3),
    abandon_at datetime(3),
    actor longtext,
    latest_activity longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY sessions_user_id (user_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Invitations to the application.
CREATE TABLE IF NOT EXISTS invitations (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    email_address varchar(255),
    status longtext,
    revoked boolean,
    expires_at datetime(3),
    public_metadata longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    email_address_folded varchar(255) GENERATED ALWAYS AS (lower(email_address)) STORED,
    KEY invitations_email_address (email_address_folded)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- People who wait to be let in.
CREATE TABLE IF NOT EXISTS waitlist_entries (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    email_address varchar(255),
    status longtext,
    is_locked boolean,
    invitation_id longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    email_address_folded varchar(255) GENERATED ALWAYS AS (lower(email_address)) STORED,
    KEY waitlist_entries_email_address (email_address_folded)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- Connections to the identity providers of companies.
CREATE TABLE IF NOT EXISTS enterprise_connections (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    organization_id varchar(255),
    name longtext,
    provider longtext,
    active boolean,
    domains longtext,
    sync_user_attributes boolean,
    allow_organization_account_linking boolean,
    disable_additional_identifications boolean,
    disable_jit_provisioning boolean,
    authenticatable boolean,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY enterprise_connections_organization_id (organization_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- The e-mail addresses of users.
CREATE TABLE IF NOT EXISTS user_email_addresses (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    user_id varchar(255),
    email_address longtext,
    reserved boolean,
    verification longtext,
    linked_to longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY user_email_addresses_user_id (user_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- The telephone numbers of users.
CREATE TABLE IF NOT EXISTS user_phone_numbers (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    user_id varchar(255),
    phone_number longtext,
    reserved_for_second_factor boolean,
    default_second_factor boolean,
    reserved boolean,
    verification longtext,
    linked_to longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY user_phone_numbers_user_id (user_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- The accounts elsewhere that users sign in with.
CREATE TABLE IF NOT EXISTS user_external_accounts (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    user_id varchar(255),
    provider longtext,
    provider_user_id longtext,
    identification_id longtext,
    approved_scopes longtext,
    email_address longtext,
    username longtext,
    first_name longtext,
    last_name longtext,
    image_url longtext,
    label longtext,
    public_metadata longtext,
    verification longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY user_external_accounts_user_id (user_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- The Web3 wallets of users.
CREATE TABLE IF NOT EXISTS user_web3_wallets (
    id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,
    clerk_id varchar(255) NOT NULL UNIQUE,
    user_id varchar(255),
    web3_wallet longtext,
    verification longtext,
    created_at datetime(3),
    updated_at datetime(3),
    synced_at datetime(3),
    deleted_at datetime(3),
    KEY user_web3_wallets_user_id (user_id, id)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE {bin};

-- What holds now. Clerk sends no event when something runs out, so these compare with the clock.
CREATE OR REPLACE SQL SECURITY INVOKER VIEW current_organization_invitations AS
    SELECT * FROM organization_invitations
    WHERE deleted_at IS NULL AND status = 'pending' AND (expires_at IS NULL OR expires_at > utc_timestamp(3));
CREATE OR REPLACE SQL SECURITY INVOKER VIEW current_invitations AS
    SELECT * FROM invitations
    WHERE deleted_at IS NULL AND status = 'pending' AND (expires_at IS NULL OR expires_at > utc_timestamp(3));
CREATE OR REPLACE SQL SECURITY INVOKER VIEW current_sessions AS
    SELECT * FROM sessions
    WHERE deleted_at IS NULL AND status = 'active' AND (expire_at IS NULL OR expire_at > utc_timestamp(3))
      AND (abandon_at IS NULL OR abandon_at > utc_timestamp(3));
CREATE OR REPLACE SQL SECURITY INVOKER VIEW current_subscription_items AS
    SELECT * FROM subscription_items
    WHERE deleted_at IS NULL AND status IN ('active', 'past_due') AND (ended_at IS NULL OR ended_at > utc_timestamp(3));
