Feature: Repeating a registration safely
  A client that has lost an answer repeats its request with the same Idempotency-Key and hears the answer again.

  Scenario: The same request again
    Given a new person
    When they register 3 times with the same key
    Then all answers are the same 201
    And they have received 1 mail

  @strict
  Scenario: A repeat uses no limit
    Given a new person
    When they register 7 times with the same key
    Then all answers are the same 201
    And they have received 1 mail

  Scenario: The same request 8 times at once
    Given a new person
    When they register 8 times at once with the same key
    Then all answers are the same 201
    And they have received 1 mail

  Scenario: Another request with the same key
    Given a new person
    When they register with a key and again with another password
    Then they hear 201, 409 IdempotencyKeyReused

  Scenario: The same key of another person
    When two people register with the same key
    Then they hear 201, 201

  Scenario: A refusal binds no key
    Given a new person
    When they register with a key and a weak password, and again with a good one
    Then they hear 422 WeakPassword, 201

  Scenario Outline: What is no key
    Given a new person
    When they register with the key "<key>"
    Then the answer is 422 ValidationError

    Examples:
      | key                                                               |
      | 01234567890123456789012345678901234567890123456789012345678901234 |
      | two words                                                         |
      | clé                                                               |
      |                                                                   |
