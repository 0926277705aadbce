Feature: What the service tells operators, programs and people
  Health is for everybody; metrics and caught mails are for operators.

  Scenario: Health
    When somebody opens "/api/v1/health"
    Then the answer is 200
    And it says that everything is well
    When somebody opens "/livez"
    Then the answer is 200
    When somebody opens "/readyz"
    Then the answer is 200

  Scenario Outline: Pages for people load nothing from elsewhere
    When a browser opens "<path>"
    Then the answer is 200
    And it is a page that loads nothing from another host

    Examples:
      | path                          |
      | /                             |
      | /docs                         |
      | /dev/mail                     |
      | /problems/user-already-exists |

  Scenario: The front door for programs
    When a program opens "/"
    Then the answer is 200
    And it is a card with links that work

  Scenario: Metrics count what has happened
    Given a person with an active account
    Then the metrics count it within 2 seconds

  Scenario Outline: Without a token, operators' pages are for this machine only
    When somebody opens "<path>" <how>
    Then the answer is <answer>

    Examples:
      | path            | how                          | answer               |
      | /api/v1/metrics | from this machine            | 200                  |
      | /metrics        | from this machine            | 200                  |
      | /dev/mail       | from this machine            | 200                  |
      | /api/v1/metrics | through a proxy              | 403 OpsTokenRequired |
      | /metrics        | through a proxy              | 403 OpsTokenRequired |
      | /dev/mail       | through a proxy              | 403 OpsTokenRequired |
      | /dev/mail       | by the name of another host  | 403 OpsTokenRequired |
      | /metrics        | by the name of another host  | 403 OpsTokenRequired |

  @strict
  Scenario Outline: With a token, it is the token that counts
    When somebody opens "<path>" <how>
    Then the answer is <answer>

    Examples:
      | path            | how               | answer               |
      | /api/v1/metrics | from this machine | 401 OpsTokenRequired |
      | /api/v1/metrics | with the token    | 200                  |
      | /metrics        | with the token    | 200                  |
      | /metrics        | with a wrong one  | 401 OpsTokenRequired |
      | /dev/mail       | with the token    | 404 NotFound         |
      | /api/v1/health  | from this machine | 200                  |

  @strict
  Scenario: Guesses at the token are limited
    When somebody guesses at the token 11 times
    Then the answer is 429 RateLimitExceeded
    And it says when to try again
    When somebody opens "/metrics" with the token
    Then the answer is 200

  Scenario Outline: What is not there
    When somebody sends <method> to "<path>"
    Then the answer is <answer>

    Examples:
      | method  | path                      | answer               |
      | GET     | /nothing                  | 404 NotFound         |
      | POST    | /api/v1/users/register/   | 404 NotFound         |
      | GET     | //api/v1/health           | 404 NotFound         |
      | GET     | /static/..%2f..%2fapp.py  | 404 NotFound         |
      | GET     | /dev/mail/..%2fcode_keys  | 404 NotFound         |
      | GET     | /api/v1/users/register    | 405 MethodNotAllowed |
      | PUT     | /api/v1/users/register    | 405 MethodNotAllowed |
      | DELETE  | /api/v1/users/me          | 405 MethodNotAllowed |
      | TRACE   | /api/v1/users/me          | 405 MethodNotAllowed |
      | CONNECT | /api/v1/users/me          | 405 MethodNotAllowed |
      | FOO     | /livez                    | 405 MethodNotAllowed |
