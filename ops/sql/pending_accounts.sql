-- Where do people hang? Accounts of the last day that are not active, by the state of their newest code.
SELECT code_mail,
       CASE WHEN code_expires_at > clock_timestamp() THEN 'alive' ELSE 'expired' END AS code,
       code_attempts AS wrong_attempts, count(*) AS accounts
FROM users
WHERE activated_at IS NULL AND shadow_of IS NULL AND registered_at > clock_timestamp() - interval '1 day'
GROUP BY 1, 2, 3
ORDER BY accounts DESC;
