-- The payer keeps a canceled plan until the end of the billing period.

CREATE OR REPLACE SQL SECURITY INVOKER VIEW current_subscription_items AS
    SELECT * FROM subscription_items
    WHERE deleted_at IS NULL AND (ended_at IS NULL OR ended_at > utc_timestamp(3))
      AND (status IN ('active', 'past_due') OR status = 'canceled' AND period_end > utc_timestamp(3));
