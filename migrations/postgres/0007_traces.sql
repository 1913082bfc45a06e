-- To which trace a piece of work belongs that waits: a W3C traceparent of whoever put it here, if that was traced. It says
-- nothing of anybody.
ALTER TABLE webhook_queue ADD COLUMN trace_context text;
ALTER TABLE outbox ADD COLUMN trace_context text;
