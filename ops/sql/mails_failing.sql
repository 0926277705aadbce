-- Why does mail not leave? Reasons of the last failures of owed mails, and of those given up within a day.
SELECT state, coalesce(reason, 'none yet') AS reason, count(*) AS mails, max(attempts) AS most_attempts,
       date_trunc('second', clock_timestamp() - min(created_at)) AS oldest
FROM mails
WHERE state IN ('queued', 'sending') AND attempts > 0
   OR state = 'dead' AND created_at > clock_timestamp() - interval '1 day'
GROUP BY state, coalesce(reason, 'none yet')
ORDER BY mails DESC
LIMIT 30;
