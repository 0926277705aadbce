-- What grows? Rows, dead rows and bytes of each of our tables, and when it was vacuumed last.
SELECT relname AS "table", n_live_tup AS rows, n_dead_tup AS dead_rows,
       pg_size_pretty(pg_total_relation_size(relid)) AS size,
       round(100.0 * n_tup_hot_upd / nullif(n_tup_upd, 0), 1) AS hot_percent,
       greatest(last_vacuum, last_autovacuum) AS vacuumed_at
FROM pg_stat_user_tables
WHERE schemaname = 'vestibule'
ORDER BY pg_total_relation_size(relid) DESC;
