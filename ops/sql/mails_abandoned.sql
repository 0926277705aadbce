-- Are there mails whose worker is gone? Leases that ended more than a minute ago and that nobody has taken over:
-- no mail worker runs, or none reaches the database.
SELECT id, attempts, fence, date_trunc('second', clock_timestamp() - due_at) AS lease_over_for
FROM mails
WHERE state = 'sending' AND due_at < clock_timestamp() - interval '1 minute'
ORDER BY due_at
LIMIT 50;
