Feature: Registering twice
  An address belongs to one account. Only a registration whose code is dead can be replaced, by whoever has the mailbox.

  Scenario: The address waits for its code
    Given a person who has registered
    When they register again
    Then the answer is 409 UserAlreadyExists
    And they have received 1 mail

  Scenario: The address has an active account, in whatever spelling
    Given a person with an active account
    When they register again in capitals
    Then the answer is 409 UserAlreadyExists

  Scenario: A dead code makes room for a new registration
    Given a person whose code is used up
    When they register again with a new password
    Then the answer is 201
    And their first password is refused
    When they activate with the code of their second mail
    Then the answer is 200
    And their account is active
    And their first password is refused

  Scenario: The code of the registration before is worth nothing
    Given a person whose code is used up
    When they register again with a new password
    And they activate with the code of their first mail
    Then the answer is 400 InvalidActivationCode
    And their account waits for its code

  Scenario: The status address of the registration before shows nothing any more
    Given a person whose code is used up
    When they register again with a new password
    Then the first status address is unknown
