@strict
Feature: Limits
  Nobody can use the service to flood others, to guess, or to lock an owner out.

  Scenario: Five registrations an hour for one client
    When 5 people register from one machine
    Then all hear 201 and how many are left
    When another person registers from there
    Then the answer is 429 RateLimitExceeded
    And it says when to try again
    And its headers say that nothing is left for up to an hour
    When the same person registers from another machine
    Then the answer is 201

  Scenario: Forwarded headers of a stranger change nothing
    When 5 people register from one machine
    And another person registers from there with a forwarded address
    Then the answer is 429 RateLimitExceeded

  Scenario: What is refused does not use up registrations
    When 7 forms with a bad address come from one machine
    Then all hear 422 InvalidEmail
    When another person registers from there
    Then the answer is 201

  Scenario: Three activations a minute for one address
    Given a person who has registered
    When they type a wrong code from 4 machines in turn
    Then they hear 400 InvalidActivationCode, 400 InvalidActivationCode, 400 InvalidActivationCode, 429 RateLimitExceeded
    And it says when to try again

  Scenario: Guessing locks the guesser out, not the owner
    Given a person who has registered
    When a stranger tries 3 wrong passwords
    Then all hear 401 InvalidCredentials
    When the stranger tries the right password
    Then the answer is 429 RateLimitExceeded
    And it says when to try again
    When they read their account
    Then the answer is 200

  Scenario: Wrong passwords are counted over all calls together
    Given a person who has registered
    When a stranger tries a wrong password at each call with a password
    Then they hear 401 InvalidCredentials, 401 InvalidCredentials, 401 InvalidCredentials, 429 RateLimitExceeded
