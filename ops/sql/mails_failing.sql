-- Why does mail not leave? Reasons of the last failures of owed mails, and of those owed for the last two days that died.
SELECT state, coalesce(reason, 'none yet') AS reason, count(*) AS mails, max(tries) AS most_tries,
       date_trunc('second', clock_timestamp() - min(owed_since)) AS oldest
FROM vestibule.mails
WHERE state IN ('queued', 'sending') AND tries > 0
   OR state = 'dead' AND owed_since > clock_timestamp() - interval '2 days'
GROUP BY state, coalesce(reason, 'none yet')
ORDER BY mails DESC
LIMIT 30;
