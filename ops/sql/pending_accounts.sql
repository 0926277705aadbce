-- Where do people hang? Accounts of the last day that are not active, by the state of their newest code.
SELECT newest.state AS code_mail,
       CASE WHEN newest.expires_at > clock_timestamp() THEN 'alive' ELSE 'expired' END AS code,
       newest.guesses AS wrong_guesses, count(*) AS accounts
FROM vestibule.accounts AS account
LEFT JOIN LATERAL (
    SELECT state, expires_at, guesses FROM vestibule.mails
    WHERE account_id = account.id AND kind = 'code' ORDER BY number DESC LIMIT 1
) AS newest ON true
WHERE activated_at IS NULL AND registered_at > clock_timestamp() - interval '1 day'
GROUP BY 1, 2, 3
ORDER BY accounts DESC;
