Feature: Signing up
  A person creates an account with an e-mail address and a password, and proves the address with a code from a mail.

  Scenario: From the form to the account
    Given a new person
    When they register
    Then the answer is 201
    And it shows the new account and nothing secret
    And their account waits for its code
    When they activate with the code of their mail
    Then the answer is 200
    And it says since when the account is active
    And their account is active
    And they have received 1 mail

  Scenario: The mail serves people and machines
    Given a person who has registered
    When their mail has arrived
    Then the code stands alone on a line of its text
    And the code is not in its subject
    And it says that a machine has sent it
    And it has an id of its own

  Scenario Outline: The mail speaks the person's language
    Given a new person
    When they register with the language "<chosen>" in a browser that speaks "<browser>"
    Then their mail greets them with "<greeting>"

    Examples:
      | chosen | browser         | greeting  |
      | de     |                 | Guten Tag |
      | de-AT  | en              | Guten Tag |
      |        | de-AT, en;q=0.5 | Guten Tag |
      | en     | de              | Hello     |
      |        | fr              | Hello     |

  @strict
  Scenario: A mail that is sent twice is the same mail
    Given a new person
    And a mail server that takes the next mail but cannot say so
    When they register
    Then they have received 2 mails
    And both have the same id and the same code
