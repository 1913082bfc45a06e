-- Which kind of Clerk object a row is about. Until now all were users.
ALTER TABLE processed_webhooks ADD COLUMN kind text DEFAULT 'user';
ALTER TABLE audit_log ADD COLUMN kind text NOT NULL DEFAULT 'user';
ALTER TABLE webhook_queue ADD COLUMN kind text DEFAULT 'user';
ALTER TABLE outbox ADD COLUMN kind text NOT NULL DEFAULT 'user';
ALTER TABLE outbox DROP CONSTRAINT outbox_type_check;
