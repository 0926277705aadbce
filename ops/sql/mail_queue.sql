-- Does mail leave? How many are owed by state and tries, and how long the oldest has waited.
SELECT state, kind, tries, count(*) AS mails,
       date_trunc('second', clock_timestamp() - min(owed_since)) AS oldest,
       date_trunc('second', min(due_at) - clock_timestamp()) AS next_due_in
FROM vestibule.mails
WHERE state IN ('queued', 'sending')
GROUP BY state, kind, tries
ORDER BY state, tries;
