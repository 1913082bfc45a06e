-- The payer keeps a canceled plan until the end of the billing period.

CREATE OR REPLACE VIEW current_subscription_items AS
    SELECT * FROM subscription_items
    WHERE deleted_at IS NULL AND (ended_at IS NULL OR ended_at > now())
      AND (status IN ('active', 'past_due') OR status = 'canceled' AND period_end > now());
