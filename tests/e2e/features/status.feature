Feature: Where a registration stands
  The owner asks with the password, a page asks by the status address; the address shows the state and nothing else.

  @strict
  Scenario: Until the mail is accepted, no time runs
    Given a new person
    When they register while the mail server is away
    Then their state is queued or sending and no time runs
    When the mail server is back
    Then their state becomes "accepted" and at most 4 seconds are left
    And their state becomes "expired" and at most 0 seconds are left
    When they wait until another code can be had
    And they ask for another code
    Then the answer is 202

  Scenario: The owner sees the address as well
    Given a person who has registered
    And their mail has arrived
    Then the owner's view and the public view agree, and only the owner's has the address

  Scenario: Used up
    Given a person whose code is used up
    Then their state becomes "exhausted" with 0 attempts left

  Scenario: Active
    Given a person with an active account
    Then their state becomes "activated" with 0 attempts left

  @strict
  Scenario: Undeliverable
    Given a new person
    When they register while the mail server knows nobody of that name
    Then their state becomes "undeliverable"
    When they register again
    Then the answer is 201

  Scenario Outline: Nobody guesses a status address
    Given a person who has registered
    When somebody opens their status address with <change>
    Then the answer is 404 NotFound

    Examples:
      | change                  |
      | its last character off  |
      | a bit flipped in front  |
      | a bit flipped at the end |
      | padding                 |
      | nothing but dashes      |
      | a slash at the end      |
