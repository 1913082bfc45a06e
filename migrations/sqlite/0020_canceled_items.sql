-- The payer keeps a canceled plan until the end of the billing period.

DROP VIEW IF EXISTS current_subscription_items;
CREATE VIEW current_subscription_items AS SELECT * FROM subscription_items WHERE deleted_at IS NULL AND (ended_at IS NULL OR ended_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) AND (status IN ('active', 'past_due') OR status = 'canceled' AND period_end > strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
