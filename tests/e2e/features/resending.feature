Feature: Asking for another code
  A mail can be late or lost, so another code can be had; the one before is worth nothing once the new one is there.

  Scenario: The new code replaces the old one
    Given a person who has registered
    And their mail has arrived
    When they ask for another code
    Then the answer is 202
    And it says when the next one can be had
    And they have received 2 mails
    When they activate with the code of their superseded mail
    Then the answer is 400 InvalidActivationCode
    And it says that the code was superseded, which cost no attempt
    When they activate with the code of their second mail
    Then the answer is 200

  Scenario: An active account needs no code
    Given a person with an active account
    When they ask for another code
    Then the answer is 409 UserAlreadyActivated

  Scenario: A stranger cannot have mails sent
    Given a person who has registered
    When a stranger asks for a code with a wrong password
    Then the answer is 401 InvalidCredentials
    And they have received 1 mail

  @strict
  Scenario: Not too often
    Given a person who has registered
    When they ask for another code
    Then the answer is 429 ResendTooSoon
    And it says when to try again
    When they wait as long as that
    And they ask for another code
    Then the answer is 202
    And they have received 2 mails

  @strict
  Scenario: Not too many
    Given a person who has registered
    When they ask for another code as soon as they may, 3 times
    Then they hear 202, 202, 429 CodesExhausted
    And it says when to try again
