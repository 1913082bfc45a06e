-- The same view on one line: drizzle-kit reads nothing of a file that has a view on several.
DROP VIEW IF EXISTS signups_by_week;
CREATE VIEW signups_by_week AS SELECT date(created_at, 'weekday 0', '-6 days') AS week, count(*) AS signups FROM users WHERE created_at IS NOT NULL GROUP BY 1 ORDER BY 1;
