-- What happened? The business counters of the last fortnight. The metrics show their sums over all days.
SELECT day, sum(registrations) AS registrations, sum(activations) AS activations, sum(resends) AS resends,
       sum(mails_accepted) AS mails_accepted, sum(mails_dead) AS mails_dead, count(*) AS workers
FROM vestibule.business_counts
WHERE day > current_date - 14
GROUP BY day
ORDER BY day DESC;
