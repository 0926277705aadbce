-- Does mail leave? How many are owed by state and attempt, and how long the oldest has waited.
SELECT state, kind, attempts, count(*) AS mails,
       date_trunc('second', clock_timestamp() - min(created_at)) AS oldest,
       date_trunc('second', min(due_at) - clock_timestamp()) AS next_due_in
FROM mails
WHERE state IN ('queued', 'sending')
GROUP BY state, kind, attempts
ORDER BY state, attempts;
