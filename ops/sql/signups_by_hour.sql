-- Do people get through? Accounts registered in each hour of the last day, and how many of them are active now.
SELECT date_trunc('hour', registered_at) AS hour, count(*) AS registered, count(activated_at) AS activated,
       round(100.0 * count(activated_at) / count(*), 1) AS percent,
       percentile_disc(0.5) WITHIN GROUP (ORDER BY date_trunc('second', activated_at - registered_at)) AS half_within
FROM vestibule.accounts
WHERE registered_at > clock_timestamp() - interval '1 day'
GROUP BY 1
ORDER BY 1 DESC;
