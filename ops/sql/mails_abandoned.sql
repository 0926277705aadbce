-- Are there mails whose worker is gone? Leases that ended more than a minute ago, and no worker has claimed them since:
-- no mail worker runs, or none reaches the database.
SELECT id, tries, deaths, date_trunc('second', clock_timestamp() - due_at) AS lease_over_for
FROM vestibule.mails
WHERE state = 'sending' AND due_at < now() - interval '1 minute'
ORDER BY due_at
LIMIT 50;
