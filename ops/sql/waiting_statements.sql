-- What hangs in the database? Statements that run for more than a second, and who blocks them.
SELECT pid, state, wait_event_type, wait_event, pg_blocking_pids(pid) AS blocked_by,
       date_trunc('milliseconds', clock_timestamp() - query_start) AS runs_for, left(query, 60) AS statement
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
  AND query_start < clock_timestamp() - interval '1 second'
ORDER BY query_start;
