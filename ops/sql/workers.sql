-- Which API workers live? Each writes at least every ten seconds, and `leaving` ones have ended in order.
SELECT worker, version AS reports, leaving, totals = folded AS summed_up,
       date_trunc('second', clock_timestamp() - seen_at) AS silent_for
FROM vestibule.metrics_workers
WHERE worker <> '' AND seen_at > clock_timestamp() - interval '1 hour'
ORDER BY seen_at DESC;
